//! Whom the pods of an image run as. It is said in the pod: of an image a kubelet takes the user alone, and the group from
//! the image's `/etc/passwd`, where it is that of root for who is not in there.

use std::sync::PoisonError;

use futures::TryStreamExt as _;
use serde::de::DeserializeOwned;

use super::Cluster;
use crate::{
    model::{Digest, ImageName},
    oci::{ConfigFile, ImageUser, Manifest},
    runtime::Error,
    telemetry::chain,
};

/// Of a manifest or a configuration, in bytes.
const MAX_DOCUMENT: u64 = 16 << 20;
/// So many images are remembered.
const REMEMBERED: usize = 10_000;

/// By numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct User {
    pub uid: u32,
    pub gid: u32,
}

/// None where the configuration does not say both in numbers.
pub(super) async fn of_image(cluster: &Cluster, image: &ImageName) -> Result<Option<User>, Error> {
    let known = cluster.users.lock().unwrap_or_else(PoisonError::into_inner).get(&image.digest).copied();
    if let Some(known) = known {
        return Ok(known);
    }
    let failed = |cause| Error::Image { image: image.clone(), cause };
    let manifest: Manifest = document(cluster, &image.digest).await.map_err(failed)?;
    let config: ConfigFile = document(cluster, &manifest.config.digest).await.map_err(failed)?;
    let numbers = config.config.user.as_deref().and_then(|text| ImageUser::parse(text).numbers());
    let user = numbers.map(|(uid, gid)| User { uid, gid });
    let mut users = cluster.users.lock().unwrap_or_else(PoisonError::into_inner);
    if users.len() >= REMEMBERED {
        users.clear();
    }
    users.insert(image.digest, user);
    Ok(user)
}

async fn document<T: DeserializeOwned>(cluster: &Cluster, digest: &Digest) -> Result<T, String> {
    let reader = cluster.blobs.open(digest, None).await.map_err(|error| chain(&error))?;
    let reader = reader.ok_or_else(|| format!("blob {digest} is not there; push the application again"))?;
    if reader.size > MAX_DOCUMENT {
        return Err(format!("blob {digest} is too large for what it is"));
    }
    let parts: Vec<bytes::Bytes> = reader.stream.try_collect().await.map_err(|error| chain(&error))?;
    serde_json::from_slice(&parts.concat()).map_err(|error| format!("blob {digest} cannot be read: {error}"))
}
