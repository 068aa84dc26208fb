//! The route table: what `edge` reads for every request, and the drain handle that it reports to.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

use super::traffic::{Counts, Traffic};
use crate::model::{AppName, Namespace, ReleaseId, Route};

/// Routes of all applications. Reading takes no lock; a change replaces the table.
#[derive(Default)]
pub struct RouteTable {
    table: ArcSwap<Table>,
    changed: watch::Sender<()>,
    /// Of each application that has a route.
    traffic: Mutex<HashMap<(Namespace, AppName), Arc<Traffic>>>,
}

/// Routes by host.
type Table = HashMap<String, Vec<(Route, Arc<Target>)>>;

/// Where the requests of a route go.
#[derive(Debug)]
pub struct Target {
    pub release: ReleaseId,
    pub backends: Vec<Arc<Backend>>,
    /// Why there are no backends, for the page that a visitor sees.
    pub reason: Option<String>,
}

/// An address that takes requests.
#[derive(Debug)]
pub struct Backend {
    /// The instance behind it, for logs.
    pub instance: String,
    pub address: SocketAddr,
    traffic: Arc<Traffic>,
    in_flight: AtomicUsize,
    idle: Notify,
    /// It did not accept a connection; somebody will look.
    down: AtomicBool,
}

/// What the table knows about a host and path.
pub enum Lookup {
    /// Hand the request to this backend; it counts as busy while the guard lives.
    Backend(InFlight),
    /// There is such a route, and nothing to serve it: 503.
    Unavailable(Arc<Target>),
    /// No such route: 404.
    Unknown,
}

/// A request or connection that a backend is busy with.
pub struct InFlight(Arc<Backend>);

impl RouteTable {
    /// Replaces everything. Of several routes that take a path the longest wins.
    pub fn replace(&self, routes: impl IntoIterator<Item = (Route, Arc<Target>)>) {
        let mut table = Table::new();
        let mut known = HashSet::new();
        for (route, target) in routes {
            known.insert((target.release.namespace.clone(), target.release.app.clone()));
            table.entry(route.host().to_owned()).or_default().push((route, target));
        }
        for routes in table.values_mut() {
            routes.sort_by_key(|(route, _)| std::cmp::Reverse(route.path().len()));
        }
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner).retain(|app, _| known.contains(app));
        let before = self.table.swap(Arc::new(table));
        if before.len() != self.table.load().len() || !before.keys().all(|host| self.has_host(host)) {
            self.changed.send_replace(());
        }
    }

    /// Tells when there are other hosts.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub fn hosts(&self) -> Vec<String> {
        self.table.load().keys().cloned().collect()
    }

    /// Every route, with where its requests go.
    pub fn all(&self) -> Vec<(Route, Arc<Target>)> {
        self.table.load().values().flatten().cloned().collect()
    }

    /// The counters of an application: the same for every release, as long as it has a route.
    pub fn traffic(&self, release: &ReleaseId) -> Arc<Traffic> {
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(traffic.entry((release.namespace.clone(), release.app.clone())).or_default())
    }

    /// What was asked of every application, and how many requests are in flight there.
    pub fn all_traffic(&self) -> BTreeMap<(Namespace, AppName), (Counts, usize)> {
        let traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut all: BTreeMap<_, _> = traffic.into_iter().map(|(app, traffic)| (app, (traffic.counts(), 0))).collect();
        let mut seen = HashSet::new();
        for (_, target) in self.table.load().values().flatten() {
            let new: Vec<_> = target.backends.iter().filter(|backend| seen.insert(Arc::as_ptr(backend))).collect();
            let app = (target.release.namespace.clone(), target.release.app.clone());
            if let Some((_, in_flight)) = all.get_mut(&app) {
                *in_flight += new.into_iter().map(|backend| backend.in_flight.load(Ordering::Relaxed)).sum::<usize>();
            }
        }
        all
    }

    /// How many requests are in flight to the application that a route leads to.
    pub fn in_flight(&self, host: &str, path: &str) -> usize {
        let table = self.table.load();
        let found = table.get(host).and_then(|routes| routes.iter().find(|(route, _)| route.takes_path(path)));
        let backends = found.map_or(&[][..], |(_, target)| &target.backends);
        backends.iter().map(|backend| backend.in_flight.load(Ordering::SeqCst)).sum()
    }

    pub fn has_host(&self, host: &str) -> bool {
        self.table.load().contains_key(host)
    }

    /// `host` is lower case and without a port.
    pub fn find(&self, host: &str, path: &str) -> Lookup {
        self.find_but(host, path, &[])
    }

    /// A backend that was not tried yet.
    pub fn another(&self, host: &str, path: &str, tried: &[SocketAddr]) -> Option<InFlight> {
        match self.find_but(host, path, tried) {
            Lookup::Backend(backend) => Some(backend),
            Lookup::Unavailable(_) | Lookup::Unknown => None,
        }
    }

    fn find_but(&self, host: &str, path: &str, tried: &[SocketAddr]) -> Lookup {
        loop {
            let table = self.table.load();
            let found = table.get(host).and_then(|routes| routes.iter().find(|(route, _)| route.takes_path(path)));
            let Some((_, target)) = found else { return Lookup::Unknown };
            let Some(guard) = target.pick(tried) else { return Lookup::Unavailable(Arc::clone(target)) };
            // Whoever has replaced the table since may have seen this backend idle, and be stopping it.
            if Arc::ptr_eq(&table, &self.table.load()) {
                return Lookup::Backend(guard);
            }
        }
    }
}

impl Target {
    /// The backend with the fewest requests in flight. One that is down comes last: it answers fast, and nothing.
    fn pick(&self, tried: &[SocketAddr]) -> Option<InFlight> {
        let untried = self.backends.iter().filter(|backend| !tried.contains(&backend.address));
        let load =
            |backend: &&Arc<Backend>| (backend.down.load(Ordering::Relaxed), backend.in_flight.load(Ordering::Relaxed));
        let backend = untried.min_by_key(load)?;
        backend.in_flight.fetch_add(1, Ordering::SeqCst);
        Some(InFlight(Arc::clone(backend)))
    }
}

impl Backend {
    pub fn new(instance: String, address: SocketAddr, traffic: Arc<Traffic>) -> Self {
        let (in_flight, idle, down) = (AtomicUsize::new(0), Notify::new(), AtomicBool::new(false));
        Self { instance, address, traffic, in_flight, idle, down }
    }

    /// It was seen to accept connections.
    pub fn is_up(&self) {
        self.down.store(false, Ordering::Relaxed);
    }

    /// Ends when no request is in flight. Take the backend out of the table first.
    pub async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            if self.in_flight.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }
}

impl InFlight {
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    pub fn instance(&self) -> &str {
        &self.0.instance
    }

    /// The counters of its application.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.0.traffic
    }

    /// It does not accept connections: others are preferred until it is looked at again.
    pub fn is_down(&self) {
        self.0.down.store(true, Ordering::Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(ports: &[u16]) -> RouteTable {
        let backends = ports.iter().map(|port| {
            let address = SocketAddr::from(([127, 0, 0, 1], *port));
            Arc::new(Backend::new(format!("app-1-{port}"), address, Arc::default()))
        });
        let release = ReleaseId { namespace: "workspace".parse().unwrap(), app: "app".parse().unwrap(), number: 1 };
        let target = Target { release, backends: backends.collect(), reason: None };
        let table = RouteTable::default();
        table.replace([("app.localhost".parse().unwrap(), Arc::new(target))]);
        table
    }

    #[test]
    fn counters_live_as_long_as_their_application_has_a_route() {
        let table = table(&[1, 2]);
        let release =
            |app: &str| ReleaseId { namespace: "workspace".parse().unwrap(), app: app.parse().unwrap(), number: 2 };
        let took = std::time::Duration::ZERO;
        table.traffic(&release("app")).answered(http::StatusCode::OK, took);
        table.traffic(&release("app")).answered(http::StatusCode::OK, took);
        let Lookup::Backend(_busy) = table.find("app.localhost", "/") else { panic!("there are two") };
        let all = table.all_traffic();
        let (counts, in_flight) = all.values().next().unwrap();
        assert_eq!((all.len(), counts.answers[1], *in_flight, table.in_flight("app.localhost", "/")), (1, 2, 1, 1));
        table.replace([]);
        assert!(table.all_traffic().is_empty(), "nothing is kept of what is gone");
    }

    #[test]
    fn another_is_none_of_those_that_were_tried() {
        let table = table(&[1, 2]);
        let Lookup::Backend(first) = table.find("app.localhost", "/") else { panic!("there are two") };
        let second = table.another("app.localhost", "/", &[first.address()]).unwrap();
        assert_ne!(first.address(), second.address());
        assert!(table.another("app.localhost", "/", &[first.address(), second.address()]).is_none());
    }

    #[test]
    fn who_is_down_comes_last_and_comes_when_there_is_nobody_else() {
        let table = table(&[1, 2]);
        let pick = || match table.find("app.localhost", "/") {
            Lookup::Backend(backend) => backend,
            _ => panic!("there are two"),
        };
        let down = pick();
        down.is_down();
        let others: Vec<_> = (0..3).map(|_| pick()).collect();
        assert!(others.iter().all(|other| other.address() != down.address()));
        others[0].is_down();
        assert_eq!(pick().address(), down.address(), "of two that are down the one with less to do");
    }
}
