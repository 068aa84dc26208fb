//! Base images from Debian packages: what is made from a mirror, and what is refused.
//!
//! Most tests have a mirror of their own, signed with a key of their own. The ones in `real` read
//! from the mirrors of the host's apt sources, as the daemon does; where there are none they say so.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's own exception is for functions marked as tests, not for what they call"
)]

mod making;
mod mirror;
mod real;
mod refusals;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use epiniod::{
    base::{BasePair, Bases, Error, Options, Progress, Publish, REPOSITORY},
    blob::DiskBlobs,
    model::{Digest, ImageName},
    oci::{ConfigFile, Manifest, registry::Registry},
    store::{DiskStore, Objects},
};

/// Bases with stores of their own.
struct Room {
    bases: Bases,
    folder: PathBuf,
    blobs: Arc<DiskBlobs>,
    objects: Objects,
    registry: Registry,
    notes: Mutex<Vec<Progress>>,
}

impl Room {
    fn new(folder: &Path, options: Options) -> Self {
        let blobs = DiskBlobs::open(&folder.join("blobs")).unwrap();
        let objects = Objects::new(DiskStore::open(&folder.join("store")).unwrap());
        let registry = Registry::new(objects.clone(), blobs.clone());
        let publish = Arc::new(Published(registry.clone()));
        let bases = Bases::new(options, blobs.clone(), objects.clone(), publish);
        Self { bases, folder: folder.to_owned(), blobs, objects, registry, notes: Mutex::default() }
    }

    /// Asks the mirror at each making, and not once in a while.
    fn that_looks_each_time(folder: &Path, mirror: &mirror::Mirror) -> Self {
        Self::new(folder, Options { recheck: std::time::Duration::ZERO, ..mirror.options(folder) })
    }

    /// As a restarted daemon: all that stays is on disk.
    fn forget(&mut self, options: Options) {
        let publish = Arc::new(Published(self.registry.clone()));
        self.bases = Bases::new(options, self.blobs.clone(), self.objects.clone(), publish);
    }

    async fn ensure(&self, build: &[&str], run: &[&str]) -> Result<BasePair, Error> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let hear = |progress| self.notes.lock().unwrap().push(progress);
        self.bases.ensure(&owned(build), &owned(run), &hear).await
    }

    /// As the registry has it.
    async fn manifest(&self, image: &ImageName) -> Manifest {
        self.registry.image(image).await.unwrap().expect("a published image").manifest
    }

    async fn config(&self, image: &ImageName) -> ConfigFile {
        self.registry.image(image).await.unwrap().expect("a published image").config
    }

    fn blob(&self, digest: &Digest) -> std::fs::File {
        std::fs::File::open(self.blobs.local_path(digest).expect("a blob on this machine")).unwrap()
    }

    /// All files of the blob store, unfinished ones included.
    fn blob_files(&self) -> Vec<PathBuf> {
        let (mut folders, mut files) = (vec![self.folder.join("blobs")], Vec::new());
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { files.push(path) }
            }
        }
        files
    }

    async fn assert_nothing_made(&self) {
        assert_eq!(self.blob_files(), Vec::<PathBuf>::new());
        assert_eq!(self.registry.tags(REPOSITORY).await.unwrap(), [""; 0]);
    }
}

struct Published(Registry);

#[async_trait]
impl Publish for Published {
    async fn publish(&self, repository: &str, tag: &str, manifest: Digest) -> Result<(), String> {
        self.0.publish(repository, tag, manifest).await.map_err(|error| error.to_string())
    }
}
