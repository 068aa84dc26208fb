//! Blobs in a bucket of S3: whatever speaks its API, at whatever address.
//!
//! A blob is the object `blobs/sha256/ab/<hex>`. What is written goes there in one request when it is short, and else in parts
//! to `uploads/…`, as nobody knows its digest before its end; then the other end copies it to its name. Neither
//! way has anything of it under its name before all of it is durable. When a blob was last used is the date of
//! an empty object beside, `touched/sha256/ab/<hex>`: S3 has no way to set a date.
//!
//! A bucket belongs to one daemon, and the object `epiniod-owner` says to which: the garbage of one may be what another needs.
//! Hashes go with everything that is sent, and everything that is read as a whole is hashed. Keys stay in this process.

mod answer;
mod bucket;
mod copies;
mod endpoint;
mod keys;
mod reader;
mod sign;
mod writer;

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard, Semaphore};

use self::{
    bucket::{Bucket, Object, PAGE},
    copies::Copies,
    writer::{Readable, S3Writer},
};
pub use self::{
    endpoint::S3Settings,
    keys::{KeySource, Keys},
};
use super::{BlobEntry, BlobReader, BlobWriter, Blobs, Error};
use crate::model::{Digest, Timestamp, random_hex};

/// Blobs in a bucket.
pub struct S3Blobs {
    place: Arc<Place>,
    copies: Copies,
}

/// May a bucket be taken that belongs to nobody?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Yes: nothing was put anywhere yet.
    New,
    /// No: what was put has to be there.
    Existing,
}

/// What writers and readers share.
struct Place {
    bucket: Bucket,
    /// Before the names of uploads of this start.
    uploads: String,
    /// Of the daemon, over all its starts.
    own_uploads: String,
    /// By the first byte of a digest. Held while a blob is put or refreshed, or is deleted because it is old: never both.
    ages: Vec<Mutex<()>>,
    /// Parts on their way: each takes memory.
    parts: Arc<Semaphore>,
}

const BLOBS: &str = "blobs/sha256/";
const TOUCHED: &str = "touched/sha256/";
const UPLOADS: &str = "uploads/";
const PROBES: &str = "probe/";
const OWNER: &str = "epiniod-owner";
/// How many parts may be on their way at once, of all writers.
const PARTS: usize = 8;
/// An endpoint may start at the same time as we do.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(1);
/// What somebody else left of an upload is removed after this, in seconds.
const UPLOAD_LIFETIME: i64 = 24 * 3600;

impl S3Blobs {
    /// Looks whether the bucket can be used and is `owner`'s, waits a little for one that does not answer, and removes what an
    /// interrupted write left. Copies are kept below `copies`.
    pub async fn open(settings: S3Settings, owner: &str, claim: Claim, copies: &Path) -> Result<Arc<Self>, Error> {
        let own_uploads = format!("{UPLOADS}{owner}/");
        let place = Arc::new(Place {
            bucket: Bucket::new(settings)?,
            uploads: format!("{own_uploads}{}/", random_name()),
            own_uploads,
            ages: (0..=u8::MAX).map(|_| Mutex::default()).collect(),
            parts: Arc::new(Semaphore::new(PARTS)),
        });
        place.wait_until_usable(owner).await?;
        place.claim(owner, claim).await?;
        let blobs = Self { place, copies: Copies::open(copies)? };
        if let Err(error) = blobs.tidy().await {
            tracing::warn!(%error, "what interrupted uploads left cannot be removed now; trying again later");
        }
        Ok(Arc::new(blobs))
    }
}

#[async_trait]
impl Blobs for S3Blobs {
    async fn writer(&self) -> Result<Box<dyn BlobWriter>, Error> {
        Ok(Box::new(S3Writer::new(Arc::clone(&self.place))))
    }

    async fn readable_writer(&self) -> Result<Box<dyn BlobWriter>, Error> {
        Ok(Box::new(Readable::new(S3Writer::new(Arc::clone(&self.place)), self.copies.scratch()?)))
    }

    async fn open(&self, digest: &Digest, range: Option<Range<u64>>) -> Result<Option<BlobReader>, Error> {
        reader::open(&self.place, digest, range).await
    }

    async fn size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        Ok(self.place.bucket.head(&blob_key(digest)).await?.map(|object| object.size))
    }

    async fn touch(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.place.touch(digest).await?.is_some())
    }

    async fn delete_older(&self, digest: &Digest, before: Timestamp) -> Result<bool, Error> {
        self.place.delete_older(digest, before).await
    }

    async fn list(&self, after: Option<Digest>, limit: usize) -> Result<Vec<BlobEntry>, Error> {
        self.place.list(after, limit).await
    }

    async fn local_file(&self, digest: &Digest) -> Result<Option<PathBuf>, Error> {
        self.copies.file(digest, || self.open(digest, None)).await
    }

    async fn tidy(&self) -> Result<(), Error> {
        self.copies.tidy().await?;
        self.place.remove_left_over().await
    }
}

impl Place {
    /// Nobody waits for this long, and nobody else may do something about this blob meanwhile.
    async fn age(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        let first = u8::from_str_radix(&digest.hex()[..2], 16).expect("a digest is hexadecimal");
        self.ages[usize::from(first)].lock().await
    }

    /// The size of the blob that was refreshed.
    async fn touch(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let _age = self.age(digest).await;
        let Some(object) = self.bucket.head(&blob_key(digest)).await? else { return Ok(None) };
        self.bucket.put(&touched_key(digest), Bytes::new(), &Digest::of("")).await?;
        Ok(Some(object.size))
    }

    async fn delete_older(&self, digest: &Digest, before: Timestamp) -> Result<bool, Error> {
        let _age = self.age(digest).await;
        let (key, touched) = (blob_key(digest), touched_key(digest));
        let Some(object) = self.bucket.head(&key).await? else { return Ok(false) };
        let used = self.bucket.head(&touched).await?;
        if newest(&object, used.as_ref()) >= before {
            return Ok(false);
        }
        // In this order, so that nothing is left beside what is gone.
        if used.is_some() {
            self.bucket.delete(&touched).await?;
        }
        self.bucket.delete(&key).await?;
        Ok(true)
    }

    /// The two lists have the same order.
    async fn list(&self, after: Option<Digest>, limit: usize) -> Result<Vec<BlobEntry>, Error> {
        let first = after.as_ref().map(blob_key);
        let blobs = self.bucket.list(BLOBS, first.as_deref(), limit).await?;
        let Some(last) = blobs.last().and_then(|object| digest_of(&object.key, BLOBS)) else { return Ok(Vec::new()) };
        let mut touched = std::collections::HashMap::new();
        let mut from = after.as_ref().map(touched_key);
        loop {
            let page = self.bucket.list(TOUCHED, from.as_deref(), PAGE).await?;
            let Some(end) = page.last().map(|object| object.key.clone()) else { break };
            touched.extend(page.into_iter().filter_map(|object| Some((digest_of(&object.key, TOUCHED)?, object))));
            if end >= touched_key(&last) {
                break;
            }
            from = Some(end);
        }
        let entries = blobs.iter().filter_map(|object| {
            let digest = digest_of(&object.key, BLOBS)?;
            Some(BlobEntry { digest, size: object.size, modified: newest(object, touched.get(&digest)) })
        });
        Ok(entries.collect())
    }

    /// Everything that will be asked of the bucket is asked once: what is wrong is better said at the start.
    async fn wait_until_usable(&self, owner: &str) -> Result<(), Error> {
        let begun = Instant::now();
        let mut told = false;
        loop {
            match self.probe(owner).await {
                Err(error) if error.is_temporary() && begun.elapsed() < PATIENCE => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, seconds = PATIENCE.as_secs(), "waiting for the object storage");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                result => return result,
            }
        }
    }

    async fn probe(&self, owner: &str) -> Result<(), Error> {
        let key = format!("{PROBES}{owner}");
        self.bucket.put(&key, Bytes::from_static(PROBE.as_bytes()), &Digest::of(PROBE)).await?;
        let read = self.bucket.read(&key).await?;
        let listed = self.bucket.list(&key, None, 1).await?;
        self.bucket.delete(&key).await?;
        if read.as_deref() != Some(PROBE) || listed.len() != 1 {
            let why = "what was written is not what is read; it is no S3 API that can be relied on".to_owned();
            return Err(Error::Refused { doing: format!("trying {key}"), why });
        }
        Ok(())
    }

    async fn claim(&self, owner: &str, claim: Claim) -> Result<(), Error> {
        let S3Settings { endpoint, bucket, .. } = self.bucket.settings();
        if claim == Claim::New && self.bucket.read(OWNER).await?.is_none() {
            self.bucket.put(OWNER, Bytes::copy_from_slice(owner.as_bytes()), &Digest::of(owner)).await?;
        }
        match self.bucket.read(OWNER).await? {
            Some(found) if found.trim() == owner => Ok(()),
            Some(_) => Err(Error::Foreign(format!(
                "the bucket '{bucket}' at {endpoint} belongs to another daemon, which would delete what this one puts there; \
                 name another one with --s3-bucket (to take this one over, delete the object '{OWNER}' in it)"
            ))),
            None => Err(Error::Foreign(format!(
                "the bucket '{bucket}' at {endpoint} does not have what this data directory refers to; name the bucket that has \
                 it with --s3-bucket and --s3-endpoint, or start anew with another --data-dir"
            ))),
        }
    }

    /// Uploads of daemons before this one, and of others when they are old.
    async fn remove_left_over(&self) -> Result<(), Error> {
        let old = Timestamp::from_second(Timestamp::now().as_second() - UPLOAD_LIFETIME);
        let is_left = |key: &str, at: Option<Timestamp>| {
            let dead = key.starts_with(&self.own_uploads) && !key.starts_with(&self.uploads);
            dead || at.is_some_and(|at| at < old)
        };
        let mut after = None;
        loop {
            let page = self.bucket.list(UPLOADS, after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            for object in page.iter().filter(|object| is_left(&object.key, Some(object.modified))) {
                self.bucket.delete(&object.key).await?;
            }
        }
        for prefix in [UPLOADS, BLOBS] {
            let uploads = match self.bucket.unfinished(prefix).await {
                // Not everybody lists them; then it is the other end that has to remove them.
                Err(error @ Error::Refused { .. }) => {
                    tracing::debug!(%error, "unfinished uploads are left to the object storage");
                    continue;
                }
                uploads => uploads?,
            };
            for upload in uploads.iter().filter(|one| is_left(&one.key, Timestamp::parse(&one.initiated))) {
                self.bucket.abort(&upload.key, &upload.upload_id).await?;
            }
        }
        Ok(())
    }
}

const PROBE: &str = "epiniod was here";

fn newest(object: &Object, touched: Option<&Object>) -> Timestamp {
    touched.map_or(object.modified, |touched| touched.modified.max(object.modified))
}

fn blob_key(digest: &Digest) -> String {
    key(BLOBS, digest)
}

fn touched_key(digest: &Digest) -> String {
    key(TOUCHED, digest)
}

fn key(prefix: &str, digest: &Digest) -> String {
    let hex = digest.hex();
    format!("{prefix}{}/{hex}", &hex[..2])
}

fn digest_of(key: &str, prefix: &str) -> Option<Digest> {
    Digest::from_hex(key.strip_prefix(prefix)?.split_once('/')?.1).ok()
}

/// A name that nobody else has.
pub fn random_name() -> String {
    random_hex::<16>()
}
