//! The registry that is built in (OCI distribution-spec 1.1).
//!
//! Content is in the blob store; what a repository has is in the object store: one record for each
//! tag, manifest and blob of each repository, so that nothing grows without bound in one object. A blob is
//! readable only through a repository that has it. Tags of application images are immutable; tags
//! below `epiniod/` may move.

mod authenticator;
mod blobs;
mod error;
mod http;
mod manifests;
mod record;
mod uploads;

use std::{collections::HashSet, sync::Arc};

use futures::StreamExt as _;
use tokio::sync::RwLock;

pub use authenticator::{Action, Authenticator, Change, Credential, Verdict};
pub use error::Error;

use self::{
    record::{Item, Record},
    uploads::Uploads,
};
use super::manifest::{ConfigFile, Manifest};
use crate::{
    blob::{BlobWriter, SharedBlobs},
    model::{Digest, ImageName, SYSTEM_REPOSITORY, Timestamp},
    store::{self, Objects},
};

/// The largest manifest, in bytes.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// How long a blob that no manifest names is kept, and a manifest that lost its tag, in seconds.
const UNUSED_SECONDS: i64 = 24 * 3600;
/// A record that is written again, and is older than this, becomes new. In seconds.
const REFRESH_SECONDS: i64 = 3600;

/// The registry, for the daemon's own rooms; [`router`](Self::router) is for everybody else.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    objects: Objects,
    blobs: SharedBlobs,
    uploads: Uploads,
    /// Shared by those who add to repositories, held alone by who forgets: nothing is forgotten while something that names
    /// it is on its way in.
    turn: RwLock<()>,
}

/// The documents of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    pub manifest: Manifest,
    pub config: ConfigFile,
}

impl Registry {
    pub fn new(objects: Objects, blobs: SharedBlobs) -> Self {
        Self { inner: Arc::new(Inner { objects, blobs, uploads: Uploads::default(), turn: RwLock::default() }) }
    }

    /// The HTTP API below `/v2/`.
    pub fn router(&self, authenticator: Arc<dyn Authenticator>) -> axum::Router {
        http::router(self.clone(), authenticator)
    }

    /// The digest that a tag names, or a digest that the repository has.
    pub async fn resolve(&self, repository: &str, reference: &str) -> Result<Option<Digest>, Error> {
        let item = match reference.parse::<Digest>() {
            Ok(digest) => Item::Manifest(digest),
            Err(_) => Item::Tag(reference.to_owned()),
        };
        Ok(self.record(repository, &item).await?.map(|record| record.digest))
    }

    /// Names an image whose manifest and blobs are in the blob store already.
    pub async fn publish(&self, repository: &str, tag: &str, manifest: Digest) -> Result<(), Error> {
        let _turn = self.inner.turn.read().await;
        let bytes = self.read(&manifest).await?.ok_or(Error::ManifestUnknown(manifest.to_string()))?;
        let parsed: Manifest = serde_json::from_slice(&bytes).map_err(Error::ManifestInvalid)?;
        let mut blobs: Vec<Digest> = parsed.layers.iter().map(|layer| layer.digest).collect();
        blobs.push(parsed.config.digest);
        for blob in blobs {
            self.link(repository, blob).await?;
        }
        self.add_manifest(repository, tag, &bytes).await.map(drop)
    }

    /// The documents of an image; none when the repository does not have it.
    pub async fn image(&self, name: &ImageName) -> Result<Option<Image>, Error> {
        if self.record(&name.repository, &Item::Manifest(name.digest)).await?.is_none() {
            return Ok(None);
        }
        let Some(bytes) = self.read(&name.digest).await? else { return Ok(None) };
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(Error::ManifestInvalid)?;
        let Some(bytes) = self.read(&manifest.config.digest).await? else { return Ok(None) };
        let config = serde_json::from_slice(&bytes).map_err(Error::ManifestInvalid)?;
        Ok(Some(Image { manifest, config }))
    }

    /// Tags in order.
    pub async fn tags(&self, repository: &str) -> Result<Vec<String>, Error> {
        let records = self.records(repository).await?;
        let mut tags: Vec<String> = records.into_iter().filter_map(|record| record.item.tag()).collect();
        tags.sort();
        Ok(tags)
    }

    /// Tags in order, with what they name and since when; a tag that is given again after an hour or more begins anew.
    pub async fn tagged(&self, repository: &str) -> Result<Vec<(String, Digest, Timestamp)>, Error> {
        let records = self.records(repository).await?.into_iter();
        let mut tags: Vec<_> =
            records.filter_map(|record| Some((record.item.clone().tag()?, record.digest, record.created_at))).collect();
        tags.sort();
        Ok(tags)
    }

    pub async fn repositories(&self) -> Result<Vec<String>, Error> {
        let records = self.inner.objects.list::<Record>(None).await?;
        let mut names: Vec<String> = records.into_iter().map(|stored| stored.value.repository).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Forgets a repository. Its blobs are deleted when nothing else refers to them.
    pub async fn delete_repository(&self, repository: &str) -> Result<(), Error> {
        let _turn = self.inner.turn.write().await;
        for record in self.records(repository).await? {
            self.remove(repository, &record.item).await?;
        }
        Ok(())
    }

    /// Deletes a tag, and its manifest when no other tag has it.
    pub async fn delete_tag(&self, repository: &str, tag: &str) -> Result<(), Error> {
        let _turn = self.inner.turn.write().await;
        let Some(digest) = self.resolve(repository, tag).await? else { return Ok(()) };
        self.remove(repository, &Item::Tag(tag.to_owned())).await?;
        let others = self.records(repository).await?;
        let tagged = others.iter().any(|record| record.digest == digest && matches!(record.item, Item::Tag(_)));
        if tagged { Ok(()) } else { self.remove(repository, &Item::Manifest(digest)).await.map(drop) }
    }

    /// What an image consists of: the digests of its manifest, configuration and layers, whichever repository has them.
    /// Nothing when its manifest is gone.
    pub async fn parts(&self, manifest: &Digest) -> Result<Vec<Digest>, Error> {
        let Some(bytes) = self.read(manifest).await? else { return Ok(Vec::new()) };
        let parsed: Manifest = serde_json::from_slice(&bytes).map_err(Error::ManifestInvalid)?;
        let mut parts = vec![*manifest, parsed.config.digest];
        parts.extend(parsed.layers.iter().map(|layer| layer.digest));
        Ok(parts)
    }

    /// Everything that any repository has, after what is old and nothing names was forgotten: blobs, and where
    /// tags move on, the manifests that they left behind.
    pub async fn references(&self) -> Result<HashSet<Digest>, Error> {
        self.inner.uploads.expire();
        let now = Timestamp::now().as_second();
        let mut kept = HashSet::new();
        for repository in self.repositories().await? {
            let _turn = self.inner.turn.write().await;
            let records = self.records(&repository).await?;
            let is_fresh = |record: &Record| now - record.created_at.as_second() < UNUSED_SECONDS;
            let manifests = live_manifests(&records, |record| !tags_may_move(&repository) || is_fresh(record));
            let named: HashSet<Digest> = records
                .iter()
                .filter(|record| is_live(record, &manifests))
                .flat_map(|record| record.names.clone())
                .collect();
            for record in &records {
                let keep = match record.item {
                    Item::Tag(_) => true,
                    Item::Manifest(digest) => manifests.contains(&digest),
                    Item::Blob(digest) => is_fresh(record) || named.contains(&digest),
                };
                if keep {
                    kept.insert(record.digest);
                } else {
                    self.remove(&repository, &record.item).await?;
                }
            }
        }
        Ok(kept)
    }

    /// Lets a repository have a blob.
    async fn link(&self, repository: &str, digest: Digest) -> Result<(), Error> {
        // It may be old, and nothing may have named it until now.
        if !self.inner.blobs.touch(&digest).await? {
            return Err(Error::BlobUnknown(digest.to_string()));
        }
        self.write(Record::new(repository, Item::Blob(digest), digest)).await
    }

    async fn has_blob(&self, repository: &str, digest: Digest) -> Result<bool, Error> {
        Ok(self.record(repository, &Item::Blob(digest)).await?.is_some())
    }

    async fn record(&self, repository: &str, item: &Item) -> Result<Option<Record>, Error> {
        let found = self.inner.objects.get::<Record>(&item.key(repository)).await?;
        Ok(found.map(|stored| stored.value))
    }

    async fn records(&self, repository: &str) -> Result<Vec<Record>, Error> {
        let records = self.inner.objects.list::<Record>(Some(repository)).await?;
        Ok(records.into_iter().map(|stored| stored.value).collect())
    }

    /// Creates a record, or replaces the one that is there.
    async fn write(&self, record: Record) -> Result<(), Error> {
        loop {
            match self.inner.objects.get::<Record>(&record.item.key(&record.repository)).await? {
                Some(stored)
                    if stored.value.same_as(&record)
                        && record.created_at.as_second() - stored.value.created_at.as_second() < REFRESH_SECONDS =>
                {
                    return Ok(());
                }
                Some(mut stored) => {
                    stored.value = record.clone();
                    match self.inner.objects.update(&stored).await {
                        Err(store::Error::Conflict(_) | store::Error::NotFound(_)) => {}
                        result => return Ok(result.map(drop)?),
                    }
                }
                None => match self.inner.objects.create(&record).await {
                    Err(store::Error::Conflict(_)) => {}
                    result => return Ok(result.map(drop)?),
                },
            }
        }
    }

    /// False when there was no such thing.
    async fn remove(&self, repository: &str, item: &Item) -> Result<bool, Error> {
        match self.inner.objects.delete(&item.key(repository)).await {
            Ok(()) => Ok(true),
            Err(store::Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// A small blob as a whole.
    async fn read(&self, digest: &Digest) -> Result<Option<Vec<u8>>, Error> {
        let Some(mut reader) = self.inner.blobs.open(digest, None).await? else { return Ok(None) };
        if reader.size > MAX_MANIFEST_BYTES as u64 {
            return Err(Error::TooLarge);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(reader.size).unwrap_or(0));
        while let Some(part) = reader.stream.next().await {
            bytes.extend_from_slice(&part.map_err(Error::Interrupted)?);
        }
        Ok(Some(bytes))
    }

    async fn writer(&self) -> Result<Box<dyn BlobWriter>, Error> {
        Ok(self.inner.blobs.writer().await?)
    }
}

/// The manifests that a tag has, that are kept anyway, and that these name or are about.
fn live_manifests(records: &[Record], is_kept: impl Fn(&Record) -> bool) -> HashSet<Digest> {
    let manifests = || records.iter().filter(|record| matches!(record.item, Item::Manifest(_)));
    let tags = records.iter().filter(|record| matches!(record.item, Item::Tag(_))).map(|record| record.digest);
    let mut live: HashSet<Digest> =
        tags.chain(manifests().filter(|record| is_kept(record)).map(|record| record.digest)).collect();
    loop {
        let before = live.len();
        for record in manifests() {
            if live.contains(&record.digest) {
                live.extend(&record.names);
            } else if record.subject.is_some_and(|subject| live.contains(&subject)) {
                live.insert(record.digest);
            }
        }
        if live.len() == before {
            return live;
        }
    }
}

fn is_live(record: &Record, manifests: &HashSet<Digest>) -> bool {
    matches!(record.item, Item::Manifest(digest) if manifests.contains(&digest))
}

/// May a tag of this repository be given to another image?
fn tags_may_move(repository: &str) -> bool {
    repository.split('/').next() == Some(SYSTEM_REPOSITORY)
}
