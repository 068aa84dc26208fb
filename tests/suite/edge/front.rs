//! The edge alone, in front of whatever a test has: no sandboxes.

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, routing::get};
use epiniod::{
    apps::{Backend, Counts, RouteTable, Target},
    edge::{Edge, Settings, Transport},
    model::ReleaseId,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::client::Client;

pub struct Front {
    pub address: SocketAddr,
    table: Arc<RouteTable>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Front {
    pub async fn open() -> Self {
        Self::with(Settings::default()).await
    }

    pub async fn with(settings: Settings) -> Self {
        Self::speaking(Transport::Plain, settings).await
    }

    pub async fn speaking(transport: Transport, settings: Settings) -> Self {
        let table = Arc::new(RouteTable::default());
        let api = Router::new().route("/ready", get(|| async { "the API is ready" }));
        let edge = Edge::new(Arc::clone(&table), api, "localhost".to_owned(), None, Arc::default()).with(settings);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, stop) = (listener.local_addr().expect("an address"), CancellationToken::new());
        let task = tokio::spawn(Arc::new(edge).serve(listener, transport, stop.clone()));
        Self { address, table, stop, task }
    }

    pub fn target(&self, backends: Vec<Arc<Backend>>, reason: Option<&str>) -> Arc<Target> {
        Arc::new(Target { release: release(), backends, reason: reason.map(str::to_owned) })
    }

    pub fn route(&self, host: &str, target: Arc<Target>) {
        self.routes([(host, target)]);
    }

    pub fn routes<const N: usize>(&self, routes: [(&str, Arc<Target>); N]) {
        self.table.replace(routes.map(|(host, target)| (host.parse().expect("a route"), target)));
    }

    /// An application of one instance.
    pub fn target_at(&self, address: SocketAddr) -> Arc<Target> {
        let traffic = self.table.traffic(&release());
        self.target(vec![Arc::new(Backend::new("app-1-0".to_owned(), address, traffic))], None)
    }

    pub fn leads_to(&self, host: &str, address: SocketAddr) {
        self.route(host, self.target_at(address));
    }

    pub fn in_flight(&self, host: &str) -> usize {
        self.table.in_flight(host, "/")
    }

    /// What was asked of the application.
    pub fn counts(&self) -> Counts {
        self.table.traffic(&release()).counts()
    }

    /// What does not wait for the reactor, beside it.
    pub async fn ask<T: Send + 'static>(&self, ask: impl FnOnce(Client) -> T + Send + 'static) -> T {
        let address = self.address;
        tokio::task::spawn_blocking(move || ask(Client::connect(address))).await.expect("it does not panic")
    }

    pub async fn close(self) {
        self.stop.cancel();
        self.task.await.expect("it ends");
    }
}

fn release() -> ReleaseId {
    ReleaseId { namespace: "workspace".parse().unwrap(), app: "app".parse().unwrap(), number: 1 }
}
