//! The log of a staging: followed while it grows, kept in numbered chunks from its first line.
//!
//! Lines are collected in a tail. The tail is saved every second, so that a killed daemon loses no
//! more than that; when it is full it becomes a chunk.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    StreamExt as _,
    stream::{BoxStream, unfold},
};
use tokio::sync::{mpsc, watch};

use super::Error;
use crate::{
    blob::{self, SharedBlobs},
    model::{Digest, Staging, Timestamp},
    runtime::{DETECTION, JOB_BEGINS, LogLine, LogStream},
    store::{Key, Objects},
};

/// A tail of so many bytes of JSON lines is full. The line that fills it is in the chunk as well, which so stays below
/// 256 KiB.
const FULL: usize = 160 * 1024;
/// How often a growing tail is saved.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// The log of a staging that runs.
pub(super) struct StagingLog {
    objects: Objects,
    blobs: SharedBlobs,
    key: Key,
    state: Mutex<State>,
    grown: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    chunks: Vec<Digest>,
    tail: Vec<LogLine>,
    /// The tail, as it is saved.
    encoded: Vec<u8>,
    /// There is something in the tail that is not saved.
    dirty: bool,
    ended: bool,
}

impl StagingLog {
    /// `chunks` is what there is already, of an attempt that was interrupted.
    pub fn new(objects: Objects, blobs: SharedBlobs, key: Key, chunks: Vec<Digest>) -> Arc<Self> {
        let state = Mutex::new(State { chunks, ..State::default() });
        Arc::new(Self { objects, blobs, key, state, grown: watch::Sender::new(0) })
    }

    /// A line of the daemon's own.
    pub fn note(&self, text: impl Into<String>) {
        self.push(LogLine {
            origin: "staging".to_owned(),
            stream: LogStream::Note,
            at: Timestamp::now(),
            text: text.into(),
        });
    }

    /// Takes lines until all senders are gone, and saves them as they come: all of them when it ends, so that what
    /// follows is never there without them.
    pub async fn pump(&self, mut lines: mpsc::Receiver<LogLine>) {
        let mut save_at = tokio::time::Instant::now() + SAVE_INTERVAL;
        loop {
            tokio::select! {
                line = lines.recv() => match line {
                    // What is counted later is counted from this line on, so it is never missing.
                    Some(line) if line.origin == JOB_BEGINS => {
                        self.push(line);
                        self.save().await;
                    }
                    Some(line) => self.push(line),
                    None => return self.save().await,
                },
                () = tokio::time::sleep_until(save_at) => {
                    self.save().await;
                    save_at = tokio::time::Instant::now() + SAVE_INTERVAL;
                }
            }
            if self.lock().encoded.len() >= FULL {
                self.save().await;
            }
        }
    }

    /// Saves what is left, and lets followers go.
    pub async fn end(&self) {
        self.save().await;
        self.lock().ended = true;
        self.grown.send_modify(|lines| *lines += 1);
    }

    /// How many lines there are of each origin, since a job last began anew; of detections before it, all.
    pub async fn seen(&self) -> BTreeMap<String, usize> {
        let chunks = self.lock().chunks.clone();
        let mut seen = BTreeMap::new();
        let count = |seen: &mut BTreeMap<String, usize>, lines: Vec<LogLine>| {
            for line in lines {
                if line.origin == JOB_BEGINS {
                    seen.retain(|origin, _| origin == DETECTION);
                } else {
                    *seen.entry(line.origin).or_default() += 1;
                }
            }
        };
        for digest in chunks {
            count(&mut seen, read(&self.blobs, &digest).await);
        }
        let tail = self.lock().tail.clone();
        count(&mut seen, tail);
        seen
    }

    fn push(&self, line: LogLine) {
        let mut state = self.lock();
        encode(&mut state.encoded, &line);
        state.tail.push(line);
        state.dirty = true;
        drop(state);
        self.grown.send_modify(|lines| *lines += 1);
    }

    /// A log that cannot be saved does not stop a staging; it is said once, here.
    async fn save(&self) {
        if let Err(error) = self.try_save().await {
            tracing::error!(staging = %self.key, %error, "saving the log of a staging failed");
        }
    }

    async fn try_save(&self) -> Result<(), Error> {
        let (bytes, lines) = {
            let mut state = self.lock();
            if !state.dirty {
                return Ok(());
            }
            state.dirty = false;
            (Bytes::copy_from_slice(&state.encoded), state.tail.len())
        };
        let size = bytes.len();
        let saved = self.write(bytes).await;
        let mut state = self.lock();
        match saved {
            Ok(chunks) if size >= FULL => {
                state.chunks = chunks;
                state.tail.drain(..lines);
                state.encoded.drain(..size);
            }
            Ok(_) => {}
            Err(error) => {
                state.dirty = true;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Writes the tail and the list of chunks that has it.
    async fn write(&self, tail: Bytes) -> Result<Vec<Digest>, Error> {
        let mut writer = self.blobs.writer().await?;
        writer.write(tail).await?;
        let saved = writer.finish(None).await?.digest;
        let mut chunks = self.lock().chunks.clone();
        chunks.push(saved);
        self.objects.modify::<Staging>(&self.key, |staging| staging.log = chunks.clone()).await?;
        Ok(chunks)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader of a log that still grows.
struct Follower {
    log: Arc<StagingLog>,
    grown: watch::Receiver<u64>,
    chunk: usize,
    line: usize,
    ready: VecDeque<LogLine>,
    follow: bool,
}

enum Found {
    Chunk(Digest),
    Lines(Vec<LogLine>),
    Nothing { ended: bool },
}

impl Follower {
    async fn next(&mut self) -> Option<LogLine> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            self.grown.borrow_and_update();
            match self.look() {
                Found::Chunk(digest) => {
                    let lines = read(&self.log.blobs, &digest).await;
                    self.ready.extend(lines.into_iter().skip(self.line));
                    self.chunk += 1;
                    self.line = 0;
                }
                Found::Lines(lines) => {
                    self.line += lines.len();
                    self.ready.extend(lines);
                }
                Found::Nothing { ended } if ended || !self.follow => return None,
                Found::Nothing { .. } => self.grown.changed().await.ok()?,
            }
        }
    }

    fn look(&self) -> Found {
        let state = self.log.lock();
        match state.chunks.get(self.chunk) {
            Some(digest) => Found::Chunk(*digest),
            None if state.tail.len() > self.line => Found::Lines(state.tail[self.line..].to_vec()),
            None => Found::Nothing { ended: state.ended },
        }
    }
}

/// The log of a staging that runs, from its first line.
pub(super) fn live(log: Arc<StagingLog>, follow: bool) -> BoxStream<'static, LogLine> {
    let grown = log.grown.subscribe();
    let follower = Follower { log, grown, chunk: 0, line: 0, ready: VecDeque::new(), follow };
    unfold(follower, |mut follower| async move { follower.next().await.map(|line| (line, follower)) }).boxed()
}

/// The log of a staging that has ended.
pub(super) fn kept(chunks: Vec<Digest>, blobs: SharedBlobs) -> BoxStream<'static, LogLine> {
    futures::stream::iter(chunks)
        .then(move |digest| {
            let blobs = Arc::clone(&blobs);
            async move { futures::stream::iter(read(&blobs, &digest).await) }
        })
        .flatten()
        .boxed()
}

fn encode(bytes: &mut Vec<u8>, line: &LogLine) {
    let start = bytes.len();
    match serde_json::to_writer(&mut *bytes, line) {
        Ok(()) => bytes.push(b'\n'),
        // A line is plain data; there is nothing in it that JSON does not have.
        Err(_) => bytes.truncate(start),
    }
}

/// The lines of a chunk. A chunk that is not there any more is said in its place.
async fn read(blobs: &SharedBlobs, digest: &Digest) -> Vec<LogLine> {
    let lost = |why: String| {
        vec![LogLine {
            origin: "staging".to_owned(),
            stream: LogStream::Note,
            at: Timestamp::now(),
            text: format!("a part of this log cannot be read: {why}"),
        }]
    };
    match collect(blobs, digest).await {
        Ok(Some(bytes)) => {
            bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
        }
        Ok(None) => lost(format!("blob {digest} is gone")),
        Err(error) => lost(error.to_string()),
    }
}

async fn collect(blobs: &SharedBlobs, digest: &Digest) -> Result<Option<Vec<u8>>, blob::Error> {
    let Some(mut reader) = blobs.open(digest, None).await? else { return Ok(None) };
    let mut bytes = Vec::with_capacity(usize::try_from(reader.size).unwrap_or(0));
    while let Some(part) = reader.stream.next().await {
        let doing = || format!("reading blob {digest}");
        bytes.extend_from_slice(&part.map_err(|source| blob::Error::Io { doing: doing(), source })?);
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        blob::DiskBlobs,
        store::{DiskStore, Resource as _},
    };

    struct Place {
        dir: tempfile::TempDir,
        objects: Objects,
        blobs: SharedBlobs,
        key: Key,
        log: Arc<StagingLog>,
    }

    async fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::new(DiskStore::open(&dir.path().join("store")).unwrap());
        let blobs: SharedBlobs = DiskBlobs::open(&dir.path().join("blobs")).unwrap();
        let staging: Staging = serde_json::from_value(json!({
            "id": "0123456789abcdef", "namespace": "workspace", "app": "app", "source": Digest::of("source"),
            "blob_uid": "uid", "environment": {}, "created_at": "2020-01-01T00:00:00Z",
            "state": { "state": "building" }, "image": null, "timings": [], "basis": null, "log": [],
        }))
        .unwrap();
        objects.create(&staging).await.unwrap();
        let log = StagingLog::new(objects.clone(), Arc::clone(&blobs), staging.key(), Vec::new());
        Place { dir, objects, blobs, key: staging.key(), log }
    }

    impl Place {
        async fn chunks(&self) -> Vec<Digest> {
            self.objects.require::<Staging>(&self.key).await.unwrap().value.log
        }

        async fn kept(&self) -> Vec<String> {
            kept(self.chunks().await, Arc::clone(&self.blobs)).map(|line| line.text).collect().await
        }
    }

    fn line(text: String) -> LogLine {
        LogLine { origin: "build".to_owned(), stream: LogStream::Stdout, at: Timestamp::now(), text }
    }

    #[tokio::test]
    async fn all_lines_are_kept_in_a_few_chunks() {
        let place = place().await;
        let texts: Vec<String> = (0..8000).map(|number| format!("{number} \u{1}{}", "x".repeat(number % 90))).collect();
        let (sender, lines) = mpsc::channel(16);
        let send = async {
            for text in &texts {
                sender.send(line(text.clone())).await.unwrap();
            }
            drop(sender);
        };
        tokio::join!(place.log.pump(lines), send);
        place.log.end().await;
        assert_eq!(place.kept().await, texts);
        let live: Vec<String> = live(Arc::clone(&place.log), true).map(|line| line.text).collect().await;
        assert_eq!(live, texts);
        let chunks = place.chunks().await;
        for chunk in &chunks {
            assert!(place.blobs.size(chunk).await.unwrap().is_some_and(|size| size <= 256 << 10));
        }
        // A line does not make a blob: only full tails, and those of each second.
        let blobs = place.blobs.list(None, 1000).await.unwrap().len();
        assert!(blobs < 3 * chunks.len() + 10, "{blobs} blobs for {} chunks", chunks.len());
    }

    #[tokio::test]
    async fn what_could_not_be_saved_is_saved_later() {
        let place = place().await;
        let temporary = place.dir.path().join("blobs/tmp");
        std::fs::remove_dir(&temporary).unwrap();
        place.log.note("said while the disk was gone");
        place.log.save().await;
        assert_eq!(place.kept().await, [""; 0]);
        std::fs::create_dir(&temporary).unwrap();
        place.log.end().await;
        assert_eq!(place.kept().await, ["said while the disk was gone"]);
    }
}
