//! A store and a blob store that live as long as a test.

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use epiniod::{
    base::Publish,
    blob::{self, BlobInfo, BlobReader, BlobWriter, Blobs},
    model::Digest,
    store::{self, Event, Key, Kind, Object, Page, Slice, Store},
};
use futures::{StreamExt as _, stream};
use tokio::sync::broadcast;

/// Blobs as files of a folder.
pub struct FolderBlobs {
    pub folder: PathBuf,
    next: AtomicU64,
}

impl FolderBlobs {
    pub fn new(folder: PathBuf) -> Self {
        fs::create_dir_all(&folder).unwrap();
        Self { folder, next: AtomicU64::new(0) }
    }

    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }

    /// The names of everything in the folder, unfinished blobs included.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

struct FolderWriter {
    unfinished: PathBuf,
    folder: PathBuf,
    sum: sha2::Sha256,
    written: u64,
}

impl Drop for FolderWriter {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.unfinished);
    }
}

#[async_trait]
impl Blobs for FolderBlobs {
    async fn writer(&self) -> Result<Box<dyn BlobWriter>, blob::Error> {
        let unfinished = self.folder.join(format!("{}.part", self.next.fetch_add(1, Ordering::Relaxed)));
        let sum = <sha2::Sha256 as sha2::Digest>::new();
        Ok(Box::new(FolderWriter { unfinished, folder: self.folder.clone(), sum, written: 0 }))
    }

    async fn open(&self, digest: &Digest, _range: Option<Range<u64>>) -> Result<Option<BlobReader>, blob::Error> {
        let Ok(content) = fs::read(self.path(digest)) else { return Ok(None) };
        let size = content.len() as u64;
        Ok(Some(BlobReader { size, stream: stream::iter([Ok(Bytes::from(content))]).boxed() }))
    }

    async fn size(&self, digest: &Digest) -> Result<Option<u64>, blob::Error> {
        Ok(fs::metadata(self.path(digest)).ok().map(|found| found.len()))
    }

    async fn delete(&self, digest: &Digest) -> Result<bool, blob::Error> {
        Ok(fs::remove_file(self.path(digest)).is_ok())
    }

    async fn list(&self, _after: Option<Digest>, _limit: usize) -> Result<Vec<(Digest, u64)>, blob::Error> {
        Ok(Vec::new())
    }

    fn local_path(&self, digest: &Digest) -> Option<PathBuf> {
        Some(self.path(digest))
    }
}

#[async_trait]
impl BlobWriter for FolderWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<(), blob::Error> {
        use std::io::Write as _;
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&self.unfinished).unwrap();
        file.write_all(&bytes).unwrap();
        sha2::Digest::update(&mut self.sum, &bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn written(&self) -> u64 {
        self.written
    }

    async fn finish(self: Box<Self>, expected: Option<Digest>) -> Result<BlobInfo, blob::Error> {
        let actual = Digest::from_sha256(sha2::Digest::finalize(self.sum.clone()).into());
        if let Some(expected) = expected.filter(|expected| *expected != actual) {
            return Err(blob::Error::Mismatch { expected, actual });
        }
        fs::rename(&self.unfinished, self.folder.join(actual.hex())).unwrap();
        Ok(BlobInfo { digest: actual, size: self.written })
    }
}

/// Objects in a map.
pub struct MapStore {
    objects: Mutex<BTreeMap<Key, Object>>,
    events: broadcast::Sender<Event>,
}

impl Default for MapStore {
    fn default() -> Self {
        Self { objects: Mutex::default(), events: broadcast::channel(1).0 }
    }
}

#[async_trait]
impl Store for MapStore {
    async fn get(&self, key: &Key) -> Result<Option<Object>, store::Error> {
        Ok(self.objects.lock().unwrap().get(key).cloned())
    }

    async fn list(&self, kind: Kind, _page: &Page) -> Result<Slice, store::Error> {
        let objects = self.objects.lock().unwrap();
        Ok(Slice { objects: objects.values().filter(|object| object.key.kind == kind).cloned().collect(), next: None })
    }

    async fn put(&self, mut object: Object) -> Result<Object, store::Error> {
        let mut objects = self.objects.lock().unwrap();
        if objects.get(&object.key).map_or(0, |known| known.version) != object.version {
            return Err(store::Error::Conflict(object.key));
        }
        assert!(serde_json::to_vec(&object.body).unwrap().len() < store::MAX_OBJECT_BYTES);
        object.version += 1;
        objects.insert(object.key.clone(), object.clone());
        Ok(object)
    }

    async fn delete(&self, key: &Key, _version: Option<u64>) -> Result<(), store::Error> {
        self.objects.lock().unwrap().remove(key).map(drop).ok_or_else(|| store::Error::NotFound(key.clone()))
    }

    fn watch(&self, _kind: Kind) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

/// Remembers what was published.
#[derive(Default)]
pub struct Published(pub Mutex<Vec<(String, String, Digest)>>);

#[async_trait]
impl Publish for Published {
    async fn publish(&self, repository: &str, tag: &str, manifest: Digest) -> Result<(), String> {
        self.0.lock().unwrap().push((repository.to_owned(), tag.to_owned(), manifest));
        Ok(())
    }
}
