//! Copies of blobs on this machine, for who needs a file: layers to unpack, sources to mount.
//!
//! A copy is fetched when it is first asked for, and has its name only when its hash was right and it is on the disk. They are few and do not stay:
//! what has been used for the last time is removed.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures::StreamExt as _;
use tokio::io::AsyncWriteExt as _;

use super::super::{BlobReader, Error};
use crate::model::Digest;

/// Files below a directory, each named by its digest.
pub(super) struct Copies {
    dir: PathBuf,
    /// One fetching of a blob at a time.
    busy: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    begun: AtomicU64,
}

/// A copy that was asked for this long ago has been opened.
const OPENED: Duration = Duration::from_secs(600);
/// A copy that nobody asked for since is removed.
const LIFETIME: Duration = Duration::from_secs(2 * 60 * 60);
/// When they come to more than this, those that were used before others go, in bytes.
const MOST: u64 = 8 << 30;

impl Copies {
    /// Opens the directory, and removes what an interrupted fetching left.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Io { doing: format!("opening the copies of blobs in {}", dir.display()), source };
        let temporary = dir.join("tmp");
        if temporary.exists() {
            fs::remove_dir_all(&temporary).map_err(failed)?;
        }
        fs::create_dir_all(&temporary).map_err(failed)?;
        Ok(Self { dir: dir.to_owned(), busy: Mutex::default(), begun: AtomicU64::new(0) })
    }

    /// The copy of a blob; none when there is no such blob.
    pub async fn file<F>(&self, digest: &Digest, open: impl FnOnce() -> F) -> Result<Option<PathBuf>, Error>
    where
        F: Future<Output = Result<Option<BlobReader>, Error>>,
    {
        let place = self.dir.join(digest.hex());
        let turn = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(busy.entry(*digest).or_default())
        };
        let _turn = turn.lock().await;
        let failed = |source| Error::Io { doing: format!("copying blob {digest} to {}", place.display()), source };
        if self.refresh(&place).map_err(failed)? {
            return Ok(Some(place));
        }
        let Some(reader) = open().await? else { return Ok(None) };
        let room = MOST.saturating_sub(reader.size);
        self.remove(room, LIFETIME).map_err(failed)?;
        let temporary = Temporary(self.new_path());
        fetch(reader, &temporary.0).await.map_err(failed)?;
        fs::rename(&temporary.0, &place).map_err(failed)?;
        Ok(Some(place))
    }

    /// A file without a name.
    pub fn scratch(&self) -> Result<File, Error> {
        let path = self.new_path();
        let made = File::options().create_new(true).read(true).write(true).open(&path);
        let made = made.and_then(|file| fs::remove_file(&path).map(|()| file));
        made.map_err(|source| Error::Io { doing: format!("creating {}", path.display()), source })
    }

    pub async fn tidy(&self) -> Result<(), Error> {
        self.remove(MOST, LIFETIME)
            .map_err(|source| Error::Io { doing: "removing unused copies of blobs".to_owned(), source })
    }

    fn new_path(&self) -> PathBuf {
        self.dir.join("tmp").join(self.begun.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// The time of the file says when it was last asked for.
    fn refresh(&self, place: &Path) -> io::Result<bool> {
        match File::open(place) {
            Ok(file) => file.set_modified(SystemTime::now()).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Those that are old, and then others, until the rest comes to this; what may be about to be opened stays anyway.
    fn remove(&self, most: u64, lifetime: Duration) -> io::Result<()> {
        let mut copies = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_file() {
                copies.push((metadata.modified()?.elapsed().unwrap_or_default(), metadata.len(), entry.path()));
            }
        }
        copies.sort();
        let mut kept = 0;
        for (age, size, path) in copies {
            kept += size;
            if age > OPENED && (age > lifetime || kept > most) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// Removes the file when it is dropped; after a rename there is none.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The stream ends with an error when its hash is not right.
async fn fetch(mut reader: BlobReader, path: &Path) -> io::Result<()> {
    let mut file = tokio::fs::File::create(path).await?;
    while let Some(bytes) = reader.stream.next().await {
        file.write_all(&bytes?).await?;
    }
    file.sync_all().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn copy(copies: &Copies, content: &'static [u8]) -> PathBuf {
        let reader = || async {
            let stream = futures::stream::iter([Ok(bytes::Bytes::from_static(content))]).boxed();
            Ok(Some(BlobReader { size: content.len() as u64, stream }))
        };
        copies.file(&Digest::of(content), reader).await.unwrap().unwrap()
    }

    fn age(path: &Path, by: Duration) {
        File::open(path).unwrap().set_modified(SystemTime::now() - by).unwrap();
    }

    #[tokio::test]
    async fn copies_go_when_nobody_uses_them_or_there_is_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::open(dir.path()).unwrap();
        let (old, idle, fresh) =
            (copy(&copies, b"old").await, copy(&copies, b"idle").await, copy(&copies, b"fresh").await);
        age(&old, LIFETIME * 2);
        age(&idle, OPENED * 2);
        copies.tidy().await.unwrap();
        assert!(!old.exists() && idle.exists() && fresh.exists());
        copies.remove(5, LIFETIME).unwrap();
        assert!(!idle.exists() && fresh.exists(), "what was used last stays");
        age(&fresh, LIFETIME * 2);
        copy(&copies, b"fresh").await;
        copies.tidy().await.unwrap();
        assert!(fresh.exists(), "asking for it makes it new");
    }

    #[tokio::test]
    async fn what_breaks_on_its_way_is_no_copy() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::open(dir.path()).unwrap();
        let broken = || async {
            let parts = [Ok(bytes::Bytes::from_static(b"half")), Err(io::Error::other("broken"))];
            Ok(Some(BlobReader { size: 8, stream: futures::stream::iter(parts).boxed() }))
        };
        assert!(copies.file(&Digest::of("whole"), broken).await.is_err());
        let files = |dir: &Path| fs::read_dir(dir).unwrap().filter(|e| e.as_ref().unwrap().path().is_file()).count();
        assert_eq!((files(dir.path()), files(&dir.path().join("tmp"))), (0, 0));
    }
}
