//! Steps of our own code alone, beside the daemon: a process for each, below a folder of the job.
//!
//! Detection by the embedded buildpacks reads files and runs nothing of the application, so it needs no pod, and what it
//! finds decides what the pod of the build is made of. The process has no environment but its own, no credential that the
//! step does not bring, and a deadline.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use tokio::{
    fs,
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
};
use tokio_util::sync::CancellationToken;

use super::Cluster;
use crate::{
    model::Timestamp,
    runtime::{
        DETECTION, Ended, Error, Job, LogLine, LogSink, LogStream, MAX_REPORT_BYTES, Step, StepImage, StepOutcome,
        output::Lines,
    },
};

/// Whether every step of a job is our own code.
pub(super) fn takes(job: &Job) -> bool {
    job.steps.iter().all(|step| matches!(step.image, StepImage::Own))
}

pub(super) async fn run(
    cluster: &Cluster,
    job: Job,
    log: &LogSink,
    cancel: &CancellationToken,
) -> Result<Vec<StepOutcome>, Error> {
    let root = cluster.settings.scratch.join(job.id.as_str());
    let outcomes = run_below(cluster, &root, &job, log, cancel).await;
    remove(&root).await?;
    outcomes
}

async fn run_below(
    cluster: &Cluster,
    root: &Path,
    job: &Job,
    log: &LogSink,
    cancel: &CancellationToken,
) -> Result<Vec<StepOutcome>, Error> {
    remove(root).await?;
    let mut outcomes = Vec::new();
    // A daemon before may have looked at the same source: it finds the same.
    let output = Output { log, seen: AtomicUsize::new(job.seen.get(DETECTION).copied().unwrap_or_default()) };
    for step in &job.steps {
        prepare(cluster, root, step).await?;
        let outcome = run_step(root, step, &output, cancel).await?;
        let ended = outcome.ended;
        outcomes.push(outcome);
        if ended != Ended::Exit(0) {
            break;
        }
    }
    Ok(outcomes)
}

async fn prepare(cluster: &Cluster, root: &Path, step: &Step) -> Result<(), Error> {
    let doing = || format!("preparing step {}", step.name);
    let io = |source| Error::Io { doing: doing(), source };
    for volume in &step.volumes {
        fs::create_dir_all(below(root, &volume.path)).await.map_err(io)?;
    }
    for file in &step.files {
        write(&below(root, &file.path), &file.contents).await.map_err(io)?;
    }
    if let Some(report) = &step.report {
        let report = below(root, report);
        fs::create_dir_all(report.parent().unwrap_or(root)).await.map_err(io)?;
        // Of the step before.
        let _ = fs::remove_file(&report).await;
    }
    for blob in &step.blobs {
        let path = below(root, &blob.path);
        let opened = cluster.blobs.open(&blob.digest, None).await;
        let opened =
            opened.map_err(|error| Error::Failed { doing: doing(), cause: crate::telemetry::chain(&error) })?;
        let gone = || Error::Failed { doing: doing(), cause: format!("blob {} is not there", blob.digest) };
        let mut content = opened.ok_or_else(gone)?.stream;
        write(&path, &[]).await.map_err(io)?;
        let mut file = fs::File::create(&path).await.map_err(io)?;
        while let Some(bytes) = content.next().await {
            file.write_all(&bytes.map_err(io)?).await.map_err(io)?;
        }
        file.flush().await.map_err(io)?;
    }
    Ok(())
}

async fn run_step(
    root: &Path,
    step: &Step,
    output: &Output<'_>,
    cancel: &CancellationToken,
) -> Result<StepOutcome, Error> {
    let starting = |source| Error::Io { doing: format!("starting step {}", step.name), source };
    let started = Instant::now();
    let mut child = Command::new("/proc/self/exe")
        .args(&step.args)
        .arg("--root")
        .arg(root)
        .env_clear()
        .envs(&step.env)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(starting)?;
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    let (out, err) = (output.forward(child.stdout.take()), output.forward(child.stderr.take()));
    let ended = tokio::select! {
        (status, ..) = async { tokio::join!(child.wait(), out, err) } => {
            status.map_err(starting)?.into()
        }
        () = cancel.cancelled() => Ended::Cancelled,
        () = tokio::time::sleep(step.deadline) => Ended::Deadline,
    };
    if let Some(group) = group {
        // Also what it left behind. When it is gone already, there is nobody.
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), nix::sys::signal::Signal::SIGKILL);
    }
    let report = match &step.report {
        Some(report) => read_report(&below(root, report)).await,
        None => None,
    };
    Ok(StepOutcome { name: step.name, ended, duration: started.elapsed(), report })
}

async fn read_report(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path).await.ok()?.take(MAX_REPORT_BYTES + 1).read_to_end(&mut bytes).await.ok()?;
    (bytes.len() as u64 <= MAX_REPORT_BYTES).then_some(bytes)
}

/// Where lines go, but for those that the log has already.
struct Output<'a> {
    log: &'a LogSink,
    seen: AtomicUsize,
}

impl Output<'_> {
    async fn forward(&self, pipe: Option<impl AsyncRead + Unpin>) {
        let Some(pipe) = pipe else { return };
        let mut lines = Lines::new(BufReader::new(pipe));
        while let Some(text) = lines.next().await {
            let skipped = self.seen.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |seen| seen.checked_sub(1));
            if skipped.is_err() {
                let line =
                    LogLine { origin: DETECTION.to_owned(), stream: LogStream::Stdout, at: Timestamp::now(), text };
                let _ = self.log.send(line).await;
            }
        }
    }
}

async fn write(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).await?;
    }
    fs::write(path, contents).await
}

/// A path of the sandbox, below the folder of the job.
fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

async fn remove(root: &Path) -> Result<(), Error> {
    let root = root.to_owned();
    let removed = tokio::time::timeout(
        Duration::from_secs(60),
        tokio::task::spawn_blocking(move || crate::oci::tree::remove_tree(&root)),
    );
    let io = |source| Error::Io { doing: "removing the files of a detection".to_owned(), source };
    match removed.await {
        Ok(Ok(result)) => result.map_err(io),
        Ok(Err(error)) => Err(io(std::io::Error::other(error))),
        Err(_) => Err(io(std::io::ErrorKind::TimedOut.into())),
    }
}
