//! The store of a cluster: every object of ours is one object of the API server.
//!
//! Applications are custom resources in the namespace of their own, namespaces are the Kubernetes namespaces themselves,
//! and all else is in Secrets and ConfigMaps of the daemon's namespace (`places`). Nothing is kept here: a daemon that is
//! deleted in the middle of anything has lost nothing that was acknowledged, and several may share a cluster.
//!
//! A write compares our version, then replaces exactly the resource version that was compared, so that of two daemons
//! one wins. Each write carries a random word: when an answer is lost and the request was sent again, what is found tells
//! whether it was ours. Reads ask the API server, which answers with what was last written by anybody: a read takes a
//! millisecond, a write two to four, and a list of 5,000 objects a quarter of a second. A copy of everything in memory
//! would be no better for that, and could be old.
//!
//! Refused are namespaces of the cluster that somebody else made, and applications in namespaces that are not there.

mod call;
mod connect;
mod definition;
mod encoding;
mod environment;
mod lease;
mod pages;
mod places;
mod status;
mod watchers;
mod write;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use kube::api::{DynamicObject, ListParams};
use tokio::sync::broadcast;

pub use call::{Failure, call, hurry};
pub use connect::{Cluster, connect};
pub use definition::{definition, install_definition, rights};
pub use lease::{Election, Leadership, Terms};
pub use status::{Announcement, AppStatus, Severity};

use self::{
    call::list, encoding::Found, environment::Environments, pages::Rests, places::Places, status::Announcer,
    watchers::Watchers,
};
use super::{Error, Event, Key, Kind, MAX_OBJECT_BYTES, Object, Page, Slice, Store};

/// Where a store is.
pub struct KubeConfig {
    pub cluster: Cluster,
    /// The namespace of the daemon.
    pub namespace: String,
}

/// The store of a cluster.
pub struct KubeStore {
    places: Places,
    environments: Environments,
    watchers: Watchers,
    rests: Rests,
    announcer: Announcer,
}

/// Between reading an application and reading its environment both may have changed; not for ever.
const READS: usize = 10;
/// Between the writing of an environment and of the application that names it there is less.
const ABOUT_TO_BE_NAMED: Duration = Duration::from_secs(3600);

impl KubeStore {
    /// Asks for one object of each form: a missing definition or permission is known before anything depends on it.
    pub async fn open(config: KubeConfig) -> Result<Arc<Self>, Error> {
        let places = Places { client: config.cluster.calls, system: config.namespace };
        let environments = Environments { places: places.clone() };
        let store = Self {
            watchers: Watchers::new(places.clone(), environments.clone()),
            rests: Rests::default(),
            announcer: Announcer::new(&places),
            environments,
            places,
        };
        for kind in [Kind::Namespace, Kind::App, Kind::Secret, Kind::Source] {
            let api = store.places.api_of_all(kind, None);
            let one = ListParams::default().labels(&store.places.selector(kind.as_str(), None)).limit(1);
            let found = call(|| api.list(&one)).await;
            found.map_err(|failure| failure.into_error(format!("opening the store ({}s)", kind.as_str())))?;
        }
        store.sweep(ABOUT_TO_BE_NAMED).await?;
        Ok(Arc::new(store))
    }

    /// Deletes environments that are older than this and belong to no application: writes that a crash interrupted.
    pub async fn sweep(&self, older_than: Duration) -> Result<(), Error> {
        self.environments.sweep(older_than).await
    }

    /// The object as Kubernetes has it. What others made under its name does not count, nor a namespace that is going.
    async fn find(&self, key: &Key) -> Result<Option<DynamicObject>, Error> {
        let found = self.find_any(key).await?;
        Ok(found.filter(|found| self.places.is_ours(key.kind, found) && !is_going(key.kind, found)))
    }

    async fn find_any(&self, key: &Key) -> Result<Option<DynamicObject>, Error> {
        let (api, name) = (self.places.api(key), places::name(key));
        match call(|| api.get(&name)).await {
            Ok(found) => Ok(Some(found)),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure.into_error(format!("reading {key}"))),
        }
    }

    async fn list_all(&self, kind: Kind, namespace: Option<&str>) -> Result<Vec<Object>, Error> {
        let mut found = self.list_found(kind, namespace).await?;
        // The label may be a hash.
        found.retain(|found| namespace.is_none_or(|namespace| found.object.key.namespace == namespace));
        let mut objects = Vec::with_capacity(found.len());
        let held = found.iter().any(|found| found.environment.is_some());
        let environments = if held { self.environments.list(namespace).await? } else { Default::default() };
        for found in found {
            let key = found.object.key.clone();
            match environment::join(found, &environments) {
                Some(object) => objects.push(object),
                // It was changed between the two lists, or is gone.
                None => objects.extend(self.get(&key).await?),
            }
        }
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    async fn list_found(&self, kind: Kind, namespace: Option<&str>) -> Result<Vec<Found>, Error> {
        let api = self.places.api_of_all(kind, namespace);
        let selector = self.places.selector(kind.as_str(), namespace);
        let read = |found: DynamicObject| match self.places.is_ours(kind, &found) && !is_going(kind, &found) {
            true => encoding::read(kind, &found).map(Some),
            false => Ok(None),
        };
        list(&api, &selector, &format!("listing {}s", kind.as_str()), read).await
    }
}

#[async_trait]
impl Store for KubeStore {
    async fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        self.watchers.begun(key.kind).await;
        for _ in 0..READS {
            let Some(found) = self.find(key).await? else { return Ok(None) };
            let found = encoding::read(key.kind, &found)?;
            if let Some(object) = self.environments.complete(found).await? {
                return Ok(Some(object));
            }
        }
        let cause = "the Secret with its environment is missing; was it deleted by hand?".to_owned();
        Err(Error::Backend { doing: format!("reading {key}"), cause })
    }

    async fn list(&self, kind: Kind, page: &Page) -> Result<Slice, Error> {
        self.watchers.begun(kind).await;
        let rest = match self.rests.take(kind, page) {
            Some(rest) => rest,
            None => {
                let mut all = self.list_all(kind, page.namespace.as_deref()).await?;
                if let Some((namespace, name)) = &page.after {
                    all.retain(|object| (&object.key.namespace, &object.key.name) > (namespace, name));
                }
                all
            }
        };
        Ok(self.rests.cut(kind, page, rest))
    }

    async fn put(&self, object: Object) -> Result<Object, Error> {
        let size = object.body.to_string().len();
        if size > MAX_OBJECT_BYTES {
            return Err(Error::TooLarge { key: object.key, size });
        }
        let kind = object.key.kind;
        self.watchers.begun(kind).await;
        let written = match object.version {
            0 => self.create(object).await,
            _ => self.replace(object).await,
        };
        self.rests.forget(kind);
        written
    }

    async fn delete(&self, key: &Key, version: Option<u64>) -> Result<(), Error> {
        self.watchers.begun(key.kind).await;
        let deleted = self.remove(key, version).await;
        self.rests.forget(key.kind);
        deleted
    }

    fn watch(&self, kind: Kind) -> broadcast::Receiver<Event> {
        self.watchers.subscribe(kind)
    }
}

/// A namespace that was deleted stays until all that is in it is gone.
fn is_going(kind: Kind, found: &DynamicObject) -> bool {
    kind == Kind::Namespace && found.metadata.deletion_timestamp.is_some()
}

impl From<(Failure, &Key)> for Error {
    fn from((failure, key): (Failure, &Key)) -> Self {
        failure.into_error(format!("writing {key}"))
    }
}
