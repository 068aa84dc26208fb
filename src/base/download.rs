//! Downloads: retried, resumed where they stopped, and only kept when their hash is right.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Client, Response, StatusCode, header};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use super::{Error, Progress, blocking};
use crate::model::Digest;

/// Gets files from mirrors.
pub(super) struct Downloader {
    client: Client,
    /// Before the second attempt; doubles for each further one.
    retry_delay: Duration,
}

/// A file with a known hash.
#[derive(Debug, Clone)]
pub(super) struct Download {
    pub url: String,
    /// Where it is kept; there is nothing or the right file.
    pub path: PathBuf,
    pub size: u64,
    pub digest: Digest,
}

const ATTEMPTS: u32 = 4;
/// Of a small text: there may be another mirror that answers.
const TEXT_ATTEMPTS: u32 = 2;
const TEXT_TIMEOUT: Duration = Duration::from_secs(20);
const PARALLEL: usize = 8;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Without a byte.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Between attempts to lock what another process downloads.
const CLAIM_DELAY: Duration = Duration::from_millis(200);
/// In bytes per second. What is slower breaks off and goes on with the next attempt.
const LEAST_SPEED: u64 = 20_000;

impl Downloader {
    pub(super) fn new(retry_delay: Duration) -> Result<Self, Error> {
        // The one provider of the process; another room may have been first, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("epiniod/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(PARALLEL)
            .build()
            .map_err(|source| Error::MirrorDown { url: "any mirror".to_owned(), source: Box::new(source) })?;
        Ok(Self { client, retry_delay })
    }

    /// A small text of at most `limit` bytes.
    pub(super) async fn text(&self, url: &str, limit: usize) -> Result<String, Error> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.try_text(url, limit).await {
                Err(error) if error.is_temporary() && attempt < TEXT_ATTEMPTS => self.pause(attempt).await,
                result => return result,
            }
        }
    }

    async fn try_text(&self, url: &str, limit: usize) -> Result<String, Error> {
        let mut response = self.get(url, 0, TEXT_TIMEOUT).await?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|source| down(url, source))? {
            if body.len() + chunk.len() > limit {
                return Err(Error::Malformed { what: format!("{} (over {limit} bytes)", shown(url)) });
            }
            body.extend_from_slice(&chunk);
        }
        String::from_utf8(body).map_err(|_| Error::Malformed { what: shown(url) })
    }

    /// Gets all files that are not there yet, some at a time.
    pub(super) async fn fetch(
        &self,
        mut downloads: Vec<Download>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), Error> {
        // Equal files have one place: the indexes of two suites are equal when both are empty.
        downloads.sort_by(|a, b| a.path.cmp(&b.path));
        downloads.dedup_by(|a, b| a.path == b.path);
        let checks = stream::iter(downloads).map(|download| {
            let check = async move {
                let missing = !is_there(&download).await?;
                Ok::<_, Error>(missing.then_some(download))
            };
            check.boxed()
        });
        let missing: Vec<Download> =
            checks.buffered(2).try_filter_map(|missing| std::future::ready(Ok(missing))).try_collect().await?;
        if missing.is_empty() {
            return Ok(());
        }
        let meter = Meter { done: AtomicU64::new(0), total: missing.iter().map(|file| file.size).sum(), progress };
        meter.add(0);
        let files = stream::iter(&missing).map(|file| self.fetch_one(file, &meter).boxed());
        files.buffer_unordered(PARALLEL).try_collect().await
    }

    async fn fetch_one(&self, file: &Download, meter: &Meter<'_>) -> Result<(), Error> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.try_fetch(file, meter).await {
                Err(error) if error.is_temporary() && attempt < ATTEMPTS => self.pause(attempt).await,
                result => return result,
            }
        }
    }

    async fn try_fetch(&self, file: &Download, meter: &Meter<'_>) -> Result<(), Error> {
        let part = file.path.with_extension("part");
        let Some(_claim) = self.claim(file, &part).await? else {
            meter.add(file.size);
            return Ok(());
        };
        let (mut sum, mut written) = hash_part(part.clone(), file.size).await?;
        let resumed = written > 0;
        let mut result = self.try_continue(file, &part, (&mut sum, &mut written), meter).await;
        if result.is_ok() {
            let actual = Digest::from_sha256(sum.finalize().into());
            if actual == file.digest {
                return tokio::fs::rename(&part, &file.path)
                    .await
                    .map_err(|source| io_error("keeping a download", source));
            }
            result = Err(Error::WrongHash { url: shown(&file.url), expected: file.digest, actual });
        }
        meter.take_back(written);
        if result.as_ref().is_err_and(Error::is_temporary) {
            return result;
        }
        let _ = tokio::fs::remove_file(&part).await;
        match result {
            // What was there before may have been the damaged part: it deserves a start from nothing.
            Err(error) if resumed && error.is_about_content() => Err(Error::Interrupted { url: shown(&file.url) }),
            Err(Error::MirrorRefused { status: 416, url }) => Err(Error::Interrupted { url }),
            result => result,
        }
    }

    /// The part, locked for this attempt: another process may share the folder, and a making that was given up may still
    /// write. `None` when the other one got the file.
    async fn claim(&self, file: &Download, part: &Path) -> Result<Option<File>, Error> {
        let deadline = tokio::time::Instant::now() + patience(file);
        loop {
            let path = part.to_owned();
            if let Some(claimed) = blocking("locking a download", move || try_claim(&path)).await? {
                if is_there(file).await? {
                    let _ = tokio::fs::remove_file(part).await;
                    return Ok(None);
                }
                return Ok(Some(claimed));
            }
            if tokio::time::Instant::now() > deadline {
                return Err(Error::Interrupted { url: shown(&file.url) });
            }
            tokio::time::sleep(CLAIM_DELAY).await;
        }
    }

    /// Appends what is missing to the part that is there.
    async fn try_continue(
        &self,
        file: &Download,
        part: &Path,
        (sum, written): (&mut Sha256, &mut u64),
        meter: &Meter<'_>,
    ) -> Result<(), Error> {
        meter.add(*written);
        if *written == file.size {
            return Ok(());
        }
        let mut response = self.get(&file.url, *written, patience(file)).await?;
        let resumed = *written > 0 && response.status() == StatusCode::PARTIAL_CONTENT;
        let mut options = tokio::fs::OpenOptions::new();
        options.create(true).append(resumed).write(true).truncate(!resumed);
        let writing = |source| io_error("writing a download", source);
        let mut output = options.open(part).await.map_err(writing)?;
        if !resumed {
            meter.take_back(std::mem::take(written));
            *sum = Sha256::new();
        }
        let broken = loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break None,
                Err(source) => break Some(down(&file.url, source)),
            };
            if *written + chunk.len() as u64 > file.size {
                let what = format!("{} (longer than the {} bytes of the index)", shown(&file.url), file.size);
                return Err(Error::Malformed { what });
            }
            sum.update(&chunk);
            output.write_all(&chunk).await.map_err(writing)?;
            *written += chunk.len() as u64;
            meter.add(chunk.len() as u64);
        };
        // Also when it broke: the next attempt reads what is there. It need not survive a power cut, as it is
        // hashed before every use.
        output.flush().await.map_err(writing)?;
        match broken {
            Some(error) => Err(error),
            None if *written < file.size => Err(Error::Interrupted { url: shown(&file.url) }),
            None => Ok(()),
        }
    }

    async fn get(&self, url: &str, from: u64, timeout: Duration) -> Result<Response, Error> {
        let mut request = self.client.get(url).timeout(timeout);
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        let response = request.send().await.map_err(|source| down(url, source))?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            status => Err(Error::MirrorRefused { url: shown(url), status: status.as_u16() }),
        }
    }

    async fn pause(&self, attempt: u32) {
        tokio::time::sleep(self.retry_delay * 2_u32.pow(attempt - 1)).await;
    }
}

fn patience(file: &Download) -> Duration {
    IDLE_TIMEOUT + Duration::from_secs(file.size / LEAST_SPEED)
}

/// The part, made where there is none, with a lock on it; `None` while somebody else has it.
fn try_claim(part: &Path) -> io::Result<Option<File>> {
    let file = File::options().create(true).append(true).open(part)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(None),
        // A file system without locks is shared by nobody.
        Err(TryLockError::Error(_)) | Ok(()) => {}
    }
    // Who had it before may have renamed or removed it meanwhile.
    let is_current =
        fs::metadata(part).is_ok_and(|current| file.metadata().is_ok_and(|own| own.ino() == current.ino()));
    Ok(is_current.then_some(file))
}

/// Whether the right file is there. A wrong one is removed.
async fn is_there(file: &Download) -> Result<bool, Error> {
    let (path, size, digest) = (file.path.clone(), file.size, file.digest);
    let check = move || -> io::Result<bool> {
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            found => found?,
        };
        let (sum, length) = hash_file(&path)?;
        if length == size && Digest::from_sha256(sum.finalize().into()) == digest {
            File::options().append(true).open(&path)?.set_modified(std::time::SystemTime::now())?;
            return Ok(true);
        }
        fs::remove_file(&path)?;
        Ok(false)
    };
    blocking("checking a kept download", check).await
}

/// The hash and length of what an earlier attempt left; a part that is too long is forgotten.
async fn hash_part(part: PathBuf, size: u64) -> Result<(Sha256, u64), Error> {
    let hash = move || match hash_file(&part) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((Sha256::new(), 0)),
        Ok((_, length)) if length > size => fs::remove_file(&part).map(|()| (Sha256::new(), 0)),
        result => result,
    };
    blocking("resuming a download", hash).await
}

fn hash_file(path: &Path) -> io::Result<(Sha256, u64)> {
    let (mut file, mut sum, mut length) = (File::open(path)?, Sha256::new(), 0);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((sum, length)),
            read => {
                sum.update(&buffer[..read]);
                length += read as u64;
            }
        }
    }
}

fn io_error(doing: &str, source: io::Error) -> Error {
    Error::Io { doing: doing.to_owned(), source }
}

fn down(url: &str, source: reqwest::Error) -> Error {
    Error::MirrorDown { url: shown(url), source: Box::new(source.without_url()) }
}

/// A URL without the credentials that it may carry.
pub(super) fn shown(url: &str) -> String {
    match url.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split_once('/')?))) {
        Some((scheme, (host, path))) => format!("{scheme}://{}/{path}", host.rsplit('@').next().unwrap_or(host)),
        None => url.to_owned(),
    }
}

/// Adds up what parallel downloads have got.
struct Meter<'a> {
    done: AtomicU64,
    total: u64,
    progress: &'a (dyn Fn(Progress) + Send + Sync),
}

impl Meter<'_> {
    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(Progress::Download { done, total: self.total });
    }

    fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }
}
