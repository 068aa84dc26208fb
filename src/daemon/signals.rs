//! Signals ask a daemon to stop.

use tokio::signal::unix::{SignalKind, signal};

use super::control::Control;

/// 128 and the number of SIGINT, as shells have it.
const INTERRUPTED: i32 = 130;

/// Passes signals on, from now on. The first asks for a stop; who asks again does not want to wait for its end.
pub(super) fn pass_on(control: Control) {
    let handler = |kind| signal(kind).expect("a signal handler can be set");
    let mut terminate = handler(SignalKind::terminate());
    let mut interrupt = handler(SignalKind::interrupt());
    let mut hangup = handler(SignalKind::hangup());
    tokio::spawn(async move {
        let mut asked = 0;
        loop {
            tokio::select! {
                _ = terminate.recv() => asked += 1,
                _ = interrupt.recv() => asked += 1,
                // The kernel and the shell both send it when a terminal goes: twice means no more than once.
                _ = hangup.recv() => asked = asked.max(1),
            }
            if asked > 1 {
                tracing::warn!("a second signal: the daemon ends without waiting for what goes on");
                std::process::exit(INTERRUPTED);
            }
            control.stop(control.mode());
        }
    });
}
