//! Puts the rooms together: opens what is durable, takes up what a crash left, listens, announces, drains.
//!
//! A daemon that gets SIGTERM leaves applications running; their monitors are their parents. Only
//! `up`, which runs in a terminal, and `stop --all` stop them as well.

mod assemble;
mod bucket;
mod cluster;
mod collect;
mod control;
mod credential;
mod footprint;
mod handover;
mod manager;
pub mod own_image;
mod report;
mod signals;
mod standby;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::manager::MANAGER_VARIABLES;
use self::{assemble::House, cluster::Place, control::Control, manager::Manager};
pub use crate::config::Mode;
use crate::{
    config::{Config, RunFile},
    edge::Transport,
};

/// How long requests may take to end after a stop was asked for.
const DRAIN: Duration = Duration::from_secs(10);
/// How long it takes at most until nothing is begun any more, and applications that are to stop have.
const WIND_DOWN: Duration = Duration::from_secs(60);

/// Runs a daemon until it is told to stop.
pub async fn run(config: Config, mode: Mode) -> Result<(), Error> {
    let control = Control::new(mode);
    signals::pass_on(control.clone());
    let manager = Manager::of_environment();
    let _watchdog = manager.keep_watchdog();
    let api = listen("--listen", config.listen).await?;
    let place = match &config.kubernetes {
        Some(kubernetes) => Some(Place::connect(kubernetes, &config).await?),
        None => None,
    };
    let stead = place.as_ref().map(|_| standby::Stead::of(&api)).transpose()?;
    let answering = stead.as_ref().map(standby::Stead::answer).transpose()?;
    let leading = manager.waiting(standby::WAITING, standby::until_leading(place.as_ref(), &control));
    let Some(leadership) = leading.await? else { return Ok(()) };
    // Not before: who is led to one that waits is refused there, and comes again. A listener that nobody serves would keep it.
    let tls = match config.listen_tls {
        Some(address) => Some(listen("--listen-tls", address).await?),
        None => None,
    };
    let registry = listen("--registry-listen", config.registry_listen).await?;
    let (api_address, registry_address) = (address_of(&api)?, address_of(&registry)?);
    let tls_address = tls.as_ref().map(address_of).transpose()?;
    let house = House::build(&config, api_address, tls_address, registry_address, &control, place.as_ref()).await?;
    house.take_up().await?;

    // Before anybody is answered: whoever sees that it serves may stop it by this file.
    let run_file = RunFile::write(&config.data_dir, api_address, registry_address, mode).map_err(Error::RunFile)?;
    let (work, listeners) = (TaskTracker::new(), TaskTracker::new());
    let stop = CancellationToken::new();
    drop(answering);
    listeners.spawn(Arc::clone(&house.edge).serve(api, Transport::Plain, stop.clone()));
    if let Some((tls, transport)) = tls.zip(house.tls.clone()) {
        listeners.spawn(Arc::clone(&house.edge).serve(tls, Transport::Tls(transport), stop.clone()));
    }
    // Later than everything else: the nodes of a cluster pull from here what is deployed in these moments.
    let last = CancellationToken::new();
    listeners.spawn(serve_registry(registry, house.registry_router(), last.clone()));
    begin_work(&house, place.as_ref(), &work, &stop);
    work.close();
    listeners.close();
    tracing::info!(api = %api_address, registry = %registry_address, data_dir = %config.data_dir.display(), "listening");
    manager.ready(&format!("serving on {api_address}")).await;

    let applications = tokio::select! {
        applications = control.stopped() => applications,
        // What is written from here on could be another daemon's by now.
        () = leadership.lost() => return Err(Error::Superseded),
    };
    tracing::info!(applications = ?applications, "stopping");
    // An API server that is away may stay away.
    crate::store::kube::hurry();
    stop.cancel();
    manager.stopping("ending what was begun", WIND_DOWN).await;
    let _answering = stead.as_ref().map(standby::Stead::answer).transpose()?;
    let stopped = house.wind_down(applications, DRAIN).await;
    manager.stopping("waiting for requests to end", 3 * DRAIN).await;
    // What only a leader may do has ended then. Whoever still reads an answer holds up nobody.
    let done = async { tokio::join!(work.wait(), house.edge.api_is_idle()) };
    if tokio::time::timeout(DRAIN, done).await.is_err() {
        tracing::warn!(seconds = DRAIN.as_secs(), "some of what was asked did not end in time");
    }
    leadership.release().await;
    last.cancel();
    if tokio::time::timeout(DRAIN, listeners.wait()).await.is_err() {
        tracing::warn!(seconds = DRAIN.as_secs(), "some requests did not end in time");
    }
    run_file.remove();
    if let Some(place) = &place {
        place.wait_until_unasked().await;
    }
    stopped
}

/// What goes on whoever asks for something.
fn begin_work(house: &House, place: Option<&Place>, work: &TaskTracker, stop: &CancellationToken) {
    work.spawn(Arc::clone(&house.apps).run(stop.clone()));
    work.spawn(collect::run(house.garbage(), stop.clone()));
    work.spawn(footprint::keep_small(stop.clone()));
    if let Some(keeper) = house.keeper.clone() {
        work.spawn(keeper.run(house.apps.route_table().changes(), stop.clone()));
    }
    if let Some(reports) = house.reports.clone() {
        work.spawn(reports.run(stop.clone()));
    }
    if let Some(traffic) = place.and_then(Place::traffic) {
        work.spawn(traffic.keep(stop.clone()));
    }
}

async fn listen(flag: &'static str, address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { flag, address, source })
}

fn address_of(listener: &TcpListener) -> Result<SocketAddr, Error> {
    listener.local_addr().map_err(Error::RunFile)
}

async fn serve_registry(listener: TcpListener, router: axum::Router, stop: CancellationToken) {
    // Who guesses there waits by address.
    let router = router.into_make_service_with_connect_info::<SocketAddr>();
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!(error = %crate::telemetry::chain(&error), "the registry stopped");
    }
}

/// Why a daemon does not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address} ({flag})")]
    Listen { flag: &'static str, address: SocketAddr, source: std::io::Error },
    #[error("cannot use the data directory {}", path.display())]
    DataDir { path: PathBuf, source: std::io::Error },
    #[error("cannot write the run file")]
    RunFile(#[source] std::io::Error),
    #[error("cannot write the local credential {}", path.display())]
    Credential { path: PathBuf, source: std::io::Error },
    #[error(
        "another daemon leads this cluster now, or the API server was away for too long; this one ends, to begin anew"
    )]
    Superseded,
    #[error("the store cannot be opened")]
    Store(#[from] crate::store::Error),
    #[error("the blob store cannot be opened")]
    Blob(#[from] crate::blob::Error),
    /// Blobs would be looked for where they are not.
    #[error("{0}")]
    Elsewhere(String),
    #[error("there are no certificates")]
    Certificates(#[from] crate::acme::Error),
    #[error("users cannot be read")]
    Auth(#[from] crate::auth::Error),
    #[error("sandboxes cannot be run here")]
    Runtime(#[from] crate::runtime::Error),
    #[error("the daemon's own image cannot be put into its registry")]
    OwnImage(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("base images cannot be made here")]
    Base(#[from] crate::base::Error),
    #[error("applications cannot be taken up")]
    Apps(#[from] crate::apps::Error),
    #[error("pushes cannot be taken up: {0}")]
    Pushes(String),
    #[error("stagings cannot be taken up")]
    Staging(#[from] crate::staging::Error),
}
