//! Base images, assembled from Debian stable packages: index, signature, resolver, layers.
//!
//! An application needs a file system below it: a libc, a shell, CA certificates, an interpreter. Instead
//! of pulling one from a container registry it is made here, straight from Debian's packages, as a stack of
//! layers: the *run set* (in every base), the packages that the application asked for, and on the build base
//! what only the build needs. The build base has all layers of the run base, and the layer of compilers is the same
//! for all applications.
//!
//! - **Trust.** The InRelease files of three suites (stable, updates, security) have to be signed by a pinned
//!   archive key; through them every index and every package is verified by its hash. An expired suite, one that is older than
//!   what was seen before, and one of another release are refused. Mirrors are not trusted, so plain http will do.
//! - **No scripts.** Packages go from their archive into the tar of the layer, in memory. Maintainer
//!   scripts are never run: what they would have done is done declaratively (fix-ups, alternatives, linker cache). What
//!   would need running code is left out; the one loss is Python's `.pyc` files for Debian's own modules, whose first
//!   import is slower for it. Documentation but licences, manual pages, translations and set-user-id bits are left out as well.
//! - **The same everywhere.** Equal package versions give equal bytes: the [lock](BasePair::lock) names the pair.
//! - **Nothing half-made.** Downloads are renamed into place once their hash is right, layers are blobs that appear
//!   when they are whole, and the record of a base is written last.
//!
//! Nothing but a date and a digest stays in memory: the index is a compact file on disk. A base that was made and is
//! not older than the last look at the mirrors is found without touching the network; when the mirrors are
//! down or slow, the last pair that answered the same request is used.

mod alternatives;
mod assemble;
mod deb;
mod definition;
mod download;
mod error;
mod expire;
mod fixups;
mod image;
mod index;
mod linker_cache;
mod making;
mod mirror;
mod openpgp;
mod package;
mod record;
mod release;
mod resolve;
mod sources;
mod stack;
mod tree;
mod version;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;

pub use error::Error;
pub use openpgp::{InvalidSignature, Keyring};
pub use package::Package;
pub use record::{Answer, BaseRecord, RecordedLayer};
pub use release::Archive;
pub use sources::Mirrors;

use self::{
    making::Making,
    mirror::{Located, State},
    record::Request,
};
use crate::{
    blob::SharedBlobs,
    model::{Digest, ImageName, Timestamp},
    oci::{Compression, architecture},
    store::Objects,
};

/// A name that stands for a compiler, headers and what else native add-ons need to be built.
pub const BUILD_TOOLS: &str = "build-tools";

/// How long the package index is used before the mirrors are asked for a newer one.
pub const RECHECK: Duration = Duration::from_secs(24 * 60 * 60);

/// The repository of all bases.
pub const REPOSITORY: &str = "epiniod/base";

/// Makes an image reachable in the registry.
#[async_trait]
pub trait Publish: Send + Sync + 'static {
    /// Links a manifest, whose blobs are all in the blob store, into a repository under a tag.
    async fn publish(&self, repository: &str, tag: &str, manifest: Digest) -> Result<(), String>;
}

/// How bases are made.
#[derive(Debug, Clone)]
pub struct Options {
    /// A folder of our own for downloads and the index: `DATA_DIR/cache/debian`.
    pub cache: PathBuf,
    pub mirrors: Mirrors,
    /// Where the host has its apt sources.
    pub apt: PathBuf,
    pub keyring: Keyring,
    /// Debian's name of it: `amd64`.
    pub architecture: String,
    pub compression: Compression,
    pub recheck: Duration,
    /// Between attempts of a download; doubles each time.
    pub retry_delay: Duration,
}

impl Options {
    /// What a daemon uses that keeps its files below `data_dir`.
    pub fn new(data_dir: &Path, mirrors: Mirrors) -> Self {
        Self {
            cache: data_dir.join("cache/debian"),
            mirrors,
            apt: PathBuf::from("/etc/apt"),
            keyring: Keyring::debian(),
            // Debian has the same names.
            architecture: architecture().to_owned(),
            compression: Compression::default(),
            recheck: RECHECK,
            retry_delay: Duration::from_millis(500),
        }
    }

    fn index_path(&self, snapshot: &Digest) -> PathBuf {
        self.cache.join(format!("index-{}", &snapshot.hex()[..16]))
    }

    fn state_path(&self) -> PathBuf {
        self.cache.join("state.json")
    }

    /// A download, by the hash of its content.
    fn file(&self, hex: &str) -> PathBuf {
        self.cache.join("files").join(hex)
    }
}

/// What a staging needs of base images.
pub struct Bases {
    options: Options,
    blobs: SharedBlobs,
    objects: Objects,
    publish: Arc<dyn Publish>,
    state: Mutex<Option<State>>,
    /// One base is made at a time: memory stays bounded, and who asks for the same waits for it.
    work: tokio::sync::Mutex<Work>,
}

/// What the making of one base leaves for the next.
#[derive(Default)]
struct Work {
    located: Option<Located>,
    /// When the mirrors could not be read last.
    failed: Option<Instant>,
}

/// A build base and the run base that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasePair {
    pub build: ImageName,
    pub run: ImageName,
    /// Of the exact package versions of both.
    pub lock: Digest,
}

/// How far the making of a base is.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// Something worth a line in the log.
    Note(String),
    /// Bytes downloaded so far, and all that there are.
    Download { done: u64, total: u64 },
}

/// After the mirrors failed, bases that are there are used for this long without asking again.
const MIRROR_REST: Duration = Duration::from_secs(300);
/// For a look at the mirrors that a push waits for, per day since the last one.
const PATIENCE: Duration = Duration::from_secs(3);
const MAX_PATIENT_DAYS: u64 = 20;

impl Bases {
    pub fn new(options: Options, blobs: SharedBlobs, objects: Objects, publish: Arc<dyn Publish>) -> Self {
        Self { options, blobs, objects, publish, state: Mutex::default(), work: tokio::sync::Mutex::default() }
    }

    /// The pair with these packages on top of the build and the run base; assembled when it is not there yet. The
    /// build base has the packages of both.
    ///
    /// Names are those of Debian's binary packages, and [`BUILD_TOOLS`]. `progress` hears what is done, for the log and a
    /// progress bar. Dropping the future stops the making and leaves nothing but finished downloads and layers.
    pub async fn ensure(
        &self,
        build: &[String],
        run: &[String],
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<BasePair, Error> {
        let request = Request::new(build, run)?;
        if let Some(pair) = self.find_current(&request).await? {
            return Ok(pair);
        }
        let mut work = if let Ok(work) = self.work.try_lock() {
            work
        } else {
            progress(Progress::Note("waiting: another base is being made".to_owned()));
            self.work.lock().await
        };
        if let Some(pair) = self.find_current(&request).await? {
            return Ok(pair);
        }
        let rests = work.failed.is_some_and(|failed| failed.elapsed() < MIRROR_REST);
        let last = self.find_last(&request).await?;
        if let (true, Some(pair)) = (rests, &last) {
            progress(Progress::Note("using the base made before: the Debian mirrors failed a moment ago".to_owned()));
            return Ok(pair.clone());
        }
        let patience = if last.is_some() { Some(self.patience().await?) } else { None };
        let made = Making { bases: self, patience, progress }.pair(&request, &mut work).await;
        work.failed = made.as_ref().is_err_and(Error::is_of_mirror).then(Instant::now);
        match (made, last) {
            (Err(error), Some(pair)) if error.is_of_mirror() => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "Debian mirrors failed, using an earlier base"
                );
                progress(Progress::Note(format!("using the base made before: {error}")));
                Ok(pair)
            }
            (made, _) => made,
        }
    }

    /// The blobs that only this room refers to: a garbage collection keeps them, next to what the registry has.
    pub async fn references(&self) -> Result<Vec<Digest>, Error> {
        let records = self.objects.list::<BaseRecord>(None).await?;
        Ok(records.into_iter().map(|stored| stored.value.lock).collect())
    }

    /// The pair that was made for this request on the index that is current, without touching the network.
    async fn find_current(&self, request: &Request) -> Result<Option<BasePair>, Error> {
        let Some(state) = self.fresh_state().await? else { return Ok(None) };
        let id = request.id(&self.options);
        for stored in self.objects.list::<BaseRecord>(None).await? {
            let answers = stored.value.requests.get(&id).is_some_and(|answer| answer.snapshot == state.snapshot);
            if answers && self.is_whole(&stored.value).await? {
                return Ok(Some(stored.value.pair()));
            }
        }
        Ok(None)
    }

    /// The newest pair that was ever made for this request.
    async fn find_last(&self, request: &Request) -> Result<Option<BasePair>, Error> {
        let id = request.id(&self.options);
        let mut records = self.objects.list::<BaseRecord>(None).await?;
        records.retain(|stored| stored.value.requests.contains_key(&id));
        records.sort_by_key(|stored| stored.value.requests.get(&id).map(|answer| std::cmp::Reverse(answer.at)));
        for stored in records {
            if self.is_whole(&stored.value).await? {
                return Ok(Some(stored.value.pair()));
            }
        }
        Ok(None)
    }

    /// Whether all its blobs are there: a garbage collection may have taken what nothing used.
    async fn is_whole(&self, record: &BaseRecord) -> Result<bool, Error> {
        let layers = record.layers.iter().map(|layer| &layer.layer.blob.digest);
        for digest in layers.chain([&record.run.digest, &record.build.digest, &record.lock]) {
            if self.blobs.size(digest).await?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The state of the index, when it needs no new look at the mirrors.
    async fn fresh_state(&self) -> Result<Option<State>, Error> {
        let recheck = i64::try_from(self.options.recheck.as_secs()).unwrap_or(i64::MAX);
        Ok(self.last_state().await?.filter(|state| {
            let age = Timestamp::now().as_second() - state.checked.as_second();
            (0..recheck).contains(&age) && self.options.index_path(&state.snapshot).exists()
        }))
    }

    /// How long a look at the mirrors may take where a base of an earlier look would do: the longer ago that was, the more.
    async fn patience(&self) -> Result<Duration, Error> {
        let age = self.last_state().await?.map(|state| Timestamp::now().as_second() - state.checked.as_second());
        let days = u64::try_from(age.unwrap_or_default()).unwrap_or_default() / (24 * 60 * 60);
        Ok(PATIENCE * u32::try_from(days.clamp(1, MAX_PATIENT_DAYS)).unwrap_or(1))
    }

    /// What was seen at the mirrors last; none on a new machine or when the file is damaged.
    async fn last_state(&self) -> Result<Option<State>, Error> {
        let known = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.is_some() {
            return Ok(known);
        }
        let path = self.options.state_path();
        let read = move || match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(|text| serde_json::from_slice(&text).ok()),
        };
        let state: Option<State> = blocking("reading the state of the package index", read).await?;
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&state);
        Ok(state)
    }

    async fn save_state(&self, state: &State) -> Result<(), Error> {
        let (path, text) = (self.options.state_path(), image::to_json(state)?);
        let write = move || {
            let unfinished = unfinished(&path);
            let mut file = std::fs::File::create(&unfinished)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(unfinished, path)
        };
        blocking("writing the state of the package index", write).await?;
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state.clone());
        Ok(())
    }
}

/// A name beside `path` for what is not whole yet. It is never the same twice: a making that was given up may go on writing for
/// a while.
fn unfinished(path: &Path) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    path.with_extension(format!("{}-{number}.part", std::process::id()))
}

/// Runs what would hold up the reactor.
async fn blocking<T: Send + 'static>(
    doing: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
    done.map_err(|source| Error::Io { doing: doing.to_owned(), source })
}
