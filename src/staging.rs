//! From source to image: the queue and the journalled state machine of a staging, its tokens, its log.
//!
//! A staging is three jobs of the runtime: lay out and detect, then build, then export. Between
//! the first and the second the base images for what was detected are made. With a third-party builder its images are
//! copied first, and the second job detects as well. Every state is in the
//! store before its work begins; a staging that a crash interrupted starts over, unless its image
//! is already in the registry. A newer staging of an application supersedes an older one.

mod ground;
mod log;
mod run;
mod steps;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::stream::BoxStream;
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::log::StagingLog;
use crate::{
    auth::Auth,
    base::Bases,
    blob::SharedBlobs,
    builders::Builders,
    model::{AfterStaging, App, AppName, Namespace, StageId, Staging, StagingState, Timestamp, random_hex},
    oci::registry::Registry,
    runtime::{Limits, LogLine, SharedRuntime, Volumes},
    source::Source,
    store::{self, Key, Objects},
};

/// Stagings that are kept for each application.
const KEPT_STAGINGS: usize = 5;

/// All stagings of this daemon.
pub struct Stagings {
    rooms: Rooms,
    settings: Settings,
    /// How many may run at once.
    places: Arc<Semaphore>,
    running: Mutex<HashMap<StageId, Running>>,
    /// One staging starts at a time: which one is newer has to be the same for everybody.
    starting: tokio::sync::Mutex<()>,
    /// Cancels every staging, also one that begins later.
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// The rooms that a staging goes through.
pub struct Rooms {
    pub objects: Objects,
    pub blobs: SharedBlobs,
    pub runtime: SharedRuntime,
    pub registry: Registry,
    pub bases: Arc<Bases>,
    pub builders: Arc<Builders>,
    pub auth: Arc<Auth>,
}

/// What stagings are run with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `host:port` where jobs reach the registry.
    pub registry_address: String,
    pub at_once: usize,
    pub limits: Limits,
    /// Of a build; the other steps have a fixed one.
    pub deadline: Duration,
    pub max_source_bytes: u64,
    pub max_source_entries: u64,
    /// Proxies and certificate bundles: they reach builds and never images.
    pub build_environment: std::collections::BTreeMap<String, String>,
    /// Where builds find their certificate authorities, if they are given any.
    pub ca_bundle: Option<String>,
    /// Identifies the embedded builder.
    pub builder: String,
}

/// Why a staging is cancelled; none while the daemon stops, which starts it over.
type GivenUp = Arc<Mutex<Option<String>>>;

struct Running {
    namespace: Namespace,
    app: AppName,
    cancel: CancellationToken,
    given_up: GivenUp,
    log: Arc<StagingLog>,
    ended: watch::Receiver<bool>,
}

/// What is on disk of a staging before it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leftovers {
    Nothing,
    /// Of a daemon that was killed.
    OfAnAttempt,
}

impl Stagings {
    pub fn new(rooms: Rooms, settings: Settings) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(settings.at_once));
        Arc::new(Self {
            rooms,
            settings,
            places,
            running: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Queues a staging of an uploaded source and returns at once. A staging of the same
    /// application that is not finished is superseded.
    pub async fn start(self: &Arc<Self>, app: &App, blob_uid: &str, then: AfterStaging) -> Result<Staging, Error> {
        let _turn = self.starting.lock().await;
        let no_source = || Error::NoSuchSource(blob_uid.to_owned());
        let source = self.rooms.objects.get::<Source>(&Source::key_of(&app.namespace, blob_uid)).await?;
        let source = source.filter(|source| source.value.app == app.name).ok_or_else(no_source)?.value;
        // It may be old, and a garbage collection on its way.
        if !self.rooms.blobs.touch(&source.digest).await? {
            return Err(no_source());
        }
        let staging = Staging {
            id: new_stage_id(),
            namespace: app.namespace.clone(),
            app: app.name.clone(),
            source: source.digest,
            blob_uid: blob_uid.to_owned(),
            environment: app.environment.clone(),
            builder: app.builder.clone(),
            created_at: Timestamp::now(),
            state: StagingState::Queued,
            image: None,
            timings: Vec::new(),
            basis: None,
            log: Vec::new(),
            then,
        };
        self.rooms.objects.create(&staging).await?;
        let (id, uid) = (staging.id.clone(), blob_uid.to_owned());
        // What a push wants becomes true with its deployment; a staging for itself is all that there is to wait for.
        let builder = (staging.then == AfterStaging::Nothing).then(|| staging.builder.clone());
        self.rooms
            .objects
            .modify::<App>(&Key::app(&app.namespace, &app.name), |app| {
                app.stage_id = Some(id.clone());
                app.blob_uid = Some(uid.clone());
                app.builder = builder.clone().unwrap_or_else(|| app.builder.clone());
            })
            .await?;
        self.supersede(&staging);
        self.spawn(staging.clone(), Leftovers::Nothing);
        Ok(staging)
    }

    pub async fn get(&self, namespace: &Namespace, id: &StageId) -> Result<Staging, Error> {
        let stored = self.rooms.objects.get::<Staging>(&Key::staging(namespace, id)).await?;
        stored.map(|stored| stored.value).ok_or_else(|| Error::NoSuchStaging(id.to_string()))
    }

    /// The stagings of an application that are kept, the newest first.
    pub async fn of_app(&self, app: &App) -> Result<Vec<Staging>, Error> {
        let all = self.rooms.objects.list::<Staging>(Some(app.namespace.as_str())).await?;
        let mut stagings: Vec<_> =
            all.into_iter().map(|stored| stored.value).filter(|staging| staging.app == app.name).collect();
        // Of several in one second the application knows the last.
        stagings
            .sort_by_key(|staging| (app.stage_id.as_ref() != Some(&staging.id), std::cmp::Reverse(staging.created_at)));
        Ok(stagings)
    }

    /// Ends when the staging does; the result has a final state, unless the daemon stops.
    pub async fn wait(&self, namespace: &Namespace, id: &StageId) -> Result<Staging, Error> {
        let ended = self.lock().get(id).map(|running| running.ended.clone());
        if let Some(mut ended) = ended {
            // A closed channel is an end as well.
            let _ = ended.wait_for(|ended| *ended).await;
        }
        self.get(namespace, id).await
    }

    /// The log from its first line; with `follow` until the staging ends.
    pub async fn log(
        &self,
        namespace: &Namespace,
        id: &StageId,
        follow: bool,
    ) -> Result<BoxStream<'static, LogLine>, Error> {
        let live = self.lock().get(id).map(|running| Arc::clone(&running.log));
        let staging = self.get(namespace, id).await?;
        let blobs = Arc::clone(&self.rooms.blobs);
        Ok(match live {
            Some(log) => log::live(log, follow),
            None => log::kept(staging.log, blobs),
        })
    }

    /// Takes up what a daemon before left: ends or starts over what was not finished.
    pub async fn recover(self: &Arc<Self>) -> Result<(), Error> {
        let mut left: HashSet<StageId> = self.rooms.runtime.jobs().await?.into_iter().collect();
        for stored in self.rooms.objects.list::<Staging>(None).await? {
            let staging = stored.value;
            if staging.state.is_final() {
                continue;
            }
            let app = self.rooms.objects.get::<App>(&Key::app(&staging.namespace, &staging.app)).await?;
            if app.is_some_and(|app| app.value.stage_id.as_ref() == Some(&staging.id)) {
                let leftovers = if left.remove(&staging.id) { Leftovers::OfAnAttempt } else { Leftovers::Nothing };
                self.spawn(staging, leftovers);
            } else {
                let cause = "a newer push took its place, or it was never acknowledged".to_owned();
                self.modify(&staging, |staging| staging.state = StagingState::Failed { cause: cause.clone() }).await?;
            }
        }
        // What is only to be thrown away holds nobody up.
        for job in left {
            self.discard_later(job);
        }
        Ok(())
    }

    /// The stagings whose images are still to be deployed.
    pub async fn to_be_deployed(&self) -> Result<Vec<Staging>, Error> {
        let all = self.rooms.objects.list::<Staging>(None).await?.into_iter().map(|stored| stored.value);
        Ok(all.filter(|staging| staging.then != AfterStaging::Nothing).collect())
    }

    /// The image was deployed, or cannot be: nobody has to try again.
    pub async fn settle(&self, staging: &Staging) -> Result<(), Error> {
        self.modify(staging, |staging| staging.then = AfterStaging::Nothing).await
    }

    async fn modify(&self, staging: &Staging, change: impl FnMut(&mut Staging) + Send) -> Result<(), Error> {
        match self.rooms.objects.modify(&Key::staging(&staging.namespace, &staging.id), change).await {
            // Who deleted it wants nothing of it.
            Ok(_) | Err(store::Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends what runs and waits for it. It starts over when the daemon does.
    pub async fn finish(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Deletes the oldest finished stagings of an application beyond what is kept. The one that has just ended is none of
    /// them, however many began in the same second, and neither is one that is still to be deployed.
    async fn prune(&self, just: &Staging) -> Result<(), Error> {
        let namespace = &just.namespace;
        let all = self.rooms.objects.list::<Staging>(Some(namespace.as_str())).await?;
        let settled = |staging: &Staging| staging.state.is_final() && staging.then == AfterStaging::Nothing;
        let mut finished: Vec<_> = all
            .into_iter()
            .map(|stored| stored.value)
            .filter(|staging| staging.app == just.app && staging.id != just.id && settled(staging))
            .collect();
        finished.sort_by_key(|staging| std::cmp::Reverse(staging.created_at));
        for staging in finished.into_iter().skip(KEPT_STAGINGS - 1) {
            match self.rooms.objects.delete(&Key::staging(namespace, &staging.id)).await {
                Ok(()) | Err(store::Error::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Ends what runs for an application that is gone.
    pub fn give_up(&self, namespace: &Namespace, app: &AppName) {
        let cause = "the application was deleted";
        self.cancel(cause, |_, running| running.app == *app && running.namespace == *namespace);
    }

    fn supersede(&self, by: &Staging) {
        let cause = format!("superseded by a newer push (staging {})", by.id);
        self.cancel(&cause, |id, running| *id != by.id && running.app == by.app && running.namespace == by.namespace);
    }

    fn cancel(&self, cause: &str, which: impl Fn(&StageId, &Running) -> bool) {
        for (_, running) in self.lock().iter().filter(|(id, running)| which(id, running)) {
            *running.given_up.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause.to_owned());
            running.cancel.cancel();
        }
    }

    /// Frees what a job had on disk, while everything else goes on. What fails is tried again by the next daemon.
    fn discard_later(self: &Arc<Self>, job: StageId) {
        let stagings = Arc::clone(self);
        self.tasks.spawn(async move { stagings.discard(&job).await });
    }

    async fn discard(&self, job: &StageId) {
        if let Err(error) = self.rooms.runtime.discard(job).await {
            let cause = crate::telemetry::chain(&error);
            tracing::error!(staging = %job, cause, "removing what a staging left on disk failed; the next start tries again");
        }
    }

    fn spawn(self: &Arc<Self>, staging: Staging, leftovers: Leftovers) {
        let (end, ended) = watch::channel(false);
        let cancel = self.stop.child_token();
        let given_up = GivenUp::default();
        let log = StagingLog::new(
            self.rooms.objects.clone(),
            Arc::clone(&self.rooms.blobs),
            Key::staging(&staging.namespace, &staging.id),
            staging.log.clone(),
        );
        let running = Running {
            namespace: staging.namespace.clone(),
            app: staging.app.clone(),
            cancel: cancel.clone(),
            given_up: Arc::clone(&given_up),
            log: Arc::clone(&log),
            ended,
        };
        self.lock().insert(staging.id.clone(), running);
        let stagings = Arc::clone(self);
        self.tasks.spawn(async move {
            let id = staging.id.clone();
            // What goes on without a daemon is gone on with.
            let dead = stagings.rooms.runtime.volumes() == Volumes::OfTheJob;
            if leftovers == Leftovers::OfAnAttempt && dead {
                stagings.discard(&id).await;
            }
            run::Run { stagings: Arc::clone(&stagings), staging, log, cancel, given_up, builder: None }.drive().await;
            stagings.lock().remove(&id);
            let _ = end.send(true);
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<StageId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_stage_id() -> StageId {
    random_hex::<8>().parse().expect("16 hexadecimal digits are a stage id")
}

/// What can go wrong with a staging, apart from the build itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no staging '{0}'")]
    NoSuchStaging(String),
    #[error("there is no upload '{0}' of this application; upload the source first")]
    NoSuchSource(String),
    #[error("the runtime failed")]
    Runtime(#[from] crate::runtime::Error),
    #[error("the store failed")]
    Store(#[from] store::Error),
    #[error("the blob store failed")]
    Blob(#[from] crate::blob::Error),
}
