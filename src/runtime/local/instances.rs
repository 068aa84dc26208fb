//! Workloads: a monitor for each instance, and an eye on what they say.
//!
//! Everything about an instance is in a folder, `workloads/NAMESPACE_APP_NUMBER/INDEX`: what the sandbox is made
//! of, the state that the monitor writes, the log. A daemon that starts reads these folders; nothing else has to be remembered.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    Host,
    cgroup::Cgroup,
    io_error, logs,
    network::{Connection, free_port},
    observe::{self, Observed},
    spec::Spec,
};
use crate::{
    model::{ReleaseId, Timestamp},
    oci::tree::remove_tree,
    runtime::{CNB_ID, Error, Instance, InstanceState, Workload, WorkloadStatus},
};

/// The port that instances are told as root, as on Kubernetes.
const PORT: u16 = 8080;
/// How often instances are looked at: while one starts, and otherwise.
const STARTING_INTERVAL: Duration = Duration::from_millis(20);
const STEADY_INTERVAL: Duration = Duration::from_millis(500);
const SCRATCH_BYTES: u64 = 512 << 20;
const OPEN_FILES: u64 = 65_536;

/// All instances of this data directory.
pub(super) struct Instances {
    host: Arc<Host>,
    known: Mutex<BTreeMap<ReleaseId, Known>>,
    changes: watch::Sender<u64>,
    look: tokio::sync::Notify,
}

struct Known {
    workload: Workload,
    instances: BTreeMap<u32, Local>,
}

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
    stopping: bool,
}

/// What an instance has of the machine; kept in its folder.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Place {
    pub number: u16,
    pub port: u16,
}

impl Instances {
    /// Finds what a daemon before left, and starts looking.
    pub fn open(host: Arc<Host>) -> Result<Arc<Self>, Error> {
        let instances = Arc::new(Self {
            known: Mutex::new(adopt(&host).map_err(io_error("reading what runs"))?),
            host,
            changes: watch::Sender::new(0),
            look: tokio::sync::Notify::new(),
        });
        tokio::spawn(watch_over(Arc::downgrade(&instances)));
        Ok(instances)
    }

    pub async fn apply(self: &Arc<Self>, workload: &Workload) -> Result<(), Error> {
        let image = self.host.images.ready(&workload.image).await?;
        let folder = self.host.data_dir.join("workloads").join(folder_name(&workload.id));
        let failed = || io_error(&format!("starting {}", workload.id));
        fs::create_dir_all(&folder).map_err(failed())?;
        write_json(&folder.join("workload.json"), workload).map_err(failed())?;
        let missing: Vec<u32> = {
            let mut known = self.lock();
            let entry = known
                .entry(workload.id.clone())
                .or_insert_with(|| Known { workload: workload.clone(), instances: BTreeMap::new() });
            entry.workload = workload.clone();
            (0..workload.instances).filter(|index| !entry.instances.contains_key(index)).collect()
        };
        for index in missing {
            let local = self.prepare(workload, index, &folder.join(index.to_string()), &image).map_err(failed())?;
            self.start_monitor(&local).map_err(failed())?;
            if let Some(known) = self.lock().get_mut(&workload.id) {
                known.instances.insert(index, local);
            }
        }
        let surplus: Vec<Local> = {
            let mut known = self.lock();
            let entry = known.get_mut(&workload.id);
            entry
                .map(|entry| entry.instances.split_off(&workload.instances).into_values().collect())
                .unwrap_or_default()
        };
        for local in surplus {
            let host = Arc::clone(&self.host);
            tokio::spawn(async move { stop(&host, &local, Duration::from_secs(10)).await });
        }
        self.look.notify_one();
        Ok(())
    }

    pub fn status(&self, id: &ReleaseId) -> Option<WorkloadStatus> {
        let known = self.lock();
        let entry = known.get(id)?;
        let instances = entry.instances.values().map(|local| {
            let memory_bytes = local.cgroup.memory_bytes();
            Instance { memory_bytes, ..local.instance.clone() }
        });
        Some(WorkloadStatus { instances: instances.collect() })
    }

    pub fn workloads(&self) -> Vec<ReleaseId> {
        self.lock().keys().cloned().collect()
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub async fn remove(&self, id: &ReleaseId, grace: Duration) -> Result<(), Error> {
        let locals: Vec<Local> = {
            let mut known = self.lock();
            let Some(entry) = known.get_mut(id) else { return Ok(()) };
            for local in entry.instances.values_mut() {
                local.stopping = true;
                local.instance.state = InstanceState::Stopping;
            }
            entry.instances.values().cloned().collect()
        };
        self.tell();
        futures::future::join_all(locals.iter().map(|local| stop(&self.host, local, grace))).await;
        self.lock().remove(id);
        let folder = self.host.data_dir.join("workloads").join(folder_name(id));
        let removed = tokio::task::spawn_blocking(move || remove_tree(&folder)).await;
        removed.map_err(io::Error::other).and_then(|result| result).map_err(io_error(&format!("removing {id}")))?;
        self.tell();
        Ok(())
    }

    /// The folders of the instances of an application, by name, for their logs.
    pub fn folders(&self, namespace: &str, app: &str) -> Vec<(String, PathBuf)> {
        let known = self.lock();
        let mine = known.iter().filter(|(id, _)| id.namespace.as_str() == namespace && id.app.as_str() == app);
        mine.flat_map(|(_, entry)| entry.instances.values().map(|local| (local.name.clone(), local.folder.clone())))
            .collect()
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Writes everything that a monitor needs into the folder of an instance.
    fn prepare(
        &self,
        workload: &Workload,
        index: u32,
        folder: &Path,
        image: &super::images::LocalImage,
    ) -> io::Result<Local> {
        let host = &self.host;
        fs::create_dir_all(folder.join("stage"))?;
        let place = match &host.connection {
            Connection::Bridge(_) => Place { number: host.number().map_err(io::Error::other)?, port: PORT },
            Connection::Host => Place { number: 0, port: free_port()? },
        };
        write_json(&folder.join("place.json"), &place)?;
        let local = Local::new(host, &workload.id, index, folder, place);
        let cgroup = host.cgroups.create(&local.name, &workload.limits)?;
        let config = &image.config.config;
        let split = |entry: &String| entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut env: BTreeMap<String, String> = config.env.iter().flatten().filter_map(split).collect();
        env.extend(workload.env.clone());
        env.insert("PORT".to_owned(), place.port.to_string());
        let (uid, gid) = user(config.user.as_deref());
        let (uid, gid) = if matches!(host.ids, super::Ids::Caller) { (CNB_ID, CNB_ID) } else { (uid, gid) };
        let spec = Spec {
            hostname: local.name.chars().take(63).collect(),
            stage: folder.join("stage"),
            layers: image.layers.clone(),
            scratch_bytes: workload.limits.scratch_bytes.unwrap_or(SCRATCH_BYTES),
            own_binary: host.own_binary.clone(),
            mounts: Vec::new(),
            files: Vec::new(),
            build_ca: None,
            resolv_conf: host.resolv_conf.clone(),
            network: host.connection.network(place.number),
            ids: host.ids,
            uid,
            gid,
            cgroups: cgroup.folders.clone(),
            program: config.entrypoint.iter().chain(&config.cmd).flatten().cloned().collect(),
            env,
            cwd: config.working_dir.clone().unwrap_or_else(|| "/".to_owned()),
            open_files: OPEN_FILES,
        };
        write_json(&folder.join("spec.json"), &spec)?;
        Ok(local)
    }

    fn start_monitor(&self, local: &Local) -> io::Result<()> {
        let log = fs::File::options().create(true).append(true).open(local.folder.join("monitor.log"))?;
        let mut monitor = std::process::Command::new(&self.host.monitor)
            .arg(&local.folder)
            .arg(&self.host.own_binary)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        // It ends long after this, or before; somebody has to collect it.
        std::thread::Builder::new().name("monitor".to_owned()).stack_size(64 << 10).spawn(move || monitor.wait())?;
        Ok(())
    }

    /// Looks at every instance once. True when some instance is not ready yet.
    async fn look(&self) -> bool {
        let locals: Vec<(ReleaseId, u32, Local)> = {
            let known = self.lock();
            let all = known
                .iter()
                .flat_map(|(id, entry)| entry.instances.iter().map(move |(index, local)| (id, index, local)));
            all.filter(|(.., local)| !local.stopping)
                .map(|(id, index, local)| (id.clone(), *index, local.clone()))
                .collect()
        };
        let mut starting = false;
        for (id, index, before) in locals {
            let Observed { local, monitor_gone } = observe::look(before.clone()).await;
            if monitor_gone {
                tracing::warn!(instance = %local.name, "the monitor of an instance is gone; the instance is started again");
                local.cgroup.remove();
                let again =
                    self.host.cgroups.create(&local.name, &self.limits(&id)).and_then(|_| self.start_monitor(&local));
                if let Err(error) = again {
                    tracing::error!(instance = %local.name, %error, "starting an instance again failed");
                }
            }
            starting |= !matches!(local.instance.state, InstanceState::Ready { .. } | InstanceState::BackOff { .. });
            let differs = local.instance != before.instance;
            if let Some(entry) = self.lock().get_mut(&id).and_then(|entry| entry.instances.get_mut(&index))
                && !entry.stopping
            {
                *entry = local;
            }
            if differs {
                self.tell();
            }
        }
        starting
    }

    fn limits(&self, id: &ReleaseId) -> crate::runtime::Limits {
        self.lock().get(id).map(|entry| entry.workload.limits.clone()).unwrap_or_default()
    }

    fn tell(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ReleaseId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Local {
    fn new(host: &Host, id: &ReleaseId, index: u32, folder: &Path, place: Place) -> Self {
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
            stopping: false,
        }
    }
}

/// Looks at all instances, often while one is starting, until nobody needs them any more.
async fn watch_over(instances: Weak<Instances>) {
    let mut interval = STARTING_INTERVAL;
    loop {
        let Some(all) = instances.upgrade() else { return };
        let _ = tokio::time::timeout(interval, all.look.notified()).await;
        interval = if all.look().await { STARTING_INTERVAL } else { STEADY_INTERVAL };
    }
}

/// Stops an instance: asks, waits, kills. Whatever happens, nothing of it is left running.
async fn stop(host: &Host, local: &Local, grace: Duration) {
    if let Some(monitor) = observe::monitor_pid(&local.folder) {
        let _ = kill(monitor, Signal::SIGTERM);
        if !ends(&local.folder, grace).await {
            let _ = kill(monitor, Signal::SIGUSR1);
            if !ends(&local.folder, Duration::from_secs(5)).await {
                let _ = kill(monitor, Signal::SIGKILL);
            }
        }
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

/// Waits until a monitor has gone.
async fn ends(folder: &Path, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    while is_locked(folder) {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

/// Is a monitor there?
pub(super) fn is_locked(folder: &Path) -> bool {
    let Ok(file) = fs::File::open(folder.join("lock")) else { return false };
    Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
}

fn adopt(host: &Host) -> io::Result<BTreeMap<ReleaseId, Known>> {
    let mut known = BTreeMap::new();
    for entry in fs::read_dir(host.data_dir.join("workloads"))? {
        let folder = entry?.path();
        let Some(workload) = read_json::<Workload>(&folder.join("workload.json")) else {
            // It was being made when the daemon was killed: nothing runs in it yet.
            remove_tree(&folder)?;
            continue;
        };
        let mut instances = BTreeMap::new();
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let Some(index) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            match read_json::<Place>(&path.join("place.json")) {
                Some(place) if path.join("spec.json").exists() => {
                    host.take(place.number);
                    instances.insert(index, Local::new(host, &workload.id, index, &path, place));
                }
                _ => remove_tree(&path)?,
            }
        }
        known.insert(workload.id.clone(), Known { workload, instances });
    }
    Ok(known)
}

/// `_` is in no name.
fn folder_name(id: &ReleaseId) -> String {
    format!("{}_{}_{}", id.namespace, id.app, id.number)
}

/// `uid`, `uid:gid`; names would need the image's files.
fn user(user: Option<&str>) -> (u32, u32) {
    let text = user.unwrap_or_default();
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    (uid.parse().unwrap_or(CNB_ID), gid.parse().unwrap_or(CNB_ID))
}

fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let temporary = path.with_extension("new");
    let text = serde_json::to_vec(value)?;
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?.write_all(&text)?;
    fs::rename(temporary, path)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
