//! What the cluster says in events of objects that do not get on, in plain words.

use k8s_openapi::api::core::v1::Event;
use kube::{Api, api::ListParams};

use super::Connection;

/// What was said of an object.
pub(super) struct Warning {
    pub text: String,
    /// When, in milliseconds: the same again is another one.
    pub at: i64,
}

/// The newest warning about an object; none where there is none, or events may not be read.
pub(super) async fn warning(cluster: &Connection, namespace: &str, kind: &str, name: &str) -> Option<Warning> {
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), namespace);
    let of_object = format!("involvedObject.kind={kind},involvedObject.name={name},type=Warning");
    let mut events = events.list(&ListParams::default().fields(&of_object)).await.ok()?.items;
    let time = |event: &Event| {
        let last = event.last_timestamp.as_ref().map(|time| time.0.as_millisecond());
        last.or_else(|| event.event_time.as_ref().map(|time| time.0.as_millisecond())).unwrap_or_default()
    };
    events.sort_by_key(time);
    let event = events.pop()?;
    let text = plain(event.reason.as_deref().unwrap_or_default(), event.message.as_deref().unwrap_or_default());
    Some(Warning { text, at: time(&event) })
}

fn plain(reason: &str, message: &str) -> String {
    let message = message.trim();
    let said = match reason {
        "FailedScheduling" => "no node of the cluster takes it",
        "FailedMount" | "FailedAttachVolume" => "its node cannot mount a volume",
        "ProvisioningFailed" => "the storage class cannot make the volume",
        "FailedBinding" => "there is no volume for it",
        "FailedCreatePodSandBox" => "its node cannot give it a network",
        "Unhealthy" => "it runs, and does not answer yet",
        "BackOff" => "it ended, and is started again after a while",
        "Evicted" => "its node ran short of something",
        _ => return format!("{message} ({reason})"),
    };
    format!("{said}: {message}")
}
