//! Who may do what in the registry is not decided here.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// Decides about a request to the registry.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// `authorization` is the header as it came (`Basic …`, `Bearer …`). `repository` is none for what concerns
    /// the registry as a whole (`GET /v2/`, the catalogue).
    async fn permits(&self, authorization: Option<&str>, repository: Option<&str>, action: Action) -> Verdict;
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
}
