//! The documents of an image, from the blobs: what a runtime has to know of it before it runs.

use futures::TryStreamExt as _;

use crate::{
    blob::SharedBlobs,
    model::Digest,
    oci::{ConfigFile, Manifest},
    telemetry,
};

/// Of a manifest or a configuration, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// By the digest of its manifest; none when that is gone.
pub(super) async fn documents(
    blobs: &SharedBlobs,
    manifest: &Digest,
) -> Result<Option<(Manifest, ConfigFile)>, String> {
    let Some(manifest) = document(blobs, manifest).await? else { return Ok(None) };
    let manifest: Manifest = serde_json::from_slice(&manifest).map_err(|error| format!("its manifest: {error}"))?;
    let config = &manifest.config.digest;
    let config = document(blobs, config).await?.ok_or_else(|| format!("blob {config} is not there"))?;
    let config = serde_json::from_slice(&config).map_err(|error| format!("its configuration: {error}"))?;
    Ok(Some((manifest, config)))
}

/// A small blob as a whole.
pub(super) async fn document(blobs: &SharedBlobs, digest: &Digest) -> Result<Option<Vec<u8>>, String> {
    let read = async || -> Result<Option<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
        let Some(reader) = blobs.open(digest, None).await? else { return Ok(None) };
        if reader.size > MAX_BYTES {
            return Err(format!("blob {digest} is too large for what it is").into());
        }
        let parts: Vec<bytes::Bytes> = reader.stream.try_collect().await?;
        Ok(Some(parts.concat()))
    };
    read().await.map_err(|error| telemetry::chain(&*error))
}
