//! Real parts for tests: a daemon in a data directory of its own, on ports of its own, gone when the test is.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

mod bucket;
pub mod cluster;
mod daemon;
mod driven;
mod http;
mod internet;
mod random;

pub use bucket::{ACCESS, Bucket, Proxy, SECRET, files, keys, open};
pub use cluster::cluster;
pub use daemon::{Daemon, Packages, RunBy, Surroundings, free_port, send, write};
pub use driven::{Driven, Pushing, Turn, driven, sources};
pub use http::{Response, get, request};
pub use internet::{DIRECTORY, Internet, Manner};
pub use random::SplitMix;

/// Waits for something that has to become true.
pub fn wait_until(what: &str, within: Duration, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !is_true() {
        assert!(Instant::now() < deadline, "waited {within:?} until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Says loudly what could not be tested here and why; the gate repeats it at its end.
pub fn not_run(what: &str) {
    eprintln!("NOT RUN: {what}");
    if let Some(list) = std::env::var_os("EPINIOD_TEST_NOT_RUN") {
        let list = fs::File::options().create(true).append(true).open(list);
        list.and_then(|mut list| writeln!(list, "{what}")).expect("a list that can be written");
    }
}

/// Where the gate runs, tools are installed: a test that is not run has failed.
pub fn has_skopeo() -> bool {
    let there = Command::new("skopeo").arg("--version").output().is_ok();
    if !there {
        assert!(std::env::var_os("EPINIOD_TEST_TOOLS").is_none(), "skopeo is not installed");
        not_run("images as skopeo sees them: it is not installed");
    }
    there
}

/// The product: what the gate built to be released, or else what Cargo builds with the tests.
pub fn epiniod() -> String {
    std::env::var("EPINIOD_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_epiniod").to_owned())
}

/// Programs in Go that `tests/cluster/build` makes, or why it cannot.
pub fn programs<const N: usize>(names: [&str; N]) -> Result<[PathBuf; N], String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/build");
    let output = Command::new(script).args(names).stderr(Stdio::inherit()).output().expect("a script");
    let paths: Vec<PathBuf> = String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from).collect();
    if output.status.success() {
        return Ok(paths.try_into().expect("a path for each"));
    }
    assert!(output.status.code() == Some(cluster::CANNOT_RUN), "{names:?} could not be built (see above)");
    Err(format!("{names:?} cannot be built here (see above)"))
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

/// Writes a program by a process of its own: what this one writes may still be open in a child that another test just
/// started, and a file that is open for writing cannot be run.
pub fn executable(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let mut cat = Command::new("sh").args(["-c", "cat >\"$0\""]).arg(path).stdin(Stdio::piped()).spawn().expect("sh");
    cat.stdin.take().expect("a pipe").write_all(content).expect("what is written is read");
    assert!(cat.wait().expect("sh ends").success(), "writing {}", path.display());
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("an own file");
}
