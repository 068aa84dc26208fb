//! Workloads: a monitor for each instance, and an eye on what they say.
//!
//! Everything about an instance is in a folder, `workloads/NAMESPACE_APP_NUMBER/INDEX`: what the sandbox is made
//! of, the state that the monitor writes, the log. A daemon that starts reads these folders; nothing else has to be remembered.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle};

use super::{
    Host,
    cgroup::Cgroup,
    images::LocalImage,
    instance::{Local, Place, end, read_json, remove_group, stop, write_json},
    io_error, logs,
    network::{self, Connection},
    observe::{self, Observed},
    spec::{Ids, Spec, Tool, User},
    users,
};
use crate::{
    model::{ImageName, ReleaseId, Timestamp},
    oci::tree::remove_tree,
    runtime::{CNB_ID, Error, InstanceState, Limits, Workload, WorkloadStatus},
};

/// The port that instances are told as root, as on Kubernetes.
const PORT: u16 = 8080;
/// How often instances are looked at: while one starts, and otherwise.
const STARTING_INTERVAL: Duration = Duration::from_millis(20);
const STEADY_INTERVAL: Duration = Duration::from_millis(500);
/// Who does not listen after this long, in seconds, is in no hurry.
const STARTING: i64 = 60;
/// The first process of a sandbox: it hands signals on, and collects orphans.
const INIT: &str = "/.epiniod/init";
/// How long a monitor may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between SIGTERM and SIGKILL, where nobody said anything else.
const GRACE: Duration = Duration::from_secs(10);
const SCRATCH_BYTES: u64 = 512 << 20;
const OPEN_FILES: u64 = 65_536;

/// All instances of this data directory.
pub(super) struct Instances {
    host: Arc<Host>,
    known: Mutex<BTreeMap<ReleaseId, Known>>,
    changes: watch::Sender<u64>,
    look: tokio::sync::Notify,
    /// One makes instances at a time.
    turn: tokio::sync::Mutex<()>,
}

struct Known {
    workload: Workload,
    instances: BTreeMap<u32, Local>,
    /// Those that are too many, on their way out.
    leaving: Vec<JoinHandle<()>>,
    /// The release that its instances were stopped for.
    made_way_for: Option<ReleaseId>,
}

impl Known {
    fn new(workload: Workload) -> Self {
        Self { workload, instances: BTreeMap::new(), leaving: Vec::new(), made_way_for: None }
    }
}

impl Instances {
    /// Finds what a daemon before left, and starts looking.
    pub fn open(host: Arc<Host>) -> Result<Arc<Self>, Error> {
        let instances = Arc::new(Self {
            known: Mutex::new(adopt(&host).map_err(io_error("reading what runs"))?),
            host,
            changes: watch::Sender::new(0),
            look: tokio::sync::Notify::new(),
            turn: tokio::sync::Mutex::default(),
        });
        tokio::spawn(watch_over(Arc::downgrade(&instances)));
        Ok(instances)
    }

    pub async fn apply(self: &Arc<Self>, workload: &Workload) -> Result<(), Error> {
        let image = self.host.images.ready(&workload.image).await?;
        if image.config.config.entrypoint.iter().chain(&image.config.config.cmd).flatten().next().is_none() {
            let cause = "it names no program to start, neither as entrypoint nor as command".to_owned();
            return Err(Error::Image { image: workload.image.clone(), cause });
        }
        // Another with the same index has to be gone from its folder first.
        self.have_left(&workload.id).await;
        let _turn = self.turn.lock().await;
        if self.has_made_way(workload) {
            return Ok(());
        }
        self.make_way(workload).await;
        let folder = self.host.data_dir.join("workloads").join(folder_name(&workload.id));
        let failed = || io_error(&format!("starting {}", workload.id));
        fs::create_dir_all(&folder).map_err(failed())?;
        write_json(&folder.join("workload.json"), workload).map_err(failed())?;
        for index in self.missing(workload) {
            let mut local = self.prepare(workload, index, &folder.join(index.to_string()), &image).map_err(failed())?;
            local.patience = Instant::now() + PATIENCE;
            if let Err(error) = self.start_monitor(&local) {
                end(&self.host, &local);
                return Err(failed()(error));
            }
            if let Some(known) = self.lock().get_mut(&workload.id) {
                known.instances.insert(index, local);
            }
        }
        if let Some(entry) = self.lock().get_mut(&workload.id) {
            for local in entry.instances.split_off(&workload.instances).into_values() {
                let host = Arc::clone(&self.host);
                entry.leaving.push(tokio::spawn(async move { stop(&host, &local, GRACE).await }));
            }
        }
        self.look.notify_one();
        Ok(())
    }

    /// Waits until the instances of a workload that were too many are gone.
    async fn have_left(&self, id: &ReleaseId) {
        let leaving = self.lock().get_mut(id).map(|entry| std::mem::take(&mut entry.leaving));
        futures::future::join_all(leaving.unwrap_or_default()).await;
    }

    fn missing(&self, workload: &Workload) -> Vec<u32> {
        let mut known = self.lock();
        let entry = known.entry(workload.id.clone()).or_insert_with(|| Known::new(workload.clone()));
        entry.workload = workload.clone();
        (0..workload.instances).filter(|index| !entry.instances.contains_key(index)).collect()
    }

    /// On a shared network an application that does not listen where it is told can run once only: the releases before
    /// are stopped first.
    async fn make_way(&self, workload: &Workload) {
        if !matches!(self.host.connection, Connection::Host) {
            return;
        }
        let mut leaving = Vec::new();
        for (id, known) in self.lock().iter_mut().filter(|(id, _)| **id != workload.id && same_app(id, &workload.id)) {
            let elsewhere = |local: &&mut Local| match local.instance.state {
                InstanceState::Ready { address } => address.port() != local.place.port,
                _ => false,
            };
            for local in known.instances.values_mut().filter(elsewhere) {
                local.stopping = true;
                local.instance.state = InstanceState::Stopping { address: None };
                leaving.push((id.clone(), local.clone()));
            }
        }
        for (id, local) in leaving {
            let number = workload.id.number;
            let text =
                format!("stopped before release {number} starts: it does not listen on $PORT, so only one can run");
            logs::note(&local.folder, &text);
            self.tell();
            stop(&self.host, &local, GRACE).await;
            if let Some(known) = self.lock().get_mut(&id) {
                known.instances.retain(|_, other| other.folder != local.folder);
                known.made_way_for = Some(workload.id.clone());
            }
        }
    }

    /// Was this stopped for another, which is still there?
    fn has_made_way(&self, workload: &Workload) -> bool {
        let known = self.lock();
        let other = known.get(&workload.id).and_then(|entry| entry.made_way_for.as_ref());
        other.is_some_and(|other| known.contains_key(other))
    }

    pub fn status(&self, id: &ReleaseId) -> Option<WorkloadStatus> {
        let known = self.lock();
        let entry = known.get(id)?;
        let instances = entry.instances.values().map(|local| local.instance.clone());
        Some(WorkloadStatus { instances: instances.collect() })
    }

    pub fn workloads(&self) -> Vec<ReleaseId> {
        self.lock().keys().cloned().collect()
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The images of all that runs.
    pub fn images(&self) -> Vec<ImageName> {
        self.lock().values().map(|known| known.workload.image.clone()).collect()
    }

    pub async fn remove(&self, id: &ReleaseId, grace: Duration) -> Result<(), Error> {
        let locals: Vec<Local> = {
            let mut known = self.lock();
            let Some(entry) = known.get_mut(id) else { return Ok(()) };
            for local in entry.instances.values_mut() {
                local.stopping = true;
                local.instance.state = InstanceState::Stopping { address: None };
            }
            entry.instances.values().cloned().collect()
        };
        self.tell();
        futures::future::join_all(locals.iter().map(|local| stop(&self.host, local, grace))).await;
        self.have_left(id).await;
        self.lock().remove(id);
        let folder = self.host.data_dir.join("workloads").join(folder_name(id));
        // A retirement and a stop of everything may meet here: what the other has removed meanwhile is no error.
        let removed = tokio::task::spawn_blocking(move || {
            let missed = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
            let mut tries = (0..10).map(|_| remove_tree(&folder));
            tries.find(|result| !result.as_ref().is_err_and(missed)).unwrap_or(Ok(()))
        });
        removed
            .await
            .map_err(io::Error::other)
            .and_then(|result| result)
            .map_err(io_error(&format!("removing {id}")))?;
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

    /// The folder of an instance that is not being stopped.
    pub fn folder(&self, id: &ReleaseId, name: &str) -> Result<PathBuf, Error> {
        let known = self.lock();
        let mut all = known.get(id).into_iter().flat_map(|entry| entry.instances.values());
        let found = all.find(|local| local.instance.name == name && !local.stopping);
        found.map(|local| local.folder.clone()).ok_or_else(|| Error::NotRunning(name.to_owned()))
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    fn prepare(&self, workload: &Workload, index: u32, folder: &Path, image: &LocalImage) -> io::Result<Local> {
        let number = self.host.number().map_err(io::Error::other)?;
        self.host.connection.open_firewalls();
        let port = if matches!(self.host.connection, Connection::Bridge(_)) { PORT } else { number };
        let prepared = self.write_spec(workload, index, folder, image, Place { number, port });
        if prepared.is_err() {
            self.host.release(number);
        }
        prepared
    }

    /// Writes everything that a monitor needs into the folder of an instance.
    fn write_spec(
        &self,
        workload: &Workload,
        index: u32,
        folder: &Path,
        image: &LocalImage,
        place: Place,
    ) -> io::Result<Local> {
        let host = &self.host;
        fs::create_dir_all(folder.join("stage"))?;
        write_json(&folder.join("place.json"), &place)?;
        let local = Local::new(host, &workload.id, index, folder, place);
        let cgroup = host.cgroups.create(&local.name, &workload.limits)?;
        let config = &image.config.config;
        let split = |entry: &String| entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut env: BTreeMap<String, String> = config.env.iter().flatten().filter_map(split).collect();
        env.extend(workload.env.clone());
        env.insert("PORT".to_owned(), place.port.to_string());
        let user = users::resolve(config.user.as_deref(), &image.layers);
        // Rootless there is one user, who is never root.
        let user = if host.ids == Ids::Caller && user.uid == 0 { User::of(CNB_ID) } else { user };
        let entrypoint = config.entrypoint.iter().chain(&config.cmd).flatten().cloned();
        let spec = Spec {
            hostname: local.instance.name.chars().take(63).collect(),
            stage: folder.join("stage"),
            layers: image.layers.clone(),
            scratch_bytes: workload.limits.scratch_bytes.unwrap_or(SCRATCH_BYTES),
            tool: Tool { source: host.monitor.clone(), target: INIT.to_owned() },
            mounts: Vec::new(),
            files: Vec::new(),
            build_ca: None,
            resolv_conf: network::resolv_conf(&host.connection),
            network: host.connection.network(place.number),
            ids: host.ids,
            idmapped: host.idmapped,
            user,
            max_processes: workload.limits.pids.filter(|_| cgroup.folders.is_empty()),
            cgroups: cgroup.folders,
            program: [INIT, "init"].map(str::to_owned).into_iter().chain(entrypoint).collect(),
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
            let guarded_memory = self.guarded_memory(&id);
            let looked = Local { guarded_memory, ..before.clone() };
            let Observed { mut local, monitor_gone } = observe::look(looked).await;
            let differs = local.instance.state != before.instance.state;
            starting |= is_starting(&local);
            if monitor_gone {
                remove_group(&local.cgroup).await;
            }
            // Whoever stops an instance has marked it, or taken it out, under this lock: nothing is started behind their back.
            let mut known = self.lock();
            let Some(entry) = known.get_mut(&id) else { continue };
            let limits = &entry.workload.limits;
            let Some(there) = entry.instances.get_mut(&index).filter(|there| !there.stopping) else { continue };
            if monitor_gone {
                tracing::warn!(instance = %local.name, "the monitor of an instance is gone; the instance is started again");
                if let Err(error) = self.start_again(&local, limits) {
                    tracing::error!(instance = %local.name, %error, "starting an instance again failed; trying again soon");
                }
                local.patience = Instant::now() + PATIENCE;
            }
            *there = local;
            drop(known);
            if differs {
                self.tell();
            }
        }
        starting
    }

    /// The memory that no cgroup guards.
    fn guarded_memory(&self, id: &ReleaseId) -> Option<u64> {
        let limits = |known: &Known| known.workload.limits.memory_bytes;
        self.lock().get(id).and_then(limits).filter(|_| self.host.cgroups.describe() == "none")
    }

    /// Starts a monitor with what the machine is like now: it may have been started anew since the last one.
    fn start_again(&self, local: &Local, limits: &Limits) -> io::Result<()> {
        let host = &self.host;
        let Cgroup { folders } = host.cgroups.create(&local.name, limits)?;
        let path = local.folder.join("spec.json");
        let spec: Spec = read_json(&path).ok_or_else(|| io::Error::other("its spec.json cannot be read"))?;
        let spec = Spec {
            tool: Tool { source: host.monitor.clone(), ..spec.tool },
            resolv_conf: network::resolv_conf(&host.connection),
            network: host.connection.network(local.place.number),
            max_processes: limits.pids.filter(|_| folders.is_empty()),
            cgroups: folders,
            ..spec
        };
        write_json(&path, &spec)?;
        self.start_monitor(local)
    }

    fn tell(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ReleaseId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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

fn adopt(host: &Host) -> io::Result<BTreeMap<ReleaseId, Known>> {
    let mut known = BTreeMap::new();
    for entry in fs::read_dir(host.data_dir.join("workloads"))? {
        let folder = entry?.path();
        let Some(workload) = read_json::<Workload>(&folder.join("workload.json")) else {
            // It was being made when the daemon was killed, or is damaged: what runs in it cannot be known any more.
            abandon(host, &folder)?;
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
                _ => {
                    let local = Local::new(host, &workload.id, index, &path, Place::NOWHERE);
                    end(host, &local);
                }
            }
        }
        known.insert(workload.id.clone(), Known { instances, ..Known::new(workload) });
    }
    Ok(known)
}

/// Ends and removes what is in the folder of a workload, by nothing but the names of the folders.
fn abandon(host: &Host, folder: &Path) -> io::Result<()> {
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if let [namespace, app, number] = name.split('_').collect::<Vec<_>>()[..]
        && let (Ok(namespace), Ok(app), Ok(number)) = (namespace.parse(), app.parse(), number.parse())
    {
        let id = ReleaseId { namespace, app, number };
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let Some(index) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            tracing::warn!(workload = %id, index, "what is known of an instance cannot be read; it is ended");
            end(host, &Local::new(host, &id, index, &path, Place::NOWHERE));
        }
    }
    remove_tree(folder)
}

/// Is it worth a look soon?
fn is_starting(local: &Local) -> bool {
    let age = Timestamp::now().as_second() - local.instance.started_at.as_second();
    !matches!(local.instance.state, InstanceState::Ready { .. } | InstanceState::BackOff { .. }) && age < STARTING
}

fn same_app(left: &ReleaseId, right: &ReleaseId) -> bool {
    (&left.namespace, &left.app) == (&right.namespace, &right.app)
}

/// `_` is in no name.
fn folder_name(id: &ReleaseId) -> String {
    format!("{}_{}_{}", id.namespace, id.app, id.number)
}
