//! What ends a daemon: a signal, or a request to its control endpoint (`epiniod stop --all`).

use std::sync::Arc;

use tokio::sync::watch;

use super::Mode;

/// Asks the daemon to stop.
#[derive(Clone)]
pub(super) struct Control {
    mode: Mode,
    asked: Arc<watch::Sender<Option<Mode>>>,
}

impl Control {
    pub fn new(mode: Mode) -> Self {
        Self { mode, asked: Arc::new(watch::Sender::new(None)) }
    }

    /// What a signal means.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    pub fn stop(&self, applications: Mode) {
        // Who wants all of it stopped gets it, whatever was asked for before.
        self.asked.send_modify(|asked| {
            if *asked != Some(Mode::Up) {
                *asked = Some(applications);
            }
        });
    }

    /// Ends when a stop is asked for; says what becomes of applications.
    pub async fn stopped(&self) -> Mode {
        let mut asked = self.asked.subscribe();
        let asked = asked.wait_for(Option::is_some).await.expect("the sender is in self");
        asked.unwrap_or(self.mode)
    }
}
