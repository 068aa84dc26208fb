//! Blobs on their way out.

use std::ops::Range;

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{Error, Registry, record::Item};
use crate::model::Digest;

impl Registry {
    pub(super) async fn blob_head(&self, repository: &str, digest: Digest) -> Result<Response, Error> {
        let size = self.blob_size(repository, digest).await?;
        Ok((StatusCode::OK, headers(digest, size)).into_response())
    }

    pub(super) async fn blob(&self, repository: &str, digest: Digest, request: &HeaderMap) -> Result<Response, Error> {
        let size = self.blob_size(repository, digest).await?;
        let asked =
            request.get(header::RANGE).and_then(|range| range.to_str().ok()).and_then(|text| parse_range(text, size));
        let (status, range) = match asked {
            None => (StatusCode::OK, 0..size),
            Some(Some(range)) => (StatusCode::PARTIAL_CONTENT, range),
            Some(None) => {
                let unsatisfied = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
                return Ok((StatusCode::RANGE_NOT_SATISFIABLE, unsatisfied).into_response());
            }
        };
        let unknown = || Error::BlobUnknown(digest.to_string());
        let reader = self.inner.blobs.open(&digest, Some(range.clone())).await?.ok_or_else(unknown)?;
        let mut response =
            (status, headers(digest, range.end - range.start), Body::from_stream(reader.stream)).into_response();
        if status == StatusCode::PARTIAL_CONTENT {
            let value = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            response.headers_mut().insert(header::CONTENT_RANGE, value.parse().expect("digits are a header value"));
        }
        Ok(response)
    }

    pub(super) async fn delete_blob(&self, repository: &str, digest: Digest) -> Result<Response, Error> {
        let _turn = self.inner.turn.write().await;
        if self.remove(repository, &Item::Blob(digest)).await? {
            Ok(StatusCode::ACCEPTED.into_response())
        } else {
            Err(Error::BlobUnknown(digest.to_string()))
        }
    }

    async fn blob_size(&self, repository: &str, digest: Digest) -> Result<u64, Error> {
        let unknown = || Error::BlobUnknown(digest.to_string());
        if !self.has_blob(repository, digest).await? {
            return Err(unknown());
        }
        self.inner.blobs.size(&digest).await?.ok_or_else(unknown)
    }
}

fn headers(digest: Digest, size: u64) -> [(&'static str, String); 5] {
    [
        ("Content-Type", "application/octet-stream".to_owned()),
        ("Content-Length", size.to_string()),
        ("Accept-Ranges", "bytes".to_owned()),
        ("ETag", format!("\"{digest}\"")),
        ("Docker-Content-Digest", digest.to_string()),
    ]
}

/// None when it is not a range that we know (then everything is sent, RFC 9110 §14.2); `Some(None)` when it
/// cannot be satisfied.
fn parse_range(text: &str, size: u64) -> Option<Option<Range<u64>>> {
    let (start, end) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (start.parse::<u64>().ok(), end.parse::<u64>().ok()) {
        (Some(start), Some(end)) if end >= start => start..end.saturating_add(1).min(size),
        (Some(start), None) if end.is_empty() => start..size,
        (None, Some(last)) if start.is_empty() => size.saturating_sub(last)..size,
        _ => return None,
    };
    Some((range.start < range.end).then_some(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_rfc_9110() {
        assert_eq!(parse_range("bytes=0-0", 10), Some(Some(0..1)));
        assert_eq!(parse_range("bytes=5-", 10), Some(Some(5..10)));
        assert_eq!(parse_range("bytes=-3", 10), Some(Some(7..10)));
        assert_eq!(parse_range("bytes=5-100", 10), Some(Some(5..10)));
        assert_eq!(parse_range("bytes=10-", 10), Some(None));
        assert_eq!(parse_range("lines=1-2", 10), None);
        assert_eq!(parse_range("bytes=3-1", 10), None);
    }
}
