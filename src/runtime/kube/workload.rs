//! A release as the cluster gets it: a deployment that rolls, a service in front of it, and its environment as a secret.
//!
//! There is one deployment for an application, whatever its release: the cluster brings a new release up pod by pod and
//! takes the old one away as the new one serves. A release that does not come up is undone.

use std::{
    collections::BTreeMap,
    sync::PoisonError,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::{Secret, Service},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    BELIEVED, Cluster, PORT,
    call::{call, call_unless_missing},
    job::resources,
    names, observe,
    user::{self, User},
};
use crate::{
    model::{AppName, Digest, Namespace, ReleaseId},
    runtime::{Error, Workload},
};

/// Between the moment a pod is told to go and the moment its program is: so long proxies may take to notice, in seconds.
const UNNOTICED: u64 = 5;
/// Between SIGTERM and SIGKILL, in seconds.
const GRACE: u64 = 10;
/// How long a program may take until it accepts connections, in seconds; the health gate may give up before.
const START: u64 = 120;
/// So many releases before one that goes may have left their environment when a daemon was killed.
const MISSED: u64 = 10;
/// The container of an instance.
pub(super) const CONTAINER: &str = "app";
/// How long the cluster may take to see that a deployment was changed.
const NOTICING: Duration = Duration::from_secs(10);
/// What a pod that is told to go may take beyond its grace.
const GOING: Duration = Duration::from_secs(60);

/// What an application was last made in the cluster, and when. Whatever somebody else does to it changes a mark.
pub(super) struct Applied {
    wanted: Digest,
    deployment: String,
    service: String,
    at: Instant,
}

/// Makes the cluster have this release with so many instances.
pub(super) async fn apply(cluster: &Cluster, workload: &Workload) -> Result<(), Error> {
    let id = &workload.id;
    let system = cluster.settings.namespace.as_str();
    let deployment = deployment(system, workload, user::of_image(cluster, &workload.image).await?);
    let wanted = Digest::of(deployment.to_string().as_bytes());
    if is_applied(cluster, id, wanted) {
        return Ok(());
    }
    let doing = format!("applying release {id}");
    let (namespace, app) = (id.namespace.as_str(), id.app.as_str());
    super::prepare_namespace(cluster, namespace).await?;
    let force = PatchParams::apply(names::MANAGER).force();
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let (name, environment) = (names::environment(id), Patch::Apply(environment(system, workload)));
    call(&doing, || secrets.patch(&name, &force, &environment)).await?;
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
    let service = Patch::Apply(service(system, id));
    let service = call(&doing, || services.patch(app, &force, &service)).await?;
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
    let deployment = Patch::Apply(deployment);
    let deployment = call(&doing, || deployments.patch(app, &force, &deployment)).await?;
    let (deployment, service) = (observe::mark(deployment.meta()), observe::mark(service.meta()));
    let applied = Applied { wanted, deployment, service, at: Instant::now() };
    let mut all = cluster.applied.lock().unwrap_or_else(PoisonError::into_inner);
    all.insert((id.namespace.clone(), id.app.clone()), applied);
    Ok(())
}

/// Whether everything is as it was made, as far as watches tell. Of what they do not tell that is believed for a while;
/// to apply what is so already costs little.
fn is_applied(cluster: &Cluster, id: &ReleaseId, wanted: Digest) -> bool {
    let all = cluster.applied.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(applied) = all.get(&(id.namespace.clone(), id.app.clone())) else { return false };
    let deployment = cluster.observed.deployment(&id.namespace, &id.app);
    let service = cluster.observed.service(&id.namespace, &id.app);
    let same = |now: Option<&ObjectMeta>, mark: &String| {
        now.is_some_and(|now| observe::mark(now) == *mark && now.deletion_timestamp.is_none())
    };
    applied.wanted == wanted
        && applied.at.elapsed() < BELIEVED
        && same(deployment.as_deref().map(Deployment::meta), &applied.deployment)
        && same(service.as_deref().map(Service::meta), &applied.service)
}

/// Takes a release away. When it is what the deployment is at, and an older one still has pods, the deployment goes back
/// to that; without one it goes.
pub(super) async fn remove(cluster: &Cluster, id: &ReleaseId, grace: Duration) -> Result<(), Error> {
    let doing = format!("stopping release {id}");
    let (namespace, app) = (id.namespace.as_str(), id.app.as_str());
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
    let there = call(&doing, || deployments.get_opt(app)).await?;
    if there.as_ref().is_some_and(|there| observe::current(there).as_ref() == Some(id)) {
        match before(cluster, id).await? {
            Some(template) => {
                // Replaced, not merged: what only the failed release has must not stay.
                let undo = Patch::Merge(json!({ "spec": { "template": template } }));
                let merge = PatchParams::default();
                let undone = call(&doing, || deployments.patch(app, &merge, &undo)).await?;
                throw_away(cluster, id, undone.metadata.generation).await?;
            }
            None => {
                let (foreground, at_once) = (DeleteParams::foreground(), DeleteParams::default());
                call_unless_missing(&doing, || deployments.delete(app, &foreground)).await?;
                let services: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
                call_unless_missing(&doing, || services.delete(app, &at_once)).await?;
            }
        }
        let mut all = cluster.applied.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&(id.namespace.clone(), id.app.clone()));
    }
    wait_until_gone(cluster, id, grace).await?;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let at_once = DeleteParams::default();
    // By their names: who may list secrets may read them, everybody's.
    for number in id.number.saturating_sub(MISSED)..=id.number {
        let release = ReleaseId { number, ..id.clone() };
        if release == *id || is_over(cluster, &release, id) {
            let name = names::environment(&release);
            call_unless_missing(&doing, || secrets.delete(&name, &at_once)).await?;
        }
    }
    Ok(())
}

/// Whether only the environment is left of a release that is older than the one which goes: a daemon was killed then.
fn is_over(cluster: &Cluster, release: &ReleaseId, going: &ReleaseId) -> bool {
    let deployment = cluster.observed.deployment(&release.namespace, &release.app);
    release.number < going.number
        && deployment.is_none_or(|there| observe::current(&there).as_ref() != Some(release))
        && cluster.observed.pods_of_release(release).is_empty()
}

/// Deletes the replica sets of a release that was undone. The deployment alone would keep its pods for as long as those of
/// the release before are not available either.
async fn throw_away(cluster: &Cluster, id: &ReleaseId, undone: Option<i64>) -> Result<(), Error> {
    let until = Instant::now() + NOTICING;
    let mut changes = cluster.observed.changes();
    // A controller that has not seen yet that it was undone would make them again.
    let noticed = || {
        let deployment = cluster.observed.deployment(&id.namespace, &id.app);
        deployment.and_then(|there| there.status.as_ref()?.observed_generation) >= undone
    };
    while !noticed() && Instant::now() < until {
        let _ = tokio::time::timeout(Duration::from_millis(500), changes.changed()).await;
    }
    let doing = format!("stopping release {id}");
    let sets: Api<ReplicaSet> = Api::namespaced(cluster.client.clone(), id.namespace.as_str());
    let of_release = format!("{}={},{}={}", names::APP, id.app, names::RELEASE, id.number);
    let of_release = names::ours_with(&cluster.settings.namespace, &of_release);
    let of_release = ListParams::default().labels(&of_release);
    let background = DeleteParams::background();
    for set in call(&doing, || sets.list_metadata(&of_release)).await?.items {
        let name = set.name_any();
        call_unless_missing(&doing, || sets.delete(&name, &background)).await?;
    }
    Ok(())
}

/// The pod template of the newest other release that still has pods.
async fn before(cluster: &Cluster, id: &ReleaseId) -> Result<Option<Value>, Error> {
    let sets: Api<ReplicaSet> = Api::namespaced(cluster.client.clone(), id.namespace.as_str());
    let of_app = ListParams::default()
        .labels(&names::ours_with(&cluster.settings.namespace, &format!("{}={}", names::APP, id.app)));
    let sets = call(&format!("looking for what ran before release {id}"), || sets.list(&of_app)).await?;
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
pub(super) fn labels(system: &str, namespace: &Namespace, app: &AppName) -> BTreeMap<&'static str, String> {
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

fn deployment(system: &str, workload: &Workload, user: Option<User>) -> Value {
    let id = &workload.id;
    let mut security = json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } });
    if let Some(User { uid, gid }) = user {
        (security["runAsUser"], security["runAsGroup"]) = (json!(uid), json!(gid));
    }
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
                    "securityContext": security,
                    "containers": [container],
                },
            },
        },
    })
}
