//! Who may do what in the registry is not decided here.

use std::net::IpAddr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// Decides about a request to the registry.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// `repository` is none for what concerns the registry as a whole (`GET /v2/`, the catalogue).
    async fn permits(&self, credential: Credential<'_>, repository: Option<&str>, action: Action) -> Verdict;

    /// Somebody who was known changed something, or was refused. Who keeps no account of it need not do anything.
    async fn changed(&self, _credential: Credential<'_>, _change: Change<'_>) {}
}

/// A change of a repository: of its manifests, which are what makes images of blobs.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    pub action: Action,
    pub repository: &'a str,
    /// The tag or digest.
    pub reference: &'a str,
    /// How it was answered.
    pub status: u16,
}

/// What somebody shows, and where.
#[derive(Debug, Clone, Copy)]
pub struct Credential<'a> {
    /// The header as it came (`Basic …`, `Bearer …`).
    pub header: Option<&'a str>,
    pub from: IpAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Pull,
    Push,
    Delete,
    /// To list the repositories there are.
    Catalog,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// No credential, or one that is not valid: 401.
    Unknown,
    /// A valid credential that does not reach this far: 403.
    Denied,
    /// It is not looked at for so long: 429.
    Wait {
        seconds: u64,
    },
    /// It could not be found out just now: 503.
    Unavailable,
}
