//! Points in time as the API has them: RFC 3339, UTC, whole seconds.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A point in time, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    pub fn now() -> Self {
        Self::from_second(jiff::Timestamp::now().as_second())
    }

    /// Seconds since the epoch; out of range becomes the epoch.
    pub fn from_second(second: i64) -> Self {
        Self(jiff::Timestamp::from_second(second).unwrap_or(jiff::Timestamp::UNIX_EPOCH))
    }

    /// RFC 3339.
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self::from_second(text.parse::<jiff::Timestamp>().ok()?.as_second()))
    }

    pub fn as_second(self) -> i64 {
        self.0.as_second()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
