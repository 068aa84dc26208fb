//! From upstream into the bundled registry.

use std::{
    collections::HashSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture};
use tokio::time::timeout;

use super::{
    Builders, Error, Note,
    upstream::{Found, Upstream},
};
use crate::{
    blob,
    model::{Digest, ImageName},
    oci::{ConfigFile, Descriptor, Manifest},
    telemetry::chain,
};

/// How long it may take to learn what a name means.
const LOOK_UP: Duration = Duration::from_secs(60);
/// The same, when there is a copy that would do.
const LOOK_AGAIN: Duration = Duration::from_secs(20);
/// How long the blobs of one image may take.
const COPY: Duration = Duration::from_secs(3600);
/// How many blobs come at once.
const AT_ONCE: usize = 4;
const ATTEMPTS: u32 = 3;
/// Between attempts; doubles each time.
const PAUSE: Duration = Duration::from_millis(500);
const BETWEEN_NOTES: Duration = Duration::from_secs(2);
/// A larger image is refused, in bytes.
const MAX_IMAGE: u64 = 32 << 30;

/// An image that is in the bundled registry.
pub(super) struct Copied {
    pub name: String,
    pub image: ImageName,
    pub manifest: Manifest,
    pub config: ConfigFile,
}

impl Builders {
    /// Looks the image up, and copies what is not here of it. The copy of the last look-up is used when that is not possible.
    pub(super) async fn copy(&self, upstream: &Upstream, repository: &str, note: Note<'_>) -> Result<Copied, Error> {
        let tag = tag_of(&upstream.name);
        let _turn = self.turn_for(&tag).lock_owned().await;
        let last = self.last(&upstream.name, repository, &tag).await?;
        match (self.try_copy(upstream, repository, &tag, last.as_ref(), note).await, last) {
            (Err(error), Some(last)) if error.is_passing() => {
                note(format!("Warning: {}; the copy that was used before is used", chain(&error)));
                // It is as fresh as one that was just copied.
                self.registry.publish(repository, &tag, last.image.digest).await?;
                Ok(last)
            }
            (result, _) => result,
        }
    }

    async fn try_copy(
        &self,
        upstream: &Upstream,
        repository: &str,
        tag: &str,
        last: Option<&Copied>,
        note: Note<'_>,
    ) -> Result<Copied, Error> {
        let name = &upstream.name;
        let late = |within: Duration| Error::TooSlow { image: name.clone(), seconds: within.as_secs() };
        let patience = if last.is_some() { LOOK_AGAIN } else { LOOK_UP };
        let found = timeout(patience, upstream.find()).await.map_err(|_| late(patience))??;
        note(format!("image {name} is {}", found.digest));
        timeout(COPY, self.fetch_missing(upstream, &found, note)).await.map_err(|_| late(COPY))??;
        let mut writer = self.blobs.writer().await?;
        writer.write(Bytes::from(found.bytes)).await?;
        writer.finish(Some(found.digest)).await?;
        self.registry.publish(repository, tag, found.digest).await?;
        let image = ImageName::new(repository, found.digest);
        Ok(Copied { name: name.clone(), image, manifest: found.manifest, config: found.config })
    }

    /// The copy that was used last, if all of it is still here.
    async fn last(&self, name: &str, repository: &str, tag: &str) -> Result<Option<Copied>, Error> {
        let Some(digest) = self.registry.resolve(repository, tag).await? else { return Ok(None) };
        let image = ImageName::new(repository, digest);
        let Some(documents) = self.registry.image(&image).await? else { return Ok(None) };
        for layer in &documents.manifest.layers {
            if self.blobs.size(&layer.digest).await?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(Copied { name: name.to_owned(), image, manifest: documents.manifest, config: documents.config }))
    }

    async fn fetch_missing(&self, upstream: &Upstream, found: &Found, note: Note<'_>) -> Result<(), Error> {
        let (mut missing, mut known) = (Vec::new(), HashSet::new());
        for blob in std::iter::once(&found.manifest.config).chain(&found.manifest.layers) {
            // What is here may be old, and a garbage collection on its way.
            if known.insert(blob.digest) && !self.blobs.touch(&blob.digest).await? {
                missing.push(blob);
            }
        }
        let total = missing.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
        if total > MAX_IMAGE {
            return Err(Error::malformed(&upstream.name, format!("it has {:.1} GB", total as f64 / 1e9)));
        }
        if missing.is_empty() {
            return Ok(());
        }
        note(format!("copying image {}: {} blobs, {:.1} MB", upstream.name, missing.len(), mega(total)));
        let progress =
            Progress { name: &upstream.name, note, done: AtomicU64::new(0), total, told: Mutex::new(Instant::now()) };
        // Boxed, as the compiler cannot see through all of it that it may move between threads.
        let fetches: Vec<BoxFuture<'_, _>> =
            missing.into_iter().map(|blob| self.fetch(upstream, blob, &progress).boxed()).collect();
        futures::stream::iter(fetches).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        note(format!("copied image {}", upstream.name));
        Ok(())
    }

    /// One blob, again when it breaks off.
    async fn fetch(&self, upstream: &Upstream, blob: &Descriptor, progress: &Progress<'_>) -> Result<(), Error> {
        let mut attempt = 1;
        loop {
            match self.fetch_once(upstream, blob, progress).await {
                Err(error) if error.is_passing() && attempt < ATTEMPTS => {
                    tokio::time::sleep(PAUSE * 2_u32.pow(attempt - 1)).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    async fn fetch_once(&self, upstream: &Upstream, blob: &Descriptor, progress: &Progress<'_>) -> Result<(), Error> {
        let mut stream = upstream.blob(blob).await?;
        let mut writer = self.blobs.writer().await?;
        let interrupted = |source| Error::Interrupted { image: upstream.name.clone(), source };
        while let Some(part) = stream.next().await {
            let part = part.map_err(interrupted)?;
            if writer.written() + part.len() as u64 > blob.size {
                return Err(Error::malformed(&upstream.name, format!("blob {} is larger than it says", blob.digest)));
            }
            progress.add(part.len() as u64);
            writer.write(part).await?;
        }
        match writer.finish(Some(blob.digest)).await {
            Ok(_) => Ok(()),
            Err(blob::Error::Mismatch { .. }) => {
                Err(Error::malformed(&upstream.name, format!("blob {} is damaged where it comes from", blob.digest)))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Says now and then how far a copy is.
struct Progress<'a> {
    name: &'a str,
    note: Note<'a>,
    done: AtomicU64,
    total: u64,
    told: Mutex<Instant>,
}

impl Progress<'_> {
    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() >= BETWEEN_NOTES {
            *told = Instant::now();
            (self.note)(format!("copied {:.1} of {:.1} MB of image {}", mega(done), mega(self.total), self.name));
        }
    }
}

/// The tag of the copy: names have characters, and a length, that tags may not have.
fn tag_of(name: &str) -> String {
    Digest::of(name).hex()[..32].to_owned()
}

fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
