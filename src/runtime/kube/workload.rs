//! A release as the cluster gets it: a deployment that rolls, a service in front of it, its environment as a secret, and
//! an ingress for each host where a controller is there for them.
//!
//! There is one deployment for an application, whatever its release: the cluster brings a new release up pod by pod and
//! takes the old one away as the new one serves. A release that does not come up is undone.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{Secret, Service},
    networking::v1::Ingress,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{Cluster, PORT, failed, job::resources, names, observe};
use crate::{
    model::{AppName, Digest, Namespace, ReleaseId, Route},
    runtime::{Error, Workload},
};

/// Between the moment a pod is told to go and the moment its program is: so long proxies may take to notice, in seconds.
const UNNOTICED: u64 = 5;
/// Between SIGTERM and SIGKILL, in seconds.
const GRACE: u64 = 10;
/// How long a program may take until it accepts connections, in seconds; the health gate may give up before.
const START: u64 = 120;
/// The container of an instance.
pub(super) const CONTAINER: &str = "app";
/// What a pod that is told to go may take beyond its grace.
const GOING: Duration = Duration::from_secs(60);

/// Makes the cluster have this release with so many instances.
pub(super) async fn apply(cluster: &Cluster, workload: &Workload) -> Result<(), Error> {
    let id = &workload.id;
    let doing = || format!("applying release {id}");
    let system = cluster.settings.namespace.as_str();
    let deployment = deployment(system, workload);
    let applied = Digest::of(deployment.to_string().as_bytes()).to_string();
    if is_applied(cluster, id, &applied, workload.instances) {
        return Ok(());
    }
    super::prepare_namespace(cluster, id.namespace.as_str()).await?;
    let namespace = id.namespace.as_str();
    let force = PatchParams::apply(names::MANAGER).force();
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let name = names::environment(id);
    secrets.patch(&name, &force, &Patch::Apply(environment(system, workload))).await.map_err(failed(doing()))?;
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
    services.patch(id.app.as_str(), &force, &Patch::Apply(service(system, id))).await.map_err(failed(doing()))?;
    let mut deployment = deployment;
    deployment["metadata"]["annotations"] = json!({ names::APPLIED: applied });
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
    deployments.patch(id.app.as_str(), &force, &Patch::Apply(deployment)).await.map_err(failed(doing()))?;
    Ok(())
}

/// Whether the deployment is what this would make of it. Somebody else's changes of what matters are seen, too.
fn is_applied(cluster: &Cluster, id: &ReleaseId, applied: &str, instances: u32) -> bool {
    cluster.observed.deployment(&id.namespace, &id.app).is_some_and(|there| {
        let replicas = there.spec.as_ref().and_then(|spec| spec.replicas);
        there.annotations().get(names::APPLIED).map(String::as_str) == Some(applied)
            && observe::current(&there).as_ref() == Some(id)
            && replicas.and_then(|replicas| u32::try_from(replicas).ok()) == Some(instances)
            && there.metadata.deletion_timestamp.is_none()
    })
}

/// Takes a release away. When it is what the deployment is at, and an older one still has pods, the deployment goes back
/// to that; without one it goes.
pub(super) async fn remove(cluster: &Cluster, id: &ReleaseId, grace: Duration) -> Result<(), Error> {
    let doing = || format!("stopping release {id}");
    let namespace = id.namespace.as_str();
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
    let there = deployments.get_opt(id.app.as_str()).await.map_err(failed(doing()))?;
    if there.as_ref().is_some_and(|there| observe::current(there).as_ref() == Some(id)) {
        match before(cluster, id).await? {
            Some(template) => {
                let undo = json!({
                    "metadata": { "annotations": { names::APPLIED: null } },
                    "spec": { "template": template },
                });
                // Replaced, not merged: what only the failed release has must not stay.
                let undo = Patch::Merge(undo);
                deployments.patch(id.app.as_str(), &PatchParams::default(), &undo).await.map_err(failed(doing()))?;
            }
            None => {
                let gone = deployments.delete(id.app.as_str(), &DeleteParams::foreground()).await;
                super::run::ignore_missing(gone).map_err(failed(doing()))?;
                let services: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
                let gone = services.delete(id.app.as_str(), &DeleteParams::default()).await;
                super::run::ignore_missing(gone).map_err(failed(doing()))?;
            }
        }
    }
    wait_until_gone(cluster, id, grace).await?;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let gone = secrets.delete(&names::environment(id), &DeleteParams::default()).await;
    super::run::ignore_missing(gone).map_err(failed(doing()))
}

/// The pod template of the newest other release that still has pods.
async fn before(cluster: &Cluster, id: &ReleaseId) -> Result<Option<Value>, Error> {
    let sets: Api<ReplicaSet> = Api::namespaced(cluster.client.clone(), id.namespace.as_str());
    let of_app = ListParams::default()
        .labels(&names::ours_with(&cluster.settings.namespace, &format!("{}={}", names::APP, id.app)));
    let sets = sets.list(&of_app).await.map_err(failed(format!("looking for what ran before release {id}")))?;
    let other = |set: &ReplicaSet| {
        let release = observe::release_of(set).filter(|release| release != id)?;
        let pods = set.status.as_ref().map_or(0, |status| status.replicas);
        (pods > 0).then_some(release.number)
    };
    let newest = sets.items.into_iter().filter_map(|set| Some((other(&set)?, set))).max_by_key(|(number, _)| *number);
    let Some(mut template) = newest.and_then(|(_, set)| set.spec?.template) else { return Ok(None) };
    if let Some(labels) = template.metadata.as_mut().and_then(|metadata| metadata.labels.as_mut()) {
        labels.remove("pod-template-hash");
    }
    let doing = || format!("going back from release {id}");
    serde_json::to_value(template).map(Some).map_err(|error| Error::Failed { doing: doing(), cause: error.to_string() })
}

async fn wait_until_gone(cluster: &Cluster, id: &ReleaseId, grace: Duration) -> Result<(), Error> {
    let until = Instant::now() + grace + GOING + Duration::from_secs(UNNOTICED + GRACE);
    let mut changes = cluster.observed.changes();
    loop {
        let left = cluster.observed.pods_of_release(id);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            let names: Vec<String> = left.iter().map(|pod| pod.name_any()).collect();
            let cause = format!("its pods do not go: {}", names.join(", "));
            return Err(Error::Failed { doing: format!("stopping release {id}"), cause });
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), changes.changed()).await;
    }
}

/// What the labels of everything of an application have in common.
fn labels(system: &str, namespace: &Namespace, app: &AppName) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        (names::SYSTEM, system.to_owned()),
        (names::MANAGED_BY, names::MANAGER.to_owned()),
        ("app.kubernetes.io/name", app.to_string()),
        ("app.kubernetes.io/part-of", namespace.to_string()),
        (names::APP, app.to_string()),
    ])
}

fn labels_of_release(system: &str, id: &ReleaseId) -> BTreeMap<&'static str, String> {
    let mut labels = labels(system, &id.namespace, &id.app);
    labels.insert(names::RELEASE, id.number.to_string());
    labels
}

fn environment(system: &str, workload: &Workload) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": names::environment(&workload.id), "labels": labels_of_release(system, &workload.id) },
        "stringData": workload.env,
    })
}

fn service(system: &str, id: &ReleaseId) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": id.app, "labels": labels(system, &id.namespace, &id.app) },
        "spec": {
            "selector": { names::APP: id.app },
            "ports": [{ "name": "http", "port": 80, "targetPort": PORT, "protocol": "TCP" }],
        },
    })
}

fn deployment(system: &str, workload: &Workload) -> Value {
    let id = &workload.id;
    let answers = json!({ "port": PORT });
    let container = json!({
        "name": CONTAINER,
        "image": workload.image.to_string(),
        "imagePullPolicy": "IfNotPresent",
        "env": [{ "name": "PORT", "value": PORT.to_string() }],
        "envFrom": [{ "secretRef": { "name": names::environment(id) } }],
        "ports": [{ "name": "http", "containerPort": PORT, "protocol": "TCP" }],
        "startupProbe": { "tcpSocket": answers, "periodSeconds": 1, "failureThreshold": START },
        "readinessProbe": { "tcpSocket": answers, "periodSeconds": 5, "failureThreshold": 2 },
        "livenessProbe": { "tcpSocket": answers, "periodSeconds": 10, "failureThreshold": 6 },
        "lifecycle": { "preStop": { "sleep": { "seconds": UNNOTICED } } },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": resources(&workload.limits),
        "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
    });
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": id.app, "labels": labels(system, &id.namespace, &id.app) },
        "spec": {
            "replicas": workload.instances,
            "revisionHistoryLimit": 2,
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "selector": { "matchLabels": { names::APP: id.app } },
            "template": {
                "metadata": { "labels": labels_of_release(system, id) },
                "spec": {
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "terminationGracePeriodSeconds": UNNOTICED + GRACE,
                    "imagePullSecrets": [{ "name": names::PULL_SECRET }],
                    "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
                    "containers": [container],
                },
            },
        },
    })
}

/// Makes the ingresses of all applications what they should be.
pub(super) async fn expose(
    cluster: &Cluster,
    class: &str,
    routes: &[(Namespace, AppName, Vec<Route>)],
) -> Result<(), Error> {
    let doing = || "writing ingresses".to_owned();
    let all: Api<Ingress> = Api::all(cluster.client.clone());
    let ours = ListParams::default().labels(&names::ours_with(&cluster.settings.namespace, names::APP));
    let there = all.list(&ours).await.map_err(failed(doing()))?.items;
    for (namespace, app, routes) in routes {
        let ingresses: Api<Ingress> = Api::namespaced(cluster.client.clone(), namespace.as_str());
        let mut wanted = ingress(&cluster.settings.namespace, namespace, app, class, routes);
        let applied = Digest::of(wanted.to_string().as_bytes()).to_string();
        let same = |ingress: &&Ingress| {
            ingress.namespace().as_deref() == Some(namespace.as_str())
                && ingress.name_any() == app.as_str()
                && ingress.annotations().get(names::APPLIED) == Some(&applied)
        };
        if there.iter().find(same).is_none() {
            wanted["metadata"]["annotations"] = json!({ names::APPLIED: applied });
            let force = PatchParams::apply(names::MANAGER).force();
            ingresses.patch(app.as_str(), &force, &Patch::Apply(wanted)).await.map_err(failed(doing()))?;
        }
    }
    for ingress in there {
        let (namespace, name) = (ingress.namespace().unwrap_or_default(), ingress.name_any());
        if !routes.iter().any(|(ns, app, _)| ns.as_str() == namespace && app.as_str() == name) {
            let ingresses: Api<Ingress> = Api::namespaced(cluster.client.clone(), &namespace);
            let gone = ingresses.delete(&name, &DeleteParams::default()).await;
            super::run::ignore_missing(gone).map_err(failed(doing()))?;
        }
    }
    Ok(())
}

fn ingress(system: &str, namespace: &Namespace, app: &AppName, class: &str, routes: &[Route]) -> Value {
    let rule = |route: &Route| {
        let path = if route.path().is_empty() { "/" } else { route.path() };
        let backend = json!({ "service": { "name": app, "port": { "number": 80 } } });
        json!({ "host": route.host(), "http": { "paths": [{ "path": path, "pathType": "Prefix", "backend": backend }] } })
    };
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": { "name": app, "labels": labels(system, namespace, app) },
        "spec": { "ingressClassName": class, "rules": routes.iter().map(rule).collect::<Vec<_>>() },
    })
}
