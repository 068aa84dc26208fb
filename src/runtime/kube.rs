//! The runtime of a cluster: builds are jobs, applications are deployments with a service and, where a controller is
//! there for them, an ingress.
//!
//! The cluster keeps things going, not the daemon: a job goes on while no daemon is there, and a deployment keeps its
//! pods. What the daemon wants is written by server-side apply; what there is comes by watches.

mod beside;
mod call;
mod challenge;
mod ingress;
pub mod install;
mod job;
mod logs;
mod names;
mod observe;
mod reach;
pub mod relay;
mod run;
mod step;
mod traffic;
mod trouble;
mod user;
mod visit;
mod workload;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::stream::BoxStream;
use k8s_openapi::api::{
    batch::v1::Job as ClusterJob,
    core::v1::{ConfigMap, Namespace as ClusterNamespace, Pod, Secret},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::{
    call::{call, failed},
    ingress::Facade,
    observe::Observed,
    user::User,
    workload::Applied,
};
pub use self::{ingress::Issuing, step::run_role, traffic::Traffic};
use super::{
    Command, Error, Front, HostCertificate, Instance, Job, JobId, LogLine, LogQuery, LogSink, Rollout, Runtime,
    Session, StepOutcome, Volumes, Workload, WorkloadStatus,
};
use crate::{
    blob::SharedBlobs,
    model::{AppName, Digest, ImageName, Namespace, REGISTRY_NAME, ReleaseId, Route},
    store::kube::Cluster as Connection,
};

/// Where applications listen.
const PORT: u16 = 8080;
/// So long it is believed that what was made is still there, where no watch tells: a little less than the interval in
/// which everything is looked at.
const BELIEVED: Duration = Duration::from_secs(50);

/// What the runtime has to know.
#[derive(Clone)]
pub struct Settings {
    /// Where the daemon's own objects are.
    pub namespace: String,
    /// Where jobs run.
    pub builds_namespace: String,
    /// Where the nodes reach the registry of a daemon that is outside of the cluster.
    pub outside: Option<SocketAddr>,
    /// `host:port` where pods reach the daemon for blobs.
    pub daemon: String,
    /// The image with this program, as the nodes pull it.
    pub own_image: String,
    /// Certificate authorities that builds trust, PEM.
    pub build_ca: Option<String>,
    /// Where detection may put files.
    pub scratch: PathBuf,
    /// The class of the ingresses; none where the daemon's own edge routes.
    pub ingress_class: Option<String>,
    pub issuing: Issuing,
    /// The host of the API, where this daemon is in the cluster.
    pub api_host: Option<String>,
    /// What the kubelet pulls with.
    pub pull_credential: PullCredential,
}

/// Name and password, for the images of a namespace.
pub type PullCredential = Arc<dyn Fn(&str) -> (String, String) + Send + Sync>;

/// The runtime of a cluster.
pub struct KubeRuntime {
    cluster: Arc<Cluster>,
    facade: Facade,
    version: String,
}

type Routes = Vec<(Namespace, AppName, Vec<Route>)>;

/// What everything here needs.
struct Cluster {
    /// For calls and watches: a connection that is dead without a word ends.
    client: Client,
    /// For streams that may be silent for long.
    streams: Client,
    settings: Settings,
    blobs: SharedBlobs,
    observed: Arc<Observed>,
    /// When namespaces were seen to be there, with the secret for pulls.
    prepared: Mutex<HashMap<String, Instant>>,
    /// What applications were last made.
    applied: Mutex<HashMap<(Namespace, AppName), Applied>>,
    /// Whom images run as.
    users: Mutex<HashMap<Digest, Option<User>>>,
}

impl Cluster {
    fn jobs(&self) -> Api<ClusterJob> {
        Api::namespaced(self.client.clone(), &self.settings.builds_namespace)
    }

    /// The pods of jobs.
    fn builds(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.settings.builds_namespace)
    }

    fn build_secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.settings.builds_namespace)
    }
}

impl KubeRuntime {
    /// Makes what builds need, and begins to watch what runs.
    pub async fn open(connection: &Connection, settings: Settings, blobs: SharedBlobs) -> Result<Arc<Self>, Error> {
        let (client, streams) = (connection.calls.clone(), connection.client.clone());
        let version = client.apiserver_version().await.map_err(failed("asking the API server for its version"))?;
        let observed = Observed::start(&client, &settings.namespace).await?;
        let (prepared, applied, users) = (Mutex::default(), Mutex::default(), Mutex::default());
        let cluster = Arc::new(Cluster { client, streams, settings, blobs, observed, prepared, applied, users });
        lay_out_builds(&cluster).await?;
        Ok(Arc::new(Self { cluster, facade: Facade::default(), version: version.git_version }))
    }
}

/// Makes the namespace of a daemon that is outside of the cluster.
pub async fn make_namespace(connection: &Connection, namespace: &str) -> Result<(), Error> {
    reach::make_namespace(&connection.calls, namespace).await
}

#[async_trait]
impl Runtime for KubeRuntime {
    fn volumes(&self) -> Volumes {
        Volumes::OfOneRun
    }

    async fn run(&self, job: Job, log: LogSink, cancel: CancellationToken) -> Result<Vec<StepOutcome>, Error> {
        if beside::takes(&job) {
            return beside::run(&self.cluster, job, &log, &cancel).await;
        }
        run::run(&self.cluster, job, log, cancel).await
    }

    async fn discard(&self, job: &JobId) -> Result<(), Error> {
        run::discard(&self.cluster, job).await
    }

    async fn jobs(&self) -> Result<Vec<JobId>, Error> {
        run::left_over(&self.cluster).await
    }

    async fn apply(&self, workload: &Workload) -> Result<(), Error> {
        workload::apply(&self.cluster, workload).await
    }

    async fn status(&self, id: &ReleaseId) -> Result<Option<WorkloadStatus>, Error> {
        Ok(self.cluster.observed.status(id))
    }

    fn rollout(&self) -> Rollout {
        Rollout::InPlace
    }

    /// While a release takes the place of another, pods of both.
    async fn serving(&self, id: &ReleaseId) -> Result<Vec<Instance>, Error> {
        Ok(self.cluster.observed.instances_of(&id.namespace, &id.app))
    }

    async fn workloads(&self) -> Result<Vec<ReleaseId>, Error> {
        Ok(self.cluster.observed.releases())
    }

    fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.cluster.observed.changes()
    }

    fn drift(&self) -> Option<tokio::sync::watch::Receiver<u64>> {
        Some(self.cluster.observed.drift())
    }

    async fn remove(&self, id: &ReleaseId, grace: Duration) -> Result<(), Error> {
        workload::remove(&self.cluster, id, grace).await
    }

    async fn expose(&self, routes: Vec<(Namespace, AppName, Vec<Route>)>) -> Result<(), Error> {
        let settings = &self.cluster.settings;
        if settings.ingress_class.is_none() && settings.api_host.is_none() {
            return Ok(());
        }
        // Where the daemon's own edge routes there are no ingresses, also none of a time when a controller did.
        let routes = if settings.ingress_class.is_some() { routes } else { Vec::new() };
        self.facade.expose(&self.cluster, routes).await
    }

    async fn logs(
        &self,
        namespace: &Namespace,
        app: &AppName,
        query: LogQuery,
    ) -> Result<BoxStream<'static, LogLine>, Error> {
        Ok(logs::read(Arc::clone(&self.cluster), namespace, app, query))
    }

    async fn exec(&self, id: &ReleaseId, instance: &str, command: Command) -> Result<Session, Error> {
        visit::exec(&self.cluster, id, instance, command).await
    }

    async fn forward(&self, id: &ReleaseId, instance: &str, port: u16) -> Result<super::Connection, Error> {
        visit::forward(&self.cluster, id, instance, port).await
    }

    /// The kubelet throws images away by itself.
    async fn collect(&self, _keep: &[ImageName]) -> Result<(), Error> {
        Ok(())
    }

    fn properties(&self) -> BTreeMap<&'static str, String> {
        let ingress = self.cluster.settings.ingress_class.clone().unwrap_or_else(|| "own edge".to_owned());
        BTreeMap::from([("kubernetes", self.version.clone()), ("limits", "cgroup".to_owned()), ("ingress", ingress)])
    }
}

#[async_trait]
impl Front for KubeRuntime {
    async fn lead_challenges(&self, hosts: &BTreeSet<String>) -> Result<(), Error> {
        let Some(class) = &self.cluster.settings.ingress_class else { return Ok(()) };
        challenge::lead(&self.cluster, class, hosts).await
    }

    fn present(&self, certificates: Vec<HostCertificate>) {
        if self.facade.present(certificates) {
            self.cluster.observed.tell();
        }
    }
}

/// The namespace of builds, what all of them share, and the nodes' way to the registry.
async fn lay_out_builds(cluster: &Cluster) -> Result<(), Error> {
    let name = &cluster.settings.builds_namespace;
    if is_prepared(cluster, name) {
        return Ok(());
    }
    if let Some(daemon) = cluster.settings.outside {
        reach::from_nodes(&cluster.client, &cluster.settings.namespace, daemon).await?;
    }
    if let Some(authorities) = &cluster.settings.build_ca {
        make_namespace_if_missing(cluster, name).await?;
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), name);
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": names::BUILD_CA, "labels": {
                names::MANAGED_BY: names::MANAGER,
                names::SYSTEM: cluster.settings.namespace,
            } },
            "data": { "ca.crt": authorities },
        });
        let (force, map) = (PatchParams::apply(names::MANAGER).force(), Patch::Apply(map));
        let doing = format!("writing the certificate authorities for builds into namespace {name}");
        call(&doing, || maps.patch(names::BUILD_CA, &force, &map)).await?;
    }
    prepare_namespace(cluster, name).await
}

/// Makes a namespace that is not there, and the secret with which the kubelet pulls its images.
async fn prepare_namespace(cluster: &Cluster, namespace: &str) -> Result<(), Error> {
    if is_prepared(cluster, namespace) {
        return Ok(());
    }
    make_namespace_if_missing(cluster, namespace).await?;
    let (name, password) = (cluster.settings.pull_credential)(namespace);
    let auth = STANDARD.encode(format!("{name}:{password}"));
    let config = json!({ "auths": { REGISTRY_NAME: { "username": name, "password": password, "auth": auth } } });
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/dockerconfigjson",
        "metadata": { "name": names::PULL_SECRET, "labels": {
                names::MANAGED_BY: names::MANAGER,
                names::SYSTEM: cluster.settings.namespace,
            } },
        "stringData": { ".dockerconfigjson": config.to_string() },
    });
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let (force, secret) = (PatchParams::apply(names::MANAGER).force(), Patch::Apply(secret));
    let doing = format!("writing the secret for pulls in namespace {namespace}");
    call(&doing, || secrets.patch(names::PULL_SECRET, &force, &secret)).await?;
    let mut prepared = cluster.prepared.lock().unwrap_or_else(PoisonError::into_inner);
    prepared.insert(namespace.to_owned(), Instant::now());
    Ok(())
}

fn is_prepared(cluster: &Cluster, namespace: &str) -> bool {
    let prepared = cluster.prepared.lock().unwrap_or_else(PoisonError::into_inner);
    prepared.get(namespace).is_some_and(|since| since.elapsed() < BELIEVED)
}

async fn make_namespace_if_missing(cluster: &Cluster, namespace: &str) -> Result<(), Error> {
    let namespaces: Api<ClusterNamespace> = Api::all(cluster.client.clone());
    let doing = format!("making namespace {namespace}");
    if call(&doing, || namespaces.get_opt(namespace)).await?.is_some() {
        return Ok(());
    }
    let object = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": namespace, "labels": {
            names::MANAGED_BY: names::MANAGER,
            names::SYSTEM: cluster.settings.namespace,
            "pod-security.kubernetes.io/enforce": "restricted",
        } },
    });
    let (force, object) = (PatchParams::apply(names::MANAGER).force(), Patch::Apply(object));
    call(&doing, || namespaces.patch(namespace, &force, &object)).await.map(drop)
}
