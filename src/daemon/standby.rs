//! One daemon of a cluster works, the others wait. Whoever waits, or is not ready to work yet, says so to probes and to
//! who asks.

use axum::{
    Router,
    http::{StatusCode, header},
    routing::get,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{Error, cluster::Place, control::Control};
use crate::{store::kube::Leadership, telemetry::chain};

/// The right to work. On one machine nobody contests it.
pub(super) struct Lead(Option<Leadership>);

/// The address of a daemon that does not work, or not any more: who asks there is told so.
pub(super) struct Stead(TcpListener);

/// Answers until it is dropped.
pub(super) struct Answering {
    over: CancellationToken,
    serving: JoinHandle<()>,
}

/// What the service manager is told of one that waits.
pub(super) const WAITING: &str = "waiting until no other daemon of this cluster leads";

impl Stead {
    pub fn of(api: &TcpListener) -> Result<Self, Error> {
        duplicate(api).map(Self).map_err(Error::RunFile)
    }

    pub fn answer(&self) -> Result<Answering, Error> {
        let listener = duplicate(&self.0).map_err(Error::RunFile)?;
        let over = CancellationToken::new();
        let answers = Router::new().route("/live", get(|| async { StatusCode::OK })).fallback(|| async {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                [(header::RETRY_AFTER, "1")],
                "another daemon of this cluster serves; ask again\n",
            )
        });
        let serving = axum::serve(listener, answers).with_graceful_shutdown(over.clone().cancelled_owned());
        let serving = tokio::spawn(async move {
            // It ends with an error as little as a listener does.
            let _ = serving.await;
        });
        Ok(Answering { over, serving })
    }
}

impl Drop for Answering {
    /// Nobody is to be answered by this one any more; connections end with the answer that they wait for.
    fn drop(&mut self) {
        self.over.cancel();
        self.serving.abort();
    }
}

/// Waits until this daemon is the one that works; none when it is to stop before.
pub(super) async fn until_leading(place: Option<&Place>, control: &Control) -> Result<Option<Lead>, Error> {
    let Some(place) = place else { return Ok(Some(Lead(None))) };
    place.lay_out().await?;
    if let Some(traffic) = place.traffic()
        && let Err(error) = traffic.leave().await
    {
        tracing::warn!(error = %chain(&error), "it is not known whether the services lead to this daemon, which waits");
    }
    tokio::select! {
        won = place.lead() => won.map(|leadership| Some(Lead(Some(leadership)))),
        _stopped = control.stopped() => Ok(None),
    }
}

fn duplicate(listener: &TcpListener) -> std::io::Result<TcpListener> {
    use std::os::fd::AsFd as _;
    let socket = listener.as_fd().try_clone_to_owned()?;
    TcpListener::from_std(socket.into())
}

impl Lead {
    /// Ends when another may work.
    pub async fn lost(&self) {
        match &self.0 {
            Some(leadership) => leadership.lost().cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Lets the next one work.
    pub async fn release(self) {
        if let Some(leadership) = self.0 {
            leadership.release().await;
        }
    }
}
