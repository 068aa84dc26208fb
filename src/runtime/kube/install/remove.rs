//! The way out: everything of an installation goes, and what is left is looked for and named.
//!
//! What is found is found by labels, not by what this version would install: an older one may have made other objects.
//! Applications are deployments in namespaces of their own and run on, unless they are to go too.

use std::time::{Duration, Instant};

use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    networking::v1::Ingress,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, TypeMeta},
};

use super::{Bucket, Connection, DAEMON, Error, Installation, SYSTEM, failed, relay};
use crate::runtime::kube::names;

/// Whether applications go, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    RunOn,
    Go,
}

/// What belongs to an installation.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    namespace: String,
    /// Of the daemon, of builds, of an ingress controller that was brought along, of the relay.
    pub namespaces: Vec<String>,
    /// With applications in them, which this installation made.
    pub applications: Vec<String>,
    /// Where images and sources are, when not in the cluster: it stays as it is.
    pub bucket: Option<Bucket>,
    /// Whether no other daemon is in the cluster.
    is_last: bool,
    /// Objects that are in no namespace.
    cluster_wide: Vec<(TypeMeta, String)>,
}

impl Inventory {
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty() && self.cluster_wide.is_empty()
    }

    /// Whether data is in a directory of a node, which nobody can delete from here.
    pub fn keeps_directory(&self) -> bool {
        self.cluster_wide.iter().any(|(types, _)| types.kind == "PersistentVolume")
    }
}

/// Looks for everything of an installation.
pub async fn inventory(cluster: &Connection, namespace: &str) -> Result<Inventory, Error> {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let doing = "looking for what belongs to the installation";
    let ours = namespaces
        .list(&ListParams::default().labels(&format!("{}={}", names::MANAGED_BY, names::MANAGER)))
        .await
        .map_err(failed(doing))?
        .items;
    let system = |found: &Namespace| found.labels().get(SYSTEM).cloned();
    let own = ["", "-builds", "-ingress", relay::SUFFIX].map(|suffix| format!("{namespace}{suffix}"));
    let (mut inventory, mut unclaimed) =
        (Inventory { namespace: namespace.to_owned(), ..Inventory::default() }, Vec::new());
    for found in ours {
        match system(&found) {
            Some(system) if system == namespace && own.contains(&found.name_any()) => {
                inventory.namespaces.push(found.name_any());
            }
            Some(system) if system == namespace => inventory.applications.push(found.name_any()),
            Some(_) => {}
            None => unclaimed.push(found.name_any()),
        }
    }
    let found = super::detect(cluster, namespace).await?;
    inventory.bucket = found.before.and_then(|before| before.bucket);
    inventory.is_last = found.others.is_empty();
    // A namespace of applications may not say which daemon it is of: where there is only one, it is its.
    if inventory.is_last {
        inventory.applications.extend(unclaimed.into_iter().filter(|name| !own.contains(name)));
    }
    for (api_version, kind) in CLUSTER_WIDE {
        let types = TypeMeta { api_version: api_version.to_owned(), kind: kind.to_owned() };
        let of_system = ListParams::default().labels(&format!("{SYSTEM}={namespace}"));
        let found = cluster.api_of(&types, None).list(&of_system).await.map_err(failed(doing))?;
        inventory.cluster_wide.extend(found.items.into_iter().map(|object| (types.clone(), object.name_any())));
    }
    Ok(inventory)
}

/// Deletes it, and waits until it is gone. The daemon goes first: it would make things anew.
pub async fn remove(
    cluster: &Connection,
    inventory: &Inventory,
    applications: Fate,
    mut tell: impl FnMut(&str),
) -> Result<(), Error> {
    tell("stopping the daemon");
    stop_daemon(cluster, &inventory.namespace).await?;
    let mut going = inventory.namespaces.clone();
    if applications == Fate::Go {
        going.extend(inventory.applications.iter().cloned());
    }
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    for name in &going {
        tell(&format!("deleting namespace {name} with everything in it"));
        let gone = namespaces.delete(name, &DeleteParams::background()).await;
        ignore_missing(gone).map_err(failed(format!("deleting namespace {name}")))?;
    }
    wait_until_gone(cluster, &going, &mut tell).await?;
    // Last: until then a claim may need its volume, and finalizers a permission.
    for (types, name) in &inventory.cluster_wide {
        tell(&format!("deleting {} {name}", types.kind));
        let gone = cluster.api_of(types, None).delete(name, &DeleteParams::background()).await;
        ignore_missing(gone).map_err(failed(format!("deleting {} {name}", types.kind)))?;
    }
    if inventory.is_last && (applications == Fate::Go || inventory.applications.is_empty()) {
        // What applications are is defined for all daemons of the cluster; with the definition all of them go.
        tell("deleting the definition of applications");
        let (api_version, kind, name) = DEFINITION;
        let types = TypeMeta { api_version: api_version.to_owned(), kind: kind.to_owned() };
        let gone = cluster.api_of(&types, None).delete(name, &DeleteParams::background()).await;
        ignore_missing(gone).map_err(failed(format!("deleting {kind} {name}")))?;
    }
    let left = super::inventory(cluster, &inventory.namespace).await?;
    if left.is_empty() {
        return Ok(());
    }
    let wide = left.cluster_wide.iter().map(|(types, name)| format!("{} {name}", types.kind));
    Err(Error::Left { seconds: GOING.as_secs(), left: left.namespaces.into_iter().chain(wide).collect() })
}

/// Takes away what a later install does not want any more: the relay, and the ingress of the API.
pub async fn remove_unwanted(
    cluster: &Connection,
    installation: &Installation,
    tell: impl FnMut(&str),
) -> Result<(), Error> {
    relay::remove_unwanted(cluster, installation, tell).await?;
    if installation.ingress_class().is_some() {
        return Ok(());
    }
    let ingresses: Api<Ingress> = Api::namespaced(cluster.client.clone(), &installation.namespace);
    let gone = ingresses.delete(DAEMON, &DeleteParams::background()).await;
    ignore_missing(gone).map_err(failed("taking the ingress of the API away"))
}

async fn stop_daemon(cluster: &Connection, namespace: &str) -> Result<(), Error> {
    let doing = || format!("stopping the daemon in namespace {namespace}");
    let types = TypeMeta { api_version: "apps/v1".to_owned(), kind: "Deployment".to_owned() };
    let gone = cluster.api_of(&types, Some(namespace)).delete(DAEMON, &DeleteParams::foreground()).await;
    ignore_missing(gone).map_err(failed(doing()))?;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let of_daemon = ListParams::default().labels(names::DAEMON_PODS);
    let until = Instant::now() + STOPPING;
    while !pods.list(&of_daemon).await.map_err(failed(doing()))?.items.is_empty() {
        if Instant::now() >= until {
            let left = vec![format!("the daemon's pod in namespace {namespace}")];
            return Err(Error::Left { seconds: STOPPING.as_secs(), left });
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

pub(super) async fn wait_until_gone(
    cluster: &Connection,
    names: &[String],
    tell: &mut impl FnMut(&str),
) -> Result<(), Error> {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let until = Instant::now() + GOING;
    for name in names {
        tell(&format!("waiting until namespace {name} is gone"));
        while let Some(there) =
            namespaces.get_opt(name).await.map_err(failed(format!("waiting for the end of namespace {name}")))?
        {
            if Instant::now() >= until {
                return Err(Error::Left {
                    seconds: GOING.as_secs(),
                    left: vec![format!("namespace {name} ({})", why(&there))],
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

/// What a namespace itself says of what keeps it.
fn why(namespace: &Namespace) -> String {
    let conditions = namespace.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let said =
        conditions.filter(|condition| condition.status == "True").filter_map(|condition| condition.message.clone());
    let said: Vec<String> = said.collect();
    if said.is_empty() { "it does not say why".to_owned() } else { said.join("; ") }
}

fn ignore_missing<T>(result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

/// Objects without a namespace that an installation may have.
const CLUSTER_WIDE: [(&str, &str); 4] = [
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("networking.k8s.io/v1", "IngressClass"),
    ("v1", "PersistentVolume"),
];
const DEFINITION: (&str, &str, &str) = ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "apps.epiniod.dev");
const LOOK: Duration = Duration::from_millis(500);
const STOPPING: Duration = Duration::from_secs(90);
const GOING: Duration = Duration::from_secs(180);
