//! An upload on its way in.

use std::{
    io::{self, Read},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures::{Stream, StreamExt as _};
use tokio::sync::{mpsc, oneshot};

use super::{
    Error, Format, SNIFFED_BYTES, Source, Sources,
    archive::{Contents, Walk},
};
use crate::{
    blob::{BlobInfo, BlobWriter},
    model::{AppName, Namespace, Timestamp, hex, random},
};

/// How many parts of an upload may wait for the check.
const QUEUE: usize = 16;
/// How long a client may be silent.
const SILENCE: Duration = Duration::from_secs(60);

impl Sources {
    /// Takes an archive. Returns when it is checked and durable; with an error nothing of it is left.
    pub async fn receive(
        &self,
        namespace: &Namespace,
        app: &AppName,
        body: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<Source, Error> {
        let _place = self.places.try_acquire().map_err(|_| Error::TooManyUploads)?;
        let mut body = std::pin::pin!(body.map(|part| part.map_err(Error::ClientGone)));
        let mut start = Vec::new();
        while start.len() < SNIFFED_BYTES
            && let Some(part) = next(&mut body).await?
        {
            start.extend_from_slice(&part);
        }
        if start.is_empty() {
            return Err(Error::Empty);
        }
        let format = Format::sniff(&start).ok_or(Error::UnknownFormat)?;
        let body = futures::stream::iter([Ok(Bytes::from(start))]).chain(body);
        let (blob, contents) = match format {
            Format::Zip => self.receive_zip(body).await?,
            format => self.receive_tar(format, body).await?,
        };
        let source = Source {
            uid: new_uuid(),
            namespace: namespace.clone(),
            app: app.clone(),
            digest: blob.digest,
            size: blob.size,
            format,
            entries: contents.entries,
            unpacked_bytes: contents.bytes,
            created_at: Timestamp::now(),
        };
        self.objects.create(&source).await?;
        Ok(source)
    }

    /// Checked while it is written.
    async fn receive_tar(
        &self,
        format: Format,
        body: impl Stream<Item = Result<Bytes, Error>> + Send,
    ) -> Result<(BlobInfo, Contents), Error> {
        let (parts, queue) = mpsc::channel(QUEUE);
        let limits = self.limits;
        let checked = on_a_thread(move || {
            let mut parts = Parts { queue, part: Bytes::new() };
            let checked = Walk::new(limits, None, None).tar(format, &mut parts);
            if checked.is_ok() {
                // What comes after the end of a compressed stream is read, and not looked at.
                let _ = io::copy(&mut parts, &mut io::sink());
            }
            checked
        })?;
        let mut writer = self.blobs.writer().await?;
        // A copy that fails, whoever's fault it is, looks like a damaged archive to the check.
        self.copy(body, &mut writer, Some(parts)).await?;
        let contents = checked.await.map_err(|error| Error::Check(io::Error::other(error)))??;
        Ok((writer.finish(None).await?, contents))
    }

    /// Checked when all of it has come, as its directory is at its end, and before it is a blob.
    async fn receive_zip(
        &self,
        body: impl Stream<Item = Result<Bytes, Error>> + Send,
    ) -> Result<(BlobInfo, Contents), Error> {
        let mut writer = self.blobs.readable_writer().await?;
        self.copy(body, &mut writer, None).await?;
        let unread = || Error::Check(io::Error::other("what was written cannot be read"));
        let file = writer.so_far().await?.ok_or_else(unread)?;
        let limits = self.limits;
        let checked = on_a_thread(move || Walk::new(limits, None, None).zip(file))?;
        let contents = checked.await.map_err(|error| Error::Check(io::Error::other(error)))??;
        Ok((writer.finish(None).await?, contents))
    }

    async fn copy(
        &self,
        body: impl Stream<Item = Result<Bytes, Error>> + Send,
        writer: &mut Box<dyn BlobWriter>,
        check: Option<mpsc::Sender<Bytes>>,
    ) -> Result<(), Error> {
        let most = self.limits.max_archive_bytes;
        let mut body = std::pin::pin!(body);
        while let Some(part) = next(&mut body).await? {
            if writer.written() + part.len() as u64 > most {
                return Err(Error::ArchiveTooLarge(most));
            }
            if let Some(check) = &check
                && check.send(part.clone()).await.is_err()
            {
                // The check has ended: it knows why.
                return Ok(());
            }
            writer.write(part).await?;
        }
        Ok(())
    }
}

/// The next part of an upload. A client that says nothing for long is taken for one that is gone.
async fn next(body: &mut (impl Stream<Item = Result<Bytes, Error>> + Unpin)) -> Result<Option<Bytes>, Error> {
    let silent = |_| Error::ClientGone(io::ErrorKind::TimedOut.into());
    tokio::time::timeout(SILENCE, body.next()).await.map_err(silent)?.transpose()
}

/// Runs a check. It waits for the client, so none of the threads that all others share may be held by it.
fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<oneshot::Receiver<T>, Error> {
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name("source".to_owned());
    // Who does not wait for the result any more has dropped the upload.
    thread.spawn(move || drop(done.send(work()))).map_err(Error::Check)?;
    Ok(result)
}

/// The parts of an upload, as a reader for a thread.
struct Parts {
    queue: mpsc::Receiver<Bytes>,
    part: Bytes,
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() {
            match self.queue.blocking_recv() {
                Some(part) => self.part = part,
                None => return Ok(0),
            }
        }
        let read = self.part.len().min(buffer.len());
        self.part.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}

/// RFC 9562, version 4.
fn new_uuid() -> String {
    let mut bytes = random::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
