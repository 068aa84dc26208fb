//! Logs of instances: files that monitors write, read as one stream.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::stream::{BoxStream, StreamExt as _, unfold};

use super::{Host, instances::Instances, instances::Local};
use crate::{
    model::{AppName, Namespace, Timestamp},
    runtime::{LogLine, LogQuery, LogStream},
};

/// How often files are looked at for more.
const INTERVAL: Duration = Duration::from_millis(200);
/// Logs of instances that are gone that are kept for each application.
const KEPT: usize = 5;
/// The most lines of the past that are given without a wish for fewer.
const MAX_LINES: usize = 100_000;
/// The most that is read of a growing file in one go, in bytes.
const STEP: u64 = 1 << 20;

/// What is there, in order of time, then, with `follow`, what comes.
pub(super) fn read(
    instances: Arc<Instances>,
    namespace: Namespace,
    app: AppName,
    query: LogQuery,
) -> BoxStream<'static, LogLine> {
    let reader =
        Reader { instances, namespace, app, offsets: HashMap::new(), ready: VecDeque::new(), query, started: false };
    unfold(reader, |mut reader| async move { reader.next().await.map(|line| (line, reader)) }).boxed()
}

struct Reader {
    instances: Arc<Instances>,
    namespace: Namespace,
    app: AppName,
    /// How far each growing file was read.
    offsets: HashMap<PathBuf, u64>,
    ready: VecDeque<LogLine>,
    query: LogQuery,
    started: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<LogLine> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if !self.started {
                self.started = true;
                self.ready = self.past().into();
                continue;
            }
            if !self.query.follow {
                return None;
            }
            self.grow();
            if self.ready.is_empty() {
                tokio::time::sleep(INTERVAL).await;
            }
        }
    }

    fn past(&mut self) -> Vec<LogLine> {
        let most = self.query.tail.unwrap_or(MAX_LINES);
        let mut lines = Vec::new();
        for path in kept(self.instances.host(), self.namespace.as_str(), self.app.as_str()) {
            let origin = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            lines.extend(tail(&path, &origin, most));
        }
        for (origin, folder) in self.folders() {
            lines.extend(tail(&folder.join("log.1"), &origin, most));
            let current = folder.join("log");
            self.offsets.insert(current.clone(), fs::metadata(&current).map_or(0, |metadata| metadata.len()));
            lines.extend(tail(&current, &origin, most));
        }
        lines.sort_by_key(|line| line.at);
        lines.split_off(lines.len().saturating_sub(most))
    }

    fn grow(&mut self) {
        let folders = self.folders();
        let live: HashSet<PathBuf> = folders.iter().map(|(_, folder)| folder.join("log")).collect();
        self.offsets.retain(|path, _| live.contains(path));
        for (origin, folder) in folders {
            let path = folder.join("log");
            let offset = self.offsets.entry(path.clone()).or_insert(0);
            let lines = more(&path, offset);
            self.ready.extend(lines.iter().filter_map(|line| parse(line, &origin)));
        }
    }

    fn folders(&self) -> Vec<(String, PathBuf)> {
        self.instances.folders(self.namespace.as_str(), self.app.as_str())
    }
}

/// The whole lines after an offset, which moves behind them.
fn more(path: &Path, offset: &mut u64) -> Vec<Vec<u8>> {
    let Ok(mut file) = File::open(path) else { return Vec::new() };
    if file.metadata().is_ok_and(|metadata| metadata.len() < *offset) {
        // It was rotated.
        *offset = 0;
    }
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(*offset)).is_err() || file.take(STEP).read_to_end(&mut bytes).is_err() {
        return Vec::new();
    }
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    *offset += whole as u64;
    bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}

/// The last lines of a file.
fn tail(path: &Path, origin: &str, most: usize) -> VecDeque<LogLine> {
    let mut lines = VecDeque::new();
    let Ok(file) = File::open(path) else { return lines };
    for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
        if lines.len() == most {
            lines.pop_front();
        }
        lines.extend(parse(&line, origin));
    }
    lines
}

/// `SECONDS STREAM TEXT`
fn parse(line: &[u8], origin: &str) -> Option<LogLine> {
    let text = String::from_utf8_lossy(line);
    let mut parts = text.splitn(3, ' ');
    let at = Timestamp::from_second(parts.next()?.parse().ok()?);
    let stream = match parts.next()? {
        "o" => LogStream::Stdout,
        "e" => LogStream::Stderr,
        _ => LogStream::Note,
    };
    Some(LogLine { origin: origin.to_owned(), stream, at, text: parts.next().unwrap_or_default().to_owned() })
}

/// The last lines that the program of an instance wrote itself.
pub(super) fn last_words(folder: &Path, most: usize) -> Vec<String> {
    let lines = tail(&folder.join("log"), "", most);
    lines.into_iter().filter(|line| line.stream != LogStream::Note).map(|line| line.text).collect()
}

/// A line of the runtime's own in the log of an instance.
pub(super) fn note(folder: &Path, text: &str) {
    if let Ok(mut log) = File::options().append(true).open(folder.join("log")) {
        // The log is for people; one that cannot be written stops nothing.
        let _ = writeln!(log, "{} n {text}", Timestamp::now().as_second());
    }
}

/// Keeps the log of an instance that goes.
pub(super) fn keep(host: &Host, local: &Local) {
    let Some((namespace, name)) = local.name.split_once('_') else { return };
    let Some(app) = name.rsplitn(3, '-').nth(2) else { return };
    let folder = folder(host, namespace, app);
    let _ = fs::create_dir_all(&folder);
    let _ = fs::rename(local.folder.join("log"), folder.join(format!("{}.log", local.name)));
    let all = kept(host, namespace, app);
    for old in all.iter().take(all.len().saturating_sub(KEPT)) {
        let _ = fs::remove_file(old);
    }
}

/// Logs of instances that are gone, oldest first.
fn kept(host: &Host, namespace: &str, app: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder(host, namespace, app)).into_iter().flatten().flatten();
    let mut files: Vec<_> =
        entries.filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
    files.sort();
    files.into_iter().map(|(_, path)| path).collect()
}

fn folder(host: &Host, namespace: &str, app: &str) -> PathBuf {
    host.data_dir.join("logs").join(format!("{namespace}_{app}"))
}
