//! Logs of instances: files that monitors write, read as one stream.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::stream::{BoxStream, StreamExt as _, unfold};

use super::{Host, instance::Local, instances::Instances};
use crate::{
    model::{AppName, ImageName, Namespace, Timestamp},
    oci::tree::remove_tree,
    runtime::{LogLine, LogQuery, LogStream},
};

/// How often files are looked at for more.
const INTERVAL: Duration = Duration::from_millis(200);
/// Logs of instances that are gone that are kept for each application.
const KEPT: usize = 5;
/// The most lines of the past that are given without a wish for fewer.
const MAX_LINES: usize = 100_000;
/// The most that is read of a growing file in one go, in bytes.
const STEP: usize = 256 << 10;
/// Monitors cut lines at 16 KiB; time and stream are in front.
const LONGEST_LINE: u64 = (16 << 10) + 64;

/// What is there now, in order of time, then, with `follow`, what comes.
pub(super) async fn read(
    instances: Arc<Instances>,
    namespace: Namespace,
    app: AppName,
    query: LogQuery,
) -> BoxStream<'static, LogLine> {
    let (growing, ready) = (BTreeMap::new(), VecDeque::new());
    let mut reader = Reader { instances, namespace, app, growing, ready, query };
    // Whoever looks at the stream later misses nothing of what was written since.
    reader.begin().await;
    unfold(reader, |mut reader| async move { reader.next().await.map(|line| (line, reader)) }).boxed()
}

struct Reader {
    instances: Arc<Instances>,
    namespace: Namespace,
    app: AppName,
    /// The growing files, by instance.
    growing: BTreeMap<String, Growing>,
    ready: VecDeque<LogLine>,
    query: LogQuery,
}

impl Reader {
    async fn next(&mut self) -> Option<LogLine> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if !self.query.follow {
                return None;
            }
            self.grow().await;
            if self.ready.is_empty() {
                tokio::time::sleep(INTERVAL).await;
            }
        }
    }

    /// What there is. Logs are megabytes: they are read where nobody else waits.
    async fn begin(&mut self) {
        let (instances, namespace, app) = (Arc::clone(&self.instances), self.namespace.clone(), self.app.clone());
        let (folders, most) = (self.folders(), self.query.tail.unwrap_or(MAX_LINES));
        let read = move || past(kept(instances.host(), namespace.as_str(), app.as_str()), folders, most);
        if let Ok((lines, growing)) = tokio::task::spawn_blocking(read).await {
            self.ready = lines.into();
            self.growing = growing;
        }
    }

    async fn grow(&mut self) {
        let (folders, growing) = (self.folders(), std::mem::take(&mut self.growing));
        let folders: BTreeMap<String, PathBuf> = folders.into_iter().collect();
        if let Ok((lines, growing)) = tokio::task::spawn_blocking(move || grow(&folders, growing)).await {
            self.ready.extend(lines);
            self.growing = growing;
        }
    }

    fn folders(&self) -> Vec<(String, PathBuf)> {
        self.instances.folders(self.namespace.as_str(), self.app.as_str())
    }
}

/// The last lines of files of instances that are gone and of those that are there, and where the latter go on.
fn past(kept: Vec<PathBuf>, folders: Vec<(String, PathBuf)>, most: usize) -> (Vec<LogLine>, BTreeMap<String, Growing>) {
    let (mut lines, mut all) = (Vec::new(), BTreeMap::new());
    for path in kept {
        let origin = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        lines.extend(File::open(&path).map(|file| tail(file, u64::MAX, &origin, most)).unwrap_or_default());
    }
    for (origin, folder) in folders {
        let before = File::open(folder.join("log.1"));
        lines.extend(before.map(|file| tail(file, u64::MAX, &origin, most)).unwrap_or_default());
        let Some((growing, file)) = Growing::at_end(&folder) else { continue };
        lines.extend(tail(file, growing.offset, &origin, most));
        all.insert(origin, growing);
    }
    // Lines of one instance stay in their order.
    lines.sort_by_key(|line| line.at);
    let skipped = lines.len().saturating_sub(most);
    (lines.into_iter().skip(skipped).map(|line| line.line).collect(), all)
}

/// What was written since, and the files that may still grow.
fn grow(
    folders: &BTreeMap<String, PathBuf>,
    mut all: BTreeMap<String, Growing>,
) -> (Vec<LogLine>, BTreeMap<String, Growing>) {
    for (origin, folder) in folders {
        if let (false, Ok(growing)) = (all.contains_key(origin), Growing::new(folder)) {
            all.insert(origin.clone(), growing);
        }
    }
    let mut lines = Vec::new();
    all.retain(|origin, growing| {
        let more = growing.more(origin);
        let ended = more.is_empty() && !folders.contains_key(origin);
        lines.extend(more);
        !ended
    });
    lines.sort_by_key(|line| line.at);
    (lines.into_iter().map(|line| line.line).collect(), all)
}

/// A log that is read while it is written. The file stays open: it may be rotated or moved away before its end was read.
struct Growing {
    path: PathBuf,
    file: File,
    offset: u64,
}

impl Growing {
    fn new(folder: &Path) -> io::Result<Self> {
        let path = folder.join("log");
        Ok(Self { file: File::open(&path)?, path, offset: 0 })
    }

    /// From here on; and the file once more, for what was before.
    fn at_end(folder: &Path) -> Option<(Self, File)> {
        let mut growing = Self::new(folder).ok()?;
        let past = File::open(&growing.path).ok()?;
        growing.offset = growing.whole(growing.file.metadata().ok()?.len()).ok()?;
        Some((growing, past))
    }

    /// The end of the last whole line before an offset.
    fn whole(&self, end: u64) -> io::Result<u64> {
        let start = end.saturating_sub(2 * LONGEST_LINE);
        let mut bytes = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes.iter().rposition(|byte| *byte == b'\n').map_or(start, |last| start + last as u64 + 1))
    }

    /// The whole lines that have come. When there are none, the next file, if there is one, is the one to read.
    fn more(&mut self, origin: &str) -> Vec<Line> {
        let lines = self.lines(origin);
        if !lines.is_empty() {
            return lines;
        }
        let same = |left: &File, right: &File| Some((left.metadata().ok()?.ino(), right.metadata().ok()?.ino()));
        let Ok(now) = File::open(&self.path) else { return Vec::new() };
        if same(&now, &self.file).is_none_or(|(now, before)| now == before) {
            return Vec::new();
        }
        self.file = now;
        self.offset = 0;
        self.lines(origin)
    }

    fn lines(&mut self, origin: &str) -> Vec<Line> {
        let mut bytes = vec![0; STEP];
        let Ok(read) = self.file.read_at(&mut bytes, self.offset) else { return Vec::new() };
        let whole = bytes[..read].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.offset += whole as u64;
        bytes[..whole].split(|byte| *byte == b'\n').filter_map(|line| parse(line, origin)).collect()
    }
}

/// A line, and its time in milliseconds.
struct Line {
    at: i64,
    line: LogLine,
}

/// The last lines of a file, up to an offset.
fn tail(file: File, end: u64, origin: &str, most: usize) -> VecDeque<Line> {
    let mut lines = VecDeque::new();
    for line in BufReader::new(file.take(end)).split(b'\n').map_while(Result::ok) {
        if lines.len() == most {
            lines.pop_front();
        }
        lines.extend(parse(&line, origin));
    }
    lines
}

/// `MILLISECONDS STREAM TEXT`
fn parse(line: &[u8], origin: &str) -> Option<Line> {
    let text = String::from_utf8_lossy(line);
    let mut parts = text.splitn(3, ' ');
    let at: i64 = parts.next()?.parse().ok()?;
    let stream = match parts.next()? {
        "o" => LogStream::Stdout,
        "e" => LogStream::Stderr,
        _ => LogStream::Note,
    };
    let text = parts.next().unwrap_or_default().to_owned();
    Some(Line { at, line: LogLine { origin: origin.to_owned(), stream, at: Timestamp::from_second(at / 1000), text } })
}

/// The last lines that the program of an instance wrote itself.
pub(super) fn last_words(folder: &Path, most: usize) -> Vec<String> {
    let Ok(file) = File::open(folder.join("log")) else { return Vec::new() };
    let lines = tail(file, u64::MAX, "", most).into_iter().map(|line| line.line);
    lines.filter(|line| line.stream != LogStream::Note).map(|line| line.text).collect()
}

/// A line of the runtime's own in the log of an instance.
pub(super) fn note(folder: &Path, text: &str) {
    if let Ok(mut log) = File::options().append(true).open(folder.join("log")) {
        // The log is for people; one that cannot be written stops nothing.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let _ = log.write_all(format!("{} n {text}\n", now.as_millis()).as_bytes());
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

/// Removes the logs of applications that none of these images is of.
pub(super) fn collect(host: &Host, keep: &[ImageName]) -> io::Result<()> {
    let wanted: HashSet<String> = keep.iter().map(|image| image.repository.replacen('/', "_", 1)).collect();
    for entry in fs::read_dir(host.data_dir.join("logs"))? {
        let entry = entry?;
        if !wanted.contains(entry.file_name().to_string_lossy().as_ref()) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}
