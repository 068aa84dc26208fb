//! What runs in the cluster, kept up to date by watches: pods, deployments and services of ours.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Debug,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        core::v1::{ContainerStateTerminated, ContainerStatus, Pod, Service},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{PORT, logs, names, run::WATCH_SECONDS, trouble};
use crate::{
    model::{AppName, Namespace, ReleaseId, Timestamp},
    runtime::{Ended, Error, Instance, InstanceState, WorkloadStatus},
};

/// How long the first look may take.
const FIRST_LOOK: Duration = Duration::from_secs(30);
/// Lines of a container that are shown when it ended by itself.
const LAST_WORDS: usize = 20;
/// The kubelet waits at most so long before it starts a container again.
const LONGEST_BACK_OFF: i64 = 300;

/// What is known of the cluster.
pub(super) struct Observed {
    pods: Store<Pod>,
    deployments: Store<Deployment>,
    services: Store<Service>,
    changes: watch::Sender<u64>,
    drift: watch::Sender<u64>,
}

impl Observed {
    /// Begins to watch, and waits for the first look.
    pub async fn start(client: &Client, system: &str) -> Result<Arc<Self>, Error> {
        let (changes, drift) = (watch::Sender::new(0), watch::Sender::new(0));
        let pods = keep(Api::<Pod>::all(client.clone()), system, changes.clone(), None);
        let deployments = keep(Api::<Deployment>::all(client.clone()), system, changes.clone(), Some(drift.clone()));
        let services = keep(Api::<Service>::all(client.clone()), system, changes.clone(), Some(drift.clone()));
        let first = async {
            pods.wait_until_ready().await?;
            services.wait_until_ready().await?;
            deployments.wait_until_ready().await
        };
        let late = |cause: String| Error::Failed { doing: "looking at what runs in the cluster".to_owned(), cause };
        match tokio::time::timeout(FIRST_LOOK, first).await {
            Ok(Ok(())) => Ok(Arc::new(Self { pods, deployments, services, changes, drift })),
            Ok(Err(error)) => Err(late(error.to_string())),
            Err(_) => Err(late(format!(
                "the API server does not list pods, services and deployments within {} s; is the daemon permitted to list and watch them?",
                FIRST_LOOK.as_secs()
            ))),
        }
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Something is to be looked at that no watch tells of.
    pub fn tell(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Counts changes of deployments and services that are more than news of what goes on.
    pub fn drift(&self) -> watch::Receiver<u64> {
        self.drift.subscribe()
    }

    pub fn pod(&self, namespace: Option<&str>, name: &str) -> Option<Arc<Pod>> {
        self.pods.get(&ObjectRef::new(name).within(namespace?))
    }

    pub fn pods_of(&self, namespace: &Namespace, app: &AppName) -> Vec<Arc<Pod>> {
        self.pods.state_filter(|pod| {
            pod.namespace().as_deref() == Some(namespace.as_str())
                && pod.labels().get(names::APP).map(String::as_str) == Some(app.as_str())
        })
    }

    pub fn instances_of(&self, namespace: &Namespace, app: &AppName) -> Vec<Instance> {
        self.pods_of(namespace, app).iter().map(|pod| instance(pod)).collect()
    }

    pub fn pods_of_release(&self, id: &ReleaseId) -> Vec<Arc<Pod>> {
        let mut pods = self.pods_of(&id.namespace, &id.app);
        pods.retain(|pod| release_of(pod.as_ref()).as_ref() == Some(id));
        pods
    }

    pub fn deployment(&self, namespace: &Namespace, app: &AppName) -> Option<Arc<Deployment>> {
        self.deployments.get(&ObjectRef::new(app.as_str()).within(namespace.as_str()))
    }

    pub fn service(&self, namespace: &Namespace, app: &AppName) -> Option<Arc<Service>> {
        self.services.get(&ObjectRef::new(app.as_str()).within(namespace.as_str()))
    }

    /// All releases that pods or deployments are left of.
    pub fn releases(&self) -> Vec<ReleaseId> {
        let pods = self.pods.state().into_iter().filter_map(|pod| release_of(pod.as_ref()));
        let deployments = self.deployments.state().into_iter().filter_map(|deployment| current(&deployment));
        pods.chain(deployments).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The pods of a release as instances; none when nothing is known of it.
    pub fn status(&self, id: &ReleaseId) -> Option<WorkloadStatus> {
        let pods = self.pods_of_release(id);
        let deployment = self.deployment(&id.namespace, &id.app).filter(|d| current(d).as_ref() == Some(id));
        if pods.is_empty() && deployment.is_none() {
            return None;
        }
        let mut instances: Vec<Instance> = pods.iter().map(|pod| instance(pod)).collect();
        // Where no pod can be made only the deployment says why.
        if let Some(cause) = deployment.as_deref().and_then(refusal) {
            instances.push(Instance {
                name: format!("{}-{}", id.app, id.number),
                state: trouble::held(cause),
                started_at: Timestamp::now(),
                restarts: 0,
                memory_bytes: None,
                millicpus: None,
            });
        }
        Some(WorkloadStatus { instances })
    }
}

/// Keeps a copy of all objects of a kind that are ours and of an application.
fn keep<K>(api: Api<K>, system: &str, changes: watch::Sender<u64>, drift: Option<watch::Sender<u64>>) -> Store<K>
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
{
    let (reader, writer) = reflector::store();
    let config = watcher::Config::default().labels(&names::ours_with(system, names::APP)).timeout(WATCH_SECONDS);
    let kept = reflector::reflector(writer, watcher(api, config).modify(|object| object.managed_fields_mut().clear()));
    tokio::spawn(async move {
        let mut kept = std::pin::pin!(kept.default_backoff());
        let mut marks = HashMap::new();
        while let Some(event) = kept.next().await {
            let drifted = match &event {
                Ok(watcher::Event::Apply(object)) => {
                    let (name, now) = ((object.namespace(), object.name_any()), mark(object.meta()));
                    marks.insert(name, now.clone()).is_some_and(|before| before != now)
                }
                Ok(watcher::Event::Delete(object)) => {
                    marks.remove(&(object.namespace(), object.name_any()));
                    true
                }
                // What happened while nobody watched.
                Ok(watcher::Event::InitDone) => true,
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) | Err(_) => false,
            };
            if let Some(drift) = drift.as_ref().filter(|_| drifted) {
                drift.send_modify(|changes| *changes += 1);
            }
            match event {
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                Ok(_) => changes.send_modify(|changes| *changes += 1),
                Err(error) => tracing::warn!(%error, kind = %K::kind(&()), "watching the cluster failed; trying again"),
            }
        }
    });
    reader
}

/// Changes when what is wanted of an object does. Objects without a generation change with everything.
pub(super) fn mark(object: &ObjectMeta) -> String {
    let version = object.generation.map(|generation| generation.to_string()).or(object.resource_version.clone());
    format!("{}/{}", object.uid.as_deref().unwrap_or_default(), version.unwrap_or_default())
}

pub(super) fn release_of(object: &impl kube::ResourceExt) -> Option<ReleaseId> {
    let labels = object.labels();
    names::release_id(object.namespace().as_deref(), labels.get(names::APP), labels.get(names::RELEASE))
}

/// The release that a deployment makes pods of.
pub(super) fn current(deployment: &Deployment) -> Option<ReleaseId> {
    let labels = deployment.spec.as_ref()?.template.metadata.as_ref()?.labels.as_ref()?;
    names::release_id(deployment.namespace().as_deref(), labels.get(names::APP), labels.get(names::RELEASE))
}

/// Why a deployment gets no pods.
fn refusal(deployment: &Deployment) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.iter().flatten();
    let refused = conditions.filter(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True");
    refused.filter_map(|condition| condition.message.as_deref()).map(trouble::of_creation).next()
}

fn instance(pod: &Pod) -> Instance {
    let status = pod.status.as_ref();
    let container = status.and_then(|status| status.container_statuses.iter().flatten().next());
    let started = status.and_then(|status| status.start_time.as_ref()).or(pod.metadata.creation_timestamp.as_ref());
    Instance {
        name: logs::origin(pod),
        state: state(pod, container),
        started_at: started.map_or_else(Timestamp::now, timestamp),
        restarts: container.and_then(|container| u32::try_from(container.restart_count).ok()).unwrap_or_default(),
        memory_bytes: None,
        millicpus: None,
    }
}

fn state(pod: &Pod, container: Option<&ContainerStatus>) -> InstanceState {
    if pod.metadata.deletion_timestamp.is_some() {
        return InstanceState::Stopping { address: ready_address(pod) };
    }
    if let Some(address) = ready_address(pod) {
        return InstanceState::Ready { address };
    }
    if let Some(ended) = container.and_then(last_end) {
        return ended;
    }
    match trouble::of_pod(pod) {
        Some(cause) => trouble::held(cause),
        None => InstanceState::Starting,
    }
}

fn ready_address(pod: &Pod) -> Option<SocketAddr> {
    let status = pod.status.as_ref()?;
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let address = status.pod_ip.as_ref()?.parse().ok()?;
    ready.then_some(SocketAddr::new(address, PORT))
}

/// A container that ended by itself, whether it waits to be started again or was started again and is not ready yet.
fn last_end(container: &ContainerStatus) -> Option<InstanceState> {
    let now = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    let before = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let end = now.or(before)?;
    let doubled = 10_i64.saturating_mul(1 << container.restart_count.clamp(0, 10));
    let finished = end.finished_at.as_ref().map_or_else(Timestamp::now, timestamp);
    Some(InstanceState::BackOff {
        ended: ended(end),
        retry_at: Timestamp::from_second(finished.as_second() + doubled.min(LONGEST_BACK_OFF)),
        last_words: last_words(end),
    })
}

fn ended(end: &ContainerStateTerminated) -> Ended {
    match (end.reason.as_deref(), end.exit_code) {
        (Some("OOMKilled"), _) => Ended::OutOfMemory,
        (_, code) if code > 128 => Ended::Signal(code - 128),
        (_, code) => Ended::Exit(code),
    }
}

/// With `FallbackToLogsOnError` the kubelet puts the end of the output there.
fn last_words(end: &ContainerStateTerminated) -> Vec<String> {
    let lines: Vec<_> = end.message.as_deref().unwrap_or_default().lines().collect();
    lines[lines.len().saturating_sub(LAST_WORDS)..].iter().map(|line| (*line).to_owned()).collect()
}

fn timestamp(time: &Time) -> Timestamp {
    Timestamp::from_second(time.0.as_second())
}
