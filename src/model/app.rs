//! An application as the user describes it.

use serde::{Deserialize, Serialize};

use super::{AppName, Builder, EnvName, Environment, ImageName, Namespace, Route, StageId, Timestamp};

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
    /// What its images are made with.
    #[serde(default)]
    pub builder: Builder,
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

impl App {
    /// An application that nothing was asked of yet.
    pub fn new(namespace: Namespace, name: AppName, username: String) -> Self {
        Self {
            namespace,
            name,
            created_at: Timestamp::now(),
            username,
            instances: 1,
            environment: Environment::new(),
            routes: Vec::new(),
            origin: Origin::None,
            appchart: None,
            builder: Builder::Embedded,
            stage_id: None,
            blob_uid: None,
            image: None,
            release: None,
            next_release: 1,
            failure: None,
        }
    }
}

/// What is changed of an application; `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AppChange {
    pub instances: Option<u32>,
    /// Merged into what there is; with `replace_environment` it replaces it.
    pub environment: Option<Environment>,
    pub replace_environment: bool,
    pub unset_environment: Vec<EnvName>,
    pub routes: Option<Vec<Route>>,
    pub appchart: Option<String>,
    /// Of the next staging.
    pub builder: Option<Builder>,
    /// Whether a running application takes a new environment at once.
    pub restart: Restart,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Restart {
    #[default]
    Now,
    Later,
}

impl AppChange {
    pub fn apply(&self, app: &mut App) {
        if let Some(instances) = self.instances {
            app.instances = instances;
        }
        if let Some(environment) = &self.environment {
            if self.replace_environment {
                app.environment.clear();
            }
            app.environment.extend(environment.clone());
        }
        for name in &self.unset_environment {
            app.environment.remove(name);
        }
        if let Some(routes) = &self.routes {
            app.routes = routes.clone();
        }
        if let Some(appchart) = &self.appchart {
            app.appchart = Some(appchart.clone());
        }
        if let Some(builder) = &self.builder {
            app.builder = builder.clone();
        }
    }
}

/// Where the source of an application came from (Epinio's `ApplicationOrigin`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    #[default]
    None,
    /// A folder or archive on the client's machine.
    Path { path: String, archive: bool },
}
