//! Applications: releases, the health gate, scale, environment, and the routes that `edge` follows.
//!
//! What should be is in the store; a reconciler makes it so, again and again: it starts what is
//! missing, stops what nobody wants, and rebuilds the route table when an instance changes. A
//! deployment adds a numbered release, waits until it answers, moves the traffic, and only then
//! stops the one before. Scale and routes change in place; image and environment make a new release.

mod change;
mod deploy;
mod namespace;
mod reconcile;
mod routes;
mod traffic;
mod visit;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::stream::BoxStream;
use tokio_util::task::TaskTracker;

pub use change::NewApp;
pub use deploy::{Deployed, Deployment};
pub use namespace::NamespaceRecord;
pub use routes::{Backend, InFlight, Lookup, RouteTable, Target};
pub use traffic::{BOUNDS, Counts, Traffic};

use crate::{
    model::{App, AppName, Namespace, Release, ReleaseId, Route, StageId},
    runtime::{Instance, Limits, LogLine, LogQuery, SharedRuntime},
    store::{self, Key, Objects},
};

/// All applications and namespaces of this daemon.
pub struct Apps {
    objects: Objects,
    runtime: SharedRuntime,
    table: Arc<RouteTable>,
    settings: Settings,
    /// One deployment, change or deletion of an application at a time.
    turns: Mutex<HashMap<(Namespace, AppName), Turn>>,
    /// Releases that are on their way in or out: the reconciler leaves them alone.
    in_transit: reconcile::InTransit,
    backends: Mutex<HashMap<(ReleaseId, String, std::net::SocketAddr), Arc<Backend>>>,
    refreshing: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
}

/// Held by whoever changes an application.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// What applications are run with.
#[derive(Debug, Clone)]
pub struct Settings {
    pub system_domain: String,
    pub limits: Limits,
    /// How long a new release may take until it accepts connections.
    pub health_deadline: Duration,
    /// How long requests to an old release may take until it is stopped.
    pub drain: Duration,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            system_domain: "localhost".to_owned(),
            limits: Limits::default(),
            health_deadline: Duration::from_secs(60),
            drain: Duration::from_secs(30),
            grace: Duration::from_secs(10),
        }
    }
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

impl Apps {
    pub fn new(objects: Objects, runtime: SharedRuntime, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            objects,
            runtime,
            table: Arc::default(),
            settings,
            turns: Mutex::default(),
            in_transit: Default::default(),
            backends: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
        })
    }

    /// What `edge` routes by.
    pub fn route_table(&self) -> Arc<RouteTable> {
        Arc::clone(&self.table)
    }

    /// Counts the changes of instances.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.runtime.changes()
    }

    pub async fn get(&self, namespace: &Namespace, name: &AppName) -> Result<App, Error> {
        let stored = self.objects.get::<App>(&Key::app(namespace, name)).await?;
        match stored {
            Some(stored) => Ok(stored.value),
            None => {
                self.namespace(namespace).await?;
                Err(Error::NoSuchApp { namespace: namespace.clone(), name: name.clone() })
            }
        }
    }

    /// In order of namespace and name; of all namespaces without one.
    pub async fn list(&self, namespace: Option<&Namespace>) -> Result<Vec<App>, Error> {
        if let Some(namespace) = namespace {
            self.namespace(namespace).await?;
        }
        let stored = self.objects.list::<App>(namespace.map(Namespace::as_str)).await?;
        Ok(stored.into_iter().map(|stored| stored.value).collect())
    }

    pub async fn status(&self, app: &App) -> Result<AppStatus, Error> {
        let release = match app.release {
            Some(number) => self.release(&release_id(app, number)).await?,
            None => None,
        };
        let instances = match &release {
            Some(release) => self.runtime.status(&release.id).await?.unwrap_or_default().instances,
            None => Vec::new(),
        };
        Ok(AppStatus { release, instances, failure: app.failure.clone() })
    }

    /// The newest release of this staging, in whatever state.
    pub async fn release_of(
        &self,
        namespace: &Namespace,
        name: &AppName,
        staging: &StageId,
    ) -> Result<Option<Release>, Error> {
        let releases = self.objects.list::<Release>(Some(namespace.as_str())).await?;
        let releases = releases.into_iter().map(|stored| stored.value);
        let of_staging =
            releases.filter(|release| release.id.app == *name && release.stage_id.as_ref() == Some(staging));
        Ok(of_staging.max_by_key(|release| release.id.number))
    }

    /// The releases of an application that are kept, the newest first.
    pub async fn releases(&self, namespace: &Namespace, name: &AppName) -> Result<Vec<Release>, Error> {
        let all = self.objects.list::<Release>(Some(namespace.as_str())).await?;
        let mut releases: Vec<_> =
            all.into_iter().map(|stored| stored.value).filter(|release| release.id.app == *name).collect();
        releases.sort_by_key(|release| std::cmp::Reverse(release.id.number));
        Ok(releases)
    }

    pub async fn logs(
        &self,
        namespace: &Namespace,
        name: &AppName,
        query: LogQuery,
    ) -> Result<BoxStream<'static, LogLine>, Error> {
        self.get(namespace, name).await?;
        Ok(self.runtime.logs(namespace, name, query).await?)
    }

    /// The routes of an application: its own, or the default route of the system domain.
    pub fn routes(&self, app: &App) -> Vec<Route> {
        if !app.routes.is_empty() {
            return app.routes.clone();
        }
        vec![self.default_route(&app.name)]
    }

    fn default_route(&self, name: &AppName) -> Route {
        let host = format!("{name}.{}", self.settings.system_domain);
        host.parse().expect("a label in front of a checked domain is a host")
    }

    async fn release(&self, id: &ReleaseId) -> Result<Option<Release>, Error> {
        Ok(self.objects.get::<Release>(&Key::release(id)).await?.map(|stored| stored.value))
    }

    /// Waits for this application's turn.
    async fn turn(&self, namespace: &Namespace, name: &AppName) -> tokio::sync::OwnedMutexGuard<()> {
        self.turns_of(namespace, name).lock_owned().await
    }

    /// This application's turn, when nobody has it.
    fn turn_now(&self, namespace: &Namespace, name: &AppName) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        self.turns_of(namespace, name).try_lock_owned().ok()
    }

    fn turns_of(&self, namespace: &Namespace, name: &AppName) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry((namespace.clone(), name.clone())).or_default())
    }
}

fn release_id(app: &App, number: u64) -> ReleaseId {
    ReleaseId { namespace: app.namespace.clone(), app: app.name.clone(), number }
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
    #[error("application '{0}' does not run; start it with 'epiniod apps scale {0} 1'")]
    NotRunning(AppName),
    #[error("application '{app}' has no instance '{name}'; it has {there}")]
    NoSuchInstance { app: AppName, name: String, there: String },
    #[error("instance {0} is not ready yet, so it is not known where it listens; name a port")]
    NotReady(String),
    #[error("{instances} instances are too many; at most {most} are possible")]
    TooManyInstances { instances: u32, most: u32 },
    /// The new release did not come up; what served before still does.
    #[error("release {number} did not come up: {cause}")]
    NotHealthy { number: u64, cause: String, last_words: Vec<String> },
    #[error("the deployment was interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
    #[error("the runtime failed")]
    Runtime(#[from] crate::runtime::Error),
    #[error("the store failed")]
    Store(#[from] store::Error),
}
