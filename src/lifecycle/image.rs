//! Images that a phase reads: the previous one, the cache, the run image.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::{Context as _, Result};
use crate::{
    model::{Digest, ImageName},
    oci::{Client, ConfigFile, Descriptor, Manifest},
};

/// An image with its documents.
pub(super) struct Image {
    pub name: ImageName,
    pub manifest: Manifest,
    pub config: ConfigFile,
}

impl Image {
    /// None when it is gone.
    pub async fn read(client: &Client, name: &ImageName) -> Result<Option<Self>> {
        let doing = || format!("reading image {name}");
        let found = client.manifest(&name.repository, &name.digest.to_string()).await.context(1, doing)?;
        let Some((_, manifest)) = found else { return Ok(None) };
        let config = client.config(&name.repository, &manifest).await.context(1, doing)?;
        Ok(Some(Self { name: name.clone(), manifest, config }))
    }

    /// A label that is JSON; none when it is not there or cannot be read.
    pub fn label<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.config.config.labels.as_ref()?.get(name)?).ok()
    }

    /// The blob of a layer.
    pub fn layer(&self, diff_id: &Digest) -> Option<&Descriptor> {
        let number = self.config.rootfs.diff_ids.iter().position(|known| known == diff_id)?;
        self.manifest.layers.get(number)
    }
}

/// A client with the token of this phase, and a runtime to wait on.
pub(super) fn connect(address: &str) -> Result<(tokio::runtime::Runtime, Arc<Client>)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context(1, || "starting".to_owned())?;
    let client = Client::new(address, &super::token()?).context(1, || "connecting to the registry".to_owned())?;
    Ok((runtime, Arc::new(client)))
}
