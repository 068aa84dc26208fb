//! A blob on its way out. A connection that breaks is made again, and reading goes on where it stopped.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use reqwest::Response;
use sha2::{Digest as _, Sha256};

use super::{
    super::{BlobReader, Error},
    Place, blob_key,
    endpoint::SILENCE,
};
use crate::{model::Digest, telemetry};

/// How often a connection may break on the way through one blob.
const BREAKS: u32 = 8;

struct Reading {
    place: Arc<Place>,
    digest: Digest,
    at: u64,
    end: u64,
    /// Of a whole blob only.
    sum: Option<Sha256>,
    response: Option<Response>,
    breaks: u32,
}

pub(super) async fn open(
    place: &Arc<Place>,
    digest: &Digest,
    range: Option<Range<u64>>,
) -> Result<Option<BlobReader>, Error> {
    let key = blob_key(digest);
    let (size, range, response, sum) = match range {
        None => {
            let Some(response) = place.bucket.get(&key, None).await? else { return Ok(None) };
            let size = response.content_length().ok_or_else(|| Error::Refused {
                doing: format!("reading blob {digest}"),
                why: "the answer does not say how long it is".to_owned(),
            })?;
            (size, 0..size, Some(response), Some(Sha256::new()))
        }
        Some(range) => {
            let Some(object) = place.bucket.head(&key).await? else { return Ok(None) };
            let range = range.start.min(object.size)..range.end.min(object.size);
            let response = if range.is_empty() { None } else { place.bucket.get(&key, Some(range.clone())).await? };
            (object.size, range, response, None)
        }
    };
    let reading = Reading {
        place: Arc::clone(place),
        digest: *digest,
        at: range.start,
        end: range.end.max(range.start),
        sum,
        response,
        breaks: 0,
    };
    let stream = stream::try_unfold(reading, |mut reading| async move {
        let next = reading.next().await?;
        Ok(next.map(|bytes| (bytes, reading)))
    });
    Ok(Some(BlobReader { size, stream: stream.boxed() }))
}

impl Reading {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while self.at < self.end {
            let broken = match self.chunk().await? {
                Ok(bytes) => {
                    self.at += bytes.len() as u64;
                    if let Some(sum) = &mut self.sum {
                        sum.update(&bytes);
                    }
                    return Ok(Some(bytes));
                }
                Err(why) => why,
            };
            self.response = None;
            self.breaks += 1;
            if self.breaks > BREAKS {
                return Err(self.failed(format!("the connection broke {BREAKS} times, at last: {broken}")));
            }
        }
        let actual = self.sum.take().map(|sum| Digest::from_sha256(sum.finalize().into()));
        match actual.filter(|actual| *actual != self.digest) {
            Some(actual) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the object storage has something else, {actual}, in the place of blob {}", self.digest),
            )),
            None => Ok(None),
        }
    }

    /// Some bytes, or why there are none this time.
    async fn chunk(&mut self) -> io::Result<Result<Bytes, String>> {
        if self.response.is_none() {
            let got = self.place.bucket.get(&blob_key(&self.digest), Some(self.at..self.end)).await;
            let got = got.map_err(|error| io::Error::other(telemetry::chain(&error)))?;
            self.response = Some(got.ok_or_else(|| self.failed("it was deleted meanwhile".to_owned()))?);
        }
        let Some(response) = &mut self.response else { return Ok(Err("there is no answer".to_owned())) };
        Ok(match tokio::time::timeout(SILENCE, response.chunk()).await {
            Err(_) => Err(format!("nothing came for {} s", SILENCE.as_secs())),
            Ok(Err(error)) => Err(telemetry::chain(&error)),
            Ok(Ok(None)) => Err("it ended early".to_owned()),
            Ok(Ok(Some(bytes))) if bytes.len() as u64 > self.end - self.at => {
                return Err(self.failed("there is more of it than its length says".to_owned()));
            }
            Ok(Ok(Some(bytes))) => Ok(bytes),
        })
    }

    fn failed(&self, why: String) -> io::Error {
        io::Error::other(format!("reading blob {} from the object storage: {why}", self.digest))
    }
}
