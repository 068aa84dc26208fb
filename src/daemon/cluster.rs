//! A daemon of a cluster: its connection, its store, its runtime, and who leads.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use nix::fcntl::{Flock, FlockArg};

use super::{Error, own_image};
use crate::{
    auth::Auth,
    blob::SharedBlobs,
    config::{Config, Kubernetes},
    model::{Digest, SYSTEM_REPOSITORY},
    oci::registry::Registry,
    runtime::{Front, SharedRuntime, kube},
    store::kube::{self as kube_store, Cluster, Election, KubeConfig, KubeStore, Leadership, Terms},
};

/// The service of a daemon that was installed into a cluster.
const SERVICE: &str = "epiniod-registry";

/// Nodes learn of another pod with the traffic within a second or two.
const LINGER: Duration = Duration::from_secs(3);

/// A cluster that this daemon may use.
pub(super) struct Place {
    pub settings: Kubernetes,
    pub connection: Cluster,
    terms: Terms,
    /// This machine, or this pod.
    host: String,
    identity: String,
    _data_dir: Option<Flock<fs::File>>,
}

impl Place {
    pub async fn connect(settings: &Kubernetes, config: &Config) -> Result<Self, Error> {
        let connection = kube_store::connect(settings.kubeconfig.as_deref()).await?;
        let terms = match config.s3 {
            // Another one may lead as soon as the Lease has run out, and would find the same blobs.
            Some(_) => Terms::default(),
            // Blobs on a disk are this daemon's alone: it goes on when the API server is away, until another one leads.
            None => Terms { give_up: Duration::from_secs(24 * 3600), ..Terms::default() },
        };
        let data_dir = &config.data_dir;
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        // Who has this folder alone is who had it before: after a crash nobody has to wait until that one's right to lead
        // is over. The name of a pod says the same.
        let data_dir_lock = settings.kubeconfig.as_ref().and_then(|_| lock(data_dir));
        let identity = match &data_dir_lock {
            Some(_) => format!("{host}-{}", &Digest::of(data_dir.as_os_str().as_encoded_bytes()).hex()[..12]),
            None => format!("{host}-{}", std::process::id()),
        };
        Ok(Self { settings: settings.clone(), connection, terms, host, identity, _data_dir: data_dir_lock })
    }

    /// Gives the cluster time to lead requests to the one that takes over; those that still come are answered until then.
    pub async fn wait_until_unasked(&self) {
        let Some(traffic) = self.traffic() else { return };
        if traffic.has_others().await {
            tokio::time::sleep(LINGER).await;
        }
    }

    /// None for a daemon outside of the cluster: nodes are told its address.
    pub fn traffic(&self) -> Option<kube::Traffic> {
        let (is_inside, namespace) = (self.settings.is_inside(), &self.settings.namespace);
        is_inside.then(|| kube::Traffic::new(&self.connection, namespace, &self.host))
    }

    /// Waits until no other daemon of this cluster leads.
    pub async fn lead(&self) -> Result<Leadership, Error> {
        let (namespace, identity) = (&self.settings.namespace, self.identity.clone());
        Ok(Election::new(&self.connection, namespace, identity, self.terms).win().await?)
    }

    /// The store. From outside there may be nobody else who made what it needs.
    pub async fn store(&self) -> Result<Arc<KubeStore>, Error> {
        Ok(KubeStore::open(KubeConfig { cluster: self.connection.clone(), namespace: self.settings.namespace.clone() })
            .await?)
    }

    /// What an installation makes, for a daemon that drives a cluster from outside.
    pub async fn lay_out(&self) -> Result<(), Error> {
        if self.settings.kubeconfig.is_some() {
            kube_store::install_definition(&self.connection).await?;
            kube::make_namespace(&self.connection, &self.settings.namespace).await?;
        }
        Ok(())
    }
}

/// None while another daemon has this folder: then that one's right to lead is waited for.
fn lock(data_dir: &Path) -> Option<Flock<fs::File>> {
    fs::create_dir_all(data_dir).ok()?;
    let file = fs::File::create(data_dir.join("leader.lock")).ok()?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
}

/// The runtime, who is in front of the edge, and where jobs reach the registry.
pub(super) async fn open(
    config: &Config,
    place: &Place,
    registry_at: SocketAddr,
    blobs: &SharedBlobs,
    registry: &Registry,
    auth: &Arc<Auth>,
) -> Result<(SharedRuntime, Option<Arc<dyn Front>>, String), Error> {
    let kubernetes = &place.settings;
    let namespace = kubernetes.namespace.clone();
    let outside = kubernetes.advertise.as_ref().and_then(|address| address.parse().ok());
    let outside = outside.map(|address| SocketAddr::new(address, registry_at.port()));
    let inside = || format!("{SERVICE}.{namespace}.svc:{}", registry_at.port());
    let daemon = outside.map_or_else(inside, |address| address.to_string());
    let builds_namespace = format!("{namespace}-builds");
    let build_ca = match &config.build_ca {
        Some(path) => {
            let read = tokio::fs::read_to_string(path).await;
            Some(read.map_err(|source| Error::DataDir { path: path.clone(), source })?)
        }
        None => None,
    };
    let (builds, auth) = (builds_namespace.clone(), Arc::clone(auth));
    let own_image = own_image::publish(blobs, registry).await.map_err(Error::OwnImage)?;
    let settings = kube::Settings {
        namespace,
        builds_namespace,
        outside,
        daemon: daemon.clone(),
        own_image: own_image.to_string(),
        build_ca,
        scratch: config.data_dir.join("detections"),
        ingress_class: kubernetes.ingress_class.clone(),
        issuing: kubernetes.tls_issuer.clone().map_or(kube::Issuing::Daemon, kube::Issuing::ClusterIssuer),
        api_host: kubernetes.is_inside().then(|| format!("epinio.{}", config.system_domain)),
        // Builds stand on what is the system's; applications are their namespace's.
        pull_credential: Arc::new(move |namespace| {
            let repositories = if namespace == builds { SYSTEM_REPOSITORY } else { namespace };
            auth.pull_credential(&format!("{repositories}/"))
        }),
    };
    let runtime = kube::KubeRuntime::open(&place.connection, settings, Arc::clone(blobs)).await?;
    let front = kubernetes.is_behind_ingress().then(|| Arc::clone(&runtime) as Arc<dyn Front>);
    Ok((runtime, front, daemon))
}
