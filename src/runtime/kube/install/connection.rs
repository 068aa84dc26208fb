//! The way to the API server from a person's machine: by the kubeconfig that kubectl would use.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject, TypeMeta},
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersionKind,
};

use super::Error;

/// A cluster that answered.
#[derive(Clone)]
pub struct Connection {
    pub(super) client: Client,
    /// Where its API server is.
    pub address: String,
    /// Of the API server.
    pub version: String,
}

impl Connection {
    /// Connects, and asks the API server for its version: what is wrong with file, network or credential is known here.
    pub async fn open(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Self, Error> {
        let file = match kubeconfig {
            Some(path) => read(path)?,
            None => find()?,
        };
        let proxied = file.clusters.iter().any(|named| {
            named.cluster.as_ref().is_some_and(|cluster| cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty()))
        });
        let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
        let made = Config::from_custom_kubeconfig(file, &options).await;
        let mut config = made.map_err(|error| unreachable(crate::telemetry::chain(&error)))?;
        config.connect_timeout = Some(CONNECT);
        if !proxied {
            // Variables of a proxy are for the world outside, not for the cluster.
            config.proxy_url = None;
        }
        let address = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|error| unreachable(crate::telemetry::chain(&error)))?;
        let asked = tokio::time::timeout(ANSWER, client.apiserver_version()).await;
        let late = |_| unreachable(format!("{address} did not answer within {} s", ANSWER.as_secs()));
        let version = asked.map_err(late)?.map_err(|error| match error {
            kube::Error::Api(status) => unreachable(format!("{address} answers {}: {}", status.code, status.message)),
            other => unreachable(format!("{address}: {}", crate::telemetry::chain(&other))),
        })?;
        Ok(Self { client, address, version: version.git_version })
    }

    /// Objects of whatever kind a manifest is of.
    pub(super) fn api_of(&self, types: &TypeMeta, namespace: Option<&str>) -> Api<DynamicObject> {
        let (group, version) = types.api_version.split_once('/').unwrap_or(("", &types.api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &types.kind));
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }
}

fn read(path: &Path) -> Result<Kubeconfig, Error> {
    let wrong = |error| unreachable(format!("the kubeconfig {} cannot be used: {error}", path.display()));
    Kubeconfig::read_from(path).map_err(|error| wrong(crate::telemetry::chain(&error)))
}

/// As kubectl does it; then where k3s and kubeadm leave theirs.
fn find() -> Result<Kubeconfig, Error> {
    if let Some(file) = Kubeconfig::from_env().map_err(|error| unreachable(crate::telemetry::chain(&error)))? {
        return Ok(file);
    }
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
    let places = home.into_iter().chain(OTHER_PLACES.map(PathBuf::from));
    match places.into_iter().find(|path| path.is_file()) {
        Some(path) => read(&path),
        None => Err(unreachable("neither KUBECONFIG nor ~/.kube/config names one; give --kubeconfig".to_owned())),
    }
}

fn unreachable(cause: String) -> Error {
    Error::Unreachable { cause }
}

const OTHER_PLACES: [&str; 2] = ["/etc/rancher/k3s/k3s.yaml", "/etc/kubernetes/admin.conf"];
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(15);
