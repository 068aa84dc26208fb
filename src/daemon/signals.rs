//! What ends a daemon: a signal, or a request to its control endpoint.

use tokio::signal::unix::{SignalKind, signal};

use super::{Mode, control::Control};

/// Ends when a stop is asked for; says what becomes of applications.
pub(super) async fn stop_asked(control: &Control) -> Mode {
    let mut terminate = signal(SignalKind::terminate()).expect("a signal handler can be set");
    let mut interrupt = signal(SignalKind::interrupt()).expect("a signal handler can be set");
    let mut hangup = signal(SignalKind::hangup()).expect("a signal handler can be set");
    tokio::select! {
        _ = terminate.recv() => control.mode(),
        _ = interrupt.recv() => control.mode(),
        _ = hangup.recv() => control.mode(),
        () = control.stopped() => Mode::Up,
    }
}
