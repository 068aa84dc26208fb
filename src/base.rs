//! Base images, assembled from Debian stable packages: index, signature, resolver, unpack, fix-ups, layers.

use crate::model::{Digest, ImageName};

/// What a staging needs of base images.
pub struct Bases {}

/// A build base and the run base that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasePair {
    pub build: ImageName,
    pub run: ImageName,
    /// Of the exact package versions of both.
    pub lock: Digest,
}

impl Bases {
    /// The pair with these packages on top of the build and the run base; assembled when it is not there yet.
    /// `progress` hears what is done, for the log and a progress bar.
    pub async fn ensure(
        &self,
        _build: &[String],
        _run: &[String],
        _progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<BasePair, Error> {
        todo!()
    }
}

/// How far the making of a base is.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// Something worth a line in the log.
    Note(String),
    /// Bytes downloaded so far, and all that there are.
    Download { done: u64, total: u64 },
}

/// What can go wrong with base images.
#[derive(Debug, thiserror::Error)]
pub enum Error {}
