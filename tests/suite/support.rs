//! Real parts for tests: a daemon in a data directory of its own, on ports of its own, gone when the test is.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

mod daemon;
mod http;

pub use daemon::{Daemon, Packages, RunBy, write};
pub use http::{get, request};

/// Waits for something that has to become true.
pub fn wait_until(what: &str, within: Duration, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !is_true() {
        assert!(Instant::now() < deadline, "waited {within:?} until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A sample application.
pub fn sample(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/apps").join(name)
}

/// Copies a folder of a sample.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a readable folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}
