//! Base images from Debian packages: what is made from a mirror, and what is refused.
//!
//! Most tests have a mirror of their own, signed with a key of their own. The ones in `real` read
//! from the mirrors of the host's apt sources, as the daemon does; where there are none they say so.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's own exception is for functions marked as tests, not for what they call"
)]

mod making;
mod memory;
mod mirror;
mod real;
mod refusals;

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use epiniod::{
    base::{BasePair, Bases, Error, Options, Progress},
    model::Digest,
    oci::{ConfigFile, Manifest},
    store::Objects,
};
use memory::{FolderBlobs, MapStore, Published};

/// Bases with stores of their own.
struct Room {
    bases: Bases,
    blobs: Arc<FolderBlobs>,
    published: Arc<Published>,
    notes: Mutex<Vec<Progress>>,
}

impl Room {
    fn new(folder: &Path, options: Options) -> Self {
        Self::with_store(folder, options, Arc::new(MapStore::default()))
    }

    fn with_store(folder: &Path, options: Options, store: Arc<MapStore>) -> Self {
        let blobs = Arc::new(FolderBlobs::new(folder.join("blobs")));
        let published = Arc::new(Published::default());
        let bases = Bases::new(options, blobs.clone(), Objects::new(store), published.clone());
        Self { bases, blobs, published, notes: Mutex::default() }
    }

    async fn ensure(&self, build: &[&str], run: &[&str]) -> Result<BasePair, Error> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let hear = |progress| self.notes.lock().unwrap().push(progress);
        self.bases.ensure(&owned(build), &owned(run), &hear).await
    }

    fn json<T: serde::de::DeserializeOwned>(&self, digest: &Digest) -> T {
        serde_json::from_slice(&std::fs::read(self.blobs.path(digest)).unwrap()).unwrap()
    }

    fn manifest(&self, digest: &Digest) -> Manifest {
        self.json(digest)
    }

    fn config(&self, digest: &Digest) -> ConfigFile {
        self.json(&self.manifest(digest).config.digest)
    }
}
