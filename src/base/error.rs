//! What can go wrong with base images.

use super::InvalidSignature;
use crate::{
    blob,
    model::{Digest, Timestamp},
    store,
};

/// What can go wrong with base images. Every text says what to do next, where there is something to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("'{0}' is not the name of a Debian package; names have lower-case letters, digits, '+', '-' and '.'")]
    BadPackageName(String),
    #[error("Debian has no package '{name}'{}", did_you_mean(.near))]
    UnknownPackage { name: String, near: Vec<String> },
    #[error(
        "package {package} needs {dependency}, which the Debian index does not have; try again when the mirror is complete"
    )]
    Unsatisfiable { package: String, dependency: String },
    #[error(
        "cannot reach the Debian mirror at {url}; check the network and the proxy, or name another one (--debian-mirror, --debian-security-mirror)"
    )]
    MirrorDown {
        url: String,
        #[source]
        source: Box<reqwest::Error>,
    },
    #[error(
        "the Debian mirror answered {status} for {url}; name another one (--debian-mirror, --debian-security-mirror)"
    )]
    MirrorRefused { url: String, status: u16 },
    #[error(
        "the Debian mirrors did not answer within {seconds} s; name others (--debian-mirror, --debian-security-mirror)"
    )]
    MirrorSlow { seconds: u64 },
    #[error("no Debian mirror was found for {suite}; name one with --debian-mirror and --debian-security-mirror")]
    NoMirror {
        suite: String,
        #[source]
        source: Option<Box<Error>>,
    },
    #[error("the download of {url} broke off; try again, it goes on where it stopped")]
    Interrupted { url: String },
    #[error(
        "{url} is not signed by Debian: it was tampered with, or the mirror is of another distribution; name another one"
    )]
    Signature {
        url: String,
        #[source]
        source: InvalidSignature,
    },
    #[error(
        "{url} expired on {until}: the mirror is out of date, or the clock of this machine is wrong; check the clock or name another mirror"
    )]
    Expired { url: String, until: Timestamp },
    #[error(
        "{url} is from {date}, but one from {seen} was seen before: the mirror is out of date or replays an old state; name another one"
    )]
    Rollback { url: String, date: Timestamp, seen: Timestamp },
    #[error("{url} is of suite '{found}', not '{expected}'; name another mirror")]
    WrongSuite { url: String, expected: String, found: String },
    #[error(
        "{url} has digest {actual}, not {expected} as Debian signed it; it was thrown away: try again, or name another mirror"
    )]
    WrongHash { url: String, expected: Digest, actual: Digest },
    #[error("{what} is malformed; name another mirror")]
    Malformed { what: String },
    #[error("the package index on this machine cannot be read; it is made anew")]
    DamagedIndex {
        #[source]
        source: std::io::Error,
    },
    #[error(
        "these Debian packages have {total} together, more than the {limit} that a base may have; the largest is {name} with {size}: leave out what is not needed"
    )]
    TooLarge { total: String, limit: String, name: String, size: String },
    #[error("assembling a layer of Debian packages")]
    Assembly {
        #[source]
        source: std::io::Error,
    },
    #[error("making a base image known to the registry: {0}")]
    Publish(String),
    #[error("{doing}")]
    Io {
        doing: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the blob store failed")]
    Blob(#[from] blob::Error),
    #[error("the store failed")]
    Store(#[from] store::Error),
}

impl Error {
    /// Whether it is worth another attempt at once.
    pub(super) fn is_temporary(&self) -> bool {
        match self {
            Self::MirrorDown { .. } | Self::Interrupted { .. } => true,
            Self::MirrorRefused { status, .. } => *status >= 500 || matches!(status, 408 | 429),
            _ => false,
        }
    }

    /// Whether a mirror said something wrong, rather than nothing.
    pub(super) fn is_about_content(&self) -> bool {
        matches!(
            self,
            Self::Signature { .. }
                | Self::Expired { .. }
                | Self::Rollback { .. }
                | Self::WrongSuite { .. }
                | Self::WrongHash { .. }
                | Self::Malformed { .. }
        )
    }

    /// Whether it may be different after a look at the mirrors.
    pub(super) fn deserves_another_look(&self) -> bool {
        matches!(self, Self::DamagedIndex { .. }) || self.is_of_mirror()
    }

    /// Whether a base that was made before is a way out.
    pub(super) fn is_of_mirror(&self) -> bool {
        let silent = matches!(self, Self::MirrorDown { .. } | Self::MirrorRefused { .. } | Self::NoMirror { .. });
        let is_short = matches!(self, Self::Interrupted { .. } | Self::MirrorSlow { .. } | Self::Unsatisfiable { .. });
        silent || is_short || self.is_about_content()
    }
}

fn did_you_mean(near: &[String]) -> String {
    match near {
        [] => "; look for its name at packages.debian.org (suite trixie, section main)".to_owned(),
        names => format!("; did you mean {}?", names.join(", ")),
    }
}
