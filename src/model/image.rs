//! Names of images in the bundled registry.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{AppName, Digest, Namespace};

/// The canonical host part of every image name, in both worlds and whatever port is in use: image
/// names must not depend on where an image was built.
pub const REGISTRY_NAME: &str = "127.0.0.1:30500";

/// The first path component that epiniod keeps for itself: bases, caches, its own image.
pub const SYSTEM_REPOSITORY: &str = "epiniod";

/// A repository of the bundled registry with a digest: `NAMESPACE/APP@sha256:…`.
///
/// Displayed it has the canonical host in front.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName {
    pub repository: String,
    pub digest: Digest,
}

impl ImageName {
    pub fn new(repository: impl Into<String>, digest: Digest) -> Self {
        Self { repository: repository.into(), digest }
    }

    /// The repository that the images of an application are in.
    pub fn app_repository(namespace: &Namespace, app: &AppName) -> String {
        format!("{namespace}/{app}")
    }

    /// The repository that the build cache of an application is in.
    pub fn cache_repository(namespace: &Namespace, app: &AppName) -> String {
        format!("{SYSTEM_REPOSITORY}/cache/{namespace}/{app}")
    }
}

/// Not the name of an image in the bundled registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not the name of an image: expected '{REGISTRY_NAME}/NAMESPACE/APP@sha256:…'")]
pub struct InvalidImageName(String);

impl FromStr for ImageName {
    type Err = InvalidImageName;

    fn from_str(text: &str) -> Result<Self, InvalidImageName> {
        let invalid = || InvalidImageName(text.chars().take(200).collect());
        let rest = text.strip_prefix(REGISTRY_NAME).and_then(|rest| rest.strip_prefix('/')).ok_or_else(invalid)?;
        let (repository, digest) = rest.split_once('@').ok_or_else(invalid)?;
        Ok(Self { repository: repository.to_owned(), digest: digest.parse().map_err(|_| invalid())? })
    }
}

impl TryFrom<String> for ImageName {
    type Error = InvalidImageName;

    fn try_from(text: String) -> Result<Self, InvalidImageName> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> String {
        name.to_string()
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{REGISTRY_NAME}/{}@{}", self.repository, self.digest)
    }
}
