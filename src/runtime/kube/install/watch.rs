//! Waiting until what was applied serves, and saying what keeps it. Of the daemon's pods the one that leads serves; that
//! the others are ready says only that they could.
//!
//! What may pass by itself (a node that is found, an image that is pulled) is told and waited for; what cannot is an
//! error after its patience, with the last words of the container where there are some.

use std::time::{Duration, Instant};

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{ContainerStatus, Pod},
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, LogParams},
};

use super::{
    Connection, DAEMON, Entrance, Error, Findings, Installation, Storage, Way, detect,
    events::{self, Warning},
    failed, relay,
};
use crate::runtime::kube::{names, trouble};

/// Waits until the daemon answers, and Traefik and the relay where they were brought along. Each new state is told once.
pub async fn wait_until_ready(
    cluster: &Connection,
    installation: &Installation,
    found: &Findings,
    within: Duration,
    mut tell: impl FnMut(&str),
) -> Result<(), Error> {
    let until = Instant::now() + within;
    let namespace = &installation.namespace;
    let (of_ingress, of_relay) = (format!("{namespace}-ingress"), format!("{namespace}{}", relay::SUFFIX));
    let traefik = Part { namespace: &of_ingress, name: "traefik", pods: "app.kubernetes.io/name=traefik" };
    let daemon = Part { namespace, name: DAEMON, pods: names::DAEMON_PODS };
    let relay = Part { namespace: &of_relay, name: relay::NAME, pods: relay::PODS };
    let parts = [
        matches!(installation.entrance, Entrance::Traefik { .. }).then_some(traefik),
        Some(daemon),
        (installation.pulls.by == Way::Relay).then_some(relay),
    ];
    for part in parts.into_iter().flatten() {
        let waiting = Waiting { cluster, installation, found, part, until, stuck: None, first: None, first_seen: None };
        waiting.wait(&mut tell).await?;
    }
    Ok(())
}

/// A deployment of ours, or the daemon set of the relay.
struct Part<'a> {
    namespace: &'a str,
    name: &'static str,
    pods: &'static str,
}

/// How far a deployment is.
enum State {
    Ready,
    Going(String),
    /// It may pass by itself, for so long.
    Stuck {
        cause: String,
        patience: Duration,
        next: String,
    },
    /// It ended by itself, again.
    Crashed {
        cause: String,
        pod: String,
    },
}

struct Waiting<'a> {
    cluster: &'a Connection,
    installation: &'a Installation,
    found: &'a Findings,
    part: Part<'a>,
    until: Instant,
    stuck: Option<Instant>,
    /// The time of the warning that was there already: only a later one says that it is still so.
    first: Option<i64>,
    /// The pod, and how often it had ended when it was first looked at: only another end says that it is still so.
    first_seen: Option<(String, i32)>,
}

impl Waiting<'_> {
    async fn wait(mut self, tell: &mut impl FnMut(&str)) -> Result<(), Error> {
        let mut told = String::new();
        loop {
            let state = match self.part.name {
                relay::NAME => self.look_at_relay().await?,
                _ => self.look().await?,
            };
            let (text, over, next) = match state {
                State::Ready => return Ok(()),
                State::Crashed { cause, pod } => return Err(self.crashed(cause, &pod).await),
                State::Going(text) => {
                    self.stuck = None;
                    (text, false, LOOK_AT_PODS.to_owned())
                }
                State::Stuck { cause, patience, next } => {
                    let since = *self.stuck.get_or_insert_with(Instant::now);
                    (cause, since.elapsed() >= patience, next)
                }
            };
            if over || Instant::now() >= self.until {
                let next = next.replace("NAMESPACE", self.part.namespace);
                return Err(Error::NotReady { cause: self.named(text), details: String::new(), next });
            }
            if text != told {
                tell(&format!("{}: {text}", self.part.name));
                told = text;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&mut self) -> Result<State, Error> {
        let Part { namespace, name, .. } = self.part;
        let doing = || format!("looking at deployment {namespace}/{name}");
        let deployments: Api<Deployment> = Api::namespaced(self.cluster.client.clone(), namespace);
        let deployment = deployments.get(name).await.map_err(failed(doing()))?;
        let pods = self.pods(&doing()).await?;
        if is_ready(&deployment) && pods.iter().all(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let serves = name != DAEMON || pods.iter().any(|pod| pod.labels().contains_key(names::LEADER));
            let waits =
                || State::Going("it is ready, and takes up what there is, or waits until it may lead".to_owned());
            return Ok(if serves { State::Ready } else { waits() });
        }
        if let Some(pod) = pods.iter().find(|pod| pod.metadata.deletion_timestamp.is_some()) {
            return Ok(State::Going(format!("the pod {} of the version before is ending", pod.name_any())));
        }
        match pods.iter().max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0)) {
            Some(pod) => Ok(self.look_at(pod).await),
            None => Ok(without_pod(&deployment)),
        }
    }

    async fn look_at_relay(&mut self) -> Result<State, Error> {
        let Part { namespace, name, .. } = self.part;
        let doing = || format!("looking at daemon set {namespace}/{name}");
        let sets: Api<DaemonSet> = Api::namespaced(self.cluster.client.clone(), namespace);
        let set = sets.get(name).await.map_err(failed(doing()))?;
        let pods = self.pods(&doing()).await?;
        if relay::is_everywhere(&set, &self.found.nodes) {
            return Ok(State::Ready);
        }
        match relay::missing(&pods, &self.found.nodes) {
            Some(pod) => Ok(self.look_at(pod).await),
            None => Ok(State::Going("its pods are replaced, node by node".to_owned())),
        }
    }

    async fn pods(&self, doing: &str) -> Result<Vec<Pod>, Error> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), self.part.namespace);
        let pods = pods.list(&ListParams::default().labels(self.part.pods)).await;
        Ok(pods.map_err(failed(doing))?.items)
    }

    async fn look_at(&mut self, pod: &Pod) -> State {
        let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        let container = statuses.into_iter().next();
        if let Some(state) = container.and_then(|container| self.without_image(pod, container)) {
            return state;
        }
        let is_news = self.has_ended_again(pod, container);
        match container.and_then(crash) {
            Some(cause) if is_news => return State::Crashed { cause, pod: pod.name_any() },
            Some(cause) => return State::Going(format!("{cause}; waiting for the next try")),
            None => {}
        }
        let running = container.and_then(|c| c.state.as_ref()).is_some_and(|state| state.running.is_some());
        if running {
            return State::Going("it runs, and is waited for to answer".to_owned());
        }
        if let Some(warning) = self.warning(&pod.name_any()).await {
            let is_old = *self.first.get_or_insert(warning.at) == warning.at;
            return match is_old {
                true => State::Going(format!("{}; waiting for the next try", warning.text)),
                false => State::Stuck { next: self.next(&warning.text), cause: warning.text, patience: PATIENCE },
            };
        }
        match trouble::of_pod(pod) {
            Some(cause) => State::Stuck { cause, patience: PATIENCE, next: LOOK_AT_PODS.to_owned() },
            None => State::Going("its node fetches the image and makes the container".to_owned()),
        }
    }

    /// Whether the container ended since its pod was first looked at.
    fn has_ended_again(&mut self, pod: &Pod, container: Option<&ContainerStatus>) -> bool {
        let (name, restarts) = (pod.name_any(), container.map_or(0, |container| container.restart_count));
        if self.first_seen.as_ref().is_none_or(|(seen, _)| *seen != name) {
            self.first_seen = Some((name, restarts));
        }
        self.first_seen.as_ref().is_some_and(|(_, seen)| restarts > *seen)
    }

    /// What the cluster says of the daemon's volume, else of the pod.
    async fn warning(&self, pod: &str) -> Option<Warning> {
        if self.part.name == DAEMON
            && let Some(claim) = detect::claim(self.cluster, self.part.namespace).await
            && claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Bound")
            && let Some(mut warning) = self.warning_of("PersistentVolumeClaim", &claim.name_any()).await
        {
            warning.text = format!("its volume: {}", warning.text);
            return Some(warning);
        }
        self.warning_of("Pod", pod).await
    }

    async fn warning_of(&self, kind: &str, name: &str) -> Option<Warning> {
        events::warning(self.cluster, self.part.namespace, kind, name).await
    }

    /// What to do about a warning.
    fn next(&self, warning: &str) -> String {
        match &self.installation.storage {
            Storage::Node { path, .. } if warning.contains(path) && warning.contains("does not exist") => {
                let node = self.installation.node.as_deref().unwrap_or_default();
                format!("make the directory on node {node}: sudo mkdir -p {path}; then repeat the command")
            }
            _ => LOOK_AT_PODS.to_owned(),
        }
    }

    fn without_image(&self, pod: &Pod, container: &ContainerStatus) -> Option<State> {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        if !matches!(
            waiting.reason.as_deref()?,
            "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName"
        ) {
            return None;
        }
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        let image = &container.image;
        let said = waiting.message.as_deref().unwrap_or_default();
        let (cause, next) = if image.starts_with("localhost/") {
            (format!("node {node} does not have the image {image}"), self.found.import(image))
        } else {
            let next = "is the reference right, and may the nodes pull it? Another one is named by --image".to_owned();
            (format!("node {node} cannot pull the image {image}: {said}"), next)
        };
        Some(State::Stuck { cause, patience: IMAGE_PATIENCE, next })
    }

    /// Of what it is the cause, where that is not the daemon.
    fn named(&self, cause: String) -> String {
        if self.part.name == DAEMON { cause } else { format!("{}: {cause}", self.part.name) }
    }

    /// What the container said before it ended.
    async fn crashed(&self, cause: String, pod: &str) -> Error {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), self.part.namespace);
        let last = |previous| LogParams { previous, tail_lines: Some(LAST_WORDS), ..LogParams::default() };
        let mut details = pods.logs(pod, &last(true)).await.unwrap_or_default();
        if details.is_empty() {
            details = pods.logs(pod, &last(false)).await.unwrap_or_default();
        }
        let next = "correct what its last lines above name, and repeat the command".to_owned();
        Error::NotReady { cause: self.named(cause), details: details.trim_end().to_owned(), next }
    }
}

fn is_ready(deployment: &Deployment) -> bool {
    let Some(status) = &deployment.status else { return false };
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    status.observed_generation >= deployment.metadata.generation
        && status.updated_replicas.unwrap_or_default() >= wanted
        // Of the version before there may be more.
        && status.replicas.unwrap_or_default() == wanted
        && status.available_replicas.unwrap_or_default() >= wanted
}

/// Only the deployment says why it makes no pod.
fn without_pod(deployment: &Deployment) -> State {
    let conditions = deployment.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let refused = conditions.filter(|c| c.type_ == "ReplicaFailure" && c.status == "True");
    match refused.filter_map(|condition| condition.message.as_deref()).next() {
        Some(message) => State::Stuck {
            cause: trouble::of_creation(message),
            patience: PATIENCE,
            next: "change what forbids it, or choose another --namespace".to_owned(),
        },
        None => State::Going("the cluster makes its pod".to_owned()),
    }
}

/// How a container ended that was started again already: once may be a neighbour that comes up at the same time.
fn crash(container: &ContainerStatus) -> Option<String> {
    let ended = container.last_state.as_ref()?.terminated.as_ref()?;
    let again = container.restart_count >= 2;
    let waiting = container.state.as_ref()?.waiting.as_ref().and_then(|waiting| waiting.reason.as_deref());
    if !again || waiting != Some("CrashLoopBackOff") {
        return None;
    }
    Some(match ended.reason.as_deref() {
        Some("OOMKilled") => "it used more memory than it may, and was killed".to_owned(),
        _ => format!("it ended {} times, last with code {}", container.restart_count, ended.exit_code),
    })
}

const LOOK: Duration = Duration::from_secs(1);
/// How long something may take that may pass by itself.
const PATIENCE: Duration = Duration::from_secs(60);
/// Somebody may be importing it just now.
const IMAGE_PATIENCE: Duration = Duration::from_secs(20);
const LAST_WORDS: i64 = 15;
const LOOK_AT_PODS: &str = "look closer with 'kubectl -n NAMESPACE describe pods', and repeat the command";
