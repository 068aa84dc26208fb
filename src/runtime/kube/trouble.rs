//! Why a pod does not get on, in plain words: what the cluster says of it, and what to do next.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::{model::REGISTRY_NAME, runtime::InstanceState};

/// How long what keeps a pod may take to go by itself.
const HELD: Duration = Duration::from_secs(20);
/// The same for a registry that is away: another daemon may have to take over, and the kubelet asks again only so often.
const AWAY: Duration = Duration::from_secs(90);

/// An instance that cannot be started yet.
pub(super) fn held(cause: String) -> InstanceState {
    let patience = if passes(&cause) { AWAY } else { HELD };
    InstanceState::Held { cause, patience }
}

/// What keeps a pod from starting, as far as it says so itself.
pub(super) fn of_pod(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    if status.phase.as_deref() == Some("Failed")
        && let Some(cause) = failed(status.reason.as_deref()?, status.message.as_deref().unwrap_or_default())
    {
        return Some(cause);
    }
    let conditions = status.conditions.iter().flatten();
    let unscheduled = conditions.clone().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unscheduled {
        let message = condition.message.as_deref().unwrap_or("no node takes it");
        return Some(format!("no node of the cluster takes it: {message}"));
    }
    let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    containers.filter_map(of_container).next()
}

/// What keeps a container from starting.
fn of_container(status: &ContainerStatus) -> Option<String> {
    let waiting = status.state.as_ref()?.waiting.as_ref()?;
    let message = waiting.message.as_deref().unwrap_or_default();
    let image = &status.image;
    match waiting.reason.as_deref()? {
        "ErrImagePull" | "ImagePullBackOff" => Some(format!("the image {image} {UNPULLED}: {}", of_pull(message))),
        "InvalidImageName" | "ErrImageNeverPull" | "ImageInspectError" => {
            Some(format!("the image {image} cannot be used: {message}"))
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            Some(format!("the container cannot be made: {message}"))
        }
        _ => None,
    }
}

/// Why an image does not come. Where nobody answers on the node itself, the message alone helps nobody.
fn of_pull(message: &str) -> String {
    let silent = ["connection refused", "i/o timeout"].into_iter().find(|silent| message.contains(silent));
    match silent.filter(|_| message.contains(&format!("dial tcp {REGISTRY_NAME}"))) {
        Some(silent) => format!(
            "nobody answers on {REGISTRY_NAME} of its node ({silent}): either the daemon is being replaced just now, or ports of \
             services do not answer there (kube-proxy in IPVS or nftables mode, Cilium, localhostNodePorts: false); then \
             'epiniod install --registry-relay always' puts a relay on each node"
        ),
        None => {
            format!("{message}; images come from the daemon's registry, which every node has to reach under this name")
        }
    }
}

/// Whether it passes by itself as a rule: who pulls an image tries again and again, and only one that a registry has
/// refused never comes.
pub(super) fn passes(cause: &str) -> bool {
    let refusals = ["not found", "authoriz", "denied"];
    cause.contains(UNPULLED) && !refusals.iter().any(|refusal| cause.to_lowercase().contains(refusal))
}

fn failed(reason: &str, message: &str) -> Option<String> {
    match reason {
        "Evicted" => Some(format!(
            "the node ran short of something and evicted it: {message}; free the node, or give it limits that fit"
        )),
        "NodeLost" | "NodeShutdown" | "Terminated" | "NodeAffinity" | "Shutdown" => {
            Some(format!("its node went away ({reason}): {message}"))
        }
        "Preempting" | "Preempted" => Some(format!("a pod of higher priority took its place: {message}")),
        "UnexpectedAdmissionError" | "OutOfcpu" | "OutOfmemory" | "OutOfpods" => {
            Some(format!("the node refused it ({reason}): {message}"))
        }
        _ => None,
    }
}

const UNPULLED: &str = "cannot be pulled";

/// What the message of a controller that cannot make pods means.
pub(super) fn of_creation(message: &str) -> String {
    if message.contains("exceeded quota") {
        return format!("a quota of the namespace forbids it: {message}");
    }
    if message.contains("violates PodSecurity") {
        return format!("the namespace's Pod Security level forbids it: {message}");
    }
    if message.contains("denied the request") {
        return format!("an admission webhook of the cluster forbids it: {message}");
    }
    format!("the cluster makes no pod for it: {message}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_registry_that_is_silent_is_waited_for_and_one_that_answers_is_not() {
        let pull = "failed to do request: Head \"http://127.0.0.1:30500/v2/a/b/manifests/sha256:1\": dial tcp 127.0.0.1:30500: connect:";
        for (message, wanted, expected) in [
            (&*format!("{pull} connection refused"), "'epiniod install --registry-relay always'", AWAY),
            (&*format!("{pull} i/o timeout"), "nobody answers on 127.0.0.1:30500 of its node (i/o timeout)", AWAY),
            ("Back-off pulling image", "every node has to reach", AWAY),
            ("127.0.0.1:30500/a/b@sha256:1: not found", "every node has to reach", HELD),
            ("failed to authorize: 401 Unauthorized", "every node has to reach", HELD),
            ("dial tcp 192.0.2.1:443: connect: connection refused", "every node has to reach", AWAY),
        ] {
            let status = json!({
                "name": "app", "image": "127.0.0.1:30500/a/b@sha256:1", "imageID": "", "ready": false, "restartCount": 0,
                "state": { "waiting": { "reason": "ImagePullBackOff", "message": message } },
            });
            let cause = of_container(&serde_json::from_value(status).unwrap()).unwrap();
            assert!(cause.contains("cannot be pulled") && cause.contains(wanted), "{cause}");
            let InstanceState::Held { patience, .. } = held(cause.clone()) else { panic!("{cause}") };
            assert_eq!(patience, expected, "{cause}");
        }
    }
}
