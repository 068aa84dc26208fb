//! A runtime with a data directory of its own, and an image with the guest in it.

use std::{
    collections::BTreeMap,
    env, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use epiniod::{
    blob::{Blobs as _, DiskBlobs},
    model::{Digest, ImageName, ReleaseId},
    oci::{Compression, ConfigFile, Descriptor, ExecutionConfig, LayerWriter, Manifest, RootFs},
    runtime::{
        Ended, InstanceState, Job, Limits, LogLine, LogQuery, Runtime as _, Step, StepImage, StepNetwork, StepOutcome,
        StepUser, Trust, Workload,
        local::{LocalConfig, LocalRuntime},
    },
};
use futures::StreamExt as _;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::callers::open_to_all;
pub use super::callers::{SmallDisk, as_root, rootless, rootless_on_a_small_disk, rootless_with};
use crate::support::epiniod;

/// Whatever is waited for takes milliseconds here; a busy machine may need longer.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Where the child of [`rootless`] finds programs that it may read.
pub const TOOLS: &str = "EPINIOD_TEST_PROGRAMS";

pub struct House {
    // In this order: what runs is ended before the runtime goes, which then takes everything away.
    _cleaner: Cleaner,
    pub runtime: Arc<LocalRuntime>,
    pub blobs: Arc<DiskBlobs>,
    pub image: ImageName,
    pub dir: TempDir,
}

/// Ends what is left of a test that failed.
struct Cleaner(PathBuf);

impl Drop for Cleaner {
    fn drop(&mut self) {
        // The monitor first, or it would start the program again; both are killed by the pids in its state.
        for state in glob(&self.0, 3).filter(|path| path.ends_with("state")) {
            let text = fs::read_to_string(state).unwrap_or_default();
            let words: Vec<&str> = text.split(' ').collect();
            let program = if words.get(2) == Some(&"running") { words.get(3) } else { None };
            for pid in words.first().into_iter().chain(program).filter_map(|pid| pid.parse().ok()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn glob(folder: &Path, depth: usize) -> Box<dyn Iterator<Item = PathBuf>> {
    let paths = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    if depth == 0 {
        return Box::new(std::iter::empty());
    }
    Box::new(paths.flat_map(move |path| glob(&path, depth - 1).chain([path])))
}

/// The guest, compiled once for each product that it is to start. It starts the product when it is not in a sandbox, from where that is.
pub fn guest() -> PathBuf {
    static GUEST: OnceLock<PathBuf> = OnceLock::new();
    GUEST.get_or_init(compile).clone()
}

fn compile() -> PathBuf {
    if let Some(tools) = env::var_os(TOOLS) {
        return Path::new(&tools).join("guest");
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/sandbox/guest.rs");
    let sources = [source.clone(), source.with_file_name("guest/http.rs")];
    let mut of = sources.map(|source| fs::read(source).expect("the source of the guest")).concat();
    of.extend(epiniod().into_bytes());
    let name = Digest::of(of).hex();
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("guest-{}", &name[..16]));
    if program.exists() {
        return program;
    }
    let temporary = program.with_extension(std::process::id().to_string());
    let status = Command::new("rustc")
        .args(["--edition", "2024", "-Ctarget-feature=+crt-static", "-Copt-level=s", "-Cstrip=symbols", "--target"])
        .arg(format!("{}-unknown-linux-gnu", env::consts::ARCH))
        .arg("-o")
        .arg(&temporary)
        .arg(source)
        .status();
    assert!(status.expect("rustc is there, where cargo is").success(), "the guest compiles");
    let link = program.with_extension("epiniod");
    if link.symlink_metadata().is_err() {
        std::os::unix::fs::symlink(epiniod(), link).expect("a link");
    }
    fs::rename(temporary, &program).expect("a name for the guest");
    program
}

impl House {
    pub async fn open() -> Self {
        let place = env::var_os("EPINIOD_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        Self::open_in(tempfile::Builder::new().prefix("epiniod-test-").tempdir_in(place).expect("a folder")).await
    }

    pub async fn open_in(dir: TempDir) -> Self {
        // Nobody else could get through a folder that only we may enter, and that is not what is tested.
        open_to_all(dir.path());
        let blobs = DiskBlobs::open(&dir.path().join("blobs")).expect("a blob store");
        let image = image(&blobs, "serve").await;
        let runtime = runtime(&dir, &blobs).await.expect("a runtime");
        let cleaner = Cleaner(dir.path().join("workloads"));
        Self { runtime, blobs, image, _cleaner: cleaner, dir }
    }

    /// Another daemon on the same data directory, after this one is gone.
    pub async fn reopen(self) -> Self {
        self.reopen_after(|| {}).await
    }

    /// As [`reopen`](Self::reopen), with something done in between.
    pub async fn reopen_after(self, between: impl FnOnce()) -> Self {
        let Self { runtime, blobs, image, _cleaner, dir } = self;
        drop(runtime);
        between();
        let runtime = self::runtime(&dir, &blobs).await.expect("a runtime");
        Self { runtime, blobs, image, _cleaner, dir }
    }

    pub async fn reopen_with_authorities(self, bundle: PathBuf) -> Self {
        let Self { runtime, blobs, image, _cleaner, dir } = self;
        drop(runtime);
        let config = LocalConfig { data_dir: dir.path().to_owned(), build_ca: Some(bundle), own_binary: guest() };
        let runtime = LocalRuntime::open(config, Arc::clone(&blobs) as _).await.expect("a runtime");
        Self { runtime, blobs, image, _cleaner, dir }
    }

    pub async fn run(&self, step: Step) -> (StepOutcome, Vec<LogLine>) {
        self.run_cancelled(step, CancellationToken::new()).await
    }

    pub async fn run_cancelled(&self, step: Step, cancel: CancellationToken) -> (StepOutcome, Vec<LogLine>) {
        let (mut outcomes, lines) = self.run_all(vec![step], cancel).await;
        (outcomes.pop().expect("an outcome"), lines)
    }

    pub async fn run_all(&self, steps: Vec<Step>, cancel: CancellationToken) -> (Vec<StepOutcome>, Vec<LogLine>) {
        let (sink, mut source) = tokio::sync::mpsc::channel(16);
        let id = "0123456789abcdef".parse().expect("a stage id");
        let collect = async {
            let mut lines = Vec::new();
            while let Some(line) = source.recv().await {
                lines.push(line);
            }
            lines
        };
        let (outcomes, lines) =
            tokio::join!(self.runtime.run(Job { id, steps, seen: Default::default() }, sink, cancel), collect);
        (outcomes.expect("the steps can be run"), lines)
    }

    pub async fn discard(&self) {
        self.runtime.discard(&"0123456789abcdef".parse().expect("a stage id")).await.expect("it can be removed");
    }

    /// A step whose guest tries something; what it said.
    pub async fn attempt(&self, step: Step) -> String {
        let (outcome, lines) = self.run(step).await;
        let said = text(&lines);
        assert_eq!(outcome.ended, Ended::Exit(0), "{said}");
        assert!(said.contains("refused"), "{said}");
        said
    }

    pub fn workload(&self, app: &str, number: u64) -> Workload {
        let id = ReleaseId { namespace: "workspace".parse().unwrap(), app: app.parse().unwrap(), number };
        let limits = Limits { memory_bytes: Some(256 << 20), pids: Some(64), ..Limits::default() };
        Workload { id, image: self.image.clone(), env: BTreeMap::new(), instances: 1, limits }
    }

    /// Starts a workload and waits until its instances are ready; where they are.
    pub async fn start(&self, workload: &Workload) -> Vec<SocketAddr> {
        self.runtime.apply(workload).await.expect("it can be started");
        self.ready(workload).await
    }

    pub async fn ready(&self, workload: &Workload) -> Vec<SocketAddr> {
        self.wait(workload, "all instances are ready", |states| {
            let address = |state: &InstanceState| match state {
                InstanceState::Ready { address } => Some(*address),
                _ => None,
            };
            let ready: Vec<_> = states.iter().filter_map(address).collect();
            (ready.len() == workload.instances as usize).then_some(ready)
        })
        .await
    }

    /// Waits until the states of the instances are as somebody wants them.
    pub async fn wait<T>(&self, workload: &Workload, what: &str, wanted: impl Fn(&[InstanceState]) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        let mut changes = self.runtime.changes();
        loop {
            let status = self.runtime.status(&workload.id).await.expect("a status").unwrap_or_default();
            let states: Vec<_> = status.instances.into_iter().map(|instance| instance.state).collect();
            if let Some(found) = wanted(&states) {
                return found;
            }
            if Instant::now() > until {
                panic!("waited for: {what}\n{states:#?}\n{}", text(&self.logs(workload).await));
            }
            let _ = tokio::time::timeout(Duration::from_millis(200), changes.changed()).await;
        }
    }

    /// Programs of an instance can still be started after a collection.
    pub async fn runtime_collects_nothing_that_runs(&self, address: SocketAddr) {
        self.runtime.collect(&[]).await.expect("a collection");
        let answer = ask(address, "attempt set-uid-program /set-uid-guest");
        assert!(answer.contains("it stayed who it was"), "{answer}");
    }

    pub async fn logs(&self, workload: &Workload) -> Vec<LogLine> {
        let query = LogQuery::default();
        let logs = self.runtime.logs(&workload.id.namespace, &workload.id.app, query).await;
        logs.expect("logs").collect().await
    }

    pub async fn wait_for_log(&self, workload: &Workload, wanted: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let said = text(&self.logs(workload).await);
            if said.contains(wanted) {
                return;
            }
            assert!(Instant::now() < until, "waited for {wanted:?} in the log:\n{said}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The end: everything is stopped, and nothing is left on the machine.
    pub async fn close(self) {
        for id in self.runtime.workloads().await.expect("workloads") {
            self.runtime.remove(&id, Duration::from_secs(5)).await.expect("it can be stopped");
        }
        self.discard().await;
        let path = self.dir.path().canonicalize().expect("it is there");
        drop(self._cleaner);
        drop(self.runtime);
        let until = Instant::now() + PATIENCE;
        loop {
            let left = left_over(&path);
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "left over: {left:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What is still there of a data directory: processes, mounts, interfaces, groups.
fn left_over(data_dir: &Path) -> Vec<String> {
    let name = data_dir.display().to_string();
    let identity = Digest::of(data_dir.as_os_str().as_encoded_bytes()).hex()[..8].to_owned();
    let mut left = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&name) {
            left.push(format!("process {:?}: {command}", process.file_name()));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    left.extend(mounts.lines().filter(|line| line.contains(&name)).map(str::to_owned));
    let interfaces = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    left.extend(interfaces.lines().filter(|line| line.contains(&identity)).map(str::to_owned));
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let group = hierarchy.path().join(format!("epiniod-{identity}"));
        if group.exists() {
            left.push(group.display().to_string());
        }
    }
    left
}

/// Steps run the program that the runtime is given: here the guest.
pub async fn runtime(dir: &TempDir, blobs: &Arc<DiskBlobs>) -> Result<Arc<LocalRuntime>, epiniod::runtime::Error> {
    let config = LocalConfig { data_dir: dir.path().to_owned(), build_ca: None, own_binary: guest() };
    LocalRuntime::open(config, Arc::clone(blobs) as _).await
}

/// A step of the guest, on nothing or on an image.
pub fn step<const N: usize>(image: StepImage, args: [&str; N]) -> Step {
    Step {
        name: "build",
        image,
        args: args.map(str::to_owned).to_vec(),
        env: BTreeMap::new(),
        files: Vec::new(),
        blobs: Vec::new(),
        volumes: Vec::new(),
        network: StepNetwork::None,
        user: StepUser::Cnb,
        trust: Trust::Image,
        limits: Limits { memory_bytes: Some(256 << 20), pids: Some(64), ..Limits::default() },
        report: None,
        deadline: PATIENCE,
    }
}

/// An image of the guest, that does one thing when it is started.
pub async fn image(blobs: &Arc<DiskBlobs>, command: &str) -> ImageName {
    let words: Vec<&str> = ["/guest"].into_iter().chain(command.split(' ')).collect();
    image_of(blobs, &words).await
}

/// An image with the guest in it, that starts this.
pub async fn image_of(blobs: &Arc<DiskBlobs>, command: &[&str]) -> ImageName {
    let (layer, bytes) = layer(&guest()).expect("a layer");
    put(blobs, bytes).await;
    let config = ConfigFile {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        config: ExecutionConfig {
            user: Some("1000:1000".to_owned()),
            env: Some(vec!["PATH=/usr/bin".to_owned(), "FROM_IMAGE=yes".to_owned()]),
            entrypoint: Some(vec![command[0].to_owned()]),
            cmd: Some(command[1..].iter().map(|word| (*word).to_owned()).collect()),
            working_dir: Some("/workspace".to_owned()),
            ..ExecutionConfig::default()
        },
        rootfs: RootFs { diff_ids: vec![layer.diff_id], ..RootFs::default() },
        ..ConfigFile::default()
    };
    let config = serde_json::to_vec(&config).expect("JSON");
    let media_type = epiniod::oci::MEDIA_TYPE_CONFIG;
    let descriptor = Descriptor::new(media_type, Digest::of(&config), config.len() as u64);
    put(blobs, config).await;
    let manifest = serde_json::to_vec(&Manifest::image(descriptor, vec![layer.blob])).expect("JSON");
    let digest = Digest::of(&manifest);
    put(blobs, manifest).await;
    ImageName::new("workspace/app", digest)
}

fn layer(guest: &Path) -> io::Result<(epiniod::oci::Layer, Vec<u8>)> {
    let mut tar = tar::Builder::new(LayerWriter::new(Compression::Zstd, Vec::new())?);
    let mut put = |name: &str, kind: tar::EntryType, mode: u32, owner: u64, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content)
    };
    let program = fs::read(guest)?;
    for folder in ["etc", "etc/ssl", "etc/ssl/certs", "usr", "usr/bin"] {
        put(folder, tar::EntryType::Directory, 0o755, 0, &[])?;
    }
    put("workspace", tar::EntryType::Directory, 0o755, 1000, &[])?;
    put("tmp", tar::EntryType::Directory, 0o1777, 0, &[])?;
    put("etc/passwd", tar::EntryType::Regular, 0o644, 0, b"root:x:0:0::/root:/bin/sh\ncnb:x:1000:1000::/home/cnb:/\n")?;
    put("etc/ssl/certs/ca-certificates.crt", tar::EntryType::Regular, 0o644, 0, b"those of the image\n")?;
    put("etc/secret", tar::EntryType::Regular, 0o600, 0, b"for root of the image\n")?;
    put("guest", tar::EntryType::Regular, 0o755, 0, &program)?;
    put("set-uid-guest", tar::EntryType::Regular, 0o4755, 0, &program)?;
    let (layer, bytes) = tar.into_inner()?.finish()?;
    Ok((layer, bytes))
}

pub async fn put(blobs: &Arc<DiskBlobs>, bytes: Vec<u8>) -> Digest {
    let mut writer = blobs.writer().await.expect("a writer");
    writer.write(bytes.into()).await.expect("written");
    writer.finish(None).await.expect("finished").digest
}

/// One line to an instance, and its answer.
pub fn ask(address: SocketAddr, line: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect_timeout(&address, PATIENCE).expect("it accepts connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(format!("{line}\n").as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

pub fn text(lines: &[LogLine]) -> String {
    lines.iter().map(|line| format!("{}\n", line.text)).collect()
}
