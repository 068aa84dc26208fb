//! What was asked of an application, counted since this daemon started: without locks, as every request does it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use http::StatusCode;

/// Of one application, whatever its routes and releases.
#[derive(Debug, Default)]
pub struct Traffic {
    /// By the first digit of the status, from 1 on.
    answers: [AtomicU64; 5],
    /// By how long they took: the first of [`BOUNDS`] that was enough, and last those that took longer.
    took: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
}

/// Bounds of the histogram.
pub const BOUNDS: [Duration; 12] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(10),
    Duration::from_secs(60),
];

/// What a [`Traffic`] was at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    pub answers: [u64; 5],
    /// As [`BOUNDS`], each without those before.
    pub took: [u64; BOUNDS.len() + 1],
    pub total: Duration,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

impl Traffic {
    /// A request has its answer, to the last byte.
    pub fn answered(&self, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.answers[class].fetch_add(1, Ordering::Relaxed);
        let bound = BOUNDS.iter().position(|bound| took <= *bound).unwrap_or(BOUNDS.len());
        self.took[bound].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Bytes of bodies and tunnels.
    pub fn received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn sent(&self, bytes: u64) {
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn counts(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            answers: std::array::from_fn(|class| load(&self.answers[class])),
            took: std::array::from_fn(|bound| load(&self.took[bound])),
            total: Duration::from_micros(load(&self.micros)),
            received_bytes: load(&self.received_bytes),
            sent_bytes: load(&self.sent_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_class_and_by_the_time_they_took() {
        let traffic = Traffic::default();
        for (status, millis) in [(200, 1), (204, 2), (404, 300), (503, 100_000), (101, 0)] {
            traffic.answered(StatusCode::from_u16(status).unwrap(), Duration::from_millis(millis));
        }
        let counts = traffic.counts();
        assert_eq!(counts.answers, [1, 2, 0, 1, 1]);
        assert_eq!((counts.took[0], counts.took[1], counts.took[7], counts.took[BOUNDS.len()]), (2, 1, 1, 1));
        assert_eq!(counts.total, Duration::from_millis(100_303));
        assert!(BOUNDS.is_sorted());
    }
}
