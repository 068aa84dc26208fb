//! How `epiniod stop --all` reaches the daemon.

use std::sync::Arc;

use tokio::sync::Notify;

use super::Mode;

/// Asks the daemon to stop with all applications.
#[derive(Clone)]
pub(super) struct Control {
    mode: Mode,
    stop_all: Arc<Notify>,
}

impl Control {
    pub fn new(mode: Mode) -> Self {
        Self { mode, stop_all: Arc::default() }
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    pub fn stop_all(&self) {
        self.stop_all.notify_one();
    }

    pub async fn stopped(&self) {
        self.stop_all.notified().await;
    }
}
