//! A blob on its way in: at most one part is collected while one is sent.

use std::{
    fs::File,
    io::{self, Write as _},
    sync::Arc,
};

use ::s3::serde_types::Part;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;

use super::{
    super::{BlobInfo, BlobWriter, Error},
    Place, blob_key, random_name,
};
use crate::model::Digest;

/// What is sent at once, in bytes. S3 takes no less than 5 MiB, and no more than 10,000 of them: 78 GiB.
pub(super) const PART: usize = 8 << 20;

/// A writer that keeps nothing.
pub(super) struct S3Writer {
    place: Arc<Place>,
    /// None while it is computed, and after that failed.
    sum: Option<Sha256>,
    buffer: BytesMut,
    written: u64,
    /// From the second part on.
    upload: Option<Upload>,
}

impl S3Writer {
    pub fn new(place: Arc<Place>) -> Self {
        Self { place, sum: Some(Sha256::new()), buffer: BytesMut::new(), written: 0, upload: None }
    }

    /// What was collected, and its digest.
    async fn take(&mut self) -> Result<(Bytes, Digest), Error> {
        let part = std::mem::take(&mut self.buffer).freeze();
        let lost = || io::Error::other("an earlier write of this blob failed");
        let failed = |source| Error::Io { doing: "writing a blob".to_owned(), source };
        let mut sum = self.sum.take().ok_or_else(|| failed(lost()))?;
        let hashed = tokio::task::spawn_blocking(move || {
            sum.update(&part);
            let digest = Digest::of(&part);
            (part, digest, sum)
        });
        let (part, digest, sum) = hashed.await.map_err(|error| failed(io::Error::other(error)))?;
        self.sum = Some(sum);
        Ok((part, digest))
    }

    async fn send(&mut self) -> Result<(), Error> {
        let (part, digest) = self.take().await?;
        let mut upload = match self.upload.take() {
            Some(upload) => upload,
            None => Upload::begin(Arc::clone(&self.place)).await?,
        };
        // When this fails the upload is given up, and so is the sum: nothing can be written any more.
        let sent = upload.send(part, digest).await;
        if let Err(error) = sent {
            self.sum = None;
            return Err(error);
        }
        self.upload = Some(upload);
        Ok(())
    }
}

#[async_trait]
impl BlobWriter for S3Writer {
    async fn write(&mut self, mut bytes: Bytes) -> Result<(), Error> {
        self.written += bytes.len() as u64;
        while !bytes.is_empty() {
            // Only when there is more: what fits into one part is one request.
            if self.buffer.len() == PART {
                self.send().await?;
            }
            let taken = bytes.split_to(bytes.len().min(PART - self.buffer.len()));
            self.buffer.extend_from_slice(&taken);
        }
        Ok(())
    }

    fn written(&self) -> u64 {
        self.written
    }

    async fn so_far(&mut self) -> Result<Option<File>, Error> {
        Ok(None)
    }

    async fn finish(mut self: Box<Self>, expected: Option<Digest>) -> Result<BlobInfo, Error> {
        let (last, part_digest) = self.take().await?;
        let sum = self.sum.take().expect("it was just computed");
        let (digest, size) = (Digest::from_sha256(sum.finalize().into()), self.written);
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(Error::Mismatch { expected, actual: digest });
        }
        match self.upload.take() {
            None => {
                let _age = self.place.age(&digest).await;
                // Also when it is there: what was damaged is whole again, and what was old is new.
                self.place.bucket.put(&blob_key(&digest), last, &digest).await?;
            }
            Some(upload) => upload.finish(last, part_digest, &digest, size).await?,
        }
        Ok(BlobInfo { digest, size })
    }
}

/// An upload in parts to a name of its own. When it is dropped before its end, nothing of it stays.
struct Upload {
    place: Arc<Place>,
    key: String,
    id: String,
    parts: Vec<Part>,
    on_its_way: Option<JoinHandle<Result<Part, Error>>>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// There is an object of it.
    Complete,
    Gone,
}

impl Upload {
    async fn begin(place: Arc<Place>) -> Result<Self, Error> {
        let key = format!("{}{}", place.uploads, random_name());
        let id = place.bucket.begin(&key).await?;
        Ok(Self { place, key, id, parts: Vec::new(), on_its_way: None, state: State::Open })
    }

    /// Returns when the part before has arrived, and this one is on its way.
    async fn send(&mut self, part: Bytes, digest: Digest) -> Result<(), Error> {
        self.arrived().await?;
        let number = u32::try_from(self.parts.len() + 1).unwrap_or(u32::MAX);
        let (place, key, id) = (Arc::clone(&self.place), self.key.clone(), self.id.clone());
        self.on_its_way = Some(tokio::spawn(async move {
            let _permit = place.parts.acquire().await.map_err(|error| lost(io::Error::other(error)))?;
            place.bucket.put_part(&key, &id, number, part, &digest).await
        }));
        Ok(())
    }

    async fn arrived(&mut self) -> Result<(), Error> {
        if let Some(part) = &mut self.on_its_way {
            let arrived = part.await.map_err(|error| lost(io::Error::other(error)));
            self.on_its_way = None;
            self.parts.push(arrived??);
        }
        Ok(())
    }

    async fn finish(mut self, last: Bytes, part_digest: Digest, digest: &Digest, size: u64) -> Result<(), Error> {
        // What is there need not be made again; that it has the right length is enough, as it was hashed on its way in.
        if self.place.touch(digest).await? == Some(size) {
            return Ok(());
        }
        self.send(last, part_digest).await?;
        self.arrived().await?;
        self.place.bucket.complete(&self.key, &self.id, std::mem::take(&mut self.parts), size).await?;
        self.state = State::Complete;
        {
            let _age = self.place.age(digest).await;
            let target = blob_key(digest);
            self.place.bucket.copy(&self.key, &target, size).await?;
            let copied = self.place.bucket.head(&target).await?.map(|object| object.size);
            if copied != Some(size) {
                let why = format!("the copy has {} bytes, and not {size}", copied.unwrap_or(0));
                return Err(Error::Refused { doing: format!("finishing blob {digest}"), why });
            }
        }
        // One that cannot be deleted now is left over, and removed later.
        if self.place.bucket.delete(&self.key).await.is_ok() {
            self.state = State::Gone;
        }
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let part = self.on_its_way.take();
        // Without a reactor, or an answer, it is left over, and removed by the next start.
        let Ok(reactor) = tokio::runtime::Handle::try_current() else { return };
        let (place, key, id) = (Arc::clone(&self.place), self.key.clone(), self.id.clone());
        let state = self.state;
        drop(reactor.spawn(async move {
            if let Some(part) = part {
                // A part that arrives after the end would stay.
                let _ = part.await;
            }
            match state {
                State::Gone => Ok(()),
                State::Open => place.bucket.abort(&key, &id).await,
                State::Complete => place.bucket.delete(&key).await,
            }
        }));
    }
}

/// A writer that keeps what it writes in a file without a name as well.
pub(super) struct Readable {
    writer: S3Writer,
    /// None while it is written to, and after that failed.
    file: Option<File>,
}

impl Readable {
    pub fn new(writer: S3Writer, file: File) -> Self {
        Self { writer, file: Some(file) }
    }
}

#[async_trait]
impl BlobWriter for Readable {
    async fn write(&mut self, bytes: Bytes) -> Result<(), Error> {
        let mut file = self.file.take().ok_or_else(|| lost(io::Error::other("an earlier write of it failed")))?;
        let kept = bytes.clone();
        let written = tokio::task::spawn_blocking(move || file.write_all(&kept).map(|()| file));
        self.file = Some(written.await.map_err(io::Error::other).and_then(|result| result).map_err(lost)?);
        self.writer.write(bytes).await
    }

    fn written(&self) -> u64 {
        self.writer.written()
    }

    async fn so_far(&mut self) -> Result<Option<File>, Error> {
        let file = self.file.as_ref().ok_or_else(|| lost(io::Error::other("an earlier write of it failed")))?;
        // Through /proc it has an offset of its own, so that reading does not move the writing.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
        File::open(path).map(Some).map_err(lost)
    }

    async fn finish(self: Box<Self>, expected: Option<Digest>) -> Result<BlobInfo, Error> {
        Box::new(self.writer).finish(expected).await
    }
}

fn lost(source: io::Error) -> Error {
    Error::Io { doing: "writing a blob".to_owned(), source }
}
