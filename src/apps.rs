//! Applications: releases, the health gate, scale, environment, and the routes that `edge` follows.

mod routes;

pub use routes::{Backend, InFlight, Lookup, RouteTable, Target};

use futures::stream::BoxStream;

use crate::{
    model::{App, AppName, Environment, ImageName, Namespace, Origin, Release, Route, StageId, Timestamp},
    runtime::{Instance, LogLine, LogQuery},
    store,
};

/// All applications and namespaces of this daemon.
pub struct Apps {}

/// What an application is created with.
#[derive(Debug, Clone)]
pub struct NewApp {
    pub namespace: Namespace,
    pub name: AppName,
    pub username: String,
    pub config: AppChange,
}

/// What is changed of an application; `None` stays as it is.
#[derive(Debug, Clone, Default)]
pub struct AppChange {
    pub instances: Option<u32>,
    /// Merged into what there is; with `replace_environment` it replaces it.
    pub environment: Option<Environment>,
    pub replace_environment: bool,
    pub unset_environment: Vec<crate::model::EnvName>,
    pub routes: Option<Vec<Route>>,
    pub appchart: Option<String>,
    /// Whether a running application takes the change at once.
    pub restart: Restart,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Restart {
    #[default]
    Now,
    Later,
}

/// What an application does right now.
#[derive(Debug, Clone)]
pub struct AppStatus {
    /// The release that serves; none before the first deployment.
    pub release: Option<Release>,
    pub instances: Vec<Instance>,
    /// Why the last deployment failed, when it did.
    pub failure: Option<String>,
}

/// What came of a deployment.
#[derive(Debug, Clone)]
pub struct Deployed {
    pub release: Release,
    pub routes: Vec<Route>,
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct NamespaceRecord {
    pub name: Namespace,
    pub created_at: Timestamp,
}

impl Apps {
    pub async fn create_namespace(&self, _name: &Namespace) -> Result<NamespaceRecord, Error> {
        todo!()
    }

    pub async fn namespace(&self, _name: &Namespace) -> Result<NamespaceRecord, Error> {
        todo!()
    }

    pub async fn namespaces(&self) -> Result<Vec<NamespaceRecord>, Error> {
        todo!()
    }

    /// Deletes a namespace with all its applications.
    pub async fn delete_namespace(&self, _name: &Namespace) -> Result<(), Error> {
        todo!()
    }

    pub async fn create(&self, _app: NewApp) -> Result<App, Error> {
        todo!()
    }

    pub async fn get(&self, _namespace: &Namespace, _name: &AppName) -> Result<App, Error> {
        todo!()
    }

    /// In order of namespace and name; of all namespaces without one.
    pub async fn list(&self, _namespace: Option<&Namespace>) -> Result<Vec<App>, Error> {
        todo!()
    }

    pub async fn status(&self, _app: &App) -> Result<AppStatus, Error> {
        todo!()
    }

    /// Changes an application; where it runs, with `Restart::Now`, a new release is made and waited for.
    pub async fn update(&self, _namespace: &Namespace, _name: &AppName, _change: AppChange) -> Result<App, Error> {
        todo!()
    }

    /// Makes a new release of this image and waits until it serves (or failed; then the one before still serves).
    /// With `replaces_origin` the application remembers where its source came from.
    pub async fn deploy(
        &self,
        _namespace: &Namespace,
        _name: &AppName,
        _image: ImageName,
        _stage: Option<StageId>,
        _origin: Option<Origin>,
    ) -> Result<Deployed, Error> {
        todo!()
    }

    /// A new release of what runs now.
    pub async fn restart(&self, _namespace: &Namespace, _name: &AppName) -> Result<Deployed, Error> {
        todo!()
    }

    /// Stops and forgets an application: releases, stagings, sources, images, logs.
    pub async fn delete(&self, _namespace: &Namespace, _name: &AppName) -> Result<(), Error> {
        todo!()
    }

    pub async fn logs(
        &self,
        _namespace: &Namespace,
        _name: &AppName,
        _query: LogQuery,
    ) -> Result<BoxStream<'static, LogLine>, Error> {
        todo!()
    }

    /// The routes of an application: its own, or the default route of the system domain.
    pub fn routes(&self, _app: &App) -> Vec<Route> {
        todo!()
    }
}

/// What can go wrong with applications.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("application '{name}' does not exist in namespace '{namespace}'")]
    NoSuchApp { namespace: Namespace, name: AppName },
    #[error("application '{name}' already exists in namespace '{namespace}'")]
    AppExists { namespace: Namespace, name: AppName },
    #[error("namespace '{0}' does not exist")]
    NoSuchNamespace(Namespace),
    #[error("namespace '{0}' already exists")]
    NamespaceExists(Namespace),
    #[error("route '{route}' already belongs to application '{owner}'")]
    RouteTaken { route: Route, owner: String },
    #[error("route '{0}' is a host of the API")]
    RouteReserved(Route),
    #[error("application '{0}' was never deployed; push it first")]
    NeverDeployed(AppName),
    /// The new release did not come up; what served before still does.
    #[error("release {number} did not come up: {cause}")]
    NotHealthy { number: u64, cause: String, last_words: Vec<String> },
    #[error("the runtime failed")]
    Runtime(#[from] crate::runtime::Error),
    #[error("the store failed")]
    Store(#[from] store::Error),
}
