//! Jobs: steps in sandboxes of their own, with volumes that they share.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    pin::pin,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, BufReader},
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;

use super::{
    Host,
    cgroup::Cgroup,
    guard::{self, Excess},
    io_error,
    network::{self, Connection},
    spec::{File, Ids, Mount, Network, Spec, Tool, User},
};
use crate::{
    model::Timestamp,
    oci::tree::remove_tree,
    runtime::{
        Access, CNB_ID, Ended, Error, Job, JobId, LogLine, LogSink, LogStream, MAX_REPORT_BYTES, OWN_BINARY, Step,
        StepBlob, StepImage, StepNetwork, StepOutcome, StepUser, Trust, output::Lines,
    },
};

/// What a step may write outside of its volumes when nothing else is said, in bytes.
const SCRATCH_BYTES: u64 = 1 << 30;
const OPEN_FILES: u64 = 65_536;
/// How long a step that was told to end may take before its set-up is killed.
const END: Duration = Duration::from_secs(5);

pub(super) async fn run(
    host: &Arc<Host>,
    job: Job,
    log: LogSink,
    cancel: CancellationToken,
) -> Result<Vec<StepOutcome>, Error> {
    let mut outcomes = Vec::new();
    for step in job.steps {
        let started = Instant::now();
        let sandbox = tokio::select! {
            sandbox = Sandbox::new(host, &job.id, &step) => sandbox?,
            () = cancel.cancelled() => {
                let (ended, duration) = (Ended::Cancelled, started.elapsed());
                outcomes.push(StepOutcome { name: step.name, ended, duration, report: None });
                break;
            }
        };
        let outcome = sandbox.run(&step, &log, &cancel).await?;
        let ended = outcome.ended;
        outcomes.push(outcome);
        if ended != Ended::Exit(0) {
            break;
        }
    }
    Ok(outcomes)
}

/// Removes volumes and groups of a job, also of one whose daemon was killed.
pub(super) async fn discard(host: &Arc<Host>, job: &JobId) -> Result<(), Error> {
    let (host, job) = (Arc::clone(host), job.clone());
    let removed = tokio::task::spawn_blocking(move || {
        for name in host.cgroups.names().iter().filter(|name| name.starts_with(&format!("{job}-"))) {
            host.cgroups.existing(name).remove();
        }
        remove_busy(&folder(&host, &job))
    });
    removed
        .await
        .map_err(io::Error::other)
        .and_then(|result| result)
        .map_err(io_error("removing what is left of a staging"))
}

pub(super) fn left_over(host: &Host) -> Result<Vec<JobId>, Error> {
    let entries = fs::read_dir(host.data_dir.join("jobs")).map_err(io_error("looking for interrupted stagings"))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Removes a tree that a step, which ends as its daemon was killed, may still write to.
fn remove_busy(path: &Path) -> io::Result<()> {
    let until = Instant::now() + END;
    loop {
        match remove_tree(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

fn folder(host: &Host, job: &JobId) -> PathBuf {
    host.data_dir.join("jobs").join(job.as_str())
}

/// The sandbox of one step; what it needs of the machine goes when it is dropped.
struct Sandbox<'a> {
    host: &'a Arc<Host>,
    spec: Spec,
    spec_file: PathBuf,
    report: Option<PathBuf>,
    number: Option<u16>,
    cgroup: Cgroup,
}

impl<'a> Sandbox<'a> {
    async fn new(host: &'a Arc<Host>, job: &JobId, step: &Step) -> Result<Self, Error> {
        let folder = folder(host, job);
        let own = folder.join(format!("step-{}", step.name));
        let prepare = || io_error(&format!("preparing step {}", step.name));
        remove_tree(&own).map_err(prepare())?;
        let (stage, out) = (own.join("stage"), own.join("out"));
        fs::create_dir_all(&stage).map_err(prepare())?;
        let user = user_of(host, step.user);
        make_volume(host, &out, user).map_err(prepare())?;

        let (layers, mut env, cwd) = match &step.image {
            StepImage::Own => (Vec::new(), BTreeMap::new(), "/".to_owned()),
            StepImage::Image(image) => {
                let image = host.images.ready(image).await?;
                let cwd = image.config.config.working_dir.clone().unwrap_or_else(|| "/".to_owned());
                (image.layers, environment(image.config.config.env), cwd)
            }
        };
        env.extend(step.env.clone());
        let mut mounts = mounts(host, &folder, step).await.map_err(prepare())?;
        let report = step.report.as_ref().and_then(|report| report.rsplit_once('/'));
        if let Some((place, _)) = report {
            mounts.push(Mount { source: out.clone(), target: place.to_owned(), read_only: false });
        }
        // Nothing waits from here on: who holds these gives them back.
        let (number, network) = connect(host, step.network)?;
        let cgroup = host.cgroups.create(&format!("{job}-{}", step.name), &step.limits).map_err(prepare())?;
        let file = |file: &crate::runtime::StepFile| File { path: file.path.clone(), contents: file.contents.clone() };
        let spec = Spec {
            hostname: step.name.to_owned(),
            stage,
            layers,
            scratch_bytes: step.limits.scratch_bytes.unwrap_or(SCRATCH_BYTES),
            tool: Tool { source: host.own_binary.clone(), target: OWN_BINARY.to_owned() },
            mounts,
            files: step.files.iter().map(file).collect(),
            build_ca: host.build_ca.clone().filter(|_| step.trust == Trust::BuildCa),
            resolv_conf: network::resolv_conf(&host.connection),
            network,
            ids: host.ids,
            idmapped: host.idmapped,
            user,
            cgroups: cgroup.folders.clone(),
            max_processes: step.limits.pids.filter(|_| cgroup.folders.is_empty()),
            program: [OWN_BINARY.to_owned()].into_iter().chain(step.args.iter().cloned()).collect(),
            env,
            cwd,
            open_files: OPEN_FILES,
        };
        let report = report.map(|(_, name)| out.join(name));
        Ok(Self { host, spec, spec_file: own.join("spec.json"), report, number, cgroup })
    }

    async fn run(self, step: &Step, log: &LogSink, cancel: &CancellationToken) -> Result<StepOutcome, Error> {
        let started = Instant::now();
        let starting = || io_error(&format!("starting step {}", step.name));
        let spec = serde_json::to_vec(&self.spec).map_err(io::Error::other).map_err(starting())?;
        write_private(&self.spec_file, &spec).map_err(starting())?;
        let mut child = self.start().map_err(starting())?;
        // Open as long as this process lives: the step dies with it. (Waiting for the child would close it.)
        let lifeline = child.stdin.take();
        let pid = child.id().unwrap_or_default();
        let out = forward(child.stdout.take(), step.name, LogStream::Stdout, log);
        let err = forward(child.stderr.take(), step.name, LogStream::Stderr, log);
        let mut output = pin!(async { tokio::join!(out, err) });
        let excess = guard::watch(self.host, pid, step.limits.memory_bytes.filter(|_| self.cgroup.folders.is_empty()));
        let mut drained = false;
        let ended = {
            let ends = async {
                // Lines first: a log that is slow slows the step down, and nothing of it is lost.
                (&mut output).await;
                drained = true;
                child.wait().await.map(Ended::from)
            };
            tokio::select! {
                ended = ends => ended.map_err(starting())?,
                () = cancel.cancelled() => Ended::Cancelled,
                () = tokio::time::sleep(step.deadline) => Ended::Deadline,
                excess = excess => self.exceeded(excess, step, log).await,
            }
        };
        // For a step that still runs: the set-up sees its stdin end, kills the program, and ends.
        drop(lifeline);
        if !drained {
            let _ = tokio::time::timeout(END, async { tokio::join!(child.wait(), &mut output) }).await;
        }
        self.end(step, ended, started).await
    }

    fn start(&self) -> io::Result<Child> {
        Command::new(&self.host.own_binary)
            .args(["sandbox-init", "step"])
            .arg(&self.spec_file)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    async fn exceeded(&self, excess: Excess, step: &Step, log: &LogSink) -> Ended {
        let (ended, text) = match excess {
            Excess::Memory => (Ended::OutOfMemory, "stopped: it used more memory than its limit".to_owned()),
            Excess::Disk { left } => {
                let left = left >> 20;
                let place = self.host.data_dir.display();
                (Ended::Signal(9), format!("stopped: the disk of {place} is nearly full, {left} MiB are left"))
            }
            Excess::Files { left } => {
                let place = self.host.data_dir.display();
                (Ended::Signal(9), format!("stopped: the disk of {place} has room for {left} more files only"))
            }
        };
        let line = LogLine { origin: step.name.to_owned(), stream: LogStream::Note, at: Timestamp::now(), text };
        // Whoever does not read the log any more does not miss this either.
        let _ = log.try_send(line);
        ended
    }

    async fn end(self, step: &Step, ended: Ended, started: Instant) -> Result<StepOutcome, Error> {
        let failed = matches!(ended, Ended::Exit(code) if code != 0) || matches!(ended, Ended::Signal(_));
        let ended = if failed && self.cgroup.out_of_memory() > 0 { Ended::OutOfMemory } else { ended };
        let report = match &self.report {
            Some(report) => {
                read_report(report).map_err(io_error(&format!("reading the report of step {}", step.name)))?
            }
            None => None,
        };
        let duration = started.elapsed();
        let cgroup = self.cgroup.clone();
        // The last processes may need a moment to go. When this fails, dropping does it.
        let _ = tokio::task::spawn_blocking(move || cgroup.remove()).await;
        Ok(StepOutcome { name: step.name, ended, duration, report })
    }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        self.cgroup.remove();
        if let Some(number) = self.number {
            self.host.release(number);
        }
    }
}

/// Volumes and blobs of a step.
async fn mounts(host: &Host, folder: &Path, step: &Step) -> io::Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for volume in &step.volumes {
        let source = folder.join("volumes").join(&volume.volume);
        make_volume(host, &source, user_of(host, step.user))?;
        let read_only = volume.access == Access::ReadOnly;
        mounts.push(Mount { source, target: volume.path.clone(), read_only });
    }
    for StepBlob { digest, path, .. } in &step.blobs {
        let source = host.images.blob(digest).await.map_err(io::Error::other)?;
        let source = source.ok_or_else(|| io::Error::other(format!("blob {digest} is not there")))?;
        mounts.push(Mount { source, target: path.clone(), read_only: true });
    }
    Ok(mounts)
}

fn connect(host: &Host, wanted: StepNetwork) -> Result<(Option<u16>, Network), Error> {
    Ok(match (wanted, &host.connection) {
        (StepNetwork::None, _) => (None, Network::None),
        (StepNetwork::Outbound, Connection::Bridge(_)) => {
            let number = host.number()?;
            host.connection.open_firewalls();
            (Some(number), host.connection.network(number))
        }
        (StepNetwork::Outbound, Connection::Host) | (StepNetwork::Daemon, _) => (None, Network::Host),
    })
}

/// Whom a step runs as, inside.
fn user_of(host: &Host, user: StepUser) -> User {
    match user {
        StepUser::Root if matches!(host.ids, Ids::Range { .. }) => User::of(0),
        StepUser::Root | StepUser::Cnb => User::of(CNB_ID),
        StepUser::Image { uid, gid } => User { uid, gid },
    }
}

/// A folder that belongs to the CNB user inside. Root, who lays out what others build with, may give it away.
fn make_volume(host: &Host, path: &Path, user: User) -> io::Result<()> {
    let user = if user == User::of(0) { User::of(CNB_ID) } else { user };
    if path.exists() {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    // It is in layers: its mode must not depend on the umask of the daemon.
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    match host.on_disk(user) {
        Some(owner) => std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid)),
        None => Ok(()),
    }
}

fn environment(image: Option<Vec<String>>) -> BTreeMap<String, String> {
    let split = |entry: String| entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    image.unwrap_or_default().into_iter().filter_map(split).collect()
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

/// Gives lines on as they come, until the pipe ends. When nobody listens any more they are dropped.
async fn forward(pipe: Option<impl AsyncRead + Unpin>, origin: &str, stream: LogStream, log: &LogSink) {
    let Some(pipe) = pipe else { return };
    let mut lines = Lines::new(BufReader::new(pipe));
    while let Some(text) = lines.next().await {
        let _ = log.send(LogLine { origin: origin.to_owned(), stream, at: Timestamp::now(), text }).await;
    }
}

/// A report is what a step of foreign code left: a plain file of limited size, or nothing.
fn read_report(path: &Path) -> io::Result<Option<Vec<u8>>> {
    use std::{io::Read as _, os::unix::fs::OpenOptionsExt as _};
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ELOOP) => {
            return Ok(None);
        }
        // Sockets and the like cannot be opened, and are no reports.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        result => result?,
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(MAX_REPORT_BYTES + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= MAX_REPORT_BYTES).then_some(bytes))
}
