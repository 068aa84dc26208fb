//! Who runs a test: root, or somebody who may nothing.

use std::{
    env, fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use super::house::{TOOLS, guest};
use crate::support::{epiniod, not_run};

/// A user that nobody is.
const NOBODY: u32 = 64_123;

/// A test of what needs root. Without it, it says so.
pub fn as_root(test: impl Future<Output = ()>) {
    if nix::unistd::Uid::effective().is_root() {
        block_on(test);
    } else {
        not_run("sandboxes as root: nobody else may make them");
    }
}

/// A disk of 128 MiB, in memory. Gone when this is.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn on(place: &Path) -> Self {
        let (flags, size) = (nix::mount::MsFlags::empty(), Some("size=128m,mode=755"));
        nix::mount::mount(Some("tmpfs"), place, Some("tmpfs"), flags, size).expect("root may mount");
        Self(place.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let detached = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
        detached.expect("it was mounted");
    }
}

/// A test of what works without root. Root runs it in a process of somebody else.
pub fn rootless(name: &str, test: impl Future<Output = ()>) {
    if !nix::unistd::Uid::effective().is_root() {
        return block_on(test);
    }
    as_nobody(name, &[], |_| ());
}

/// The same, with values in the environment of that process; [`env::var`] has them in the test.
pub fn rootless_with(
    name: &str,
    variables: impl FnOnce() -> Vec<(&'static str, String)>,
    test: impl Future<Output = ()>,
) {
    if env::var_os(TOOLS).is_some() {
        return block_on(test);
    }
    if !nix::unistd::Uid::effective().is_root() {
        return not_run(&format!("{name}: only root can become somebody else"));
    }
    as_nobody(name, &variables(), |_| ());
}

/// The same, where files are on a small disk, which only root can make.
pub fn rootless_on_a_small_disk(name: &str, test: impl Future<Output = ()>) {
    if env::var_os(TOOLS).is_some() {
        return block_on(test);
    }
    if !nix::unistd::Uid::effective().is_root() {
        return not_run(&format!("{name}: only root can mount a disk"));
    }
    as_nobody(name, &[], SmallDisk::on);
}

/// Runs a test in a process of somebody else. `prepare` makes the folder for their files ready, until what it returns goes.
fn as_nobody<T>(name: &str, variables: &[(&str, String)], prepare: impl FnOnce(&Path) -> T) {
    let tools = tempfile::Builder::new().prefix("epiniod-tools-").tempdir_in("/var/tmp").expect("a folder");
    let programs =
        [("suite", env::current_exe().expect("this program")), ("epiniod", epiniod().into()), ("guest", guest())];
    for (name, program) in programs {
        fs::hard_link(&program, tools.path().join(name))
            .or_else(|_| fs::copy(&program, tools.path().join(name)).map(drop))
            .expect("a copy");
    }
    std::os::unix::fs::symlink("epiniod", tools.path().join("guest.epiniod")).expect("a link");
    let home = tools.path().join("tmp");
    fs::create_dir(&home).expect("a folder");
    let _prepared = prepare(&home);
    std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).expect("root may give files away");
    open_to_all(tools.path());
    let output = Command::new(tools.path().join("suite"))
        .args(["--exact", name, "--nocapture"])
        .env(TOOLS, tools.path())
        .env("EPINIOD_TEST_BINARY", tools.path().join("epiniod"))
        .env("EPINIOD_TEST_DIR", home)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .expect("the test starts");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "as uid {NOBODY}:\n{said}");
}

pub fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a reactor").block_on(test);
}
