//! The runtime of a cluster, made from the settings.

use std::{net::SocketAddr, sync::Arc};

use super::{Error, own_image};
use crate::{
    auth::Auth,
    blob::SharedBlobs,
    config::{Config, Kubernetes},
    model::SYSTEM_REPOSITORY,
    oci::registry::Registry,
    runtime::{SharedRuntime, kube},
};

/// The service of a daemon that was installed into a cluster.
const SERVICE: &str = "epiniod-registry";

/// The runtime, and where its jobs reach the registry.
pub(super) async fn open(
    config: &Config,
    kubernetes: &Kubernetes,
    registry_at: SocketAddr,
    blobs: &SharedBlobs,
    registry: &Registry,
    auth: &Arc<Auth>,
) -> Result<(SharedRuntime, String), Error> {
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
        // Builds stand on what is the system's; applications are their namespace's.
        pull_credential: Arc::new(move |namespace| {
            let repositories = if namespace == builds { SYSTEM_REPOSITORY } else { namespace };
            auth.pull_credential(&format!("{repositories}/"))
        }),
    };
    let runtime = kube::KubeRuntime::connect(kubernetes.kubeconfig.as_deref(), settings, Arc::clone(blobs)).await?;
    Ok((runtime, daemon))
}
