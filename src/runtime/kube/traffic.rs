//! Which of the daemon's pods gets the traffic: the one that leads has a label, and the services select it.
//!
//! All pods of the daemon are ready, also those that wait to lead, or none could be replaced while another leads. So
//! readiness says nothing of who serves; the label does. Who begins to serve takes it from others first: one whose node is
//! gone keeps it else, and would be sent a part of the requests. Who waits takes it off itself: it may have led before.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
    core::PartialObjectMeta,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    call::{call, call_unless_missing},
    names,
};
use crate::{runtime::Error, store::kube::Cluster as Connection, telemetry::chain};

/// How often is looked whether the label is where it should be.
const LOOK: Duration = Duration::from_secs(5);

/// Who ends does not wait long to be told who else is there.
const ANSWER: Duration = Duration::from_secs(2);

/// The traffic, as a pod of the daemon may have it.
#[derive(Clone)]
pub struct Traffic {
    pods: Api<Pod>,
    pod: String,
}

impl Traffic {
    /// What pod of what namespace this daemon is.
    pub fn new(connection: &Connection, namespace: &str, pod: &str) -> Self {
        Self { pods: Api::namespaced(connection.calls.clone(), namespace), pod: pod.to_owned() }
    }

    /// Takes it, and sees to it that it stays here until the token is cancelled: others change labels as well.
    pub async fn keep(self, stop: CancellationToken) {
        loop {
            if let Err(error) = self.take().await {
                tracing::warn!(error = %chain(&error), "the services do not lead to this daemon; trying again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn take(&self) -> Result<(), Error> {
        let doing = "looking at which pod gets the traffic";
        let marked = ListParams::default().labels(&format!("{},{}", names::DAEMON_PODS, names::LEADER));
        let marked = call(doing, || self.pods.list_metadata(&marked)).await?.items;
        let (own, others): (Vec<_>, Vec<_>) = marked.iter().partition(|pod| pod.name_any() == self.pod);
        // One that ends gets no more requests as soon as there is another; without its label there would be none meanwhile.
        for other in others.iter().filter(|pod| stays(pod)) {
            self.mark(&other.name_any(), &Value::Null).await?;
        }
        if own.is_empty() {
            self.mark(&self.pod, &json!("true")).await?;
            tracing::info!(pod = self.pod, "the services lead to this daemon");
        }
        Ok(())
    }

    /// Whoever leads has it, and not this one.
    pub async fn leave(&self) -> Result<(), Error> {
        self.mark(&self.pod, &Value::Null).await
    }

    /// Whether there are other pods that could have it. None, as far as is known.
    pub async fn has_others(&self) -> bool {
        let all = ListParams::default().labels(names::DAEMON_PODS);
        let Ok(Ok(pods)) = tokio::time::timeout(ANSWER, self.pods.list_metadata(&all)).await else { return false };
        pods.items.iter().any(|pod| stays(pod) && pod.name_any() != self.pod)
    }

    async fn mark(&self, pod: &str, value: &Value) -> Result<(), Error> {
        let change = Patch::Merge(json!({ "metadata": { "labels": { names::LEADER: value } } }));
        let doing = format!("changing the label {} of pod {pod}", names::LEADER);
        let params = PatchParams::default();
        call_unless_missing(&doing, || self.pods.patch_metadata(pod, &params, &change)).await
    }
}

fn stays(pod: &PartialObjectMeta<Pod>) -> bool {
    pod.metadata.deletion_timestamp.is_none()
}
