//! Uploads of blobs: sessions that hold a writer, and end by themselves.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::StreamExt as _;

use super::{
    Error, Registry,
    error::blob_range,
    http::{Parameters, created, parse_digest},
};
use crate::{
    blob::BlobWriter,
    model::{Digest, random_hex},
};

/// An upload that is not used for so long is given up.
const LIFETIME: Duration = Duration::from_secs(3600);
/// How long a client may be silent in the middle of a request. One that compresses much into little sends seldom.
pub(super) const SILENCE: Duration = Duration::from_secs(300);
/// How many there may be at once.
const MAX_UPLOADS: usize = 256;

/// The uploads that are open. They do not survive the process; clients start over.
#[derive(Default)]
pub(super) struct Uploads {
    sessions: Mutex<HashMap<String, Session>>,
}

/// None once it was finished or has failed.
type Upload = Arc<tokio::sync::Mutex<Option<Box<dyn BlobWriter>>>>;

struct Session {
    repository: String,
    used: Instant,
    upload: Upload,
}

impl Uploads {
    fn start(&self, repository: &str, writer: Box<dyn BlobWriter>) -> Result<String, Error> {
        self.expire();
        let mut sessions = self.lock();
        if sessions.len() >= MAX_UPLOADS {
            return Err(Error::TooManyUploads);
        }
        let id = random_hex::<16>();
        let upload = Arc::new(tokio::sync::Mutex::new(Some(writer)));
        sessions.insert(id.clone(), Session { repository: repository.to_owned(), used: Instant::now(), upload });
        Ok(id)
    }

    fn find(&self, repository: &str, id: &str) -> Result<Upload, Error> {
        let mut sessions = self.lock();
        let session = sessions.get_mut(id).filter(|session| session.repository == repository);
        let session = session.ok_or(Error::UploadUnknown)?;
        session.used = Instant::now();
        Ok(Arc::clone(&session.upload))
    }

    /// Gives up what nobody uses, and with it what it takes on disk. A request may take as long as it likes.
    pub fn expire(&self) {
        let is_in_use = |session: &Session| Arc::strong_count(&session.upload) > 1;
        self.lock().retain(|_, session| session.used.elapsed() < LIFETIME || is_in_use(session));
    }

    fn end(&self, id: &str) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// Lets a repository have a blob of another one; none when that one does not have it.
    pub(super) async fn mount(&self, repository: &str, from: &str, digest: Digest) -> Result<Option<Response>, Error> {
        let _turn = self.inner.turn.read().await;
        if !self.has_blob(from, digest).await? {
            return Ok(None);
        }
        match self.link(repository, digest).await {
            Err(Error::BlobUnknown(_)) => return Ok(None),
            result => result?,
        }
        Ok(Some(created(format!("/v2/{repository}/blobs/{digest}"), digest)))
    }

    /// With `?digest=` the body is the whole blob.
    pub(super) async fn start_upload(
        &self,
        repository: &str,
        parameters: &Parameters,
        body: Body,
    ) -> Result<Response, Error> {
        let mut writer = self.writer().await?;
        if let Some(digest) = parameters.get("digest") {
            let digest = parse_digest(digest)?;
            copy(body, &mut writer).await?;
            return self.keep(repository, writer, digest).await;
        }
        let id = self.inner.uploads.start(repository, writer)?;
        Ok(accepted(StatusCode::ACCEPTED, repository, &id, 0))
    }

    pub(super) async fn append(
        &self,
        repository: &str,
        id: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, Error> {
        let upload = self.inner.uploads.find(repository, id)?;
        let mut writer = upload.lock().await;
        let open = writer.as_mut().ok_or(Error::UploadUnknown)?;
        check_range(headers, open.written())?;
        if let Err(error) = copy(body, open).await {
            // What came is neither known to the client nor whole: it has to start over.
            *writer = None;
            self.inner.uploads.end(id);
            return Err(error);
        }
        // Its hour begins when the request ends.
        self.inner.uploads.find(repository, id)?;
        Ok(accepted(StatusCode::ACCEPTED, repository, id, open.written()))
    }

    pub(super) async fn finish(
        &self,
        repository: &str,
        id: &str,
        parameters: &Parameters,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, Error> {
        let digest = parse_digest(parameters.get("digest").map_or("", String::as_str))?;
        let upload = self.inner.uploads.find(repository, id)?;
        let mut slot = upload.lock().await;
        check_range(headers, slot.as_ref().ok_or(Error::UploadUnknown)?.written())?;
        let mut writer = slot.take().ok_or(Error::UploadUnknown)?;
        self.inner.uploads.end(id);
        copy(body, &mut writer).await?;
        self.keep(repository, writer, digest).await
    }

    pub(super) async fn upload_status(&self, repository: &str, id: &str) -> Result<Response, Error> {
        let upload = self.inner.uploads.find(repository, id)?;
        let written = upload.lock().await.as_ref().ok_or(Error::UploadUnknown)?.written();
        Ok(accepted(StatusCode::NO_CONTENT, repository, id, written))
    }

    pub(super) async fn cancel(&self, repository: &str, id: &str) -> Result<Response, Error> {
        self.inner.uploads.find(repository, id)?.lock().await.take();
        self.inner.uploads.end(id);
        Ok(StatusCode::NO_CONTENT.into_response())
    }

    async fn keep(&self, repository: &str, writer: Box<dyn BlobWriter>, digest: Digest) -> Result<Response, Error> {
        writer.finish(Some(digest)).await?;
        let _turn = self.inner.turn.read().await;
        self.link(repository, digest).await?;
        Ok(created(format!("/v2/{repository}/blobs/{digest}"), digest))
    }
}

/// Streams a body into a blob.
async fn copy(body: Body, writer: &mut Box<dyn BlobWriter>) -> Result<(), Error> {
    let mut stream = body.into_data_stream();
    loop {
        let part = tokio::time::timeout(SILENCE, stream.next()).await;
        let part = part.map_err(|_| Error::Interrupted(std::io::ErrorKind::TimedOut.into()))?;
        let Some(part) = part else { return Ok(()) };
        let part = part.map_err(|error| Error::Interrupted(std::io::Error::other(error)))?;
        writer.write(part).await?;
    }
}

/// A chunk has to begin where the one before ended. Without a range it does.
fn check_range(headers: &HeaderMap, written: u64) -> Result<(), Error> {
    let Some(range) = headers.get(header::CONTENT_RANGE) else { return Ok(()) };
    let start =
        range.to_str().ok().and_then(|range| range.trim_start_matches("bytes ").split('-').next()?.parse().ok());
    if start == Some(written) { Ok(()) } else { Err(Error::RangeInvalid(written)) }
}

fn accepted(status: StatusCode, repository: &str, id: &str, written: u64) -> Response {
    let headers = [
        (header::LOCATION.as_str(), format!("/v2/{repository}/blobs/uploads/{id}")),
        (header::RANGE.as_str(), blob_range(written)),
        ("Docker-Upload-UUID", id.to_owned()),
    ];
    (status, headers).into_response()
}
