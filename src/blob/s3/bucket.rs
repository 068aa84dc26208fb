//! The operations of S3 that are needed, one function each.

use std::ops::Range;

use ::s3::serde_types::{CompleteMultipartUploadData, InitiateMultipartUploadResponse, ListBucketResult, Part};
use bytes::Bytes;
use http::{
    HeaderValue,
    header::{CONTENT_LENGTH, ETAG, HeaderName, LAST_MODIFIED, RANGE},
};
use reqwest::Response;
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    super::Error,
    endpoint::{Call, Endpoint, S3Settings},
};
use crate::model::{Digest, Timestamp};

/// One bucket.
pub(super) struct Bucket {
    endpoint: Endpoint,
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub key: String,
    pub size: u64,
    pub modified: Timestamp,
}

/// An upload in parts that has not ended.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Unfinished {
    pub key: String,
    pub upload_id: String,
    #[serde(default)]
    pub initiated: String,
}

/// rust-s3 has this one too, and insists on more than some servers say.
#[derive(Deserialize)]
struct Uploads {
    #[serde(rename = "Upload", default)]
    uploads: Vec<Unfinished>,
}

#[derive(Deserialize)]
struct CopiedPart {
    #[serde(rename = "ETag")]
    etag: String,
}

/// A copy of more than this is made in parts of it, in bytes: no server works on one for long. S3 allows 5 GiB.
const COPY_AT_ONCE: u64 = 1 << 30;
/// Most that a list has at once.
pub(super) const PAGE: usize = 1000;
const COPY_SOURCE: HeaderName = HeaderName::from_static("x-amz-copy-source");
const COPY_RANGE: HeaderName = HeaderName::from_static("x-amz-copy-source-range");

impl Bucket {
    pub fn new(settings: S3Settings) -> Result<Self, Error> {
        Ok(Self { endpoint: Endpoint::new(settings)? })
    }

    pub fn settings(&self) -> &S3Settings {
        &self.endpoint.settings
    }

    pub async fn put(&self, key: &str, body: Bytes, digest: &Digest) -> Result<(), Error> {
        let call = Call::put(key, &format!("writing {key}")).body(body, digest);
        self.done(call).await.map(drop)
    }

    pub async fn head(&self, key: &str) -> Result<Option<Object>, Error> {
        let Some(response) = self.endpoint.stream(Call::head(key, &format!("looking for {key}"))).await? else {
            return Ok(None);
        };
        let header = |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
        let size = header(CONTENT_LENGTH).and_then(|size| size.parse().ok());
        let modified = header(LAST_MODIFIED).and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
        match (size, modified) {
            (Some(size), Some(modified)) => {
                let modified = Timestamp::from_second(modified.timestamp().as_second());
                Ok(Some(Object { key: key.to_owned(), size, modified }))
            }
            _ => Err(self.unreadable(format!("looking for {key}"), "there is no length or date in it")),
        }
    }

    /// The content of an object, or a part of it that it has.
    pub async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Option<Response>, Error> {
        let mut call = Call::get(key, &format!("reading {key}"));
        if let Some(Range { start, end }) = range {
            call = call.header(RANGE, text(format!("bytes={start}-{}", end.saturating_sub(1))));
        }
        self.endpoint.stream(call).await
    }

    /// A short object as text.
    pub async fn read(&self, key: &str) -> Result<Option<String>, Error> {
        self.endpoint.text(Call::get(key, &format!("reading {key}"))).await
    }

    /// It is no error when there is none.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        self.endpoint.text(Call::delete(key, &format!("deleting {key}"))).await.map(drop)
    }

    /// In order of keys, after the given one; a page at most.
    pub async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Object>, Error> {
        let doing = format!("listing {prefix}");
        let mut call =
            Call::get("", &doing).with("list-type", 2).with("prefix", prefix).with("max-keys", limit.min(PAGE));
        if let Some(after) = after {
            call = call.with("start-after", after);
        }
        let result: ListBucketResult = self.parsed(call).await?;
        let objects = result.contents.into_iter().map(|object| {
            let modified = Timestamp::parse(&object.last_modified)
                .ok_or_else(|| self.unreadable(doing.clone(), &format!("'{}' is no date", object.last_modified)))?;
            Ok(Object { key: object.key, size: object.size, modified })
        });
        objects.collect()
    }

    /// Begins an upload in parts; its id.
    pub async fn begin(&self, key: &str) -> Result<String, Error> {
        let call = Call::post(key, &format!("beginning the upload of {key}")).with("uploads", "");
        Ok(self.parsed::<InitiateMultipartUploadResponse>(call).await?.upload_id)
    }

    pub async fn put_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        body: Bytes,
        digest: &Digest,
    ) -> Result<Part, Error> {
        let doing = format!("writing part {number} of {key}");
        let call = Call::put(key, &doing).with("partNumber", number).with("uploadId", upload).body(body, digest);
        let response = self.endpoint.stream(call).await?.ok_or_else(|| self.gone(doing.clone()))?;
        let etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok());
        let etag = etag.ok_or_else(|| self.unreadable(doing, "there is no ETag in it"))?.to_owned();
        Ok(Part { part_number: number, etag })
    }

    /// Makes an object of the parts, in their order.
    pub async fn complete(&self, key: &str, upload: &str, parts: Vec<Part>, size: u64) -> Result<(), Error> {
        let body = CompleteMultipartUploadData { parts }.to_string();
        let digest = Digest::of(&body);
        let call = Call::post(key, &format!("ending the upload of {key}"))
            .with("uploadId", upload)
            .body(Bytes::from(body), &digest)
            .patient();
        match self.done(call).await {
            Ok(_) => Ok(()),
            // An attempt whose answer was lost may have done it.
            Err(error) => match self.head(key).await {
                Ok(Some(object)) if object.size == size => Ok(()),
                _ => Err(error),
            },
        }
    }

    pub async fn abort(&self, key: &str, upload: &str) -> Result<(), Error> {
        let call = Call::delete(key, &format!("giving up the upload of {key}")).with("uploadId", upload);
        match self.endpoint.text(call).await {
            // It has ended.
            Err(Error::Refused { why, .. }) if why.contains("NoSuchUpload") => Ok(()),
            result => result.map(drop),
        }
    }

    /// A page of them; who aborts these gets the next.
    pub async fn unfinished(&self, prefix: &str) -> Result<Vec<Unfinished>, Error> {
        let call = Call::get("", "listing unfinished uploads").with("uploads", "").with("prefix", prefix);
        Ok(self.parsed::<Uploads>(call).await?.uploads)
    }

    /// The other end copies; nothing of it comes here.
    pub async fn copy(&self, from: &str, to: &str, size: u64) -> Result<(), Error> {
        if size <= COPY_AT_ONCE {
            let call = Call::put(to, &format!("copying {from} to {to}"));
            return self.done(self.copied(call, from)).await.map(drop);
        }
        let upload = self.begin(to).await?;
        let copied = self.copy_parts(from, to, size, &upload).await;
        if copied.is_err() {
            // What stays of it is removed later.
            let _ = self.abort(to, &upload).await;
        }
        copied
    }

    async fn copy_parts(&self, from: &str, to: &str, size: u64, upload: &str) -> Result<(), Error> {
        let (mut parts, mut start, mut number) = (Vec::new(), 0, 1);
        while start < size {
            let end = size.min(start + COPY_AT_ONCE);
            let call = Call::put(to, &format!("copying part {number} of {from} to {to}"));
            let call = self.copied(call, from).with("partNumber", number).with("uploadId", upload);
            let call = call.header(COPY_RANGE, text(format!("bytes={start}-{}", end - 1)));
            let etag = self.parsed::<CopiedPart>(call).await?.etag;
            parts.push(Part { part_number: number, etag });
            (start, number) = (end, number + 1);
        }
        self.complete(to, upload, parts, size).await
    }

    fn copied(&self, call: Call, from: &str) -> Call {
        call.header(COPY_SOURCE, text(format!("/{}/{from}", self.settings().bucket))).patient()
    }

    /// For what there cannot be "no such object".
    async fn done(&self, call: Call) -> Result<String, Error> {
        let doing = call.doing.clone();
        self.endpoint.text(call).await?.ok_or_else(|| self.gone(doing))
    }

    async fn parsed<T: DeserializeOwned>(&self, call: Call) -> Result<T, Error> {
        let doing = call.doing.clone();
        let body = self.done(call).await?;
        quick_xml::de::from_str(&body).map_err(|error| self.unreadable(doing, &error.to_string()))
    }

    fn gone(&self, doing: String) -> Error {
        Error::Refused { doing, why: "what it is about is not there any more".to_owned() }
    }

    fn unreadable(&self, doing: String, why: &str) -> Error {
        let endpoint = &self.settings().endpoint;
        Error::Refused {
            doing,
            why: format!("the answer cannot be read: {why}; is {endpoint} (--s3-endpoint) an S3 API?"),
        }
    }
}

/// What we write into headers is of letters, digits and a few signs.
fn text(value: String) -> HeaderValue {
    HeaderValue::try_from(value).expect("keys and numbers are fit for headers")
}
