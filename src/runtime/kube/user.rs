//! Whom the pods of an image run as. It is said in the pod: of an image a kubelet takes the user alone, and the group from
//! the image's `/etc/passwd`, where it is that of root for who is not in there.

use std::sync::PoisonError;

use super::Cluster;
use crate::{
    model::ImageName,
    oci::ImageUser,
    runtime::{Error, documents::documents},
};

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
    let gone = || failed(format!("blob {} is not there; push the application again", image.digest));
    let (_, config) = documents(&cluster.blobs, &image.digest).await.map_err(failed)?.ok_or_else(gone)?;
    let numbers = config.config.user.as_deref().and_then(|text| ImageUser::parse(text).numbers());
    let user = numbers.map(|(uid, gid)| User { uid, gid });
    let mut users = cluster.users.lock().unwrap_or_else(PoisonError::into_inner);
    if users.len() >= REMEMBERED {
        users.clear();
    }
    users.insert(image.digest, user);
    Ok(user)
}
