//! What the cluster's users see of an application: its status in `kubectl get apps`, and what happened to it in
//! `kubectl describe app`.

use kube::{
    api::{Patch, PatchParams},
    runtime::events::{Event as Happening, EventType, Recorder, Reporter},
};
use serde::Serialize;
use serde_json::json;

use super::{
    KubeStore,
    call::call,
    places::{Form, Places},
};
use crate::{
    model::{AppName, Namespace},
    store::{Error, Key, Kind},
};

/// What runs of an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AppStatus {
    /// One word: `Running`, `Starting`, `Failed`, `Stopped`.
    pub state: String,
    /// Instances that serve.
    pub ready: u32,
    pub routes: Vec<String>,
    /// Why it is so.
    pub message: Option<String>,
    pub observed_release: Option<u64>,
}

/// What happened to an application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    pub severity: Severity,
    /// One word in `PascalCase`: `Staged`, `DeployFailed`.
    pub reason: String,
    /// For people; cut at 1 KB.
    pub note: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Normal,
    Warning,
}

/// Writes events; the same again within minutes is counted, not written anew.
pub(super) struct Announcer {
    recorder: Recorder,
}

impl Announcer {
    pub fn new(places: &Places) -> Self {
        let instance = std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
        let reporter = Reporter { controller: "epiniod.dev/daemon".to_owned(), instance };
        Self { recorder: Recorder::new(places.client.clone(), reporter) }
    }
}

impl KubeStore {
    /// Writes the status of an application; its version stays. One that is gone has none.
    pub async fn set_status(&self, namespace: &Namespace, app: &AppName, status: &AppStatus) -> Result<(), Error> {
        let key = Key::app(namespace, app);
        let api = self.places.api(&key);
        let (patch, params) = (Patch::Merge(json!({ "status": status })), PatchParams::default());
        match call(|| api.patch_status(app.as_str(), &params, &patch)).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.is_not_found() => Err(Error::NotFound(key)),
            Err(failure) => Err(failure.into_error(format!("writing the status of {key}"))),
        }
    }

    /// Tells what happened to an application. Nobody waits for it, and nothing depends on it.
    pub fn announce(&self, namespace: &Namespace, app: &AppName, announcement: Announcement) {
        let key = Key::app(namespace, app);
        let (api, recorder) = (self.places.api(&key), self.announcer.recorder.clone());
        tokio::spawn(async move {
            let told = tokio::time::timeout(PATIENCE, async {
                let found = api.get_metadata(&key.name).await?;
                let reference = kube::Resource::object_ref(&found, &Form::of(Kind::App).resource());
                recorder.publish(&announcement.into(), &reference).await
            });
            match told.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(app = %key, %error, "an event could not be written"),
                Err(_) => tracing::debug!(app = %key, "writing an event took too long"),
            }
        });
    }
}

impl From<Announcement> for Happening {
    fn from(announcement: Announcement) -> Self {
        let mut note = announcement.note;
        note.truncate(note.floor_char_boundary(MAX_NOTE_BYTES));
        let type_ = match announcement.severity {
            Severity::Normal => EventType::Normal,
            Severity::Warning => EventType::Warning,
        };
        // Events of one action are counted as one, with the first text: what differs in its text is another one.
        let text = if note.is_empty() { &announcement.reason } else { &note };
        let action = text[..text.floor_char_boundary(MAX_ACTION_BYTES)].to_owned();
        Self { type_, action, reason: announcement.reason, note: Some(note), secondary: None }
    }
}

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
/// The API server refuses longer ones.
const MAX_NOTE_BYTES: usize = 1000;
const MAX_ACTION_BYTES: usize = 128;
