//! The store on disk: a journal that is the truth, and sled as the index over it.
//!
//! One thread writes. It takes all commands that wait, checks each against what is there, appends
//! them to the journal with one sync, applies them to sled, and only then answers: concurrent
//! writers share a sync. sled remembers how far it has applied the journal; when it is absent,
//! broken or behind, it is made from the journal; also while the daemon runs, as after a disk that was full.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::{broadcast, oneshot};

use super::{
    Error, Event, Key, Kind, MAX_OBJECT_BYTES, Object, Page, Slice, Store,
    index::{
        POSITION, Replay, SUBSTITUTE, apply, decode, index_key, key_of, kind_prefix, open_sled, position, read,
        remove_substitutes, replay, sled_failed,
    },
    journal::{Entry, Journal, Write},
    object::new_uid,
};

/// Changes that a slow watcher may be behind.
const WATCH_BUFFER: usize = 1024;
/// The most writes that share a sync.
const MAX_GROUP: usize = 256;

/// The store of one machine.
pub struct DiskStore {
    index: Arc<ArcSwap<sled::Tree>>,
    commands: mpsc::SyncSender<Command>,
    watchers: Arc<Watchers>,
}

type Watchers = HashMap<Kind, broadcast::Sender<Event>>;

enum Request {
    Put(Object),
    Delete { key: Key, version: Option<u64> },
}

struct Command {
    request: Request,
    answer: oneshot::Sender<Result<Option<Object>, Error>>,
}

impl DiskStore {
    /// Opens the store in a directory, which is made if need be. Only one process may have it open.
    pub fn open(dir: &Path) -> Result<Arc<Self>, Error> {
        let io = |doing: &str| {
            let doing = format!("{doing} {}", dir.display());
            move |source| Error::Io { doing, source }
        };
        fs::create_dir_all(dir).map_err(io("creating the store"))?;
        let lock = lock(dir)?;
        let (index, damaged) = (dir.join("index"), dir.join("index.damaged"));
        if damaged.exists() {
            tracing::warn!("the index of the store was damaged; it is made again from the journal");
            let removed = fs::remove_dir_all(&index).and_then(|()| fs::remove_file(&damaged));
            removed.map_err(io("removing the damaged index of"))?;
        }
        remove_substitutes(dir).map_err(io("removing an old index of"))?;
        let database = open_sled(&index)?;
        let index = database.open_tree("objects").map_err(sled_failed)?;
        let journal = match replay(dir, &index) {
            Ok(journal) => journal,
            Err(Replay::Index) => {
                index.clear().map_err(sled_failed)?;
                replay(dir, &index).map_err(|error| match error {
                    Replay::Failed(error) => error,
                    Replay::Index => sled_failed(sled::Error::Unsupported("an empty index cannot be used".to_owned())),
                })?
            }
            Err(Replay::Failed(error)) => return Err(error),
        };
        let watchers: Arc<Watchers> =
            Arc::new(Kind::ALL.into_iter().map(|kind| (kind, broadcast::Sender::new(WATCH_BUFFER))).collect());
        let (commands, queue) = mpsc::sync_channel(MAX_GROUP);
        let index = Arc::new(ArcSwap::from_pointee(index));
        let writer = Writer {
            journal,
            index: Arc::clone(&index),
            watchers: Arc::clone(&watchers),
            dir: dir.to_owned(),
            damaged,
            failure: None,
            substitutes: 0,
            _database: database,
            _lock: lock,
        };
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(io("starting the writer of"))?;
        Ok(Arc::new(Self { index, commands, watchers }))
    }

    async fn ask(&self, request: Request) -> Result<Option<Object>, Error> {
        let (answer, answered) = oneshot::channel();
        let gone = || Error::Backend { doing: "writing".to_owned(), cause: "the store has stopped".to_owned() };
        let command = Command { request, answer };
        match self.commands.try_send(command) {
            Ok(()) => {}
            Err(mpsc::TrySendError::Disconnected(_)) => return Err(gone()),
            Err(mpsc::TrySendError::Full(command)) => {
                let commands = self.commands.clone();
                let sent = tokio::task::spawn_blocking(move || commands.send(command).is_ok()).await;
                if !sent.unwrap_or(false) {
                    return Err(gone());
                }
            }
        }
        answered.await.map_err(|_| gone())?
    }
}

#[async_trait]
impl Store for DiskStore {
    async fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        read(&self.index.load(), key)
    }

    async fn list(&self, kind: Kind, page: &Page) -> Result<Slice, Error> {
        let prefix = match &page.namespace {
            Some(namespace) => index_key(kind, namespace, ""),
            None => kind_prefix(kind),
        };
        let start = match &page.after {
            Some((namespace, name)) => [index_key(kind, namespace, name), vec![0]].concat(),
            None => prefix.clone(),
        };
        let mut objects: Vec<Object> = Vec::new();
        for found in self.index.load_full().range(start..) {
            let (key, value) = found.map_err(sled_failed)?;
            if !key.starts_with(&prefix) {
                break;
            }
            if objects.len() == page.limit {
                let last = objects.last().map(|object| (object.key.namespace.clone(), object.key.name.clone()));
                return Ok(Slice { objects, next: last });
            }
            objects.push(decode(&value)?);
        }
        Ok(Slice { objects, next: None })
    }

    async fn put(&self, object: Object) -> Result<Object, Error> {
        let size = object.body.to_string().len();
        if size > MAX_OBJECT_BYTES {
            return Err(Error::TooLarge { key: object.key, size });
        }
        let written = self.ask(Request::Put(object)).await?;
        Ok(written.expect("a put answers with the object"))
    }

    async fn delete(&self, key: &Key, version: Option<u64>) -> Result<(), Error> {
        self.ask(Request::Delete { key: key.clone(), version }).await.map(drop)
    }

    fn watch(&self, kind: Kind) -> broadcast::Receiver<Event> {
        self.watchers[&kind].subscribe()
    }
}

/// The one that writes.
struct Writer {
    journal: Journal,
    index: Arc<ArcSwap<sled::Tree>>,
    watchers: Arc<Watchers>,
    dir: PathBuf,
    /// Of the index, until another one took its place.
    failure: Option<Error>,
    /// How often another index took the place of one that failed.
    substitutes: u32,
    /// A file that is there when the index is not to be trusted.
    damaged: PathBuf,
    _database: sled::Db,
    _lock: Flock<File>,
}

type Answer = (oneshot::Sender<Result<Option<Object>, Error>>, Option<Object>);

impl Writer {
    fn run(mut self, queue: &mpsc::Receiver<Command>) {
        while let Ok(first) = queue.recv() {
            let mut group = vec![first];
            group.extend(queue.try_iter().take(MAX_GROUP - 1));
            self.mend();
            self.commit(group);
            if let Err(error) = self.compact() {
                tracing::error!(%error, "compacting the journal failed; it is tried again when it is twice as large");
            }
        }
    }

    /// Writes a group with one sync, and answers.
    fn commit(&mut self, group: Vec<Command>) {
        let mut pending: HashMap<Key, Option<Object>> = HashMap::new();
        let mut entries = Vec::new();
        let mut answers: Vec<Answer> = Vec::new();
        let mut refused = Vec::new();
        for Command { request, answer } in group {
            let first = self.journal.last_seq + 1;
            let seq = first + entries.len() as u64;
            match self.check(request, seq, &pending).map(|write| Entry {
                seq,
                group: (seq > first).then_some(first),
                write,
            }) {
                Ok(entry) => {
                    let written = match &entry.write {
                        Write::Put(object) => Some(object.clone()),
                        Write::Delete(_) => None,
                    };
                    pending.insert(key_of(&entry.write).clone(), written.clone());
                    entries.push(entry);
                    answers.push((answer, written));
                }
                Err(error) => refused.push((answer, error)),
            }
        }
        self.write_and_answer(entries, answers);
        // Only now: who hears of a conflict finds what it is with.
        for (answer, error) in refused {
            let _ = answer.send(Err(error));
        }
    }

    fn write_and_answer(&mut self, entries: Vec<Entry>, answers: Vec<Answer>) {
        if entries.is_empty() {
            return;
        }
        match self.write(&entries) {
            Ok(()) => {
                for entry in entries {
                    self.tell(entry.write);
                }
                for (answer, written) in answers {
                    let _ = answer.send(Ok(written));
                }
            }
            Err(error) => {
                tracing::error!(error = %crate::telemetry::chain(&error), "writing to the store failed");
                for (answer, _) in answers {
                    let _ = answer.send(Err(again(&error)));
                }
            }
        }
    }

    fn write(&mut self, entries: &[Entry]) -> Result<(), Error> {
        if let Some(failure) = &self.failure {
            return Err(again(failure));
        }
        self.journal.append(entries)?;
        if let Err(error) = apply(&self.index.load(), self.journal.generation, entries) {
            // What is in the journal and not in the index would be seen by nobody until there is another one.
            tracing::error!(error = %crate::telemetry::chain(&error), "the store takes no more writes for now");
            self.failure = Some(again(&error));
            self.mend();
        }
        self.failure.as_ref().map_or(Ok(()), |failure| Err(again(failure)))
    }

    /// An index that failed stays so, also when the disk has room again. Another one is made from the journal.
    fn mend(&mut self) {
        if self.failure.is_none() || self.journal.is_broken() {
            return;
        }
        match self.substitute() {
            Ok(()) => {
                self.failure = None;
                tracing::warn!("the index of the store failed, and was made again from the journal");
            }
            Err(error) => {
                let error = crate::telemetry::chain(&error);
                tracing::error!(error, "the index of the store cannot be made again yet");
            }
        }
    }

    fn substitute(&mut self) -> Result<(), Error> {
        // The next start is not to trust the one that failed.
        let doing = || format!("noting that the index of {} failed", self.dir.display());
        File::create(&self.damaged).map_err(|source| Error::Io { doing: doing(), source })?;
        self.substitutes += 1;
        let path = self.dir.join(format!("{SUBSTITUTE}{}", self.substitutes));
        self.substitute_in(&path).inspect_err(|_| {
            let _ = fs::remove_dir_all(&path);
        })
    }

    fn substitute_in(&mut self, path: &Path) -> Result<(), Error> {
        let database = open_sled(path)?;
        let index = database.open_tree("objects").map_err(sled_failed)?;
        let journal = replay(&self.dir, &index).map_err(|error| match error {
            Replay::Failed(error) => error,
            Replay::Index => sled_failed(sled::Error::Unsupported("an empty index cannot be used".to_owned())),
        })?;
        database.flush().map_err(sled_failed)?;
        self.index.store(Arc::new(index));
        (self.journal, self._database) = (journal, database);
        Ok(())
    }

    fn check(&self, request: Request, seq: u64, pending: &HashMap<Key, Option<Object>>) -> Result<Write, Error> {
        let current = |key: &Key| match pending.get(key) {
            Some(pending) => Ok(pending.clone()),
            None => read(&self.index.load(), key),
        };
        match request {
            Request::Put(mut object) => {
                match current(&object.key)? {
                    None if object.version == 0 => object.uid = new_uid(),
                    Some(found)
                        if object.version != 0 && found.version == object.version && found.uid == object.uid => {}
                    None if object.version != 0 => return Err(Error::NotFound(object.key)),
                    _ => return Err(Error::Conflict(object.key)),
                }
                object.version = seq;
                Ok(Write::Put(object))
            }
            Request::Delete { key, version } => match current(&key)? {
                None => Err(Error::NotFound(key)),
                Some(found) if version.is_some_and(|version| version != found.version) => Err(Error::Conflict(key)),
                Some(_) => Ok(Write::Delete(key)),
            },
        }
    }

    fn tell(&self, write: Write) {
        let (kind, event) = match write {
            Write::Put(object) => (object.key.kind, Event::Put(object)),
            Write::Delete(key) => (key.kind, Event::Deleted(key)),
        };
        // Nobody may be watching.
        let _ = self.watchers[&kind].send(event);
    }

    fn compact(&mut self) -> Result<(), Error> {
        if self.failure.is_some() || !self.journal.is_due() {
            return Ok(());
        }
        let compacted = self.try_compact();
        if compacted.is_err() {
            self.journal.put_off();
        }
        compacted
    }

    fn try_compact(&mut self) -> Result<(), Error> {
        let index = self.index.load_full();
        let values = || {
            let pairs = index.iter().filter(|pair| pair.as_ref().map_or(true, |(key, _)| &**key != POSITION));
            pairs.map(|pair| pair.map(|(_, value)| value).map_err(sled_failed))
        };
        let live = values().try_fold(0, |live, value| value.map(|value| live + value.len() as u64));
        let compacted = live.and_then(|live| match self.journal.is_worth_it(live) {
            true => self.journal.compact(values().map(|value| decode(&value?))).map(|()| true),
            false => Ok(false),
        });
        match compacted {
            Ok(false) => Ok(()),
            Ok(true) => {
                let at = position(self.journal.generation, self.journal.last_seq);
                self.index.load().insert(POSITION, at).map_err(sled_failed).map(drop)
            }
            Err(error) => {
                // The journal has everything: the next start makes the index from it.
                tracing::warn!("the index of the store may be damaged; it is made again with the next start");
                if let Err(error) = File::create(&self.damaged) {
                    tracing::error!(%error, path = %self.damaged.display(), "that cannot be noted");
                }
                Err(error)
            }
        }
    }
}

fn lock(dir: &Path) -> Result<Flock<File>, Error> {
    let path = dir.join("lock");
    let doing = || format!("locking the store {}", dir.display());
    let file = File::create(&path).map_err(|source| Error::Io { doing: doing(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::Backend {
        doing: doing(),
        cause: "another epiniod uses it; stop that one, or choose another --data-dir".to_owned(),
    })
}

/// An error once more: several may wait for one write.
fn again(error: &Error) -> Error {
    match error {
        Error::Io { doing, source } => {
            Error::Io { doing: doing.clone(), source: io::Error::new(source.kind(), source.to_string()) }
        }
        other => Error::Backend { doing: "writing".to_owned(), cause: other.to_string() },
    }
}
