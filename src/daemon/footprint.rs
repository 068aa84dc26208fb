//! Keeps small what the daemon has of memory: a start, a push or many connections at once need much that is not needed later.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::runtime::local;

/// How often what is not used is given back. What is used comes back within a millisecond.
const PAUSE: Duration = Duration::from_secs(15);

pub(super) async fn keep_small(stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
        match tokio::task::spawn_blocking(local::give_back).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "pages of the program cannot be given back"),
            Err(error) => tracing::error!(%error, "giving back memory broke off"),
        }
    }
}
