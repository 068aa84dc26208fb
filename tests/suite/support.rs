//! Real parts for tests: a daemon in a data directory of its own, on ports of its own, gone when the test is.

mod daemon;
mod http;

pub use daemon::{Daemon, write};
pub use http::{Response, get, request};
