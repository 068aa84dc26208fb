//! What the users of a cluster see of applications with the cluster's own tools: `kubectl get apps`, and the events in
//! `kubectl describe app`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    apps::{self, Apps},
    model::{App, AppName, Namespace},
    runtime::InstanceState,
    store::{
        self,
        kube::{Announcement, AppStatus, KubeStore, Severity},
    },
    telemetry::chain,
};

/// What changes within this time is reported at once.
const PAUSE: Duration = Duration::from_millis(500);
/// How often everything is looked at without a reason.
const INTERVAL: Duration = Duration::from_secs(30);

/// Writes the status of applications whenever it changes.
#[derive(Clone)]
pub(super) struct Reports {
    store: Arc<KubeStore>,
    apps: Arc<Apps>,
}

/// The last report of each application.
type Told = HashMap<(Namespace, AppName), AppStatus>;

impl Reports {
    pub fn new(store: Arc<KubeStore>, apps: Arc<Apps>) -> Self {
        Self { store, apps }
    }

    /// Runs until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut changes = self.apps.changes();
        let mut told = Told::new();
        loop {
            if let Err(error) = self.report(&mut told).await {
                tracing::warn!(error = %chain(&error), "reporting the state of applications failed; trying again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
                _ = changes.changed() => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn report(&self, told: &mut Told) -> Result<(), apps::Error> {
        let apps = self.apps.list(None).await?;
        told.retain(|(namespace, name), _| apps.iter().any(|app| app.namespace == *namespace && app.name == *name));
        for app in apps {
            let status = self.status(&app).await?;
            let key = (app.namespace.clone(), app.name.clone());
            let before = told.get(&key);
            if before == Some(&status) {
                continue;
            }
            match self.store.set_status(&app.namespace, &app.name, &status).await {
                Ok(()) => {}
                // It was deleted since.
                Err(store::Error::NotFound(_)) => continue,
                Err(error) => return Err(error.into()),
            }
            // What was so before this daemon is no news.
            if before.is_some() {
                self.announce(&app, before, &status);
            }
            told.insert(key, status);
        }
        Ok(())
    }

    async fn status(&self, app: &App) -> Result<AppStatus, apps::Error> {
        let status = self.apps.status(app).await?;
        let ready = status.instances.iter().filter(|i| matches!(i.state, InstanceState::Ready { .. })).count();
        let state = match (app.release, app.instances, ready) {
            (None, ..) if status.failure.is_some() => "Failed",
            (None, ..) | (_, 0, _) => "Stopped",
            (_, _, 0) => "Starting",
            _ => "Running",
        };
        Ok(AppStatus {
            state: state.to_owned(),
            ready: u32::try_from(ready).unwrap_or(u32::MAX),
            routes: self.apps.routes(app).iter().map(ToString::to_string).collect(),
            message: status.failure,
            observed_release: app.release,
        })
    }

    fn announce(&self, app: &App, before: Option<&AppStatus>, now: &AppStatus) {
        let tell = |severity, reason: &str, note: String| {
            self.store.announce(&app.namespace, &app.name, Announcement { severity, reason: reason.to_owned(), note });
        };
        if let Some(release) =
            now.observed_release.filter(|_| before.and_then(|b| b.observed_release) != now.observed_release)
        {
            tell(Severity::Normal, "Deployed", format!("release {release} serves"));
        }
        if let Some(failure) =
            now.message.as_ref().filter(|_| before.and_then(|b| b.message.as_ref()) != now.message.as_ref())
        {
            tell(Severity::Warning, "DeployFailed", failure.clone());
        }
    }
}
