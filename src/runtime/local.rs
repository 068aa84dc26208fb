//! The runtime of one machine: our own namespace runner, as root or rootless.
//!
//! Every step and every instance is a sandbox: namespaces for mounts, processes, IPC, names, users and (as root)
//! network; an overlay of read-only layers and a small file system in memory; no capabilities, no new
//! privileges, a system call filter, masked paths; limits by cgroups where there are any. A sandbox is set up by a process of
//! its own (`epiniod sandbox-init`), so that nothing is ever forked from the threads of the daemon.
//!
//! Steps die with the daemon. Instances do not: each has a monitor, a small process that keeps its log, starts it
//! again when it crashes, and says in a file how it is; a daemon that starts reads those files.

mod cgroup;
mod firewall;
mod footprint;
mod forwarding;
mod guard;
mod harden;
mod images;
mod init;
mod instance;
mod instances;
mod join;
mod logs;
mod netlink;
mod network;
mod observe;
mod ports;
mod probe;
mod processes;
mod root;
mod spec;
mod steps;
mod sys;
mod terminal;
mod users;
mod visit;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use nix::unistd::Uid;
use tokio_util::sync::CancellationToken;

pub use self::footprint::give_back;
use self::{
    cgroup::Cgroups,
    images::{Images, Owners},
    instances::Instances,
    network::Connection,
    spec::{Ids, User},
};
use super::{
    Command, Error, Instance, Job, JobId, LogLine, LogQuery, LogSink, Rollout, Runtime, Session, StepOutcome, Volumes,
    Workload, WorkloadStatus,
};
use crate::{
    blob::SharedBlobs,
    model::{AppName, Digest, ImageName, Namespace, ReleaseId, Route},
};

/// The monitor, as it was compiled with this binary, compressed.
const MONITOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/monitor.gz"));
/// Ids of sandboxes begin here: above what distributions give to users and containers.
const FIRST_ID: u32 = 0x7000_0000;
const FIREWALL_INTERVAL: Duration = Duration::from_secs(60);

/// What the runtime has to know.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    pub data_dir: PathBuf,
    /// Mounted for builds over the bundles that programs look into.
    pub build_ca: Option<PathBuf>,
    /// The binary that sandboxes are set up with: our own.
    pub own_binary: PathBuf,
}

/// The runtime of one machine.
pub struct LocalRuntime {
    host: Arc<Host>,
    instances: Arc<Instances>,
}

/// What sandboxes of all kinds are made with.
struct Host {
    data_dir: PathBuf,
    own_binary: PathBuf,
    monitor: PathBuf,
    build_ca: Option<PathBuf>,
    ids: Ids,
    /// Files on disk have the ids of inside; mounts show them with those of outside.
    idmapped: bool,
    connection: Connection,
    cgroups: Cgroups,
    images: Images,
    /// Numbers on the bridge, or ports, that are taken.
    numbers: std::sync::Mutex<std::collections::BTreeSet<u16>>,
    /// Which of all is tried first: daemons of several users share the ports of a machine, and a port is free until somebody
    /// listens on it.
    first_number: usize,
}

/// Runs this process as one that sets a sandbox up, when its arguments say so. Call it before anything starts a thread.
pub fn run_role() -> Option<ExitCode> {
    // Whoever is called with something else than text is called by somebody else.
    let args: Option<Vec<String>> = std::env::args_os().skip(1).map(|arg| arg.into_string().ok()).collect();
    init::run(&args?)
}

impl LocalRuntime {
    /// Looks what is possible here, and takes over what runs.
    pub async fn open(config: LocalConfig, blobs: SharedBlobs) -> Result<Arc<Self>, Error> {
        let host = Arc::new(Host::open(config, blobs)?);
        tokio::spawn(keep_firewalls_open(Arc::downgrade(&host)));
        let instances = Instances::open(Arc::clone(&host))?;
        Ok(Arc::new(Self { host, instances }))
    }

    /// Whose abstract unix sockets a sandbox reaches. They belong to a network, and no file guards them.
    fn sockets(&self) -> &'static str {
        match self.host.connection {
            Connection::Host if !sys::can_scope_sockets() => "shared with this machine: needs kernel 6.12 and Landlock",
            _ => "own",
        }
    }
}

#[async_trait]
impl Runtime for LocalRuntime {
    fn volumes(&self) -> Volumes {
        Volumes::OfTheJob
    }

    async fn run(&self, job: Job, log: LogSink, cancel: CancellationToken) -> Result<Vec<StepOutcome>, Error> {
        steps::run(&self.host, job, log, cancel).await
    }

    async fn discard(&self, job: &JobId) -> Result<(), Error> {
        let discarded = steps::discard(&self.host, job).await;
        // A job made the daemon larger than it is between jobs.
        let _ = tokio::task::spawn_blocking(sys::return_memory).await;
        discarded
    }

    async fn jobs(&self) -> Result<Vec<JobId>, Error> {
        steps::left_over(&self.host)
    }

    async fn apply(&self, workload: &Workload) -> Result<(), Error> {
        self.instances.apply(workload).await
    }

    async fn status(&self, id: &ReleaseId) -> Result<Option<WorkloadStatus>, Error> {
        Ok(self.instances.status(id))
    }

    fn rollout(&self) -> Rollout {
        Rollout::SideBySide
    }

    async fn serving(&self, id: &ReleaseId) -> Result<Vec<Instance>, Error> {
        Ok(self.instances.status(id).unwrap_or_default().instances)
    }

    async fn workloads(&self) -> Result<Vec<ReleaseId>, Error> {
        Ok(self.instances.workloads())
    }

    fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.instances.changes()
    }

    async fn remove(&self, id: &ReleaseId, grace: Duration) -> Result<(), Error> {
        self.instances.remove(id, grace).await
    }

    /// The daemon's own edge is all there is.
    async fn expose(&self, _routes: Vec<(Namespace, AppName, Vec<Route>)>) -> Result<(), Error> {
        Ok(())
    }

    async fn logs(
        &self,
        namespace: &Namespace,
        app: &AppName,
        query: LogQuery,
    ) -> Result<BoxStream<'static, LogLine>, Error> {
        Ok(logs::read(Arc::clone(&self.instances), namespace.clone(), app.clone(), query).await)
    }

    async fn exec(&self, id: &ReleaseId, instance: &str, command: Command) -> Result<Session, Error> {
        visit::exec(&self.host, &self.instances.folder(id, instance)?, instance, command).await
    }

    async fn forward(&self, id: &ReleaseId, instance: &str, port: u16) -> Result<super::Connection, Error> {
        visit::forward(&self.host, &self.instances.folder(id, instance)?, instance, port).await
    }

    async fn collect(&self, keep: &[ImageName]) -> Result<(), Error> {
        let host = Arc::clone(&self.host);
        // What runs is needed, whatever anybody says.
        let running = self.instances.images();
        let keep: Vec<ImageName> = keep.iter().cloned().chain(running).collect();
        let layers = host.images.layers_of(&keep).await?;
        let collected = tokio::task::spawn_blocking(move || {
            logs::collect(&host, &keep)?;
            host.images.collect(&layers)
        });
        let collected = collected.await.map_err(io::Error::other).and_then(|result| result);
        collected.map_err(io_error("removing unused layers and logs"))
    }

    fn properties(&self) -> BTreeMap<&'static str, String> {
        let user = match self.host.ids {
            Ids::Range { .. } => "root",
            Ids::Caller => "rootless",
        };
        BTreeMap::from([
            ("kind", "local".to_owned()),
            ("user", user.to_owned()),
            ("network", self.host.connection.describe().to_owned()),
            ("limits", self.host.cgroups.describe().to_owned()),
            ("sockets", self.sockets().to_owned()),
        ])
    }
}

impl Host {
    fn open(config: LocalConfig, blobs: SharedBlobs) -> Result<Self, Error> {
        let LocalConfig { data_dir, build_ca, own_binary } = config;
        let io = |doing: &str| io_error(&format!("{doing} {}", data_dir.display()));
        for name in ["jobs", "layers", "logs", "run", "workloads"] {
            private_folder(&data_dir.join(name)).map_err(io("preparing"))?;
        }
        let data_dir = data_dir.canonicalize().map_err(io("finding"))?;
        // Monitors start it too, and have another executable of their own.
        let own_binary = own_binary.canonicalize().map_err(io_error("finding our own program"))?;
        let identity = Digest::of(data_dir.as_os_str().as_encoded_bytes());
        let root = Uid::effective().is_root();
        let ids = if root { Ids::Range { first: FIRST_ID } } else { Ids::Caller };
        let idmapped = probe::idmapped(&data_dir, &own_binary, ids)?;
        let ownership = match (root, idmapped) {
            (true, true) => Owners::AsInLayer,
            (true, false) => Owners::Shifted(FIRST_ID),
            (false, _) => Owners::Caller,
        };
        let connection = if root { Connection::open(&identity)? } else { Connection::Host };
        let monitor = data_dir.join("run").join(format!("monitor-{}", &Digest::of(MONITOR).hex()[..16]));
        install(&monitor, || crate::oci::expand(MONITOR)).map_err(io("writing the monitor to"))?;
        let first_number = match &connection {
            Connection::Host => u32::from_str_radix(&identity.hex()[..8], 16).unwrap_or(0) as usize,
            _ => 0,
        };
        let images = Images::open(data_dir.join("layers"), blobs, ownership).map_err(io("opening the layers of"))?;
        Ok(Self {
            own_binary,
            build_ca,
            ids,
            idmapped,
            connection,
            cgroups: Cgroups::open(&format!("epiniod-{}", &identity.hex()[..8])),
            images,
            monitor,
            numbers: std::sync::Mutex::default(),
            first_number,
            data_dir,
        })
    }

    /// Who has to own a file on disk so that it belongs to somebody inside. Rootless that is the caller anyway.
    fn on_disk(&self, user: User) -> Option<User> {
        match self.ids {
            Ids::Range { .. } if self.idmapped => Some(user),
            ids => ids.outside(user),
        }
    }

    /// A number on the bridge, or a port, that nobody has; it is given back with [`release`](Self::release).
    fn number(&self) -> Result<u16, Error> {
        let shared = matches!(self.connection, Connection::Host);
        let mut numbers = self.numbers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let all = self.connection.numbers();
        let free = all
            .clone()
            .cycle()
            .skip(self.first_number % all.len())
            .take(all.len())
            .find(|n| !numbers.contains(n) && (!shared || network::is_free(*n)));
        let number =
            free.ok_or_else(|| Error::Unsupported(format!("more than {} sandboxes cannot run at once", all.len())))?;
        numbers.insert(number);
        Ok(number)
    }

    fn take(&self, number: u16) {
        self.numbers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(number);
    }

    fn release(&self, number: u16) {
        self.numbers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&number);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Only what nobody uses goes: instances that run keep their bridge and their groups.
        let workloads = fs::read_dir(self.data_dir.join("workloads")).map(|entries| entries.count()).unwrap_or(0);
        if workloads == 0 {
            self.connection.close();
            self.cgroups.close();
        }
    }
}

/// Others make their firewalls anew without a word: theirs are looked at again and again, as long as there is a host.
async fn keep_firewalls_open(host: Weak<Host>) {
    loop {
        let Some(connection) = host.upgrade().map(|host| host.connection.clone()) else { return };
        // What goes wrong in there is said there.
        let _ = tokio::task::spawn_blocking(move || connection.open_firewalls()).await;
        tokio::time::sleep(FIREWALL_INTERVAL).await;
    }
}

/// A folder that nobody else may look into: layers have set-uid programs in them.
fn private_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Writes a program where it is not yet.
fn install(path: &Path, program: impl FnOnce() -> Vec<u8>) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if path.exists() {
        return Ok(());
    }
    let temporary = path.with_extension("new");
    fs::write(&temporary, program())?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))?;
    fs::File::open(&temporary)?.sync_all()?;
    fs::rename(temporary, path)
}

fn io_error(doing: &str) -> impl FnOnce(io::Error) -> Error + use<> {
    let doing = doing.to_owned();
    move |source| Error::Io { doing, source }
}
