//! Jobs: steps in sandboxes of their own, with volumes that they share.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Instant,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;

use super::{
    Host, io_error,
    network::Connection,
    spec::{File, Mount, Network, Spec},
};
use crate::{
    model::Timestamp,
    oci::tree::remove_tree,
    runtime::{
        Access, CNB_ID, Ended, Error, Job, JobId, LogLine, LogSink, LogStream, MAX_REPORT_BYTES, OWN_BINARY, Step,
        StepBlob, StepImage, StepNetwork, StepOutcome, StepUser, Trust,
    },
};

/// Longer lines are cut in pieces, in bytes.
const LINE_BYTES: u64 = 16 << 10;
/// What a step may write outside of its volumes when nothing else is said, in bytes.
const SCRATCH_BYTES: u64 = 1 << 30;
const OPEN_FILES: u64 = 65_536;

pub(super) async fn run(
    host: &Arc<Host>,
    job: Job,
    log: LogSink,
    cancel: CancellationToken,
) -> Result<Vec<StepOutcome>, Error> {
    let mut outcomes = Vec::new();
    for step in job.steps {
        let outcome = Sandbox::new(host, &job.id, &step).await?.run(&step, &log, &cancel).await?;
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
        remove_tree(&folder(&host, &job))
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
    cgroup: super::cgroup::Cgroup,
}

impl<'a> Sandbox<'a> {
    async fn new(host: &'a Arc<Host>, job: &JobId, step: &Step) -> Result<Self, Error> {
        let folder = folder(host, job);
        let own = folder.join(format!("step-{}", step.name));
        let prepare = || io_error(&format!("preparing step {}", step.name));
        remove_tree(&own).map_err(prepare())?;
        let (stage, out) = (own.join("stage"), own.join("out"));
        fs::create_dir_all(&stage).map_err(prepare())?;
        make_volume(host, &out).map_err(prepare())?;

        let (layers, mut env, cwd) = match &step.image {
            StepImage::Own => (Vec::new(), BTreeMap::new(), "/".to_owned()),
            StepImage::Image(image) => {
                let image = host.images.ready(image).await?;
                let cwd = image.config.config.working_dir.clone().unwrap_or_else(|| "/".to_owned());
                (image.layers, environment(image.config.config.env), cwd)
            }
        };
        env.extend(step.env.clone());
        let mut mounts = Vec::new();
        for volume in &step.volumes {
            let source = folder.join("volumes").join(&volume.volume);
            make_volume(host, &source).map_err(prepare())?;
            mounts.push(Mount {
                source,
                target: volume.path.clone(),
                read_only: volume.access == Access::ReadOnly,
                shifted: true,
            });
        }
        for blob in &step.blobs {
            mounts.push(blob_mount(host, blob).map_err(prepare())?);
        }
        let report = step.report.as_ref().and_then(|report| report.rsplit_once('/'));
        if let Some((place, _)) = report {
            mounts.push(Mount { source: out.clone(), target: place.to_owned(), read_only: false, shifted: true });
        }
        let number = match (&host.connection, step.network) {
            (Connection::Bridge(_), StepNetwork::Outbound) => Some(host.number()?),
            _ => None,
        };
        let network = match (step.network, number) {
            (StepNetwork::None, _) => Network::None,
            (StepNetwork::Outbound, Some(number)) => host.connection.network(number),
            _ => Network::Host,
        };
        let user = if step.user == StepUser::Root && matches!(host.ids, super::Ids::Range { .. }) { 0 } else { CNB_ID };
        let cgroup = host.cgroups.create(&format!("{job}-{}", step.name), &step.limits).map_err(prepare())?;
        let mut program = vec![OWN_BINARY.to_owned()];
        program.extend(step.args.iter().cloned());
        let spec = Spec {
            hostname: step.name.to_owned(),
            stage,
            layers,
            scratch_bytes: step.limits.scratch_bytes.unwrap_or(SCRATCH_BYTES),
            own_binary: host.own_binary.clone(),
            mounts,
            files: step
                .files
                .iter()
                .map(|file| File { path: file.path.clone(), contents: file.contents.clone() })
                .collect(),
            build_ca: host.build_ca.clone().filter(|_| step.trust == Trust::BuildCa),
            resolv_conf: host.resolv_conf.clone(),
            network,
            ids: host.ids,
            uid: user,
            gid: user,
            cgroups: cgroup.folders.clone(),
            program,
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
        write_private(&self.spec_file, &serde_json::to_vec(&self.spec).map_err(io::Error::other).map_err(starting())?)
            .map_err(starting())?;
        let mut child = Command::new(&self.host.own_binary)
            .args(["sandbox-init", "step"])
            .arg(&self.spec_file)
            .env_clear()
            // Open as long as this process lives: the step dies with it.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(starting())?;
        // Waiting for the child would close it.
        let lifeline = child.stdin.take();
        let out = forward(child.stdout.take(), step.name, LogStream::Stdout, log);
        let err = forward(child.stderr.take(), step.name, LogStream::Stderr, log);
        let ended = tokio::select! {
            (ended, (), ()) = async { tokio::join!(wait(&mut child), out, err) } => ended.map_err(starting())?,
            () = cancel.cancelled() => Ended::Cancelled,
            () = tokio::time::sleep(step.deadline) => Ended::Deadline,
        };
        if matches!(ended, Ended::Cancelled | Ended::Deadline) {
            // The set-up sees its stdin end, kills the program, and ends.
            drop(lifeline);
            let _ = tokio::time::timeout(std::time::Duration::from_secs(5), child.wait()).await;
        }
        let failed = !matches!(ended, Ended::Exit(0) | Ended::Cancelled | Ended::Deadline);
        let ended = if failed && self.cgroup.out_of_memory() > 0 { Ended::OutOfMemory } else { ended };
        let report = match &self.report {
            Some(report) => {
                read_report(report).map_err(io_error(&format!("reading the report of step {}", step.name)))?
            }
            None => None,
        };
        Ok(StepOutcome { name: step.name, ended, duration: started.elapsed(), report })
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

/// A folder that belongs to the CNB user inside.
fn make_volume(host: &Host, path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    match host.ids {
        super::Ids::Range { .. } => std::os::unix::fs::chown(path, Some(CNB_ID), Some(CNB_ID)),
        super::Ids::Caller => Ok(()),
    }
}

/// Blobs belong to root, who inside is another root: with shifted ids they are that one's.
fn blob_mount(host: &Host, blob: &StepBlob) -> io::Result<Mount> {
    let found = host.images.blob(&blob.digest);
    let source = found.ok_or_else(|| io::Error::other(format!("blob {} is not there", blob.digest)))?;
    Ok(Mount { source, target: blob.path.clone(), read_only: true, shifted: true })
}

fn environment(image: Option<Vec<String>>) -> BTreeMap<String, String> {
    let split = |entry: String| entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    image.unwrap_or_default().into_iter().filter_map(split).collect()
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

async fn wait(child: &mut Child) -> io::Result<Ended> {
    use std::os::unix::process::ExitStatusExt as _;
    let status = child.wait().await?;
    Ok(status.code().map_or_else(|| Ended::Signal(status.signal().unwrap_or(9)), Ended::Exit))
}

/// Gives lines on as they come. Ends with the pipe, or when nobody listens any more.
async fn forward(pipe: Option<impl AsyncRead + Unpin>, origin: &str, stream: LogStream, log: &LogSink) {
    use tokio::io::AsyncReadExt as _;
    let Some(pipe) = pipe else { return };
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LINE_BYTES).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        while line.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            line.pop();
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        if log.send(LogLine { origin: origin.to_owned(), stream, at: Timestamp::now(), text }).await.is_err() {
            return;
        }
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
        result => result?,
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(MAX_REPORT_BYTES + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= MAX_REPORT_BYTES).then_some(bytes))
}
