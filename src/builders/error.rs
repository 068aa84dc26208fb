//! What can go wrong with builders of others.

use std::path::PathBuf;

use oci_distribution::errors::OciDistributionError;

use crate::{blob, oci::registry};

/// Every message names the image as its user wrote it, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no image '{image}'; check its name and tag")]
    Unknown { image: String },
    #[error(
        "registry {registry} does not let us read image '{image}': check the name; if it is right, the credential for \
         {registry} is missing or wrong in {} (the format of ~/.docker/config.json)", credentials.display()
    )]
    Unauthorized { image: String, registry: String, credentials: PathBuf },
    #[error("registry {registry}, which has image '{image}', cannot be reached")]
    Unreachable { image: String, registry: String, source: OciDistributionError },
    #[error("registry {registry} does not give image '{image}'")]
    Upstream { image: String, registry: String, source: OciDistributionError },
    #[error("image '{image}' did not come within {seconds} s; push again, what has arrived is kept")]
    TooSlow { image: String, seconds: u64 },
    #[error("image '{image}' is for {found}, and this machine is {wanted}; choose a builder that is made for it")]
    WrongPlatform { image: String, found: String, wanted: String },
    #[error(
        "image '{image}' is no builder: it has no {missing}; give the name of a builder, such as heroku/builder:24"
    )]
    NotABuilder { image: String, missing: &'static str },
    #[error("image '{image}' cannot be used: {cause}")]
    Malformed { image: String, cause: String },
    #[error("the run image of builder '{builder}' cannot be had")]
    RunImage { builder: String, source: Box<Error> },
    #[error("there is no image '{tag}' in the OCI layout {}; there are: {there}", folder.display())]
    NotInLayout { folder: PathBuf, tag: String, there: String },
    #[error("image '{image}' cannot be read from {}", path.display())]
    Layout { image: String, path: PathBuf, source: std::io::Error },
    #[error("the credentials of registries in {} cannot be read: {cause}", path.display())]
    Credentials { path: PathBuf, cause: String },
    #[error("reading image '{image}' broke off")]
    Interrupted { image: String, source: std::io::Error },
    #[error("the registry failed")]
    Registry(#[from] registry::Error),
    #[error("the blob store failed")]
    Blob(#[from] blob::Error),
}

impl Error {
    pub(super) fn malformed(image: &str, cause: impl Into<String>) -> Self {
        Self::Malformed { image: image.to_owned(), cause: cause.into() }
    }

    /// Would the same have worked at another time? Then an earlier copy may do, or another attempt.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Interrupted { .. } | Self::TooSlow { .. } => true,
            Self::Upstream { source: OciDistributionError::ServerError { code, .. }, .. } => {
                *code >= 500 || *code == 429
            }
            _ => false,
        }
    }
}
