//! The way to the API server: from inside a pod, or by a kubeconfig file.
//!
//! [`Cluster`] is opaque: types of Kubernetes crates are for `store/kube` and `runtime/kube` alone.

use std::{path::Path, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use super::call::{Failure, innermost};
use crate::store::Error;

/// A cluster that answered.
#[derive(Clone)]
pub struct Cluster {
    /// For streams that may be silent for long (logs, exec): their reader knows when to give up.
    pub(crate) client: Client,
    /// For calls and watches: a connection that is dead without a word ends.
    pub(crate) calls: Client,
    /// The namespace of the pod or of the kubeconfig's context.
    pub(crate) namespace: String,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Where a daemon is that was not told its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

/// Connects by a kubeconfig file, or without one as the pod that this process is in, and asks the API server who it
/// is: what is wrong with file, network, certificate or credential is known here.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Cluster, Error> {
    let doing = match kubeconfig {
        Some(path) => format!("connecting to the cluster of {}", path.display()),
        None => "connecting to the cluster that this process runs in".to_owned(),
    };
    let failed = |cause: String| Error::Backend { doing: doing.clone(), cause };
    let mut config = match kubeconfig {
        Some(path) => from_file(path).await.map_err(&failed)?,
        None => Config::incluster()
            .map_err(|error| failed(format!("{}; outside of a pod name a kubeconfig file", innermost(&error))))?,
    };
    config.connect_timeout = Some(CONNECT);
    // Calls have deadlines and repetitions of their own.
    config.default_retry = false;
    let url = config.cluster_url.to_string();
    let namespace = config.default_namespace.clone();
    let make = |config: Config| Client::try_from(config).map_err(|error| failed(innermost(&error)));
    let client = make(config.clone())?;
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    let calls = make(config)?;
    let cluster = Cluster { client, calls, namespace };
    match tokio::time::timeout(ANSWER, cluster.client.apiserver_version()).await {
        Ok(Ok(_)) => Ok(cluster),
        Ok(Err(error)) => Err(failed(reason(&url, &error))),
        Err(_) => Err(failed(format!("{url} did not answer within {} s", ANSWER.as_secs()))),
    }
}

async fn from_file(path: &Path) -> Result<Config, String> {
    let text = tokio::fs::read_to_string(path).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => error.to_string(),
    })?;
    let mut kubeconfig =
        Kubeconfig::from_yaml(&text).map_err(|error| format!("the file is not a kubeconfig: {}", innermost(&error)))?;
    anchor(&mut kubeconfig, path.parent().unwrap_or(Path::new(".")));
    let proxy = kubeconfig.clusters.iter().any(|named| {
        named.cluster.as_ref().is_some_and(|cluster| cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty()))
    });
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(unusable)?;
    if !proxy {
        // Variables of a proxy are for builds; kube would take them for the API server, too, and then refuse.
        config.proxy_url = None;
    }
    Ok(config)
}

/// Files that a kubeconfig names are relative to it.
fn anchor(kubeconfig: &mut Kubeconfig, dir: &Path) {
    let absolute = |file: &mut Option<String>| {
        if let Some(name) = file.take().filter(|name| !name.is_empty()) {
            *file = Some(dir.join(name).to_string_lossy().into_owned());
        }
    };
    for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        absolute(&mut cluster.certificate_authority);
    }
    for user in kubeconfig.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
        absolute(&mut user.client_certificate);
        absolute(&mut user.client_key);
        absolute(&mut user.token_file);
    }
}

fn unusable(error: KubeconfigError) -> String {
    match error {
        KubeconfigError::CurrentContextNotSet => {
            "it has no current context; choose one with `kubectl config use-context`".to_owned()
        }
        KubeconfigError::LoadContext(context) => {
            format!("its current context '{context}' is not in it; choose another with `kubectl config use-context`")
        }
        KubeconfigError::LoadClusterOfContext(cluster) => {
            format!("the cluster '{cluster}' of its context is not in it")
        }
        other => innermost(&other),
    }
}

fn reason(url: &str, error: &kube::Error) -> String {
    match Failure::of(error).code() {
        Some(401) => format!("{url} does not accept this credential (401); it may have expired"),
        Some(code) => format!("{url} answers {code}: {}", innermost(error)),
        None if innermost(error).contains("certificate") => {
            format!("{url} cannot be trusted: {}; is the authority in the kubeconfig the cluster's?", innermost(error))
        }
        None => format!("{url} cannot be reached: {}", innermost(error)),
    }
}

const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(15);
/// Watches end after 30 s by themselves.
const SILENCE: Duration = Duration::from_secs(40);
