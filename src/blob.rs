//! Content-addressed bytes: sources, layers, manifests, caches, chunks of logs.
//!
//! A blob is named by the SHA-256 of its content and never changes. The trait is fit for object
//! storage: content streams in and out, nothing seeks, and callers never see a rename. It has two backends, a local disk
//! and S3, and one contract test for both.

mod disk;
mod moving;
mod s3;

use std::{fs::File, ops::Range, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use disk::DiskBlobs;
pub use moving::while_moving;
pub use s3::{Claim, KeySource, Keys, S3Blobs, S3Settings, random_name};

use crate::model::{Digest, Timestamp};

/// A backend that keeps blobs.
#[async_trait]
pub trait Blobs: Send + Sync + 'static {
    /// Starts a new blob. Nothing of it is visible, and nothing of it stays when the writer is
    /// dropped, before it is finished.
    async fn writer(&self) -> Result<Box<dyn BlobWriter>, Error>;

    /// The same, and what was written so far can be read. It takes room on this machine.
    async fn readable_writer(&self) -> Result<Box<dyn BlobWriter>, Error>;

    /// The content of a blob, or a part of it; none when there is no such blob.
    async fn open(&self, digest: &Digest, range: Option<Range<u64>>) -> Result<Option<BlobReader>, Error>;

    /// The size of a blob in bytes; none when there is no such blob.
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, Error>;

    /// Makes a blob as fresh as one that was just put; false when there is no such blob.
    async fn touch(&self, digest: &Digest) -> Result<bool, Error>;

    /// Removes a blob that was last put or touched before this; false when there was none.
    async fn delete_older(&self, digest: &Digest, before: Timestamp) -> Result<bool, Error>;

    /// Up to `limit` blobs in order of their digest, after the given one.
    async fn list(&self, after: Option<Digest>, limit: usize) -> Result<Vec<BlobEntry>, Error>;

    /// A file of this machine that holds a blob, fetched first if need be; none when there is no such blob. It must
    /// only be read, and be opened soon.
    async fn local_file(&self, digest: &Digest) -> Result<Option<PathBuf>, Error>;

    /// Removes what was left over on the way in and out: uploads that were given up, copies that nobody used lately.
    async fn tidy(&self) -> Result<(), Error>;
}

/// A blob on its way in.
#[async_trait]
pub trait BlobWriter: Send {
    async fn write(&mut self, bytes: Bytes) -> Result<(), Error>;

    /// Bytes written so far.
    fn written(&self) -> u64;

    /// What was written so far as a file to read, of a [readable](Blobs::readable_writer) one.
    async fn so_far(&mut self) -> Result<Option<File>, Error>;

    /// Makes the blob durable and visible. With an expected digest that does not match, nothing stays.
    async fn finish(self: Box<Self>, expected: Option<Digest>) -> Result<BlobInfo, Error>;
}

/// What a finished blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobInfo {
    pub digest: Digest,
    pub size: u64,
}

/// A blob in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobEntry {
    pub digest: Digest,
    pub size: u64,
    /// When it was last put or touched.
    pub modified: Timestamp,
}

/// A blob on its way out.
pub struct BlobReader {
    /// Of the whole blob, also when only a part was asked for.
    pub size: u64,
    pub stream: ByteStream,
}

pub type ByteStream = BoxStream<'static, std::io::Result<Bytes>>;

/// A shared backend.
pub type SharedBlobs = Arc<dyn Blobs>;

/// What can go wrong with blobs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the content has digest {actual}, not {expected}")]
    Mismatch { expected: Digest, actual: Digest },
    #[error("{doing}")]
    Io { doing: String, source: std::io::Error },
    /// Of object storage. It may answer in a moment.
    #[error("{doing}: the object storage at {endpoint} (--s3-endpoint) does not answer as it should: {cause}")]
    Unavailable { doing: String, endpoint: String, cause: String },
    /// Of object storage. It needs somebody to change something.
    #[error("{doing}: {why}")]
    Refused { doing: String, why: String },
    /// These are not the blobs of who opens them.
    #[error("{0}")]
    Foreign(String),
}

impl Error {
    /// Is it worth to try again?
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
