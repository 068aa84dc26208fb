//! The role inside the containers of a build: fetches what the step reads, starts its program, and says how it ended.
//!
//! It is the first process of its container, so it collects whatever its program leaves behind. In the container of the
//! build there is nothing secret for it to know: its specification has no credential, and neither has its environment.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Command, ExitCode, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid, waitpid},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::runtime::OWN_BINARY;

/// The argument that makes a process one of these.
pub(super) const ROLE: &str = "kube-step";
/// Where a container finds its specification.
pub(super) const SPECIFICATION: &str = "/run/epiniod-step/step.json";
/// Where Kubernetes reads the last words of a container, and how many bytes it takes.
const MESSAGE: &str = "/dev/termination-log";
const MESSAGE_BYTES: usize = 4096;
/// What ends by its deadline ends with this code, as `timeout` does.
const LATE: u8 = 124;
/// How long the daemon may take to answer, and to send the next part of a blob.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a blob is asked for: the daemon may be starting again.
const ATTEMPTS: u32 = 10;

/// One step, as its container gets it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Specification {
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Path and text of files to write.
    pub files: BTreeMap<String, String>,
    pub blobs: Vec<Fetch>,
    pub report: Option<String>,
    pub deadline_seconds: u64,
    /// Whether our own program is copied to where the other steps start it.
    pub tool: Tool,
}

/// A blob of the daemon's, and where it goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Fetch {
    /// `host:port` of the daemon.
    pub from: String,
    /// The path of the request.
    pub resource: String,
    /// The file with the credential.
    pub token: String,
    pub path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Tool {
    Provide,
    Use,
}

/// The last words of a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Ending {
    pub millis: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<serde_json::Value>,
}

/// Runs this process as one of these, when its arguments say so. Call it before anything starts a thread.
pub fn run_role() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != ROLE {
        return None;
    }
    let path = args.next()?;
    Some(run(Path::new(&path)).unwrap_or_else(|error| {
        eprintln!("ERROR: {error}");
        let report = serde_json::json!({ "cause": error.to_string(), "code": 1 });
        leave(&Ending { report: Some(report), ..Ending::default() });
        ExitCode::FAILURE
    }))
}

fn run(path: &Path) -> io::Result<ExitCode> {
    let step: Specification = serde_json::from_slice(&fs::read(path)?)?;
    if step.tool == Tool::Provide {
        fs::copy("/proc/self/exe", OWN_BINARY).map_err(doing("copying our own program for the build"))?;
    }
    for (path, text) in &step.files {
        write(Path::new(path), text)?;
    }
    for blob in &step.blobs {
        fetch(blob)?;
    }
    if let Some(folder) = step.report.as_ref().and_then(|report| Path::new(report).parent()) {
        fs::create_dir_all(folder).map_err(doing("making the folder of the report"))?;
    }
    let started = Instant::now();
    let late = Arc::new(AtomicBool::new(false));
    let status = start(&step, &late)?;
    let late = late.load(Ordering::SeqCst);
    let report = step.report.as_ref().and_then(|report| fs::read(report).ok());
    leave(&Ending {
        millis: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        signal: status.signal().filter(|_| !late),
        late,
        report: report.and_then(|text| serde_json::from_slice(&text).ok()),
    });
    Ok(ExitCode::from(if late { LATE } else { code_of(status) }))
}

fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(1)
}

/// Starts the program and waits for it, and for every orphan meanwhile.
fn start(step: &Specification, late: &Arc<AtomicBool>) -> io::Result<ExitStatus> {
    // What the cluster tells every container says something of it, and would make builds depend on where they run.
    let inherited = std::env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        !name.starts_with("KUBERNETES_") && name != "HOSTNAME"
    });
    let child = Command::new("/proc/self/exe")
        .args(&step.args)
        .env_clear()
        .envs(inherited)
        .envs(&step.env)
        .process_group(0)
        .spawn()
        .map_err(doing("starting the step"))?;
    let mut child = child;
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("process ids fit"));
    let (late, deadline) = (Arc::clone(late), Duration::from_secs(step.deadline_seconds));
    std::thread::spawn(move || {
        std::thread::sleep(deadline);
        late.store(true, Ordering::SeqCst);
        let _ = kill(Pid::from_raw(-pid.as_raw()), Signal::SIGKILL);
    });
    loop {
        // Whoever ends is looked at first and collected then: the status of the program belongs to its handle.
        let ended = waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
        match ended.pid() {
            Some(ended) if ended != pid => {
                let _ = waitpid(ended, None);
            }
            _ => return child.wait(),
        }
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let name = path.display().to_string();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(doing(&format!("making the folder of {name}")))?;
    }
    fs::write(path, text).map_err(doing(&format!("writing {name}")))
}

fn fetch(blob: &Fetch) -> io::Result<()> {
    let token = fs::read_to_string(&blob.token).map_err(doing("reading the token"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut attempt = 1;
        loop {
            match fetch_once(blob, token.trim()).await {
                Err(error) if attempt < ATTEMPTS && error.kind() != io::ErrorKind::PermissionDenied => {
                    eprintln!("the daemon at {} does not answer ({error}); trying again", blob.from);
                    tokio::time::sleep(Duration::from_secs(u64::from(attempt.min(5)))).await;
                    attempt += 1;
                }
                result => {
                    return result.map_err(doing(&format!("fetching the source from the daemon at {}", blob.from)));
                }
            }
        }
    })
}

async fn fetch_once(blob: &Fetch, token: &str) -> io::Result<()> {
    use tokio::io::AsyncWriteExt as _;
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it does not answer in time");
    let stream = tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(&blob.from)).await.map_err(late)??;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let request = Request::get(&blob.resource)
        .header("host", &blob.from)
        .header("authorization", format!("Bearer {token}"))
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let response = tokio::time::timeout(PATIENCE, sender.send_request(request)).await.map_err(late)?;
    let response = response.map_err(io::Error::other)?;
    let status = response.status();
    if !status.is_success() {
        // What is not found is not found by somebody else, at an address that was the daemon's.
        let is_refusal = status.is_client_error() && status != StatusCode::NOT_FOUND;
        let kind = if is_refusal { io::ErrorKind::PermissionDenied } else { io::ErrorKind::Other };
        return Err(io::Error::new(kind, format!("it answers {status}")));
    }
    let mut body = response.into_body();
    let mut file = tokio::fs::File::create(&blob.path).await?;
    while let Some(frame) = tokio::time::timeout(PATIENCE, body.frame()).await.map_err(late)? {
        if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
            file.write_all(&data).await?;
        }
    }
    file.flush().await
}

/// Leaves the last words, cut to what is taken. Whoever reads nothing there has the exit code.
fn leave(ending: &Ending) {
    let _ = fs::write(MESSAGE, fitting(ending));
}

/// JSON of at most so many bytes: the longest text in the report is cut until it fits.
fn fitting(ending: &Ending) -> Vec<u8> {
    let mut ending = ending.clone();
    loop {
        let text = serde_json::to_vec(&ending).unwrap_or_default();
        if text.len() <= MESSAGE_BYTES {
            return text;
        }
        if !ending.report.as_mut().is_some_and(|report| cut_longest(report) || cut_list(report)) {
            ending.report = None;
        }
    }
}

/// Cuts the longest text in half; false when there is none to cut.
fn cut_longest(value: &mut serde_json::Value) -> bool {
    let mut texts = Vec::new();
    collect_texts(value, &mut texts);
    let Some(longest) = texts.into_iter().max_by_key(|text| text.len()).filter(|text| text.len() > 64) else {
        return false;
    };
    let half = longest.chars().count() / 2;
    *longest = longest.chars().take(half).chain(['…']).collect();
    true
}

/// Cuts the first list that has something in it in half; false when there is none.
fn cut_list(value: &mut serde_json::Value) -> bool {
    match value {
        serde_json::Value::Array(values) if !values.is_empty() => {
            values.truncate(values.len() / 2);
            true
        }
        serde_json::Value::Object(values) => values.values_mut().any(cut_list),
        _ => false,
    }
}

fn collect_texts<'a>(value: &'a mut serde_json::Value, texts: &mut Vec<&'a mut String>) {
    match value {
        serde_json::Value::String(text) => texts.push(text),
        serde_json::Value::Array(values) => values.iter_mut().for_each(|value| collect_texts(value, texts)),
        serde_json::Value::Object(values) => values.values_mut().for_each(|value| collect_texts(value, texts)),
        _ => {}
    }
}

fn doing(what: &str) -> impl FnOnce(io::Error) -> io::Error + use<> {
    let what = what.to_owned();
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_fit_and_keep_what_is_short() {
        let report = serde_json::json!({ "cause": "x".repeat(10_000), "code": 51, "buildpack": { "id": "a/b" } });
        let text = fitting(&Ending { millis: 7, report: Some(report), ..Ending::default() });
        assert!(text.len() <= MESSAGE_BYTES, "{}", text.len());
        let read: Ending = serde_json::from_slice(&text).unwrap();
        let report = read.report.unwrap();
        assert_eq!((&report["code"], &report["buildpack"]["id"]), (&51.into(), &"a/b".into()));
        assert!(report["cause"].as_str().unwrap().starts_with("xxx"));

        let report = serde_json::json!({ "image": "a@b", "warnings": vec!["short"; 5000] });
        let text = fitting(&Ending { report: Some(report), ..Ending::default() });
        let read: Ending = serde_json::from_slice(&text).unwrap();
        assert!(text.len() <= MESSAGE_BYTES && read.report.unwrap()["image"] == "a@b");
    }
}
