//! One instance: what it has of the machine, how it was seen last, and its end.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::{Host, cgroup::Cgroup, logs, network::Connection, observe};
use crate::{
    model::{ReleaseId, Timestamp},
    oci::tree::remove_tree,
    runtime::{Instance, InstanceState},
};

/// How often is looked whether a monitor is there.
const INTERVAL: Duration = Duration::from_millis(10);
/// How long a monitor may take to begin, and to end when it has nothing left to wait for.
const FIRST_MOMENTS: Duration = Duration::from_secs(5);

/// An instance, and how it was when it was last looked at.
#[derive(Debug, Clone)]
pub(super) struct Local {
    pub folder: PathBuf,
    pub place: Place,
    pub address: SocketAddr,
    pub shared_network: bool,
    pub cgroup: Cgroup,
    pub name: String,
    pub instance: Instance,
    pub pid: Option<i32>,
    /// What was said in its log already.
    pub noted: bool,
    /// Where no cgroup counts memory, an instance that has more than this, in bytes, is ended.
    pub guarded_memory: Option<u64>,
    /// That was why it ended.
    pub exceeded: bool,
    /// How often the kernel had killed something in it for lack of memory when it was started.
    pub killed_before: u64,
    /// When its use of the machine was last looked at.
    pub used_at: Option<Instant>,
    /// When its processor time was last looked at, and what that was in microseconds.
    pub cpu: Option<(Instant, u64)>,
    /// The only port that it listens on, which is not the one that it was told; and since when.
    pub other_port: Option<(u16, Instant)>,
    /// A monitor may take until then to say that it is there.
    pub patience: Instant,
    pub stopping: bool,
}

/// What an instance has of the machine; kept in its folder.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Place {
    pub number: u16,
    pub port: u16,
}

impl Place {
    /// Of an instance that is only there to be ended.
    pub const NOWHERE: Self = Self { number: 0, port: 0 };
}

impl Local {
    pub fn new(host: &Host, id: &ReleaseId, index: u32, folder: &Path, place: Place) -> Self {
        let name = format!("{}-{}-{index}", id.app, id.number);
        let group = format!("{}_{name}", id.namespace);
        let instance = Instance {
            name: name.clone(),
            state: InstanceState::Starting,
            started_at: Timestamp::now(),
            restarts: 0,
            memory_bytes: None,
            millicpus: None,
        };
        Self {
            folder: folder.to_owned(),
            place,
            address: host.connection.address(place.number, place.port),
            shared_network: matches!(host.connection, Connection::Host),
            cgroup: host.cgroups.existing(&group),
            name: group,
            instance,
            pid: None,
            noted: false,
            guarded_memory: None,
            exceeded: false,
            killed_before: 0,
            used_at: None,
            cpu: None,
            other_port: None,
            patience: Instant::now(),
            stopping: false,
        }
    }
}

/// Stops an instance: asks, waits, kills. Whatever happens, nothing of it is left running.
pub(super) async fn stop(host: &Arc<Host>, local: &Local, grace: Duration) {
    // A monitor that was started a moment ago may not have said that it is there.
    let soon = local.patience.min(Instant::now() + FIRST_MOMENTS);
    while !is_locked(&local.folder) && Instant::now() < soon {
        tokio::time::sleep(INTERVAL).await;
    }
    if let Some(monitor) = observe::monitor_pid(&local.folder) {
        let _ = kill(monitor, Signal::SIGTERM);
        if !ends(&local.folder, grace).await {
            let _ = kill(monitor, Signal::SIGUSR1);
            ends(&local.folder, FIRST_MOMENTS).await;
        }
    }
    let (host, local) = (Arc::clone(host), local.clone());
    // What fails in there is tried again when the folder of the workload is removed.
    let _ = tokio::task::spawn_blocking(move || end(&host, &local)).await;
}

/// Ends what is left of an instance, and takes back what it has of the machine. Its log is kept.
pub(super) fn end(host: &Host, local: &Local) {
    if let Some(monitor) = observe::monitor_pid(&local.folder) {
        let _ = kill(monitor, Signal::SIGKILL);
    }
    if let Some(pid) = observe::program_pid(&local.folder) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    logs::keep(host, local);
    local.cgroup.remove();
    if local.place.number != 0 {
        host.release(local.place.number);
    }
    let _ = remove_tree(&local.folder);
}

/// Kills what is still in a group, and removes it. It may take a second.
pub(super) async fn remove_group(cgroup: &Cgroup) {
    let cgroup = cgroup.clone();
    // It says by itself when it fails.
    let _ = tokio::task::spawn_blocking(move || cgroup.remove()).await;
}

/// Waits until a monitor has gone.
async fn ends(folder: &Path, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    while is_locked(folder) {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(INTERVAL).await;
    }
    true
}

/// Is a monitor there?
pub(super) fn is_locked(folder: &Path) -> bool {
    let Ok(file) = fs::File::open(folder.join("lock")) else { return false };
    Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
}

/// Written beside and renamed: who reads it sees a whole one.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let temporary = path.with_extension("new");
    let text = serde_json::to_vec(value)?;
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?.write_all(&text)?;
    fs::rename(temporary, path)
}

pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
