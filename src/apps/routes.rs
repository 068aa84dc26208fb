//! The route table: what `edge` reads for every request, and the drain handle that it reports to.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::model::{ReleaseId, Route};

/// Routes of all applications. Reading takes no lock; a change replaces the table.
#[derive(Default)]
pub struct RouteTable {
    table: ArcSwap<Table>,
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
    in_flight: AtomicUsize,
    idle: Notify,
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
        for (route, target) in routes {
            table.entry(route.host().to_owned()).or_default().push((route, target));
        }
        for routes in table.values_mut() {
            routes.sort_by_key(|(route, _)| std::cmp::Reverse(route.path().len()));
        }
        self.table.store(Arc::new(table));
    }

    /// `host` is lower case and without a port.
    pub fn find(&self, host: &str, path: &str) -> Lookup {
        let table = self.table.load();
        let found = table.get(host).and_then(|routes| routes.iter().find(|(route, _)| route.takes_path(path)));
        match found {
            None => Lookup::Unknown,
            Some((_, target)) => match target.pick() {
                Some(guard) => Lookup::Backend(guard),
                None => Lookup::Unavailable(Arc::clone(target)),
            },
        }
    }
}

impl Target {
    /// The backend with the fewest requests in flight.
    fn pick(&self) -> Option<InFlight> {
        let backend = self.backends.iter().min_by_key(|backend| backend.in_flight.load(Ordering::Relaxed))?;
        backend.in_flight.fetch_add(1, Ordering::SeqCst);
        Some(InFlight(Arc::clone(backend)))
    }
}

impl Backend {
    pub fn new(instance: String, address: SocketAddr) -> Self {
        Self { instance, address, in_flight: AtomicUsize::new(0), idle: Notify::new() }
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
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
