//! Where things run, behind one trait: jobs of steps that end, and workloads that do not.
//!
//! A *job* is one staging's way through its steps (prepare, detect, build, export), each in its own
//! sandbox, sharing volumes that live until they are discarded. A *workload* is a release with its
//! instances. Everything is level-triggered: `apply` says what should be, `status` what is, and
//! `changes` when to look again.

mod documents;
pub mod kube;
pub mod local;
mod output;
mod visit;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use visit::{CANNOT_RUN, Command, Connection, Exit, NOT_FOUND, Reader, Session, Terminal, TerminalSize, Writer};

use crate::model::{AppName, Digest, ImageName, Namespace, ReleaseId, Route, Timestamp};

/// A place where things run.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// How long what the steps of a job write is there for others.
    fn volumes(&self) -> Volumes;

    /// Runs the steps of a job one after the other and returns what each one left, up to and
    /// including the first that did not end with 0. Cancelling ends it; what still goes on then ends when the job is
    /// discarded.
    async fn run(&self, job: Job, log: LogSink, cancel: CancellationToken) -> Result<Vec<StepOutcome>, Error>;

    /// Removes the volumes of a job, and whatever else is left of it. Discarding what is not there
    /// is not an error.
    async fn discard(&self, job: &JobId) -> Result<(), Error>;

    /// The jobs that something is left of (after a crash of the daemon).
    async fn jobs(&self) -> Result<Vec<JobId>, Error>;

    /// Makes the instances of a workload what they should be: starts those that are missing, stops
    /// those that are too many. Returns as soon as that is on its way.
    async fn apply(&self, workload: &Workload) -> Result<(), Error>;

    /// The instances of a workload; none when nothing is known of it.
    async fn status(&self, id: &ReleaseId) -> Result<Option<WorkloadStatus>, Error>;

    /// How a release takes the place of the one before.
    fn rollout(&self) -> Rollout;

    /// The instances that may get the requests of an application that is at this release.
    async fn serving(&self, id: &ReleaseId) -> Result<Vec<Instance>, Error>;

    /// All workloads that something is left of.
    async fn workloads(&self) -> Result<Vec<ReleaseId>, Error>;

    /// Counts the changes of states of instances. Subscribe before looking: then no change is missed.
    fn changes(&self) -> tokio::sync::watch::Receiver<u64>;

    /// Counts changes of what was applied that may be somebody else's; none where nobody else can make any.
    fn drift(&self) -> Option<tokio::sync::watch::Receiver<u64>> {
        None
    }

    /// Stops a workload: SIGTERM, after `grace` SIGKILL. Ends when nothing is left of it.
    async fn remove(&self, id: &ReleaseId, grace: Duration) -> Result<(), Error>;

    /// Says what all applications are reached by, where something other than the daemon's own edge needs to know.
    async fn expose(&self, routes: Vec<(Namespace, AppName, Vec<Route>)>) -> Result<(), Error>;

    /// What the instances of an application wrote, of all releases, oldest first.
    async fn logs(
        &self,
        namespace: &Namespace,
        app: &AppName,
        query: LogQuery,
    ) -> Result<BoxStream<'static, LogLine>, Error>;

    /// Runs a command beside the program of an instance.
    async fn exec(&self, id: &ReleaseId, instance: &str, command: Command) -> Result<Session, Error>;

    /// Connects to a port of an instance, also to one that it listens on for itself only.
    async fn forward(&self, id: &ReleaseId, instance: &str, port: u16) -> Result<Connection, Error>;

    /// Frees what no image of this set needs (unpacked layers, logs of applications that are gone).
    async fn collect(&self, keep: &[ImageName]) -> Result<(), Error>;

    /// What this runtime can and cannot do here, for `info`: `limits` = `cgroup2`, `none`, …
    fn properties(&self) -> BTreeMap<&'static str, String>;
}

/// Who takes the requests of clients in place of the daemon's own edge: an ingress controller.
#[async_trait]
pub trait Front: Send + Sync + 'static {
    /// Has what an authority for certificates asks for under these hosts come to the daemon, and of no others.
    async fn lead_challenges(&self, hosts: &BTreeSet<String>) -> Result<(), Error>;

    /// These certificates are for clients from now on, each for the hosts that are served. Returns at once.
    fn present(&self, certificates: Vec<HostCertificate>);
}

/// A certificate of the public, for whoever speaks TLS with clients.
#[derive(Clone, PartialEq, Eq)]
pub struct HostCertificate {
    /// A host, or `*.DOMAIN`.
    pub name: String,
    /// PEM, with those that lead to one that clients know.
    pub chain: String,
    /// PEM.
    pub key: String,
}

/// A shared runtime.
pub type SharedRuntime = Arc<dyn Runtime>;

/// Names a job: a stage id.
pub type JobId = crate::model::StageId;

/// Steps that share volumes.
#[derive(Debug, Clone)]
pub struct Job {
    pub id: JobId,
    pub steps: Vec<Step>,
    /// Lines of each step that the log has of an attempt before, for a runtime that goes on with it.
    pub seen: BTreeMap<String, usize>,
}

/// How releases follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rollout {
    /// Both run until the older is removed: whoever routes moves the traffic, and waits until instances are idle.
    SideBySide,
    /// Instance by instance: the runtime takes an old one away when a new one is ready, and gives it time to be left.
    InPlace,
}

/// The origin of the line that says that a job begins anew.
pub const JOB_BEGINS: &str = "job";

/// The origin of lines of a detection that runs before a job that goes on by itself, and is not part of it.
pub const DETECTION: &str = "detect";

/// How long volumes live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volumes {
    /// Until the job is discarded: several runs work on them. A run ends with the daemon.
    OfTheJob,
    /// Until a run ends. A run that is interrupted goes on by itself, and the same run of a later daemon finds it.
    OfOneRun,
}

/// One sandboxed process that ends.
#[derive(Debug, Clone)]
pub struct Step {
    /// For logs and messages: `prepare`, `detect`, `build`, `export`.
    pub name: &'static str,
    pub image: StepImage,
    /// Arguments after the program; the program is always our own binary, which is at [`OWN_BINARY`] in every step.
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Small read-only files; on Kubernetes these are ConfigMaps or, when secret, Secrets.
    pub files: Vec<StepFile>,
    /// Blobs to read, as read-only files.
    pub blobs: Vec<StepBlob>,
    /// Volumes of the job; they are made when a step first names them.
    pub volumes: Vec<VolumeMount>,
    pub network: StepNetwork,
    pub user: StepUser,
    pub trust: Trust,
    pub limits: Limits,
    /// A file of at most [`MAX_REPORT_BYTES`] that the step may leave; its content is in the outcome.
    pub report: Option<String>,
    /// The step is killed after this long.
    pub deadline: Duration,
}

/// Where our own binary is in every step.
pub const OWN_BINARY: &str = "/.epiniod/epiniod";

/// The largest report of a step.
pub const MAX_REPORT_BYTES: u64 = 256 * 1024;

/// What a step has as its root file system.
#[derive(Debug, Clone)]
pub enum StepImage {
    /// Nothing but our own binary, `/proc`, `/dev`, `/tmp` and empty directories to mount on.
    Own,
    /// An image of the bundled registry. Changes to it are thrown away.
    Image(ImageName),
}

#[derive(Debug, Clone)]
pub struct StepFile {
    pub path: String,
    pub contents: Vec<u8>,
    pub secret: bool,
}

#[derive(Debug, Clone)]
pub struct StepBlob {
    pub digest: Digest,
    pub path: String,
    /// The file of the step with the credential, where the blob has to be fetched.
    pub token: String,
}

#[derive(Debug, Clone)]
pub struct VolumeMount {
    /// `workspace`, `layers`, …: one path component.
    pub volume: String,
    pub path: String,
    pub access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepNetwork {
    None,
    /// Out to the internet, not to this machine, its neighbours on the runtime's own network, or link-local metadata.
    Outbound,
    /// The network of the daemon, for our own code that talks to the registry.
    Daemon,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepUser {
    /// uid 0 of the sandbox (never of the machine); rootless the CNB user.
    Root,
    /// [`CNB_ID`].
    Cnb,
    /// The CNB user of an image that is not ours: neither is 0, and both are below 65,536.
    Image { uid: u32, gid: u32 },
}

/// uid and gid of the CNB user in every base image.
pub const CNB_ID: u32 = 1000;

/// Whether the certificate authorities for builds are mounted over the well-known bundle paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    Image,
    BuildCa,
}

/// Where programs look for certificate authorities.
pub const TRUST_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What one sandbox may use. `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    /// 1000 is one processor.
    pub millicpus: Option<u32>,
    pub pids: Option<u32>,
    /// Bytes that the sandbox may write outside of its volumes.
    pub scratch_bytes: Option<u64>,
}

/// How a step ended.
#[derive(Debug, Clone)]
pub struct StepOutcome {
    pub name: &'static str,
    pub ended: Ended,
    pub duration: Duration,
    pub report: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    Exit(i32),
    Signal(i32),
    OutOfMemory,
    Deadline,
    Cancelled,
}

impl From<std::process::ExitStatus> for Ended {
    fn from(status: std::process::ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        status.code().map_or_else(|| Self::Signal(status.signal().unwrap_or(9)), Self::Exit)
    }
}

/// Where the output of a job goes, line by line. A sink that is slow slows the job down.
pub type LogSink = tokio::sync::mpsc::Sender<LogLine>;

/// A line of output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// The instance (`NAME-RELEASE-INDEX`) or step that wrote it.
    pub origin: String,
    pub stream: LogStream,
    pub at: Timestamp,
    /// Without the line feed; invalid UTF-8 is replaced. At most 16 KiB, longer lines are cut in pieces.
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    Stdout,
    Stderr,
    /// What the runtime has to say itself ("listens on 3000 instead of PORT").
    Note,
}

/// Which lines of a log are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogQuery {
    /// Only the last so many lines of what there is.
    pub tail: Option<usize>,
    pub follow: bool,
}

/// A release and what it needs to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    pub id: ReleaseId,
    pub image: ImageName,
    /// Added to what the image brings. `PORT` is set by the runtime.
    pub env: BTreeMap<String, String>,
    pub instances: u32,
    pub limits: Limits,
}

/// What is known of a workload.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkloadStatus {
    pub instances: Vec<Instance>,
}

/// One running copy of a release.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// `APP-RELEASE-INDEX`.
    pub name: String,
    pub state: InstanceState,
    pub started_at: Timestamp,
    /// How often it was started again after it ended by itself.
    pub restarts: u32,
    pub memory_bytes: Option<u64>,
    pub millicpus: Option<u32>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum InstanceState {
    /// It runs and does not answer yet.
    Starting,
    /// It accepts connections here.
    Ready { address: SocketAddr },
    /// It ended and waits until it is started again.
    BackOff { ended: Ended, retry_at: Timestamp, last_words: Vec<String> },
    /// It cannot be started, or not yet, and this is why; it may go by itself within this time.
    Held { cause: String, patience: Duration },
    /// It is being stopped. Where there is an address, it accepts connections for a little longer: better than nothing.
    Stopping { address: Option<SocketAddr> },
}

/// What can go wrong where things run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Unsupported(String),
    #[error("instance {0} does not run right now")]
    NotRunning(String),
    /// Nobody takes the connection.
    #[error("port {port} of instance {instance} cannot be reached: {cause}")]
    Refused { instance: String, port: u16, cause: String },
    #[error("image {image} cannot be used: {cause}")]
    Image { image: ImageName, cause: String },
    #[error("{doing}")]
    Io { doing: String, source: std::io::Error },
    #[error("{doing}: {cause}")]
    Failed { doing: String, cause: String },
}
