//! Blobs on a local disk: `sha256/ab/cdef…`, written beside, synced, renamed into place.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};

use super::{BlobEntry, BlobInfo, BlobReader, BlobWriter, Blobs, Error};
use crate::model::{Digest, Timestamp};

/// How much is hashed and written, or read, in one step off the reactor, in bytes.
const STEP: usize = 512 * 1024;

/// Blobs below a directory.
pub struct DiskBlobs {
    dir: PathBuf,
    next: AtomicU64,
    /// Held while a blob is refreshed, or is deleted because it is old: never both.
    age: Arc<Mutex<()>>,
}

impl DiskBlobs {
    /// Opens the directory, which is made if need be, and removes what an interrupted write left.
    pub fn open(dir: &Path) -> Result<Arc<Self>, Error> {
        let io = |source| Error::Io { doing: format!("opening the blob store {}", dir.display()), source };
        let temporary = dir.join("tmp");
        if temporary.exists() {
            fs::remove_dir_all(&temporary).map_err(io)?;
        }
        fs::create_dir_all(&temporary).map_err(io)?;
        fs::create_dir_all(dir.join("sha256")).map_err(io)?;
        Ok(Arc::new(Self { dir: dir.to_owned(), next: AtomicU64::new(0), age: Arc::default() }))
    }

    /// The file that holds a blob.
    pub fn local_path(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.path(digest);
        path.exists().then_some(path)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.join("sha256").join(&hex[..2]).join(&hex[2..])
    }
}

#[async_trait]
impl Blobs for DiskBlobs {
    async fn writer(&self) -> Result<Box<dyn BlobWriter>, Error> {
        let path = self.dir.join("tmp").join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let file = File::create(&path)
            .map_err(|source| Error::Io { doing: format!("creating {}", path.display()), source })?;
        let state = State { file, sum: Sha256::new(), buffer: Vec::with_capacity(STEP) };
        let temporary = Temporary { path };
        Ok(Box::new(DiskWriter {
            state: Some(state),
            temporary,
            written: 0,
            root: self.dir.clone(),
            age: Arc::clone(&self.age),
        }))
    }

    async fn readable_writer(&self) -> Result<Box<dyn BlobWriter>, Error> {
        self.writer().await
    }

    async fn open(&self, digest: &Digest, range: Option<Range<u64>>) -> Result<Option<BlobReader>, Error> {
        let path = self.path(digest);
        let doing = format!("reading blob {digest}");
        let opened = blocking(&doing, move || match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(mut file) => {
                let size = file.metadata()?.len();
                let range = range.unwrap_or(0..size);
                let range = range.start.min(size)..range.end.min(size);
                file.seek(SeekFrom::Start(range.start))?;
                Ok(Some((size, file, range.end.saturating_sub(range.start))))
            }
        })
        .await?;
        Ok(opened.map(|(size, file, left)| BlobReader { size, stream: read_in_steps(file, left).boxed() }))
    }

    async fn size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        match fs::metadata(self.path(digest)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { doing: format!("looking for blob {digest}"), source }),
        }
    }

    async fn touch(&self, digest: &Digest) -> Result<bool, Error> {
        let (path, age) = (self.path(digest), Arc::clone(&self.age));
        blocking(&format!("refreshing blob {digest}"), move || touch(&path, &age)).await
    }

    async fn delete_older(&self, digest: &Digest, before: Timestamp) -> Result<bool, Error> {
        let (path, age) = (self.path(digest), Arc::clone(&self.age));
        let delete = move || {
            let _age = age.lock().unwrap_or_else(PoisonError::into_inner);
            let before = UNIX_EPOCH + Duration::from_secs(u64::try_from(before.as_second()).unwrap_or(0));
            match fs::metadata(&path).and_then(|metadata| metadata.modified()) {
                Ok(modified) if modified < before => fs::remove_file(&path).map(|()| true),
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(false),
            }
        };
        blocking(&format!("deleting blob {digest}"), delete).await
    }

    async fn list(&self, after: Option<Digest>, limit: usize) -> Result<Vec<BlobEntry>, Error> {
        let root = self.dir.join("sha256");
        blocking("listing blobs", move || list(&root, after, limit)).await
    }

    async fn local_file(&self, digest: &Digest) -> Result<Option<PathBuf>, Error> {
        Ok(self.local_path(digest))
    }

    async fn tidy(&self) -> Result<(), Error> {
        // What is left over is removed when it is dropped, and at the next start.
        Ok(())
    }
}

/// A blob that is being written. What is collected is hashed and written in big steps on another thread.
struct DiskWriter {
    /// None while a step is on its way, and after one that failed.
    state: Option<State>,
    temporary: Temporary,
    written: u64,
    root: PathBuf,
    age: Arc<Mutex<()>>,
}

struct State {
    file: File,
    sum: Sha256,
    buffer: Vec<u8>,
}

/// Removes the file when it is dropped.
struct Temporary {
    path: PathBuf,
}

impl State {
    fn flush(&mut self) -> io::Result<()> {
        self.sum.update(&self.buffer);
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

impl DiskWriter {
    async fn step<T: Send + 'static>(
        &mut self,
        doing: &'static str,
        work: impl FnOnce(&mut State) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let lost = || io::Error::other("an earlier write of this blob failed");
        let Some(mut state) = self.state.take() else {
            return Err(Error::Io { doing: doing.to_owned(), source: lost() });
        };
        let (state, result) = blocking(doing, move || {
            let result = work(&mut state);
            Ok((state, result))
        })
        .await?;
        let value = result.map_err(|source| Error::Io { doing: doing.to_owned(), source })?;
        self.state = Some(state);
        Ok(value)
    }
}

#[async_trait]
impl BlobWriter for DiskWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<(), Error> {
        self.written += bytes.len() as u64;
        for part in bytes.chunks(STEP) {
            let full = match &mut self.state {
                Some(state) => {
                    state.buffer.extend_from_slice(part);
                    state.buffer.len() >= STEP
                }
                None => true,
            };
            if full {
                self.step("writing a blob", State::flush).await?;
            }
        }
        Ok(())
    }

    fn written(&self) -> u64 {
        self.written
    }

    async fn so_far(&mut self) -> Result<Option<File>, Error> {
        let path = self.temporary.path.clone();
        let file = self.step("reading what was written of a blob", move |state| {
            state.flush()?;
            File::open(path)
        });
        file.await.map(Some)
    }

    async fn finish(mut self: Box<Self>, expected: Option<Digest>) -> Result<BlobInfo, Error> {
        let (temporary, root, age) = (self.temporary.path.clone(), self.root.clone(), Arc::clone(&self.age));
        let result = self.step("finishing a blob", move |state| {
            state.flush()?;
            let actual = Digest::from_sha256(state.sum.clone().finalize().into());
            if expected.is_some_and(|expected| expected != actual) {
                return Ok(Err(actual));
            }
            publish(&state.file, &temporary, &root, &actual, &age)?;
            Ok(Ok(actual))
        });
        match (result.await?, expected) {
            (Ok(digest), _) => Ok(BlobInfo { digest, size: self.written }),
            (Err(actual), Some(expected)) => Err(Error::Mismatch { expected, actual }),
            (Err(actual), None) => unreachable!("without an expectation {actual} is right"),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing to remove.
        let _ = fs::remove_file(&self.path);
    }
}

/// Syncs the file, gives it its name, and syncs the directories on the way there.
fn publish(file: &File, temporary: &Path, root: &Path, digest: &Digest, age: &Mutex<()>) -> io::Result<()> {
    let hex = digest.hex();
    let all = root.join("sha256");
    let folder = all.join(&hex[..2]);
    let target = folder.join(&hex[2..]);
    if target.exists() && is_same(&target, temporary)? && touch(&target, age)? {
        return Ok(());
    }
    file.sync_all()?;
    if !folder.exists() {
        fs::create_dir_all(&folder)?;
        File::open(&all)?.sync_all()?;
    }
    {
        // Not while somebody looks whether what is there is old.
        let _age = age.lock().unwrap_or_else(PoisonError::into_inner);
        fs::rename(temporary, &target)?;
    }
    File::open(&folder)?.sync_all()
}

/// The time of the file says when it was last put: what is fresh is not collected.
fn touch(path: &Path, age: &Mutex<()>) -> io::Result<bool> {
    let _age = age.lock().unwrap_or_else(PoisonError::into_inner);
    match File::open(path) {
        Ok(file) => file.set_modified(SystemTime::now()).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether two files have the same bytes. A disk may have lost some of a blob: then what was just written heals it.
fn is_same(old: &Path, new: &Path) -> io::Result<bool> {
    let (mut old, mut new) = (File::open(old)?, File::open(new)?);
    let mut left = new.metadata()?.len();
    if old.metadata()?.len() != left {
        return Ok(false);
    }
    let (mut there, mut written) = (vec![0; STEP], vec![0; STEP]);
    while left > 0 {
        let step = usize::try_from(left).unwrap_or(STEP).min(STEP);
        // What cannot be read is not the same.
        if old.read_exact(&mut there[..step]).is_err() {
            return Ok(false);
        }
        new.read_exact(&mut written[..step])?;
        if there[..step] != written[..step] {
            return Ok(false);
        }
        left -= step as u64;
    }
    Ok(true)
}

fn read_in_steps(file: File, left: u64) -> impl futures::Stream<Item = io::Result<Bytes>> + Send + 'static {
    futures::stream::try_unfold((file, left), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let step = usize::try_from(left).unwrap_or(STEP).min(STEP);
        let read = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; step];
            file.read_exact(&mut buffer)?;
            Ok::<_, io::Error>((file, buffer))
        });
        let (file, buffer) = read.await.map_err(io::Error::other)??;
        Ok(Some((Bytes::from(buffer), (file, left - step as u64))))
    })
}

fn list(root: &Path, after: Option<Digest>, limit: usize) -> io::Result<Vec<BlobEntry>> {
    let after = after.map(|digest| digest.hex());
    let mut found = Vec::new();
    for folder in names(root)? {
        if after.as_ref().is_some_and(|after| folder.as_str() < &after[..2]) {
            continue;
        }
        for rest in names(&root.join(&folder))? {
            let hex = format!("{folder}{rest}");
            let Ok(digest) = Digest::from_hex(&hex) else { continue };
            if after.as_ref().is_some_and(|after| hex <= *after) {
                continue;
            }
            let metadata = fs::metadata(root.join(&folder).join(&rest))?;
            let age = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            let modified = Timestamp::from_second(i64::try_from(age.as_secs()).unwrap_or(0));
            found.push(BlobEntry { digest, size: metadata.len(), modified });
            if found.len() == limit {
                return Ok(found);
            }
        }
    }
    Ok(found)
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(dir)?
        .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()?;
    names.sort();
    Ok(names)
}

async fn blocking<T: Send + 'static>(
    doing: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let result = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    result.and_then(|result| result).map_err(|source| Error::Io { doing: doing.to_owned(), source })
}
