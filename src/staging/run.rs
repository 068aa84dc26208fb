//! One staging, from its first state to its last.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{GivenUp, Stagings, ground::Ground, log::StagingLog, steps};
use crate::{
    auth::{BuildClaims, Grant},
    base::{self, BasePair, Progress},
    builders,
    lifecycle::phase::{Detected, Exported, Failure, PackageRequest},
    model::{Builder, BuilderName, ImageName, Phase, Staging, StagingState, Timestamp},
    oci::registry::Action,
    runtime::{Ended, Job, LogLine, Step, StepOutcome, Volumes},
    store::Key,
    telemetry,
};

/// How long the token of a staging is good: longer than any staging takes.
const TOKEN_LIFETIME: Duration = Duration::from_secs(6 * 3600);

/// A staging that runs.
pub(super) struct Run {
    pub stagings: Arc<Stagings>,
    pub staging: Staging,
    pub log: Arc<StagingLog>,
    pub cancel: CancellationToken,
    pub given_up: GivenUp,
    /// What the name of a third-party builder means: it is looked up once.
    pub builder: Option<builders::Builder>,
}

/// Why a staging does not go on.
enum Stop {
    Failed(String),
    /// Given up, or the daemon stops.
    Cancelled,
}

/// An error of any room, with its causes.
impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(telemetry::chain(&error))
    }
}

impl Run {
    pub async fn drive(mut self) {
        let result = match self.place().await {
            Ok(_place) => self.work().await,
            Err(stop) => Err(stop),
        };
        let state = match result {
            Ok(()) => StagingState::Done,
            Err(Stop::Failed(cause)) => StagingState::Failed { cause },
            Err(Stop::Cancelled) => {
                let given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner).clone();
                match given_up {
                    Some(cause) => StagingState::Failed { cause },
                    // The daemon stops: the next one starts this staging over.
                    None => return self.log.end().await,
                }
            }
        };
        if let StagingState::Failed { cause } = &state {
            self.log.note(format!("staging failed: {cause}"));
        }
        self.log.end().await;
        if let Err(error) = self.close(state).await {
            tracing::error!(staging = %self.staging.id, %error, "ending a staging failed; it starts over with the next start");
        }
    }

    /// Waits in the queue.
    async fn place(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Stop> {
        let places = Arc::clone(&self.stagings.places);
        if places.available_permits() == 0 {
            self.log.note("waiting for another staging to end");
        }
        tokio::select! {
            place = places.acquire_owned() => Ok(place?),
            () = self.cancel.cancelled() => Err(Stop::Cancelled),
        }
    }

    /// Boxed, as the compiler cannot see through all of it that it may move between threads.
    fn work(&mut self) -> BoxFuture<'_, Result<(), Stop>> {
        Box::pin(self.work_unboxed())
    }

    async fn work_unboxed(&mut self) -> Result<(), Stop> {
        if self.finished_before_the_crash().await? {
            return Ok(());
        }
        let previous = self.previous().await?;
        if let Some(previous) = &previous
            && self.takes_over(previous).await?
        {
            return Ok(());
        }
        match self.build(previous).await {
            // The image is out before the cache is: without the cache the next build only takes longer.
            Err(Stop::Failed(cause)) if self.image_is_out().await? => {
                self.log.note(format!("the image is out, but {cause}"));
                Ok(())
            }
            built => built,
        }
    }

    async fn build(&mut self, previous: Option<Staging>) -> Result<(), Stop> {
        // What an attempt before took does not count.
        self.staging.timings.clear();
        self.enter(StagingState::Preparing).await?;
        let token = self.token().await?;
        // Layers that another builder made are of another distribution, and perhaps of another user.
        let is_other = previous.as_ref().is_some_and(|previous| previous.builder != self.staging.builder);
        let previous = previous.filter(|_| !is_other);
        let cache = if is_other { None } else { self.cache().await? };
        let previous_image = previous.and_then(|staging| staging.image);
        let stagings = Arc::clone(&self.stagings);
        let settings = &stagings.settings;
        let lasting = stagings.rooms.runtime.volumes() == Volumes::OfTheJob;
        let ground = self.ground(&token, previous_image.as_ref(), cache.clone()).await?;
        self.staging.basis = Some(ground.basis.clone());

        self.enter(StagingState::Building).await?;
        let build = steps::build(settings, &ground)?;
        let export = steps::export(settings, &self.staging, &token, &ground, previous_image.as_ref())?;
        let rest = if lasting {
            let outcomes = self.run(vec![build]).await?;
            self.time(&outcomes, "build", Phase::Build);
            self.enter(StagingState::Exporting).await?;
            vec![export]
        } else {
            let previous = previous_image.as_ref();
            vec![steps::prepare(settings, &self.staging, &token, previous, cache, Some(&ground))?, build, export]
        };
        let started = Instant::now();
        let outcomes = self.run(rest).await?;
        if !lasting {
            let steps: Duration = outcomes.iter().map(|outcome| outcome.duration).sum();
            self.staging.timings.push((Phase::Schedule, millis(started.elapsed().saturating_sub(steps))));
        }
        for (step, phase) in [("prepare", Phase::Prepare), ("build", Phase::Build), ("export", Phase::Export)] {
            self.time(&outcomes, step, phase);
        }
        let exported: Exported = report(&outcomes)?;
        self.staging.image = Some(exported.image);
        Ok(())
    }

    /// Makes or copies what the build stands on, and lays out the volumes if they last.
    async fn ground(
        &mut self,
        token: &[u8],
        previous: Option<&ImageName>,
        cache: Option<ImageName>,
    ) -> Result<Ground, Stop> {
        let stagings = Arc::clone(&self.stagings);
        let (settings, version) = (&stagings.settings, &stagings.settings.builder);
        let lasting = stagings.rooms.runtime.volumes() == Volumes::OfTheJob;
        if let Builder::Image(name) = self.staging.builder.clone() {
            let started = Instant::now();
            let ground = Ground::third_party(version, self.third_party(&name).await?);
            self.staging.timings.push((Phase::Base, millis(started.elapsed())));
            if lasting {
                let prepare = steps::prepare(settings, &self.staging, token, previous, cache, Some(&ground))?;
                let outcomes = self.run(vec![prepare]).await?;
                self.time(&outcomes, "prepare", Phase::Prepare);
            }
            return Ok(ground);
        }
        // What does not last is laid out for detection alone.
        let (previous, cache) = if lasting { (previous, cache) } else { (None, None) };
        let prepare = steps::prepare(settings, &self.staging, token, previous, cache, None)?;
        let outcomes = self.run(vec![prepare, steps::detect()?]).await?;
        if lasting {
            self.time(&outcomes, "prepare", Phase::Prepare);
        }
        self.time(&outcomes, "detect", Phase::Detect);
        let detected: Detected = report(&outcomes)?;
        let started = Instant::now();
        let (build_packages, run_packages) = split(&detected.packages);
        let bases = self.bases(&build_packages, &run_packages).await?;
        self.staging.timings.push((Phase::Base, millis(started.elapsed())));
        let ground = Ground::embedded(version, bases, build_packages, run_packages);
        Ok(if lasting { ground } else { ground.detecting() })
    }

    /// What the builder's name means, looked up once for each staging.
    async fn third_party(&mut self, name: &BuilderName) -> Result<builders::Builder, Stop> {
        if let Some(builder) = &self.builder {
            return Ok(builder.clone());
        }
        let log = Arc::clone(&self.log);
        let note = move |text: String| log.note(text);
        let builders = Arc::clone(&self.stagings.rooms.builders);
        let builder = tokio::select! {
            builder = builders.ensure(name, &note) => builder?,
            () = self.cancel.cancelled() => return Err(Stop::Cancelled),
        };
        self.builder = Some(builder.clone());
        Ok(builder)
    }

    /// A daemon that was killed after the image was out only has to say so. A job that went on without a daemon has more
    /// to tell first: it is looked at to its end, as if the image were not there.
    async fn finished_before_the_crash(&mut self) -> Result<bool, Stop> {
        if !self.image_is_out().await? {
            return Ok(false);
        }
        let runtime = &self.stagings.rooms.runtime;
        if runtime.volumes() == Volumes::OfOneRun && runtime.jobs().await?.contains(&self.staging.id) {
            return Ok(false);
        }
        self.log.note("the image was out when the daemon was stopped: the staging is done");
        Ok(true)
    }

    /// Looks for the image in the registry.
    async fn image_is_out(&mut self) -> Result<bool, Stop> {
        let repository = self.repository();
        let found = self.stagings.rooms.registry.resolve(&repository, self.staging.id.as_str()).await?;
        if let Some(digest) = found {
            self.staging.image = Some(ImageName::new(repository, digest));
        }
        Ok(found.is_some())
    }

    /// The last staging of this application that made an image which is still there.
    async fn previous(&self) -> Result<Option<Staging>, Stop> {
        let rooms = &self.stagings.rooms;
        let all = rooms.objects.list::<Staging>(Some(self.staging.namespace.as_str())).await?;
        let last = all
            .into_iter()
            .map(|stored| stored.value)
            .filter(|staging| staging.app == self.staging.app && staging.state == StagingState::Done)
            .max_by_key(|staging| (staging.created_at, staging.id.clone()));
        let Some(last) = last else { return Ok(None) };
        let Some(image) = &last.image else { return Ok(None) };
        let there = rooms.registry.resolve(&image.repository, &image.digest.to_string()).await?.is_some();
        Ok(there.then_some(last))
    }

    /// Takes over the image of the previous staging when source, environment, builder and every
    /// package of the bases (or what the name of a third-party builder means) are the same.
    async fn takes_over(&mut self, previous: &Staging) -> Result<bool, Stop> {
        let (Some(basis), Some(image)) = (&previous.basis, &previous.image) else { return Ok(false) };
        let same = previous.source == self.staging.source
            && previous.environment == self.staging.environment
            && previous.builder == self.staging.builder
            && basis.builder == self.stagings.settings.builder;
        if !same {
            return Ok(false);
        }
        let started = Instant::now();
        let now = match self.staging.builder.clone() {
            Builder::Embedded => self.bases(&basis.build_packages, &basis.run_packages).await?.lock,
            Builder::Image(name) => Ground::third_party(&basis.builder, self.third_party(&name).await?).basis.lock,
        };
        if now != basis.lock {
            return Ok(false);
        }
        let registry = &self.stagings.rooms.registry;
        registry.publish(&image.repository, self.staging.id.as_str(), image.digest).await?;
        self.staging.timings.clear();
        self.log.note(format!(
            "nothing changed since staging {}: source, environment, builder and {} are the same; its image is used again",
            previous.id,
            if basis.images.is_some() { "run image" } else { "base packages" }
        ));
        self.staging.timings.push((Phase::Base, millis(started.elapsed())));
        self.staging.basis = Some(basis.clone());
        self.staging.image = Some(image.clone());
        Ok(true)
    }

    async fn cache(&self) -> Result<Option<ImageName>, Stop> {
        let repository = ImageName::cache_repository(&self.staging.namespace, &self.staging.app);
        let found = self.stagings.rooms.registry.resolve(&repository, "latest").await?;
        Ok(found.map(|digest| ImageName::new(repository, digest)))
    }

    async fn bases(&self, build: &[String], run: &[String]) -> Result<BasePair, Stop> {
        let log = Arc::clone(&self.log);
        let told = Mutex::new(Instant::now());
        let progress = move |progress: Progress| match progress {
            Progress::Note(text) => log.note(text),
            Progress::Download { done, total } => {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                if done == total || told.elapsed() >= Duration::from_millis(500) {
                    *told = Instant::now();
                    log.note(format!("downloaded {:.1} of {:.1} MB of Debian packages", mega(done), mega(total)));
                }
            }
        };
        let (bases, cancel) = (Arc::clone(&self.stagings.rooms.bases), self.cancel.clone());
        let (build, run) = (build.to_vec(), run.to_vec());
        let runtime = tokio::runtime::Handle::current();
        // On a thread of its own: assembling is much work for the processor between few waits.
        let ensure = tokio::task::spawn_blocking(move || {
            runtime.block_on(async {
                tokio::select! {
                    pair = bases.ensure(&build, &run, &progress) => Ok(pair?),
                    () = cancel.cancelled() => Err(Stop::Cancelled),
                }
            })
        });
        ensure.await?
    }

    /// Runs steps, with their output in the log. The first that fails ends the staging.
    async fn run(&self, steps: Vec<Step>) -> Result<Vec<StepOutcome>, Stop> {
        let (sink, lines) = mpsc::channel::<LogLine>(256);
        let runtime = &self.stagings.rooms.runtime;
        let seen = match runtime.volumes() {
            Volumes::OfTheJob => BTreeMap::new(),
            Volumes::OfOneRun => self.log.seen().await,
        };
        let job = Job { id: self.staging.id.clone(), steps, seen };
        let (outcomes, ()) = tokio::join!(runtime.run(job, sink, self.cancel.clone()), self.log.pump(lines));
        let outcomes = outcomes?;
        if self.cancel.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        match outcomes.last() {
            Some(last) if last.ended != Ended::Exit(0) => Err(Stop::Failed(why(last))),
            _ => Ok(outcomes),
        }
    }

    async fn token(&self) -> Result<Vec<u8>, Stop> {
        let staging = &self.staging;
        let app = ImageName::app_repository(&staging.namespace, &staging.app);
        let cache = ImageName::cache_repository(&staging.namespace, &staging.app);
        let grant = |repository: String, actions: &[Action]| Grant { repository, actions: actions.to_vec() };
        let claims = BuildClaims {
            namespace: staging.namespace.clone(),
            staging: staging.id.clone(),
            grants: vec![
                grant(app, &[Action::Pull, Action::Push]),
                grant(cache, &[Action::Pull, Action::Push]),
                grant(base::REPOSITORY.to_owned(), &[Action::Pull]),
                grant(builders::RUN_IMAGES.to_owned(), &[Action::Pull]),
            ],
            expires_at: Timestamp::from_second(Timestamp::now().as_second() + TOKEN_LIFETIME.as_secs() as i64),
        };
        Ok(self.stagings.rooms.auth.sign(&claims).into_bytes())
    }

    /// Records a state before its work begins.
    async fn enter(&mut self, state: StagingState) -> Result<(), Stop> {
        self.staging.state = state;
        self.record().await?;
        Ok(())
    }

    /// Records the last state. Nobody waits for the disk to be freed.
    async fn close(&mut self, state: StagingState) -> Result<(), super::Error> {
        self.staging.state = state;
        self.record().await?;
        self.stagings.discard_later(self.staging.id.clone());
        self.stagings.prune(&self.staging).await
    }

    /// Writes everything but the log, which writes itself.
    async fn record(&self) -> Result<(), super::Error> {
        let staging = &self.staging;
        let key = Key::staging(&staging.namespace, &staging.id);
        self.stagings
            .rooms
            .objects
            .modify::<Staging>(&key, |stored| {
                let log = std::mem::take(&mut stored.log);
                *stored = Staging { log, ..staging.clone() };
            })
            .await?;
        Ok(())
    }

    fn repository(&self) -> String {
        ImageName::app_repository(&self.staging.namespace, &self.staging.app)
    }

    fn time(&mut self, outcomes: &[StepOutcome], step: &str, phase: Phase) {
        let took = outcomes.iter().find(|outcome| outcome.name == step).map(|outcome| outcome.duration);
        self.staging.timings.extend(took.map(|took| (phase, millis(took))));
    }
}

/// The packages of the build and of the run base.
fn split(packages: &[PackageRequest]) -> (Vec<String>, Vec<String>) {
    let names = |wanted: fn(&PackageRequest) -> bool| {
        let mut names: Vec<String> = packages.iter().filter(|p| wanted(p)).map(|p| p.name.clone()).collect();
        names.sort();
        names.dedup();
        names
    };
    (names(|package| package.build), names(|package| package.launch))
}

/// The report of the last step.
fn report<T: DeserializeOwned>(outcomes: &[StepOutcome]) -> Result<T, Stop> {
    let last = outcomes.last().ok_or_else(|| Stop::Failed("no step was run".to_owned()))?;
    let text = last.report.as_deref().ok_or_else(|| Stop::Failed(format!("step {} left no report", last.name)))?;
    serde_json::from_slice(text).map_err(|error| Stop::Failed(format!("the report of step {}: {error}", last.name)))
}

/// Why a step failed: in its own words where it left some.
fn why(outcome: &StepOutcome) -> String {
    let own = outcome.report.as_deref().and_then(|text| serde_json::from_slice::<Failure>(text).ok());
    match (outcome.ended, own) {
        (Ended::Exit(_), Some(failure)) => failure.cause,
        (Ended::Exit(code), None) => format!("step {} ended with exit code {code}", outcome.name),
        (Ended::Signal(signal), _) => format!("step {} was ended by signal {signal}", outcome.name),
        (Ended::OutOfMemory, _) if outcome.name == "build" => {
            "step build used more memory than a build may; raise builds.memory_bytes in the daemon's settings file"
                .to_owned()
        }
        (Ended::OutOfMemory, _) => format!("step {} used more memory than it may", outcome.name),
        (Ended::Deadline, _) if outcome.name == "build" => {
            "step build took longer than a build may; raise builds.deadline_seconds in the daemon's settings file"
                .to_owned()
        }
        (Ended::Deadline, _) => format!("step {} took longer than it may; push again", outcome.name),
        (Ended::Cancelled, _) => format!("step {} was stopped", outcome.name),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
