//! One daemon of a cluster works, the others wait. Whoever waits says so to probes and to who asks.

use axum::{Router, http::StatusCode, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Error, cluster::Place, control::Control};
use crate::store::kube::Leadership;

/// The right to work. On one machine nobody contests it.
pub(super) struct Lead(Option<Leadership>);

/// Waits until this daemon is the one that works; none when it is to stop before.
pub(super) async fn until_leading(
    place: Option<&Place>,
    api: &TcpListener,
    control: &Control,
) -> Result<Option<Lead>, Error> {
    let Some(place) = place else { return Ok(Some(Lead(None))) };
    place.lay_out().await?;
    let listener = duplicate(api).map_err(Error::RunFile)?;
    let over = CancellationToken::new();
    let answers = Router::new().route("/live", get(|| async { StatusCode::OK })).fallback(|| async {
        (StatusCode::SERVICE_UNAVAILABLE, "another daemon of this cluster leads; this one waits\n")
    });
    let serving = axum::serve(listener, answers).with_graceful_shutdown(over.clone().cancelled_owned());
    let serving = tokio::spawn(async move { serving.await });
    let won = tokio::select! {
        won = place.lead() => won.map(|leadership| Some(Lead(Some(leadership)))),
        _stopped = control.stopped() => Ok(None),
    };
    over.cancel();
    // Nobody is to be answered by this one any more.
    serving.abort();
    won
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
