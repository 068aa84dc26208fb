//! A job in the cluster, from its making to its last line.
//!
//! The job, not the daemon, keeps a build going: a daemon that starts again finds it and goes on with it. What is told
//! of a job is read from its one pod: states of containers, their last words, and their output by the API server.

use std::{
    collections::{BTreeMap, HashMap},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use k8s_openapi::api::{
    batch::v1::Job as ClusterJob,
    core::v1::{ContainerState, ContainerStatus, Event, Pod},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::watcher,
};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    Cluster,
    call::{call, call_unless_missing, is_taken},
    job, logs, names,
    step::Ending,
    trouble,
};
use crate::{
    model::Timestamp,
    runtime::{Ended, Error, JOB_BEGINS, Job, JobId, LogLine, LogSink, LogStream, StepOutcome},
};

/// How long a job waits for what may come by itself (a node, a quota, an image) before it is given up.
const PATIENCE: Duration = Duration::from_secs(90);
/// An image that the registry does not have will not come. One that is away may come back.
const PULL_PATIENCE: Duration = Duration::from_secs(15);
/// How often a job without news is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How long the last lines of a container that ended may take.
const LAST_LINES: Duration = Duration::from_secs(20);
/// How long a job that is deleted may be there.
const GOING: Duration = Duration::from_secs(60);
/// The origin of what keeps a job waiting.
const ORIGIN: &str = "cluster";
/// Watches end by themselves before a connection without a word counts as dead, in seconds.
pub(super) const WATCH_SECONDS: u32 = 30;
const DELETED: &str = "somebody deleted its pod, or its node went away; push again";

pub(super) async fn run(
    cluster: &Arc<Cluster>,
    job: Job,
    log: LogSink,
    cancel: CancellationToken,
) -> Result<Vec<StepOutcome>, Error> {
    let seen = match begin(cluster, &job).await? {
        Begun::Anew => {
            let place = format!("job {} in namespace {}", names::job(&job.id), cluster.settings.builds_namespace);
            say(&log, JOB_BEGINS, format!("{place} is made")).await;
            BTreeMap::new()
        }
        Begun::Found => job.seen.clone(),
    };
    let mut following = Following {
        cluster,
        job: &job,
        log: &log,
        seen,
        started: Instant::now(),
        stuck: None,
        logs: HashMap::new(),
        told: None,
    };
    tokio::select! {
        outcomes = following.follow() => outcomes,
        // The job goes on until it is discarded: a daemon that stops leaves it to the next one.
        () = cancel.cancelled() => Ok(vec![following.unfinished(Ended::Cancelled)]),
    }
}

/// Deletes what there is of a job, and waits until its pod is gone.
pub(super) async fn discard(cluster: &Cluster, id: &JobId) -> Result<(), Error> {
    let (name, doing) = (names::job(id), format!("deleting job {}", names::job(id)));
    let (jobs, pods, secrets) = (cluster.jobs(), cluster.builds(), cluster.build_secrets());
    let (background, at_once) = (DeleteParams::background(), DeleteParams::default());
    call_unless_missing(&doing, || jobs.delete(&name, &background)).await?;
    call_unless_missing(&doing, || secrets.delete(&name, &at_once)).await?;
    let of_job = ListParams::default().labels(&names::of_staging(id));
    let until = Instant::now() + GOING;
    loop {
        let pods_left = !call(&doing, || pods.list_metadata(&of_job)).await?.items.is_empty();
        let job_left = call(&doing, || jobs.get_metadata_opt(&name)).await?.is_some();
        if !pods_left && !job_left {
            return Ok(());
        }
        if Instant::now() >= until {
            let cause = format!("it is still there after {} s", GOING.as_secs());
            return Err(Error::Failed { doing, cause });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The jobs that something is left of.
pub(super) async fn left_over(cluster: &Cluster) -> Result<Vec<JobId>, Error> {
    let ours = ListParams::default().labels(&names::ours_with(&cluster.settings.namespace, names::STAGING));
    let doing = "looking for interrupted stagings";
    let (jobs, secrets) = (cluster.jobs(), cluster.build_secrets());
    let jobs = call(doing, || jobs.list_metadata(&ours)).await?.items;
    let secrets = call(doing, || secrets.list_metadata(&ours)).await?.items;
    let labels = jobs.iter().map(|job| job.labels()).chain(secrets.iter().map(|secret| secret.labels()));
    let mut ids: Vec<JobId> = labels.filter_map(|labels| labels.get(names::STAGING)?.parse().ok()).collect();
    ids.sort();
    ids.dedup();
    Ok(ids)
}

enum Begun {
    Anew,
    /// A daemon before made it.
    Found,
}

/// Makes the job, or finds the one that a daemon before made for the same images.
async fn begin(cluster: &Cluster, job: &Job) -> Result<Begun, Error> {
    let (name, doing) = (names::job(&job.id), format!("making job {}", names::job(&job.id)));
    let (jobs, secrets) = (cluster.jobs(), cluster.build_secrets());
    if let Some(there) = call(&doing, || jobs.get_opt(&name)).await? {
        let going = there.metadata.deletion_timestamp.is_none();
        if going && images_of(&there) == job::images(&cluster.settings, job) {
            return Ok(Begun::Found);
        }
        discard(cluster, &job.id).await?;
    }
    super::lay_out_builds(cluster).await?;
    let manifests = job::manifests(&cluster.settings, job)?;
    let (apply, secret) = (PatchParams::apply(names::MANAGER).force(), Patch::Apply(&manifests.secret));
    call(&doing, || secrets.patch(&name, &apply, &secret)).await?;
    let wanted = serde_json::from_value::<ClusterJob>(manifests.job)
        .map_err(|error| Error::Failed { doing: doing.clone(), cause: error.to_string() })?;
    let made = call(&doing, || create(&jobs, &name, &wanted)).await?;
    // The secret goes when the job does, whoever throws it away.
    let owner = Patch::Merge(json!({ "metadata": { "ownerReferences": [{
        "apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": made.uid().unwrap_or_default(),
    }] } }));
    let merge = PatchParams::default();
    call(&doing, || secrets.patch(&name, &merge, &owner)).await?;
    Ok(Begun::Anew)
}

/// A job that is there now was made by this request when it was sent before: there was none when it was looked for.
async fn create(jobs: &Api<ClusterJob>, name: &str, wanted: &ClusterJob) -> kube::Result<ClusterJob> {
    match jobs.create(&PostParams::default(), wanted).await {
        Err(error) if is_taken(&error) => jobs.get(name).await,
        made => made,
    }
}

fn images_of(job: &ClusterJob) -> Vec<String> {
    let pod = job.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let containers = |pod: &k8s_openapi::api::core::v1::PodSpec| {
        let all = pod.init_containers.iter().flatten().chain(&pod.containers);
        all.filter_map(|container| container.image.clone()).collect()
    };
    pod.map(containers).unwrap_or_default()
}

/// A job that is being watched.
struct Following<'a> {
    cluster: &'a Arc<Cluster>,
    job: &'a Job,
    log: &'a LogSink,
    /// Lines of each container that the log has already.
    seen: BTreeMap<String, usize>,
    started: Instant,
    /// Since when nothing goes on, and why.
    stuck: Option<(Instant, String)>,
    /// The readers of output, by container.
    logs: HashMap<&'static str, JoinHandle<()>>,
    told: Option<String>,
}

impl Following<'_> {
    async fn follow(&mut self) -> Result<Vec<StepOutcome>, Error> {
        let config = watcher::Config::default().labels(&names::of_staging(&self.job.id)).timeout(WATCH_SECONDS);
        let mut changes = pin!(watcher(self.cluster.builds(), config));
        let mut pod = None;
        // Whether the list that is being read has the pod in it.
        let mut listed = false;
        loop {
            match tokio::time::timeout(LOOK, changes.next()).await {
                Ok(Some(Ok(watcher::Event::Apply(changed) | watcher::Event::InitApply(changed)))) => {
                    (pod, listed) = (Some(changed), true);
                }
                Ok(Some(Ok(watcher::Event::Delete(_)))) => return Err(self.lost(DELETED)),
                Ok(Some(Ok(watcher::Event::Init))) => listed = false,
                // It went while nobody watched.
                Ok(Some(Ok(watcher::Event::InitDone))) if pod.is_some() && !listed => return Err(self.lost(DELETED)),
                Ok(Some(Ok(watcher::Event::InitDone))) | Err(_) => {}
                // The watcher tries again by itself.
                Ok(Some(Err(error))) => {
                    tracing::warn!(job = %self.job.id, %error, "watching a job failed; trying again");
                    tokio::time::sleep(LOOK).await;
                }
                Ok(None) => return Err(self.lost("the cluster ended the watch of its pod")),
            }
            let outcome = match &pod {
                Some(pod) => self.look(pod).await?,
                None => self.look_for_creation().await?,
            };
            if let Some(outcomes) = outcome {
                return Ok(outcomes);
            }
        }
    }

    /// Reads what containers ended, and begins to read the output of those that have begun.
    async fn look(&mut self, pod: &Pod) -> Result<Option<Vec<StepOutcome>>, Error> {
        let mut outcomes = Vec::new();
        for step in &self.job.steps {
            let Some(status) = status_of(pod, step.name) else { break };
            let state = status.state.as_ref();
            if state.is_some_and(|state| state.running.is_some() || state.terminated.is_some()) {
                self.read(pod, step.name);
            }
            let Some(outcome) = state.and_then(|state| outcome(step.name, state)) else { break };
            self.last_lines(step.name).await;
            let ended = outcome.ended;
            outcomes.push(outcome);
            if ended != Ended::Exit(0) && pod.metadata.deletion_timestamp.is_some() {
                return Err(self.lost(DELETED));
            }
            if ended != Ended::Exit(0) {
                return Ok(Some(outcomes));
            }
        }
        if outcomes.len() == self.job.steps.len() {
            return Ok(Some(outcomes));
        }
        let status = pod.status.as_ref();
        if status.is_some_and(|status| status.reason.as_deref() == Some("DeadlineExceeded")) {
            outcomes.push(self.unfinished(Ended::Deadline));
            return Ok(Some(outcomes));
        }
        let over = status.is_some_and(|status| matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")));
        match trouble::of_pod(pod) {
            Some(cause) if over => return Err(self.lost(&cause)),
            Some(cause) => self.wait_for(cause).await?,
            None if over => return Err(self.lost("its pod ended without a word")),
            None => self.stuck = None,
        }
        Ok(None)
    }

    /// There is no pod: the controller says in events why it makes none.
    async fn look_for_creation(&mut self) -> Result<Option<Vec<StepOutcome>>, Error> {
        if self.started.elapsed() < LOOK {
            return Ok(None);
        }
        let events: Api<Event> = Api::namespaced(self.cluster.client.clone(), &self.cluster.settings.builds_namespace);
        let of_job = format!("involvedObject.kind=Job,involvedObject.name={}", names::job(&self.job.id));
        let events = events.list(&ListParams::default().fields(&of_job)).await;
        // The API server is away, perhaps, or the daemon may not read them: then its patience ends it.
        let Ok(events) = events else { return Ok(None) };
        let refused = events.items.into_iter().filter(|event| event.reason.as_deref() == Some("FailedCreate"));
        if let Some(message) = refused.filter_map(|event| event.message).next_back() {
            self.wait_for(trouble::of_creation(&message)).await?;
        } else if matches!(self.cluster.jobs().get_metadata_opt(&names::job(&self.job.id)).await, Ok(None)) {
            return Err(self.lost("somebody deleted it"));
        } else {
            self.wait_for("the cluster has made no pod for it yet".to_owned()).await?;
        }
        Ok(None)
    }

    /// Says once what a job waits for; gives up when it has waited for too long.
    async fn wait_for(&mut self, cause: String) -> Result<(), Error> {
        let since = match &self.stuck {
            Some((since, _)) => *since,
            None => Instant::now(),
        };
        if self.told.as_ref() != Some(&cause) {
            self.told = Some(cause.clone());
            say(self.log, ORIGIN, format!("waiting: {cause}")).await;
        }
        let is_missing = cause.contains("cannot be pulled") && cause.contains("not found");
        let patience = if is_missing { PULL_PATIENCE } else { PATIENCE };
        if since.elapsed() >= patience {
            return Err(self.lost(&cause));
        }
        self.stuck = Some((since, cause));
        Ok(())
    }

    fn read(&mut self, pod: &Pod, container: &'static str) {
        if self.logs.contains_key(container) {
            return;
        }
        let pods = Api::namespaced(self.cluster.streams.clone(), &self.cluster.settings.builds_namespace);
        let (pod, log) = (pod.name_any(), self.log.clone());
        let seen = self.seen.get(container).copied().unwrap_or_default();
        let reader = tokio::spawn(async move { logs::forward(&pods, &pod, container, seen, &log).await });
        self.logs.insert(container, reader);
    }

    async fn last_lines(&mut self, container: &'static str) {
        if let Some(reader) = self.logs.get_mut(container)
            && !reader.is_finished()
            && tokio::time::timeout(LAST_LINES, reader).await.is_err()
        {
            tracing::warn!(job = %self.job.id, container, "the last lines of a step did not come in time");
        }
    }

    /// The step that a job did not get beyond.
    fn unfinished(&self, ended: Ended) -> StepOutcome {
        let begun = self.job.steps.iter().rev().find(|step| self.logs.contains_key(step.name));
        let name = begun.or(self.job.steps.first()).map_or("job", |step| step.name);
        StepOutcome { name, ended, duration: self.started.elapsed(), report: None }
    }

    fn lost(&self, cause: &str) -> Error {
        let doing = format!("running job {} in the cluster", names::job(&self.job.id));
        Error::Failed { doing, cause: cause.to_owned() }
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.logs.values().for_each(JoinHandle::abort);
    }
}

async fn say(log: &LogSink, origin: &str, text: String) {
    let line = LogLine { origin: origin.to_owned(), stream: LogStream::Note, at: Timestamp::now(), text };
    // Whoever does not listen any more does not miss it.
    let _ = log.send(line).await;
}

fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    all.into_iter().find(|status| status.name == container)
}

/// How a container ended, when it has.
fn outcome(name: &'static str, state: &ContainerState) -> Option<StepOutcome> {
    let terminated = state.terminated.as_ref()?;
    let message = terminated.message.as_deref().unwrap_or_default();
    let ending: Ending = serde_json::from_str(message).unwrap_or_default();
    let ended = match (terminated.reason.as_deref(), ending.signal) {
        _ if ending.late => Ended::Deadline,
        (_, _) if terminated.exit_code == 0 => Ended::Exit(0),
        (Some("OOMKilled"), _) => Ended::OutOfMemory,
        (_, Some(signal)) => Ended::Signal(signal),
        _ => Ended::Exit(terminated.exit_code),
    };
    let took = |from: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>, to: &Option<_>| {
        let (from, to): (_, &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time) = (from.as_ref()?, to.as_ref()?);
        u64::try_from(to.0.as_millisecond() - from.0.as_millisecond()).ok()
    };
    let millis = match ending.millis {
        0 => took(&terminated.started_at, &terminated.finished_at).unwrap_or_default(),
        millis => millis,
    };
    let report = ending.report.and_then(|report| serde_json::to_vec(&report).ok());
    Some(StepOutcome { name, ended, duration: Duration::from_millis(millis), report })
}
