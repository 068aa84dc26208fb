//! Deadlines for what may take long, as long as it goes on.

use std::{
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::timeout;

/// Waits for an outcome while what was `moved` grows; none when it stood still for so long.
pub async fn while_moving<T>(outcome: impl Future<Output = T>, moved: &AtomicU64, patience: Duration) -> Option<T> {
    let mut outcome = pin!(outcome);
    loop {
        let before = moved.load(Ordering::Relaxed);
        match timeout(patience, &mut outcome).await {
            Ok(outcome) => return Some(outcome),
            Err(_) if moved.load(Ordering::Relaxed) != before => {}
            Err(_) => return None,
        }
    }
}
