//! Images that a phase reads: the previous one, the cache, the run image.

use std::{path::Path, sync::Arc};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Context as _, Dirs, Result, patience::patiently, read_toml, write_toml};
use crate::{
    model::{Digest, ImageName},
    oci::{Client, ConfigFile, Descriptor, Manifest},
};

/// An image with its documents.
pub(super) struct Image {
    pub name: ImageName,
    pub manifest: Manifest,
    pub config: ConfigFile,
    lost: Lost,
}

/// Blobs that could not be unpacked. Export must not rely on them, so that the next image and cache are whole again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lost {
    pub blobs: Vec<Digest>,
}

/// Where one phase tells another, in `/layers`. A buildpack may change it: the worst is that layers are sent again.
const LOST: &str = "lost.toml";

impl Lost {
    pub fn read(dirs: &Dirs) -> Self {
        read_toml(&dirs.layers.join(LOST), 1).ok().flatten().unwrap_or_default()
    }

    pub fn write(&self, dirs: &Dirs) -> Result<()> {
        let path: &Path = &dirs.layers.join(LOST);
        if self.blobs.is_empty() { Ok(()) } else { write_toml(path, self) }
    }
}

impl Image {
    /// An image that things are easier with, but go on without: none when it is gone or cannot be read, which is a warning.
    pub async fn find(client: &Client, name: Option<&ImageName>, warnings: &mut Vec<String>) -> Option<Self> {
        match Self::read(client, name?).await {
            Ok(found) => found,
            Err(error) => {
                warnings.push(format!("{}; it is not used", error.cause));
                None
            }
        }
    }

    /// The same without some of its blobs.
    pub fn without(self, lost: &Lost) -> Self {
        Self { lost: lost.clone(), ..self }
    }

    /// None when it is gone.
    pub async fn read(client: &Client, name: &ImageName) -> Result<Option<Self>> {
        let doing = || format!("reading image {name}");
        let digest = name.digest.to_string();
        let found = patiently(async || client.manifest(&name.repository, &digest).await).await.context(1, doing)?;
        let Some((_, manifest)) = found else { return Ok(None) };
        let config = patiently(async || client.config(&name.repository, &manifest).await).await.context(1, doing)?;
        Ok(Some(Self { name: name.clone(), manifest, config, lost: Lost::default() }))
    }

    /// A label that is JSON. One that is not there is empty, and so is one that cannot be read, which is a warning.
    pub fn label<T: DeserializeOwned + Default>(&self, label: &str, warnings: &mut Vec<String>) -> T {
        let Some(text) = self.config.config.labels.as_ref().and_then(|labels| labels.get(label)) else {
            return T::default();
        };
        serde_json::from_str(text).unwrap_or_else(|error| {
            warnings.push(format!("label {label} of image {} cannot be read: {error}; it is not used", self.name));
            T::default()
        })
    }

    /// The blob of a layer; none when it is lost.
    pub fn layer(&self, diff_id: &Digest) -> Option<&Descriptor> {
        let number = self.config.rootfs.diff_ids.iter().position(|known| known == diff_id)?;
        self.manifest.layers.get(number).filter(|blob| !self.lost.blobs.contains(&blob.digest))
    }
}

/// A client with the token of this phase, and a runtime to wait on.
pub(super) fn connect(address: &str) -> Result<(tokio::runtime::Runtime, Arc<Client>)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context(1, || "starting".to_owned())?;
    let client = Client::new(address, &super::token()?).context(1, || "connecting to the registry".to_owned())?;
    Ok((runtime, Arc::new(client)))
}
