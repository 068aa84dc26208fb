//! What can go wrong in a buildpack. Every message ends with what to do.

use std::{io, path::PathBuf};

/// The reason why an application cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("called in a wrong way; usage: {0}")]
    Arguments(&'static str),
    #[error("working on {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("starting {program}; it should be in the build base")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("{0}")]
    Refused(String),
}

impl From<Error> for libcnb::Error<Error> {
    fn from(error: Error) -> Self {
        Self::BuildpackError(error)
    }
}

/// Names the path that an input or output error is about.
pub(super) trait At<T> {
    fn at(self, path: impl Into<PathBuf>) -> Result<T, Error>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: impl Into<PathBuf>) -> Result<T, Error> {
        self.map_err(|source| Error::Io { path: path.into(), source })
    }
}
