//! Why a pod does not get on, in plain words: what the cluster says of it, and what to do next.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::runtime::InstanceState;

/// How long what keeps a pod may take to go by itself.
const HELD: Duration = Duration::from_secs(20);
/// The same for a registry that is away: another daemon may have to take over, and the kubelet asks again only so often.
const AWAY: Duration = Duration::from_secs(90);

/// An instance that cannot be started yet.
pub(super) fn held(cause: String) -> InstanceState {
    let answers = ["not found", "authoriz", "denied"];
    let is_answered = answers.iter().any(|answer| cause.to_lowercase().contains(answer));
    let patience = if cause.contains(UNPULLED) && !is_answered { AWAY } else { HELD };
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
        "ErrImagePull" | "ImagePullBackOff" => Some(format!(
            "the image {image} {UNPULLED}: {message}; images come from the daemon's registry, which every node has to reach under this name"
        )),
        "InvalidImageName" | "ErrImageNeverPull" | "ImageInspectError" => {
            Some(format!("the image {image} cannot be used: {message}"))
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            Some(format!("the container cannot be made: {message}"))
        }
        _ => None,
    }
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
    use super::*;

    #[test]
    fn a_registry_that_is_away_is_waited_for_and_one_that_answers_is_not() {
        let pull = |message: &str| format!("the image x {UNPULLED}: {message}; images come from the daemon's registry");
        for (cause, expected) in [
            (pull("dial tcp 127.0.0.1:30500: connect: connection refused"), AWAY),
            (pull("Back-off pulling image"), AWAY),
            (pull("failed to resolve reference: 127.0.0.1:30500/a/b: not found"), HELD),
            (pull("failed to authorize: 401 Unauthorized"), HELD),
            ("no node of the cluster takes it: 0/1 nodes are available".to_owned(), HELD),
        ] {
            let InstanceState::Held { patience, .. } = held(cause.clone()) else { panic!("{cause}") };
            assert_eq!(patience, expected, "{cause}");
        }
    }
}
