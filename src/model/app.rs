//! An application as the user describes it.

use serde::{Deserialize, Serialize};

use super::{AppName, Environment, ImageName, Namespace, Route, StageId, Timestamp};

/// An application: what the user wants, and which staging and release came of it last.
///
/// The wire form of the API is made from this in `api`; this is the form that is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct App {
    pub namespace: Namespace,
    pub name: AppName,
    pub created_at: Timestamp,
    /// Who created it.
    pub username: String,
    pub instances: u32,
    pub environment: Environment,
    /// What the user asked for; empty means the default route.
    pub routes: Vec<Route>,
    pub origin: Origin,
    /// Unknown to us, kept for clients: Epinio's `appchart` and its settings.
    #[serde(default)]
    pub appchart: Option<String>,
    /// The last staging that was started.
    pub stage_id: Option<StageId>,
    /// The source of the last upload, by blob uid.
    pub blob_uid: Option<String>,
    /// The image of the release that serves.
    pub image: Option<ImageName>,
    /// The number of the release that serves, or should.
    pub release: Option<u64>,
    /// The number that the next release gets.
    pub next_release: u64,
    /// Why the last deployment failed, when it did.
    #[serde(default)]
    pub failure: Option<String>,
}

/// Where the source of an application came from (Epinio's `ApplicationOrigin`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    #[default]
    None,
    /// A folder or archive on the client's machine.
    Path { path: String, archive: bool },
}
