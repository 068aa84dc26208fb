//! A machine that serves: a runtime, applications, and the edge in front of them.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::ws::{WebSocket, WebSocketUpgrade},
    routing::get,
};
use epiniod::{
    apps::{Apps, Deployed, Deployment, Error, NewApp, Settings},
    edge::{self, Edge, Transport},
    model::{AppChange, AppName, ImageName, Namespace},
    store::{DiskStore, Objects},
};
use tokio_util::sync::CancellationToken;

use crate::sandbox::house::{House, image};

use super::client::Client;

pub struct Site {
    pub house: House,
    pub apps: Arc<Apps>,
    pub objects: Objects,
    pub address: SocketAddr,
    stop: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Site {
    pub async fn open() -> Self {
        Self::with(Settings::default()).await
    }

    pub async fn with(settings: Settings) -> Self {
        Self::build(settings, edge::Settings::default()).await
    }

    pub async fn guarded(edge: edge::Settings) -> Self {
        Self::build(Settings::default(), edge).await
    }

    async fn build(settings: Settings, chosen: edge::Settings) -> Self {
        let house = House::open().await;
        let objects = Objects::new(DiskStore::open(&house.dir.path().join("store")).expect("a store"));
        let apps = Apps::new(objects.clone(), Arc::clone(&house.runtime) as _, settings);
        apps.create_namespace(&Namespace::default()).await.expect("a namespace");
        let api = Router::new()
            .route("/ready", get(|| async { "the API is ready" }))
            .route("/echo", get(|upgrade: WebSocketUpgrade| async { upgrade.on_upgrade(echo) }));
        let edge = Edge::new(apps.route_table(), api, "localhost".to_owned(), None, Arc::default());
        let edge = Arc::new(edge.with(chosen));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, stop) = (listener.local_addr().expect("an address"), CancellationToken::new());
        let tasks = vec![
            tokio::spawn(Arc::clone(&apps).run(stop.clone())),
            tokio::spawn(edge.serve(listener, Transport::Plain, stop.clone())),
        ];
        Self { house, apps, objects, address, stop, tasks }
    }

    pub async fn create(&self, name: &str, config: AppChange) {
        let new = NewApp { namespace: Namespace::default(), name: app(name), username: "admin".to_owned(), config };
        self.apps.create(new).await.expect("an application");
    }

    /// What a push ends with.
    pub async fn deploy(&self, name: &str, command: &str) -> Result<Deployed, Error> {
        let image: ImageName = image(&self.house.blobs, command).await;
        let deployment = Deployment { image, stage_id: None, origin: None, change: AppChange::default() };
        self.apps.deploy(&Namespace::default(), &app(name), deployment).await
    }

    /// An application with the web server of the guest.
    pub async fn serve(&self, name: &str, config: AppChange) {
        self.create(name, config).await;
        self.deploy(name, &format!("http {name}")).await.expect("it is deployed");
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// What does not wait for the reactor, beside it.
    pub async fn ask<T: Send + 'static>(&self, ask: impl FnOnce(Client) -> T + Send + 'static) -> T {
        let address = self.address;
        tokio::task::spawn_blocking(move || ask(Client::connect(address))).await.expect("it does not panic")
    }

    pub async fn close(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.expect("it ends");
        }
        self.apps.stop_all().await.expect("applications stop");
        drop(self.apps);
        self.house.close().await;
    }
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if socket.send(message).await.is_err() {
            return;
        }
    }
}

pub fn app(name: &str) -> AppName {
    name.parse().expect("a name")
}
