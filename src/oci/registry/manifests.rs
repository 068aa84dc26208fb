//! Manifests, tags, referrers.

use axum::{
    Json,
    body::Body,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::{
    Error, MAX_MANIFEST_BYTES, Registry,
    http::{Parameters, created},
    record::{Item, Record},
    tags_may_move,
    uploads::SILENCE,
};
use crate::{
    model::Digest,
    oci::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST},
    store,
};

impl Registry {
    pub(super) async fn manifest(&self, repository: &str, reference: &str) -> Result<Response, Error> {
        let unknown = || Error::ManifestUnknown(reference.to_owned());
        let digest = self.resolve(repository, reference).await?.ok_or_else(unknown)?;
        let record = self.record(repository, &Item::Manifest(digest)).await?.ok_or_else(unknown)?;
        let bytes = self.read(&digest).await?.ok_or_else(unknown)?;
        let media_type = record.media_type.unwrap_or_else(|| MEDIA_TYPE_MANIFEST.to_owned());
        let headers = [
            ("Content-Type", media_type),
            ("Content-Length", bytes.len().to_string()),
            ("Docker-Content-Digest", digest.to_string()),
            ("ETag", format!("\"{digest}\"")),
        ];
        Ok((StatusCode::OK, headers, bytes).into_response())
    }

    pub(super) async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, Error> {
        let limited = http_body_util::Limited::new(body, MAX_MANIFEST_BYTES);
        let bytes = match tokio::time::timeout(SILENCE, limited.collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => return Err(Error::TooLarge),
            Ok(Err(error)) => return Err(Error::Interrupted(std::io::Error::other(error))),
            Err(_) => return Err(Error::Interrupted(std::io::ErrorKind::TimedOut.into())),
        };
        let said = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let _turn = self.inner.turn.read().await;
        let (digest, subject) = self.check_and_add(repository, reference, &bytes, said).await?;
        let mut response = created(format!("/v2/{repository}/manifests/{digest}"), digest);
        if let Some(subject) = subject {
            response
                .headers_mut()
                .insert("OCI-Subject", subject.to_string().parse().expect("a digest is a header value"));
        }
        Ok(response)
    }

    /// A tag is deleted alone; a digest with all its tags.
    pub(super) async fn delete_manifest(&self, repository: &str, reference: &str) -> Result<Response, Error> {
        let _turn = self.inner.turn.write().await;
        let unknown = || Error::ManifestUnknown(reference.to_owned());
        let digest = self.resolve(repository, reference).await?.ok_or_else(unknown)?;
        if reference.parse::<Digest>().is_err() {
            self.remove(repository, &Item::Tag(reference.to_owned())).await?;
            return Ok(StatusCode::ACCEPTED.into_response());
        }
        for record in self.records(repository).await? {
            if record.digest == digest && matches!(record.item, Item::Tag(_)) {
                self.remove(repository, &record.item).await?;
            }
        }
        self.remove(repository, &Item::Manifest(digest)).await?;
        Ok(StatusCode::ACCEPTED.into_response())
    }

    pub(super) async fn list_tags(&self, repository: &str, parameters: &Parameters) -> Result<Response, Error> {
        let records = self.records(repository).await?;
        if records.is_empty() {
            return Err(Error::NameUnknown(repository.to_owned()));
        }
        let (tags, link) = page(self.tags(repository).await?, parameters, &format!("/v2/{repository}/tags/list"))?;
        Ok((link, Json(json!({ "name": repository, "tags": tags }))).into_response())
    }

    pub(super) async fn catalog(&self, parameters: &Parameters) -> Result<Response, Error> {
        let (repositories, link) = page(self.repositories().await?, parameters, "/v2/_catalog")?;
        Ok((link, Json(json!({ "repositories": repositories }))).into_response())
    }

    pub(super) async fn referrers(
        &self,
        repository: &str,
        subject: Digest,
        parameters: &Parameters,
    ) -> Result<Response, Error> {
        let wanted = parameters.get("artifactType");
        let mut manifests = Vec::new();
        for record in self.records(repository).await?.into_iter().filter(|record| record.subject == Some(subject)) {
            let Some(bytes) = self.read(&record.digest).await? else { continue };
            let manifest: Value = serde_json::from_slice(&bytes).map_err(Error::ManifestInvalid)?;
            let artifact_type = artifact_type(&manifest);
            if wanted.is_some_and(|wanted| artifact_type.as_ref() != Some(wanted)) {
                continue;
            }
            manifests.push(json!({
                "mediaType": record.media_type,
                "digest": record.digest,
                "size": bytes.len(),
                "artifactType": artifact_type,
                "annotations": manifest.get("annotations").cloned().unwrap_or(json!({})),
            }));
        }
        let index = json!({ "schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": manifests });
        let mut response =
            (StatusCode::OK, [(header::CONTENT_TYPE, MEDIA_TYPE_INDEX)], index.to_string()).into_response();
        if wanted.is_some() {
            response.headers_mut().insert("OCI-Filters-Applied", header::HeaderValue::from_static("artifactType"));
        }
        Ok(response)
    }

    /// Takes a manifest of our own making.
    pub(super) async fn add_manifest(&self, repository: &str, reference: &str, bytes: &[u8]) -> Result<Digest, Error> {
        Ok(self.check_and_add(repository, reference, bytes, None).await?.0)
    }

    async fn check_and_add(
        &self,
        repository: &str,
        reference: &str,
        bytes: &[u8],
        said: Option<&str>,
    ) -> Result<(Digest, Option<Digest>), Error> {
        let manifest: Value = serde_json::from_slice(bytes).map_err(Error::ManifestInvalid)?;
        let digest = Digest::of(bytes);
        let tag = match reference.parse::<Digest>() {
            Ok(expected) if expected != digest => return Err(Error::DigestMismatch { expected, actual: digest }),
            Ok(_) => None,
            Err(_) => Some(checked_tag(reference)?),
        };
        if let Some(tag) = tag
            && !tags_may_move(repository)
            && let Some(existing) = self.resolve(repository, tag).await?
            && existing != digest
        {
            return Err(Error::TagTaken { repository: repository.to_owned(), tag: tag.to_owned(), existing });
        }
        let media_type = checked_type(manifest.get("mediaType").and_then(Value::as_str).or(said))?;
        let names = self.checked_names(repository, &manifest).await?;
        let mut writer = self.writer().await?;
        writer.write(bytes::Bytes::copy_from_slice(bytes)).await?;
        writer.finish(Some(digest)).await?;
        let subject = manifest.pointer("/subject/digest").and_then(Value::as_str).and_then(|text| text.parse().ok());
        let record = Record::new(repository, Item::Manifest(digest), digest);
        self.write(Record { media_type, names, subject, ..record }).await?;
        if let Some(tag) = tag {
            self.tag(repository, tag, digest).await?;
        }
        Ok((digest, subject))
    }

    /// Of two who give the same tag at once, where tags stay, one is refused.
    async fn tag(&self, repository: &str, tag: &str, digest: Digest) -> Result<(), Error> {
        let record = Record::new(repository, Item::Tag(tag.to_owned()), digest);
        if tags_may_move(repository) {
            return self.write(record).await;
        }
        loop {
            match self.inner.objects.create(&record).await {
                Err(store::Error::Conflict(_)) => {}
                result => return Ok(result.map(drop)?),
            }
            if let Some(existing) = self.resolve(repository, tag).await? {
                let taken = || Error::TagTaken { repository: repository.to_owned(), tag: tag.to_owned(), existing };
                return if existing == digest { Ok(()) } else { Err(taken()) };
            }
        }
    }

    /// Everything that a manifest names; all of it has to be there.
    async fn checked_names(&self, repository: &str, manifest: &Value) -> Result<Vec<Digest>, Error> {
        let digest_of = |descriptor: &Value| descriptor.get("digest").and_then(Value::as_str)?.parse::<Digest>().ok();
        let list = |name: &str| manifest.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
        let mut names = Vec::new();
        let mut blobs = list("layers");
        blobs.extend(manifest.get("config").cloned());
        for descriptor in &blobs {
            let digest = digest_of(descriptor).ok_or_else(|| Error::DigestInvalid(descriptor.to_string()))?;
            // Until now perhaps nothing named it.
            if !self.has_blob(repository, digest).await? || !self.inner.blobs.touch(&digest).await? {
                return Err(Error::ManifestBlobUnknown(digest));
            }
            names.push(digest);
        }
        for descriptor in &list("manifests") {
            let digest = digest_of(descriptor).ok_or_else(|| Error::DigestInvalid(descriptor.to_string()))?;
            if self.record(repository, &Item::Manifest(digest)).await?.is_none() {
                return Err(Error::ManifestBlobUnknown(digest));
            }
            names.push(digest);
        }
        Ok(names)
    }
}

/// distribution-spec: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
fn checked_tag(tag: &str) -> Result<&str, Error> {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    let good = (1..=128).contains(&tag.len())
        && word(tag.as_bytes()[0])
        && tag.bytes().all(|c| word(c) || matches!(c, b'.' | b'-'));
    if good { Ok(tag) } else { Err(Error::ManifestUnknown(tag.chars().take(130).collect())) }
}

/// Those that we and our clients can read; parameters do not matter.
fn checked_type(said: Option<&str>) -> Result<Option<String>, Error> {
    let Some(said) = said else { return Ok(None) };
    let plain = said.split(';').next().unwrap_or_default().trim();
    if MEDIA_TYPES.contains(&plain) {
        Ok(Some(plain.to_owned()))
    } else {
        Err(Error::ManifestKind(plain.chars().take(100).collect()))
    }
}

const MEDIA_TYPES: [&str; 4] = [MEDIA_TYPE_MANIFEST, MEDIA_TYPE_INDEX, DOCKER_MANIFEST, DOCKER_INDEX];

fn artifact_type(manifest: &Value) -> Option<String> {
    let own = manifest.get("artifactType").and_then(Value::as_str);
    own.or_else(|| manifest.pointer("/config/mediaType").and_then(Value::as_str)).map(str::to_owned)
}

type Link = [(header::HeaderName, String); 1];

/// The part of a list after `last`, at most `n` long, and where the next part is.
fn page(all: Vec<String>, parameters: &Parameters, path: &str) -> Result<(Vec<String>, Option<LinkHeader>), Error> {
    let n = parameters.get("n").map(|n| n.parse::<usize>()).transpose().map_err(|_| Error::PageInvalid)?;
    let last = parameters.get("last").cloned().unwrap_or_default();
    let mut rest: Vec<String> = all.into_iter().filter(|name| *name > last).collect();
    let n = n.unwrap_or(rest.len());
    let more = rest.len() > n;
    rest.truncate(n);
    let link = match rest.last() {
        Some(last) if more => Some(LinkHeader([(header::LINK, format!("<{path}?n={n}&last={last}>; rel=\"next\""))])),
        _ => None,
    };
    Ok((rest, link))
}

struct LinkHeader(Link);

impl axum::response::IntoResponseParts for LinkHeader {
    type Error = <Link as axum::response::IntoResponseParts>::Error;

    fn into_response_parts(
        self,
        parts: axum::response::ResponseParts,
    ) -> Result<axum::response::ResponseParts, Self::Error> {
        self.0.into_response_parts(parts)
    }
}
