//! The audit log: who changed what, when, from where, and how that ended.
//!
//! One JSON line for each change, written before its answer goes out; no bodies, no secrets, no names that a stranger made up.
//! On one machine it is `audit.jsonl` of the data directory, in a few files of bounded size. The disk of a pod goes with the pod:
//! in a cluster it is part of the daemon's log, under the target `epiniod::audit`, which no filter leaves out.
//!
//! A line that cannot be written goes to the log instead, as an error, and the change is done: on a disk that is full nothing
//! could be deleted otherwise. It is not synced: what it is about is, and a line would cost as much as the change.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::Serialize;

use super::ClientAddress;
use crate::{model::Timestamp, telemetry::request_id};

/// The file in the data directory.
pub const FILE: &str = "audit.jsonl";
/// A file that is so large is put aside, in bytes.
const LARGE: u64 = 8 << 20;
/// How many of them are kept.
const KEPT: usize = 8;
/// How many failed logins are written in a minute: strangers could fill the log with them.
const FAILURES: u32 = 60;
/// How much of a file is read for its last lines, in bytes.
const READ_BACK: u64 = 1 << 20;

/// Where it is written.
pub struct Audit {
    target: Target,
    failures: Mutex<Failures>,
}

enum Target {
    Nowhere,
    Log,
    Files(Mutex<Files>),
}

/// One line.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    pub time: Timestamp,
    pub user: Option<String>,
    /// The name of the token that was shown in place of a password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    pub action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub address: IpAddr,
    /// The proxy that named the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
    pub request_id: String,
    /// None where the client did not wait for the answer.
    pub status: Option<u16>,
    /// How long nothing more from there is looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<u64>,
    /// Failed logins before this one that have no line of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unwritten: Option<u64>,
}

impl Entry {
    /// A line about the request that goes on.
    pub fn new(action: impl Into<String>, from: ClientAddress) -> Self {
        Self {
            time: Timestamp::now(),
            user: None,
            token: None,
            action: action.into(),
            namespace: None,
            name: None,
            address: from.address,
            via: from.via,
            request_id: request_id(),
            status: None,
            wait_seconds: None,
            unwritten: None,
        }
    }
}

impl Audit {
    /// For who has nothing to account for.
    pub fn nowhere() -> Self {
        Self::to(Target::Nowhere)
    }

    /// Into the daemon's log.
    pub fn to_log() -> Self {
        Self::to(Target::Log)
    }

    /// Into files of this directory.
    pub fn to_files(directory: &Path) -> io::Result<Self> {
        Ok(Self::to(Target::Files(Mutex::new(Files::open(directory.join(FILE), LARGE)?))))
    }

    fn to(target: Target) -> Self {
        Self { target, failures: Mutex::default() }
    }

    pub fn write(&self, entry: &Entry) {
        match &self.target {
            Target::Nowhere => {}
            Target::Log => tell(entry),
            Target::Files(files) => {
                let Ok(line) = serde_json::to_string(entry) else { return };
                let result = files.lock().unwrap_or_else(PoisonError::into_inner).append(&line);
                if let Err(error) = result {
                    tracing::error!(%error, line, "the audit log cannot be written; this line is here instead");
                }
            }
        }
    }

    /// A login that failed. Only so many in a minute are written, the others are counted.
    pub(super) fn write_failure(&self, mut entry: Entry) {
        let minute = entry.time.as_second() / 60;
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(unwritten) = failures.admit(minute) else { return };
        entry.unwritten = (unwritten > 0).then_some(unwritten);
        drop(failures);
        self.write(&entry);
    }

    /// The last lines, the newest last. None where it is in the daemon's log.
    pub fn last(&self, lines: usize) -> io::Result<Option<Vec<String>>> {
        match &self.target {
            Target::Files(files) => {
                let path = files.lock().unwrap_or_else(PoisonError::into_inner).path.clone();
                last_lines(&path, lines).map(Some)
            }
            Target::Nowhere | Target::Log => Ok(None),
        }
    }
}

fn tell(entry: &Entry) {
    tracing::info!(
        target: "epiniod::audit",
        user = entry.user.as_deref(),
        token = entry.token.as_deref(),
        action = entry.action,
        namespace = entry.namespace.as_deref(),
        name = entry.name.as_deref(),
        address = %entry.address,
        via = entry.via.map(tracing::field::display),
        request.id = entry.request_id,
        status = entry.status,
        wait_seconds = entry.wait_seconds,
        unwritten = entry.unwritten,
        "audit"
    );
}

#[derive(Default)]
struct Failures {
    minute: i64,
    written: u32,
    unwritten: u64,
}

impl Failures {
    /// How many were not written before this one; none when this one is not, either.
    fn admit(&mut self, minute: i64) -> Option<u64> {
        if self.minute != minute {
            (self.minute, self.written) = (minute, 0);
        }
        if self.written >= FAILURES {
            self.unwritten += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.unwritten))
    }
}

/// The file that is written, and those before it: `audit.jsonl.1` is the newest of them.
struct Files {
    path: PathBuf,
    file: File,
    size: u64,
    large: u64,
}

impl Files {
    fn open(path: PathBuf, large: u64) -> io::Result<Self> {
        let file = open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size, large })
    }

    fn append(&mut self, line: &str) -> io::Result<()> {
        if self.size >= self.large {
            for number in (1..KEPT - 1).rev() {
                // There may be none yet.
                let _ = fs::rename(numbered(&self.path, number), numbered(&self.path, number + 1));
            }
            fs::rename(&self.path, numbered(&self.path, 1))?;
            (self.file, self.size) = (open(&self.path)?, 0);
        }
        // At once, or a line could be in two parts.
        let line = format!("{line}\n");
        self.size += line.len() as u64;
        self.file.write_all(line.as_bytes())
    }
}

fn open(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn numbered(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn last_lines(path: &Path, wanted: usize) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    for number in 0..KEPT {
        let path = if number == 0 { path.to_owned() } else { numbered(path, number) };
        let text = match end_of(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            text => text?,
        };
        let more = text.lines().rev().take(wanted - lines.len()).map(str::to_owned);
        lines.extend(more);
        if lines.len() >= wanted {
            break;
        }
    }
    lines.reverse();
    Ok(lines)
}

/// Whole lines.
fn end_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let begin = file.metadata()?.len().saturating_sub(READ_BACK);
    file.seek(io::SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(READ_BACK).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match text.split_once('\n') {
        Some((_, rest)) if begin > 0 => Ok(rest.to_owned()),
        _ => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn entry(name: &str) -> Entry {
        let from = ClientAddress::direct(IpAddr::from([192, 0, 2, 1]));
        Entry { name: Some(name.to_owned()), status: Some(200), ..Entry::new("app.delete", from) }
    }

    #[test]
    fn files_are_few_bounded_and_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let files = Files::open(path.clone(), 1000).unwrap();
        let audit = Audit::to(Target::Files(Mutex::new(files)));
        for number in 0..200 {
            audit.write(&entry(&format!("app-{number}")));
        }
        let found: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(found.len(), KEPT);
        for file in found {
            let metadata = file.metadata().unwrap();
            assert!(metadata.len() < 1400, "{:?} has {}", file.path(), metadata.len());
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        }
        // Across the end of a file, in order, and no more than was asked for.
        let last = audit.last(12).unwrap().unwrap();
        let names: Vec<String> = last
            .iter()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, (188..200).map(|number| format!("app-{number}")).collect::<Vec<_>>());
        // The next daemon goes on with it.
        Audit::to(Target::Files(Mutex::new(Files::open(path.clone(), 1000).unwrap()))).write(&entry("later"));
        assert!(fs::read_to_string(&path).unwrap().ends_with("\n"));
        assert!(last_lines(&path, 1).unwrap()[0].contains("later"));
    }

    #[derive(Clone, Default)]
    struct Lines(std::sync::Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged meanwhile, as JSON.
    fn logged(what: impl FnOnce()) -> serde_json::Value {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone());
        tracing::subscriber::with_default(subscriber.finish(), what);
        serde_json::from_slice(&lines.0.lock().unwrap()).unwrap()
    }

    #[test]
    fn a_line_that_finds_no_place_is_in_the_log() {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let files = Files { path: "/dev/full".into(), file: full, size: 0, large: LARGE };
        let audit = Audit::to(Target::Files(Mutex::new(files)));
        let said = logged(|| audit.write(&entry("shop")));
        assert_eq!(said["level"], "ERROR");
        let line: serde_json::Value = serde_json::from_str(said["line"].as_str().unwrap()).unwrap();
        assert_eq!(line["name"], "shop", "{said}");
    }

    #[test]
    fn in_a_cluster_a_line_is_an_event_with_fields() {
        let audit = Audit::to_log();
        let line = logged(|| audit.write(&entry("shop")));
        assert_eq!((&line["target"], &line["action"]), (&"epiniod::audit".into(), &"app.delete".into()), "{line}");
        assert_eq!((&line["name"], &line["address"]), (&"shop".into(), &"192.0.2.1".into()), "{line}");
        assert_eq!((&line["status"], line.get("user")), (&200.into(), None), "{line}");
        assert!(audit.last(1).unwrap().is_none());
    }

    #[test]
    fn failed_logins_do_not_fill_the_log_and_are_counted() {
        let mut failures = Failures::default();
        let written = (0..1000).filter(|_| failures.admit(7).is_some()).count();
        assert_eq!(written, FAILURES as usize);
        assert_eq!(failures.admit(8), Some(1000 - u64::from(FAILURES)));
        assert_eq!(failures.admit(8), Some(0));
    }
}
