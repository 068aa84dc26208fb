//! Makes what is what should be: at the start, after every change of an instance, and every minute.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{Apps, Backend, Error, Target, deploy::describe, release_id};
use crate::{
    model::{App, AppName, Namespace, Release, ReleaseId, ReleaseState, Route},
    runtime::{Instance, InstanceState, Rollout},
    store::Key,
    telemetry::chain,
};

/// How often everything is looked at without a reason.
const INTERVAL: Duration = Duration::from_secs(60);
/// Changes within this time are looked at together.
const TOGETHER: Duration = Duration::from_millis(500);

/// Releases that are on their way in or out, and how many have them in hand.
#[derive(Clone, Default)]
pub(super) struct InTransit(Arc<Mutex<HashMap<ReleaseId, usize>>>);

/// Keeps the reconciler away from a release while it lives.
pub(super) struct Transit {
    all: InTransit,
    id: ReleaseId,
}

impl Apps {
    /// Takes up what a daemon before left: starts what should serve, goes on with deployments and deletions.
    pub async fn recover(self: &Arc<Self>) -> Result<(), Error> {
        for stored in self.objects.list::<Release>(None).await? {
            let Release { id, state, .. } = stored.value;
            if self.objects.get::<App>(&Key::app(&id.namespace, &id.app)).await?.is_none() {
                self.forget(&id).await?;
            } else if state == ReleaseState::Starting {
                let apps = Arc::clone(self);
                self.tasks.spawn(async move {
                    if let Err(error) = apps.resume(&id).await {
                        tracing::warn!(release = %id, error = %chain(&error), "a deployment that was interrupted failed");
                    }
                });
            }
        }
        self.sweep().await
    }

    /// Goes on with a deployment, unless somebody has changed its mind since.
    async fn resume(&self, id: &ReleaseId) -> Result<(), Error> {
        let _turn = self.turn(&id.namespace, &id.app).await;
        let Some(app) = self.objects.get::<App>(&Key::app(&id.namespace, &id.app)).await? else { return Ok(()) };
        match self.release(id).await? {
            Some(release) if release.state == ReleaseState::Starting => {
                self.bring_up(&app.value, release).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Runs until the token is cancelled.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut next_sweep = tokio::time::Instant::now() + INTERVAL;
        let mut changes = self.runtime.changes();
        let mut drift = self.runtime.drift();
        // What changed before this was called counts as well.
        changes.mark_changed();
        loop {
            let due = tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(next_sweep) => true,
                () = drifted(&mut drift) => true,
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    false
                }
            };
            let result = if due { self.sweep().await } else { self.refresh().await };
            if due {
                next_sweep = tokio::time::Instant::now() + INTERVAL;
            }
            if let Err(error) = result {
                tracing::error!(error = %chain(&error), "reconciling applications failed");
            }
        }
    }

    /// Waits for what goes on in the background (old releases that drain).
    pub async fn finish(&self, within: Duration) {
        self.tasks.close();
        let _ = tokio::time::timeout(within, self.tasks.wait()).await;
    }

    /// Stops the instances of all applications. What should be stays as it is: the next start starts them again.
    pub async fn stop_all(&self) -> Result<(), Error> {
        loop {
            // What was begun before may come up meanwhile.
            let workloads = self.runtime.workloads().await?;
            if workloads.is_empty() {
                return Ok(());
            }
            let stops = workloads.iter().map(|id| self.runtime.remove(id, self.settings.grace));
            for result in futures::future::join_all(stops).await {
                result?;
            }
        }
    }

    /// Starts what is missing, stops what nobody wants, then refreshes the routes. An application that somebody changes
    /// at this moment is left to them.
    async fn sweep(&self) -> Result<(), Error> {
        let apps = self.objects.list::<App>(None).await?;
        let mut names: HashSet<_> =
            apps.into_iter().map(|stored| (stored.value.namespace, stored.value.name)).collect();
        // Also of applications that are gone something may be left.
        names.extend(self.runtime.workloads().await?.into_iter().map(|id| (id.namespace, id.app)));
        for (namespace, name) in names {
            if let Some(_turn) = self.turn_now(&namespace, &name)
                && let Err(error) = self.put_right(&namespace, &name).await
            {
                tracing::error!(%namespace, app.name = %name, error = %chain(&error), "reconciling an application failed");
            }
        }
        self.refresh().await
    }

    /// Makes what runs of an application what should run. The caller has its turn: nothing that is read here changes meanwhile.
    async fn put_right(&self, namespace: &Namespace, name: &AppName) -> Result<(), Error> {
        let app = self.objects.get::<App>(&Key::app(namespace, name)).await?.map(|stored| stored.value);
        let serving = app.as_ref().and_then(|app| Some(release_id(app, app.release?)));
        if let (Some(app), Some(id)) = (&app, &serving)
            && let Some(release) = self.release(id).await?
            && let Err(error) = self.runtime.apply(&self.workload(&release, app.instances)).await
        {
            tracing::error!(release = %release.id, error = %chain(&error), "starting a release failed");
        }
        for id in self.runtime.workloads().await? {
            if (&id.namespace, &id.app) != (namespace, name)
                || Some(&id) == serving.as_ref()
                || self.in_transit.has(&id)
            {
                continue;
            }
            let release = if app.is_some() { self.release(&id).await? } else { None };
            if release.is_none_or(|release| release.state != ReleaseState::Starting) {
                self.runtime.remove(&id, self.settings.grace).await?;
            }
        }
        if app.is_none() {
            // A deletion that failed half-way: who has this name next begins with release 1 again.
            self.forget_releases(namespace, name).await?;
        }
        Ok(())
    }

    /// Rebuilds the route table from what runs.
    pub(super) async fn refresh(&self) -> Result<(), Error> {
        // One at a time: what was read before a change must not replace what was read after it.
        let _turn = self.refreshing.lock().await;
        let mut routes: Vec<(Route, Arc<Target>)> = Vec::new();
        let mut exposed = Vec::new();
        for stored in self.objects.list::<App>(None).await? {
            let app = stored.value;
            let target = Arc::new(self.target(&app).await?);
            let own = self.routes(&app);
            routes.extend(own.iter().cloned().map(|route| (route, Arc::clone(&target))));
            if app.release.is_some() {
                exposed.push((app.namespace, app.name, own));
            }
        }
        self.forget_backends(&routes);
        self.table.replace(routes);
        self.runtime.expose(exposed).await?;
        Ok(())
    }

    /// Backends that no route leads to, and nobody is busy with.
    fn forget_backends(&self, routes: &[(Route, Arc<Target>)]) {
        let live: HashSet<*const Backend> =
            routes.iter().flat_map(|(_, target)| target.backends.iter().map(Arc::as_ptr)).collect();
        self.backends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, backend| live.contains(&Arc::as_ptr(backend)) || Arc::strong_count(backend) > 1);
    }

    async fn target(&self, app: &App) -> Result<Target, Error> {
        let id = release_id(app, app.release.unwrap_or(0));
        if app.release.is_none() {
            let reason = app.failure.clone().unwrap_or_else(|| "it has not been deployed yet".to_owned());
            return Ok(Target { release: id, backends: Vec::new(), reason: Some(reason) });
        }
        let instances = self.runtime.serving(&id).await?;
        // Those that are too many are idle before they are stopped, where that is ours to see to.
        let most = match self.runtime.rollout() {
            Rollout::SideBySide => app.instances as usize,
            Rollout::InPlace => instances.len(),
        };
        let backends = |address: fn(&InstanceState) -> Option<SocketAddr>| -> Vec<_> {
            let instances = instances.iter().take(most);
            instances.filter_map(|one| Some(self.backend(&id, &one.name, address(&one.state)?))).collect()
        };
        let mut serving = backends(|state| match state {
            InstanceState::Ready { address } => Some(*address),
            _ => None,
        });
        if serving.is_empty() {
            // Somebody deleted them all at once: they serve until others do.
            serving = backends(|state| match state {
                InstanceState::Stopping { address } => *address,
                _ => None,
            });
        }
        let backends = serving;
        let reason = backends.is_empty().then(|| why_nothing_serves(app, &instances));
        Ok(Target { release: id, backends, reason })
    }

    /// The same backend for the same address of the same instance, so that what is in flight stays counted.
    fn backend(&self, id: &ReleaseId, instance: &str, address: SocketAddr) -> Arc<Backend> {
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        let backend = backends
            .entry((id.clone(), instance.to_owned(), address))
            .or_insert_with(|| Arc::new(Backend::new(instance.to_owned(), address, self.table.traffic(id))));
        backend.is_up();
        Arc::clone(backend)
    }

    pub(super) fn backends_of(&self, id: &ReleaseId) -> Vec<Arc<Backend>> {
        let backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        backends.iter().filter(|((release, ..), _)| release == id).map(|(_, backend)| Arc::clone(backend)).collect()
    }

    /// The backends beyond the number of instances that an application should have.
    pub(super) fn surplus_backends(&self, app: &App, id: &ReleaseId) -> Vec<Arc<Backend>> {
        if self.runtime.rollout() == Rollout::InPlace {
            return Vec::new();
        }
        let mut backends = self.backends_of(id);
        backends.sort_by_key(|backend| index_of(&backend.instance));
        backends.split_off(backends.len().min(app.instances as usize))
    }
}

/// Ends when somebody else may have changed what was applied, and a little later, as changes seldom come alone. Who
/// does not wait until then is told again.
async fn drifted(drift: &mut Option<tokio::sync::watch::Receiver<u64>>) {
    let Some(drift) = drift else { return std::future::pending().await };
    if drift.clone().changed().await.is_err() {
        return std::future::pending().await;
    }
    tokio::time::sleep(TOGETHER).await;
    drift.mark_unchanged();
}

/// The last part of the name of an instance. The runtime stops those with the highest.
fn index_of(instance: &str) -> Option<u32> {
    instance.rsplit_once('-')?.1.parse().ok()
}

fn why_nothing_serves(app: &App, instances: &[Instance]) -> String {
    if app.instances == 0 {
        return "it is scaled to 0 instances".to_owned();
    }
    let crashed = instances.iter().find_map(|instance| match &instance.state {
        InstanceState::BackOff { ended, retry_at, .. } => {
            Some(format!("it ended with {} and is started again at {retry_at}", describe(*ended)))
        }
        InstanceState::Held { cause, .. } => Some(cause.clone()),
        _ => None,
    });
    crashed.unwrap_or_else(|| "it is starting".to_owned())
}

impl InTransit {
    pub(super) fn hold(&self, id: &ReleaseId) -> Transit {
        *self.releases().entry(id.clone()).or_default() += 1;
        Transit { all: self.clone(), id: id.clone() }
    }

    fn has(&self, id: &ReleaseId) -> bool {
        self.releases().contains_key(id)
    }

    fn releases(&self) -> MutexGuard<'_, HashMap<ReleaseId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Transit {
    fn drop(&mut self) {
        let mut releases = self.all.releases();
        if let Some(holders) = releases.get_mut(&self.id) {
            *holders -= 1;
            if *holders == 0 {
                releases.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_in_the_order_of_their_numbers() {
        let mut names = ["shop-3-10", "shop-3-9", "shop-3-0", "shop-3-2"];
        names.sort_by_key(|name| index_of(name));
        assert_eq!(names, ["shop-3-0", "shop-3-2", "shop-3-9", "shop-3-10"]);
    }
}
