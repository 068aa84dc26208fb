//! Where an image is read from, and what of it is for this machine.

use std::path::Path;

use futures::StreamExt as _;
use serde::de::DeserializeOwned;

use super::{Error, layout::Layout, remote::Remote};
use crate::{
    blob::ByteStream,
    model::{Digest, ImagePlace},
    oci::{
        ConfigFile, DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Index, MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Manifest,
        architecture,
    },
};

/// Documents of an image are at most so large, in bytes.
pub(super) const MAX_DOCUMENT: u64 = 4 << 20;
/// An index may be in an index.
const MAX_DEPTH: usize = 3;

/// An image somewhere else.
pub(super) struct Upstream {
    /// As the user, or the builder, wrote it.
    pub name: String,
    source: Source,
}

enum Source {
    Registry(Box<Remote>),
    Layout(Layout),
}

/// What its name means now, for this machine.
pub(super) struct Found {
    pub digest: Digest,
    pub bytes: Vec<u8>,
    pub manifest: Manifest,
    pub config: ConfigFile,
}

impl Upstream {
    pub async fn open(place: &ImagePlace, name: &str, credentials: &Path) -> Result<Self, Error> {
        let source = match place {
            ImagePlace::Registry(reference) => Source::Registry(Box::new(Remote::new(reference, name, credentials)?)),
            ImagePlace::Layout { folder, tag } => Source::Layout(Layout::new(folder, tag.as_deref(), name)),
        };
        Ok(Self { name: name.to_owned(), source })
    }

    /// Looks the name up.
    pub async fn find(&self) -> Result<Found, Error> {
        let mut bytes = match &self.source {
            Source::Registry(remote) => remote.first().await?,
            Source::Layout(layout) => layout.first().await?,
        };
        for _ in 0..MAX_DEPTH {
            let kind: Kind = self.parse(&bytes, "its manifest")?;
            match kind.is_index() {
                true => bytes = self.document(&self.choose(&bytes)?).await?,
                false => return self.finish(bytes).await,
            }
        }
        Err(Error::malformed(&self.name, "its indexes are in each other more than three deep"))
    }

    /// The content of a blob, as it comes: whoever reads it checks its digest.
    pub async fn blob(&self, blob: &Descriptor) -> Result<ByteStream, Error> {
        match &self.source {
            Source::Registry(remote) => remote.blob(&blob.digest).await,
            Source::Layout(layout) => layout.blob(&blob.digest).await,
        }
    }

    async fn finish(&self, bytes: Vec<u8>) -> Result<Found, Error> {
        let manifest: Manifest = self.parse(&bytes, "its manifest")?;
        let config = self.small_blob(&manifest.config).await?;
        let config: ConfigFile = self.parse(&config, "its configuration")?;
        let found = format!("{}/{}", config.os, config.architecture);
        if found != wanted() {
            return Err(Error::WrongPlatform { image: self.name.clone(), found, wanted: wanted() });
        }
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(Error::malformed(&self.name, "its configuration and its manifest have not the same layers"));
        }
        Ok(Found { digest: Digest::of(&bytes), bytes, manifest, config })
    }

    /// The entry of an index for this machine.
    fn choose(&self, index: &[u8]) -> Result<Descriptor, Error> {
        let index: Index = self.parse(index, "its index")?;
        let platform = |entry: &Descriptor| {
            let platform = entry.platform.as_ref()?;
            let text = |key: &str| platform.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
            Some(format!("{}/{}", text("os"), text("architecture")))
        };
        let mut there: Vec<String> = index.manifests.iter().filter_map(platform).collect();
        if let Some(entry) = index.manifests.iter().find(|entry| platform(entry) == Some(wanted())) {
            return Ok(entry.clone());
        }
        match index.manifests.as_slice() {
            // Nothing says what it is for but itself.
            [only] if there.is_empty() => Ok(only.clone()),
            _ => {
                // Attestations have this in the place of a platform.
                there.retain(|platform| platform != "unknown/unknown");
                Err(Error::WrongPlatform { image: self.name.clone(), found: there.join(", "), wanted: wanted() })
            }
        }
    }

    async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let bytes = match &self.source {
            Source::Registry(remote) => remote.manifest(&descriptor.digest).await?,
            Source::Layout(_) => self.small_blob(descriptor).await?,
        };
        if Digest::of(&bytes) == descriptor.digest {
            return Ok(bytes);
        }
        Err(Error::malformed(&self.name, format!("what is there as {} has another digest", descriptor.digest)))
    }

    async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let mut stream = self.blob(descriptor).await?;
        let mut bytes = Vec::new();
        while let Some(part) = stream.next().await {
            let part = part.map_err(|source| Error::Interrupted { image: self.name.clone(), source })?;
            bytes.extend_from_slice(&part);
            if bytes.len() as u64 > MAX_DOCUMENT {
                return Err(Error::malformed(&self.name, format!("{} is larger than 4 MiB", descriptor.digest)));
            }
        }
        if Digest::of(&bytes) == descriptor.digest {
            return Ok(bytes);
        }
        Err(Error::malformed(&self.name, format!("what is there as {} has another digest", descriptor.digest)))
    }

    fn parse<T: DeserializeOwned>(&self, bytes: &[u8], what: &str) -> Result<T, Error> {
        serde_json::from_slice(bytes).map_err(|error| Error::malformed(&self.name, format!("{what}: {error}")))
    }
}

/// What tells an index from a manifest.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde_json::Value>,
}

impl Kind {
    fn is_index(&self) -> bool {
        match self.media_type.as_deref() {
            Some(MEDIA_TYPE_INDEX | DOCKER_INDEX) => true,
            Some(MEDIA_TYPE_MANIFEST | DOCKER_MANIFEST) => false,
            _ => self.manifests.is_some(),
        }
    }
}

fn wanted() -> String {
    format!("linux/{}", architecture())
}
