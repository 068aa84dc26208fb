//! Releases: made, started, gated, switched to, drained.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, timeout, timeout_at};

use super::{Apps, Backend, Error, release_id};
use crate::{
    model::{
        App, AppChange, AppName, ImageName, Namespace, Origin, Release, ReleaseId, ReleaseState, Route, StageId,
        Staging, StagingState, Timestamp,
    },
    runtime::{Ended, InstanceState, Rollout, Workload},
    store::{self, Key},
    telemetry::chain,
};

/// Releases that are kept for each application.
const KEPT_RELEASES: usize = 10;
/// Lines that are shown of a release that does not come up, and those that they are looked for in.
const LAST_WORDS: usize = 20;
const LOOKED_THROUGH: usize = 10_000;

/// What is to be deployed.
#[derive(Debug, Clone)]
pub struct Deployment {
    pub image: ImageName,
    pub stage_id: Option<StageId>,
    /// Where the source came from, when this push says so.
    pub origin: Option<Origin>,
    /// What the application is to be when the release serves, and not before.
    pub change: AppChange,
}

/// What came of a deployment.
#[derive(Debug, Clone)]
pub struct Deployed {
    pub release: Release,
    pub routes: Vec<Route>,
}

/// Why a release does not come up.
struct Unhealthy {
    cause: String,
    last_words: Vec<String>,
}

impl Apps {
    /// Makes a new release and waits until it serves (or failed; then the one before still serves). Goes on
    /// when the caller no longer waits.
    pub async fn deploy(
        self: &Arc<Self>,
        namespace: &Namespace,
        name: &AppName,
        deployment: Deployment,
    ) -> Result<Deployed, Error> {
        let (apps, namespace, name) = (Arc::clone(self), namespace.clone(), name.clone());
        self.tasks
            .spawn(async move {
                let _turn = apps.turn(&namespace, &name).await;
                apps.get(&namespace, &name).await?;
                apps.roll_out(&namespace, &name, deployment).await
            })
            .await?
    }

    /// A new release of what was deployed last.
    pub async fn restart(self: &Arc<Self>, namespace: &Namespace, name: &AppName) -> Result<Deployed, Error> {
        let (apps, namespace, name) = (Arc::clone(self), namespace.clone(), name.clone());
        self.tasks
            .spawn(async move {
                let _turn = apps.turn(&namespace, &name).await;
                let app = apps.get(&namespace, &name).await?;
                apps.redeploy(&app).await
            })
            .await?
    }

    pub(super) async fn redeploy(&self, app: &App) -> Result<Deployed, Error> {
        let never = || Error::NeverDeployed(app.name.clone());
        // A newer staging that is done has an image that nobody deployed yet ("restage"): it goes live now.
        let staged = match &app.stage_id {
            Some(id) => {
                self.objects.get::<Staging>(&Key::staging(&app.namespace, id)).await?.map(|stored| stored.value)
            }
            None => None,
        };
        let staged = staged
            .filter(|staging| staging.state == StagingState::Done)
            .and_then(|staging| Some((staging.image?, Some(staging.id))));
        let serving = match app.release {
            Some(number) => {
                self.release(&release_id(app, number)).await?.map(|release| (release.image, release.stage_id))
            }
            None => None,
        };
        let (image, stage_id) = staged.or(serving).ok_or_else(never)?;
        let deployment = Deployment { image, stage_id, origin: None, change: AppChange::default() };
        self.roll_out(&app.namespace, &app.name, deployment).await
    }

    /// The caller has this application's turn.
    async fn roll_out(&self, namespace: &Namespace, name: &AppName, deployment: Deployment) -> Result<Deployed, Error> {
        let change = deployment.change;
        // A route may have gone to somebody else since it was asked for.
        self.can_be(namespace, name, &change).await?;
        let mut number = 0;
        let app = self
            .objects
            .modify::<App>(&Key::app(namespace, name), |app| {
                number = app.next_release;
                app.next_release += 1;
                if let Some(origin) = &deployment.origin {
                    app.origin = origin.clone();
                }
            })
            .await?
            .value;
        let mut changed = app.clone();
        change.apply(&mut changed);
        let release = Release {
            id: release_id(&app, number),
            image: deployment.image,
            stage_id: deployment.stage_id,
            routes: self.routes(&changed),
            environment: changed.environment,
            instances: changed.instances,
            change,
            created_at: Timestamp::now(),
            state: ReleaseState::Starting,
        };
        self.objects.create(&release).await?;
        self.bring_up(&app, release).await
    }

    /// Takes a release from `Starting` to `Active` or `Failed`. Also how a daemon that was killed goes on.
    pub(super) async fn bring_up(&self, app: &App, release: Release) -> Result<Deployed, Error> {
        let _transit = self.in_transit.hold(&release.id);
        let health = match self.runtime.apply(&self.workload(&release, release.instances)).await {
            Ok(()) => self.healthy(&release).await?,
            Err(error) => Err(Unhealthy { cause: chain(&error), last_words: Vec::new() }),
        };
        match health {
            Ok(()) => self.activate(app, release).await,
            Err(unhealthy) => {
                self.runtime.remove(&release.id, Duration::ZERO).await?;
                self.settle(&release.id, ReleaseState::Failed { cause: unhealthy.cause.clone() }).await?;
                let cause = unhealthy.cause.clone();
                let app = self.objects.modify::<App>(&key(app), |app| app.failure = Some(cause.clone())).await?.value;
                // It may have made way for this one.
                if let Err(error) = self.rescale(&app).await {
                    tracing::error!(app = %app.name, error = %chain(&error), "starting the release before again failed");
                }
                let Unhealthy { cause, last_words } = unhealthy;
                Err(Error::NotHealthy { number: release.id.number, cause, last_words })
            }
        }
    }

    /// The health gate: every instance accepts connections, and none has ended by itself.
    async fn healthy(&self, release: &Release) -> Result<Result<(), Unhealthy>, Error> {
        let deadline = Instant::now() + self.settings.health_deadline;
        let mut held_since = None;
        let mut changes = self.runtime.changes();
        loop {
            let instances = self.runtime.status(&release.id).await?.unwrap_or_default().instances;
            for instance in &instances {
                if let InstanceState::BackOff { ended, last_words, .. } = &instance.state {
                    let cause = format!("instance {} ended with {}", instance.name, describe(*ended));
                    return Ok(Err(Unhealthy { cause, last_words: last_words.clone() }));
                }
            }
            let held = instances.iter().find_map(|instance| match &instance.state {
                InstanceState::Held { cause, patience } => Some((cause, *patience)),
                _ => None,
            });
            let late = Instant::now() >= deadline;
            match held {
                Some((cause, patience))
                    if late || held_since.get_or_insert_with(Instant::now).elapsed() >= patience =>
                {
                    return Ok(Err(Unhealthy { cause: cause.clone(), last_words: Vec::new() }));
                }
                Some(_) => {}
                None => held_since = None,
            }
            let ready = instances.iter().filter(|instance| matches!(instance.state, InstanceState::Ready { .. }));
            if ready.count() >= release.instances as usize {
                return Ok(Ok(()));
            }
            if late {
                return Ok(Err(self.too_late(release).await));
            }
            let soon = deadline.min(Instant::now() + Duration::from_secs(1));
            let _ = timeout_at(soon, changes.changed()).await;
        }
    }

    async fn too_late(&self, release: &Release) -> Unhealthy {
        let seconds = self.settings.health_deadline.as_secs();
        let cause = format!(
            "it did not accept connections within {seconds} s; it has to listen on 0.0.0.0 and the port in $PORT"
        );
        Unhealthy { cause, last_words: self.last_words(&release.id).await }
    }

    /// The last lines that the instances of a release wrote. Those of others, which serve meanwhile, are no explanation.
    async fn last_words(&self, id: &ReleaseId) -> Vec<String> {
        use futures::StreamExt as _;
        let query = crate::runtime::LogQuery { tail: Some(LOOKED_THROUGH), follow: false };
        let Ok(mut lines) = self.runtime.logs(&id.namespace, &id.app, query).await else { return Vec::new() };
        let of_release = format!("{}-{}-", id.app, id.number);
        let mut words = VecDeque::new();
        while let Some(line) = lines.next().await {
            // The namespace may be in front.
            let (_, instance) = line.origin.rsplit_once('_').unwrap_or(("", &line.origin));
            if instance.starts_with(&of_release) {
                words.push_back(line.text);
                if words.len() > LAST_WORDS {
                    words.pop_front();
                }
            }
        }
        words.into()
    }

    /// Gives the traffic to a release, and lets the one before go.
    async fn activate(&self, app: &App, release: Release) -> Result<Deployed, Error> {
        let mut before = None;
        self.objects
            .modify::<App>(&key(app), |app| {
                before = app.release.filter(|number| *number != release.id.number);
                app.release = Some(release.id.number);
                app.image = Some(release.image.clone());
                release.change.apply(app);
                app.failure = None;
            })
            .await?;
        let release = self.settle(&release.id, ReleaseState::Active).await?;
        let old = before.map(|number| release_id(app, number));
        let leaving = match (&old, self.runtime.rollout()) {
            (Some(id), Rollout::SideBySide) => self.backends_of(id),
            _ => Vec::new(),
        };
        let _retiring = old.as_ref().map(|id| self.in_transit.hold(id));
        self.refresh().await?;
        if let Some(id) = old {
            self.retire(id, leaving).await?;
        }
        self.prune_releases(app).await?;
        Ok(Deployed { routes: release.routes.clone(), release })
    }

    /// The requests of an old release end in the background; then it is stopped.
    async fn retire(&self, id: ReleaseId, leaving: Vec<Arc<Backend>>) -> Result<(), Error> {
        self.settle(&id, ReleaseState::Retired).await?;
        let transit = self.in_transit.hold(&id);
        let (runtime, drain, grace) = (Arc::clone(&self.runtime), self.settings.drain, self.settings.grace);
        self.tasks.spawn(async move {
            drained(leaving, drain).await;
            if let Err(error) = runtime.remove(&id, grace).await {
                tracing::warn!(release = %id, error = %chain(&error), "stopping an old release failed; trying again later");
            }
            drop(transit);
        });
        Ok(())
    }

    /// Waits until these backends are idle, within the drain time.
    pub(super) async fn drain(&self, leaving: Vec<Arc<Backend>>) {
        drained(leaving, self.settings.drain).await;
    }

    async fn settle(&self, id: &ReleaseId, state: ReleaseState) -> Result<Release, Error> {
        let stored = self.objects.modify::<Release>(&Key::release(id), |release| release.state = state.clone()).await?;
        Ok(stored.value)
    }

    async fn prune_releases(&self, app: &App) -> Result<(), Error> {
        let releases = self.objects.list::<Release>(Some(app.namespace.as_str())).await?;
        let mine: Vec<_> = releases.into_iter().map(|stored| stored.value).filter(|r| r.id.app == app.name).collect();
        let surplus = mine.len().saturating_sub(KEPT_RELEASES);
        let done = |state: &ReleaseState| matches!(state, ReleaseState::Retired | ReleaseState::Failed { .. });
        for release in mine.iter().filter(|release| done(&release.state)).take(surplus) {
            self.forget(&release.id).await?;
        }
        Ok(())
    }

    pub(super) async fn forget(&self, id: &ReleaseId) -> Result<(), Error> {
        match self.objects.delete(&Key::release(id)).await {
            Ok(()) | Err(store::Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn workload(&self, release: &Release, instances: u32) -> Workload {
        let env: BTreeMap<String, String> =
            release.environment.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        Workload {
            id: release.id.clone(),
            image: release.image.clone(),
            env,
            instances,
            limits: self.settings.limits.clone(),
        }
    }
}

async fn drained(backends: Vec<Arc<Backend>>, within: Duration) {
    let all = futures::future::join_all(backends.iter().map(|backend| backend.drained()));
    let _ = timeout(within, all).await;
}

fn key(app: &App) -> Key {
    Key::app(&app.namespace, &app.name)
}

pub(super) fn describe(ended: Ended) -> String {
    match ended {
        Ended::Exit(code) => format!("exit code {code}"),
        Ended::Signal(signal) => format!("signal {signal}"),
        Ended::OutOfMemory => "out of memory: it used more than its limit".to_owned(),
        Ended::Deadline => "its deadline".to_owned(),
        Ended::Cancelled => "a stop".to_owned(),
    }
}
