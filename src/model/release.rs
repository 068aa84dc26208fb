//! A release: what is run, numbered and never changed.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{AppChange, AppName, Environment, ImageName, Namespace, Route, StageId, Timestamp};

/// Image, environment, routes and scale of an application at one point. A change makes a new one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Release {
    pub id: ReleaseId,
    pub image: ImageName,
    pub stage_id: Option<StageId>,
    pub environment: Environment,
    pub routes: Vec<Route>,
    pub instances: u32,
    /// What becomes of the application when this release serves; what is above has it in it.
    #[serde(default)]
    pub change: AppChange,
    pub created_at: Timestamp,
    pub state: ReleaseState,
}

/// Names a release everywhere: `NAMESPACE/APP/NUMBER`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReleaseId {
    pub namespace: Namespace,
    pub app: AppName,
    pub number: u64,
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.app, self.number)
    }
}

/// Where a release is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum ReleaseState {
    /// Its instances are being started; the one before it still serves.
    Starting,
    /// It serves.
    Active,
    /// It served; its instances are being drained and stopped, or are gone.
    Retired,
    /// It never served.
    Failed { cause: String },
}
