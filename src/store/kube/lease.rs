//! Which of several daemons leads: who holds a Lease of the cluster.
//!
//! The holder renews it every two seconds. Who has seen it unchanged for as long as it is valid takes it; seen, not
//! read: clocks of other machines do not matter. The holder gives up by itself, earlier, when it could not renew, so that
//! there are never two. A daemon that ends in peace releases the Lease, and the next one is told by a watch, at once.

use std::{future::Future, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Cluster,
    call::{Failure, Pauses},
};
use crate::store::Error;

/// How long leadership lasts.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// So long a Lease is valid after it was renewed.
    pub valid: Duration,
    /// A holder that could not renew for so long stops.
    pub give_up: Duration,
    /// Between two tries.
    pub retry: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self { valid: Duration::from_secs(15), give_up: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

/// One who would lead.
pub struct Election {
    api: Api<Lease>,
    name: String,
    identity: String,
    terms: Terms,
    /// What was read last, and since when it is so.
    observed: Option<(LeaseSpec, Instant)>,
}

impl Election {
    /// The identity has to be this process's alone, as the name of its pod is.
    pub fn new(cluster: &Cluster, namespace: &str, identity: impl Into<String>, terms: Terms) -> Self {
        let api = Api::namespaced(cluster.calls.clone(), namespace);
        Self { api, name: LEASE.to_owned(), identity: identity.into(), terms, observed: None }
    }

    /// Who leads, as far as is known.
    pub fn leader(&self) -> Option<&str> {
        self.observed.as_ref()?.0.holder_identity.as_deref().filter(|holder| !holder.is_empty())
    }

    /// Waits until this one leads. Errors that do not pass by themselves end it: a permission that is missing.
    pub async fn win(mut self) -> Result<Leadership, Error> {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name)).timeout(WATCH_SECONDS);
        let changes = watcher(self.api.clone(), config).backoff(Pauses::default());
        let mut changes = std::pin::pin!(changes);
        loop {
            let began = Instant::now();
            match self.attempt().await {
                Ok(Some(lease)) => return Ok(Leadership::begin(self, lease, began)),
                Ok(None) => {}
                Err(failure) if failure.code().is_some_and(|code| matches!(code, 401 | 403 | 404 | 422)) => {
                    return Err(failure.into_error("competing for leadership"));
                }
                Err(failure) => tracing::warn!(error = %failure.into_error("competing for leadership"), "trying again"),
            }
            tokio::select! {
                () = sleep(self.pause()) => {}
                // Whatever it was, a look at the Lease tells.
                _ = changes.next() => {}
            }
        }
    }

    /// Takes or renews the Lease; `None` while another holds it.
    async fn attempt(&mut self) -> Result<Option<Lease>, Failure> {
        let Some(found) = within(self.terms.give_up, self.api.get_opt(&self.name)).await? else {
            return self.written(self.api.create(&PostParams::default(), &self.lease(None))).await;
        };
        let spec = found.spec.clone().unwrap_or_default();
        if self.observed.as_ref().is_none_or(|(before, _)| *before != spec) {
            self.observed = Some((spec.clone(), Instant::now()));
        }
        if self.is_held_by_another(&spec) {
            return Ok(None);
        }
        self.written(self.api.replace(&self.name, &PostParams::default(), &self.lease(Some(found)))).await
    }

    async fn written(&self, request: impl Future<Output = kube::Result<Lease>>) -> Result<Option<Lease>, Failure> {
        match within(self.terms.give_up, request).await {
            Ok(lease) => Ok(Some(lease)),
            Err(failure) if failure.is_taken() || failure.is_conflict() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    fn is_held_by_another(&self, spec: &LeaseSpec) -> bool {
        let valid = self.validity(spec);
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let since = self.observed.as_ref().map(|(_, since)| since.elapsed());
        !holder.is_empty() && holder != self.identity && since.is_none_or(|since| since < valid)
    }

    fn validity(&self, spec: &LeaseSpec) -> Duration {
        let valid = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        valid.map_or(self.terms.valid, Duration::from_secs)
    }

    /// The Lease with this one as its holder.
    fn lease(&self, found: Option<Lease>) -> Lease {
        let now = MicroTime(jiff::Timestamp::now());
        let (metadata, before) = match found {
            Some(found) => (found.metadata, found.spec.unwrap_or_default()),
            None => (ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() }, LeaseSpec::default()),
        };
        let is_renewal = before.holder_identity.as_deref() == Some(&self.identity);
        let transitions = before.lease_transitions.unwrap_or_default() + i32::from(!is_renewal);
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.terms.valid.as_secs()).ok(),
            acquire_time: if is_renewal { before.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..before
        };
        Lease { metadata, spec: Some(spec) }
    }

    /// A little random, so that many do not come at once; not longer than the Lease of another is valid.
    fn pause(&self) -> Duration {
        let pause = self.terms.retry + Pauses::default().next().unwrap_or_default();
        let left = self.observed.as_ref().map(|(spec, since)| self.validity(spec).saturating_sub(since.elapsed()));
        left.filter(|left| !left.is_zero()).map_or(pause, |left| pause.min(left))
    }
}

/// Being the one that leads. Dropped without a release it is as a process that was killed: the Lease runs out.
pub struct Leadership {
    lost: CancellationToken,
    release: CancellationToken,
    renewal: JoinHandle<()>,
}

impl Leadership {
    fn begin(election: Election, lease: Lease, renewed: Instant) -> Self {
        tracing::info!(identity = election.identity, "this daemon leads");
        let (lost, release) = (CancellationToken::new(), CancellationToken::new());
        let renewal = tokio::spawn(renew(election, lease, renewed, release.clone(), lost.clone()));
        Self { lost, release, renewal }
    }

    /// Is cancelled when another may lead: stop what only the leader may do.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Lets the next one lead at once. Stop what only the leader may do before.
    pub async fn release(mut self) {
        self.release.cancel();
        let _ = (&mut self.renewal).await;
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.renewal.abort();
        self.lost.cancel();
    }
}

/// Renews until it cannot, or is told to release.
async fn renew(
    mut election: Election,
    mut lease: Lease,
    mut renewed: Instant,
    release: CancellationToken,
    lost: CancellationToken,
) {
    loop {
        tokio::select! {
            () = release.cancelled() => {
                give_back(&election, lease).await;
                lost.cancel();
                return;
            }
            () = sleep(election.terms.retry) => {}
        }
        // Counted from before the request: another counts from when it sees the answer's effect, which is later.
        let began = Instant::now();
        let left = election.terms.give_up.saturating_sub(renewed.elapsed());
        match timeout(left, election.attempt()).await {
            Ok(Ok(Some(new))) => (lease, renewed) = (new, began),
            Ok(Ok(None)) if election.leader().is_some_and(|leader| leader != election.identity) => {
                tracing::warn!(leader = election.leader(), "another daemon leads");
                return lost.cancel();
            }
            Ok(Ok(None)) => {}
            Ok(Err(failure)) => {
                let error = failure.into_error("renewing leadership");
                tracing::warn!(%error, "leadership was not renewed");
            }
            Err(_) => {}
        }
        if renewed.elapsed() >= election.terms.give_up {
            tracing::warn!("leadership could not be renewed; this daemon does not lead any more");
            return lost.cancel();
        }
    }
}

async fn give_back(election: &Election, lease: Lease) {
    let mut lease = election.lease(Some(lease));
    if let Some(spec) = &mut lease.spec {
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
    }
    let params = PostParams::default();
    match within(election.terms.give_up, election.api.replace(&election.name, &params, &lease)).await {
        Ok(_) => tracing::info!(identity = election.identity, "leadership was released"),
        // Then it runs out.
        Err(failure) => {
            let error = failure.into_error("releasing leadership");
            tracing::warn!(%error, "the next daemon leads when the Lease has run out");
        }
    }
}

async fn within<T>(deadline: Duration, request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match timeout(deadline, request).await {
        Ok(answer) => answer.map_err(|error| Failure::of(&error)),
        Err(_) => Err(Failure::unanswered(deadline)),
    }
}

const LEASE: &str = "epiniod";
const WATCH_SECONDS: u32 = 30;
