//! The runtime of a cluster: builds are jobs, applications are deployments with a service and, where a controller is
//! there for them, an ingress.
//!
//! The cluster keeps things going, not the daemon: a job goes on while no daemon is there, and a deployment keeps its
//! pods. What the daemon wants is written by server-side apply; what there is comes by watches.

mod beside;
pub mod install;
mod job;
mod logs;
mod names;
mod observe;
mod reach;
mod run;
mod step;
mod trouble;
mod workload;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
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

use self::observe::Observed;
pub use self::step::run_role;
use super::{Error, Job, JobId, LogLine, LogQuery, LogSink, Runtime, StepOutcome, Volumes, Workload, WorkloadStatus};
use crate::{
    blob::SharedBlobs,
    model::{AppName, ImageName, Namespace, REGISTRY_NAME, ReleaseId, Route},
};

/// Where applications listen.
const PORT: u16 = 8080;

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
    /// The credential that the kubelet pulls the images of a namespace with: name and password.
    pub pull_credential: Arc<dyn Fn(&str) -> (String, String) + Send + Sync>,
}

/// The runtime of a cluster.
pub struct KubeRuntime {
    cluster: Arc<Cluster>,
    exposed: Mutex<Option<Vec<(Namespace, AppName, Vec<Route>)>>>,
    version: String,
}

/// What everything here needs.
struct Cluster {
    client: Client,
    settings: Settings,
    blobs: SharedBlobs,
    observed: Arc<Observed>,
    /// Namespaces that are there and have the secret for pulls.
    prepared: Mutex<std::collections::HashSet<String>>,
}

impl Cluster {
    fn jobs(&self) -> Api<ClusterJob> {
        Api::namespaced(self.client.clone(), &self.settings.builds_namespace)
    }

    /// The pods of jobs.
    fn builds(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.settings.builds_namespace)
    }
}

impl KubeRuntime {
    /// Connects by a kubeconfig file, or as a pod of the cluster.
    pub async fn connect(
        kubeconfig: Option<&std::path::Path>,
        settings: Settings,
        blobs: SharedBlobs,
    ) -> Result<Arc<Self>, Error> {
        let wrong = |error: String| Error::Failed { doing: "connecting to the cluster".to_owned(), cause: error };
        let config = match kubeconfig {
            Some(path) => {
                let file = kube::config::Kubeconfig::read_from(path).map_err(|error| wrong(error.to_string()))?;
                let made = kube::Config::from_custom_kubeconfig(file, &Default::default()).await;
                made.map_err(|error| wrong(error.to_string()))?
            }
            None => kube::Config::incluster().map_err(|error| wrong(error.to_string()))?,
        };
        let client = Client::try_from(config).map_err(|error| wrong(error.to_string()))?;
        Self::open(client, settings, blobs).await
    }

    /// Makes what builds need, and begins to watch what runs.
    pub async fn open(client: Client, settings: Settings, blobs: SharedBlobs) -> Result<Arc<Self>, Error> {
        let version = client.apiserver_version().await.map_err(failed("asking the API server for its version"))?;
        let observed = Observed::start(&client).await?;
        if let Some(daemon) = settings.outside {
            reach::from_nodes(&client, &settings.namespace, daemon).await?;
        }
        let cluster = Arc::new(Cluster { client, settings, blobs, observed, prepared: Mutex::default() });
        lay_out_builds(&cluster).await?;
        Ok(Arc::new(Self { cluster, exposed: Mutex::default(), version: version.git_version }))
    }
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

    async fn workloads(&self) -> Result<Vec<ReleaseId>, Error> {
        Ok(self.cluster.observed.releases())
    }

    fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.cluster.observed.changes()
    }

    async fn remove(&self, id: &ReleaseId, grace: Duration) -> Result<(), Error> {
        workload::remove(&self.cluster, id, grace).await
    }

    async fn expose(&self, routes: Vec<(Namespace, AppName, Vec<Route>)>) -> Result<(), Error> {
        let Some(class) = &self.cluster.settings.ingress_class else { return Ok(()) };
        if self.exposed.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(&routes) {
            return Ok(());
        }
        workload::expose(&self.cluster, class, &routes).await?;
        *self.exposed.lock().unwrap_or_else(PoisonError::into_inner) = Some(routes);
        Ok(())
    }

    async fn logs(
        &self,
        namespace: &Namespace,
        app: &AppName,
        query: LogQuery,
    ) -> Result<BoxStream<'static, LogLine>, Error> {
        Ok(logs::read(Arc::clone(&self.cluster), namespace, app, query))
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

/// The namespace of builds, and what all of them share.
async fn lay_out_builds(cluster: &Cluster) -> Result<(), Error> {
    let name = &cluster.settings.builds_namespace;
    prepare_namespace(cluster, name).await?;
    if let Some(authorities) = &cluster.settings.build_ca {
        let doing = || format!("writing the certificate authorities for builds into namespace {name}");
        let force = PatchParams::apply(names::MANAGER).force();
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), name);
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": names::BUILD_CA, "labels": { names::MANAGED_BY: names::MANAGER } },
            "data": { "ca.crt": authorities },
        });
        maps.patch(names::BUILD_CA, &force, &Patch::Apply(map)).await.map_err(failed(doing()))?;
    }
    Ok(())
}

/// Makes a namespace that is not there, and the secret with which the kubelet pulls its images; once by each daemon.
async fn prepare_namespace(cluster: &Cluster, namespace: &str) -> Result<(), Error> {
    if cluster.prepared.lock().unwrap_or_else(PoisonError::into_inner).contains(namespace) {
        return Ok(());
    }
    let namespaces: Api<ClusterNamespace> = Api::all(cluster.client.clone());
    let doing = || format!("making namespace {namespace}");
    if namespaces.get_opt(namespace).await.map_err(failed(doing()))?.is_none() {
        let object = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": namespace, "labels": {
                names::MANAGED_BY: names::MANAGER,
                "pod-security.kubernetes.io/enforce": "restricted",
            } },
        });
        let force = PatchParams::apply(names::MANAGER).force();
        namespaces.patch(namespace, &force, &Patch::Apply(object)).await.map_err(failed(doing()))?;
    }
    let (name, password) = (cluster.settings.pull_credential)(namespace);
    let auth = STANDARD.encode(format!("{name}:{password}"));
    let config = json!({ "auths": { REGISTRY_NAME: { "username": name, "password": password, "auth": auth } } });
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/dockerconfigjson",
        "metadata": { "name": names::PULL_SECRET, "labels": { names::MANAGED_BY: names::MANAGER } },
        "stringData": { ".dockerconfigjson": config.to_string() },
    });
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let force = PatchParams::apply(names::MANAGER).force();
    let doing = || format!("writing the secret for pulls in namespace {namespace}");
    secrets.patch(names::PULL_SECRET, &force, &Patch::Apply(secret)).await.map_err(failed(doing()))?;
    cluster.prepared.lock().unwrap_or_else(PoisonError::into_inner).insert(namespace.to_owned());
    Ok(())
}

/// What the API server refused or did not answer, in plain words.
fn failed(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    let doing = doing.into();
    move |error| {
        let cause = match &error {
            kube::Error::Api(status) if status.code == 403 => {
                format!(
                    "the daemon may not do that in this cluster: {}; 'epiniod install' sets its permissions",
                    status.message
                )
            }
            kube::Error::Api(status) if status.code == 401 => {
                format!("the API server does not know the daemon's credential: {}", status.message)
            }
            kube::Error::Api(status) => status.message.clone(),
            other => format!("the API server does not answer: {}", crate::telemetry::chain(other)),
        };
        Error::Failed { doing, cause }
    }
}
