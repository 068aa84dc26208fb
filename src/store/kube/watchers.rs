//! Changes of objects, by anybody, as the API server tells them.
//!
//! A kind is watched from the first time that somebody asks. Whoever reads or writes objects of that kind waits until
//! the watch stands: so every change that comes after what was read is told, and nothing that was there before. When a
//! watch breaks it begins again, and what changed meanwhile is found by comparison.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt as _;
use kube::{
    api::DynamicObject,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};
use tokio::{
    sync::{broadcast, watch},
    task::JoinSet,
};

use super::{call::Pauses, encoding, environment::Environments, is_going, places::Places};
use crate::store::{Event, Key, Kind};

/// The watches of a store; they end with it.
pub(super) struct Watchers {
    places: Places,
    environments: Environments,
    begun: Mutex<HashMap<Kind, Begun>>,
    tasks: Mutex<JoinSet<()>>,
}

struct Begun {
    events: broadcast::Sender<Event>,
    /// Becomes true when the watch stands.
    stands: watch::Receiver<bool>,
}

impl Watchers {
    pub fn new(places: Places, environments: Environments) -> Self {
        Self { places, environments, begun: Mutex::default(), tasks: Mutex::default() }
    }

    pub fn subscribe(&self, kind: Kind) -> broadcast::Receiver<Event> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(begun) = begun.get(&kind) {
            return begun.events.subscribe();
        }
        let (events, receiver) = broadcast::channel(BUFFER);
        let (standing, stands) = watch::channel(false);
        let watched = Watched {
            kind,
            places: self.places.clone(),
            environments: self.environments.clone(),
            events: events.clone(),
            known: HashMap::new(),
            standing,
        };
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(watched.run());
        begun.insert(kind, Begun { events, stands });
        receiver
    }

    /// Waits until a watch of this kind stands, if there is to be one. One that cannot begin holds nobody up for ever.
    pub async fn begun(&self, kind: Kind) {
        let stands = {
            let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
            begun.get(&kind).map(|begun| begun.stands.clone())
        };
        if let Some(mut stands) = stands
            && tokio::time::timeout(BEGIN, stands.wait_for(|stands| *stands)).await.is_err()
        {
            tracing::warn!(kind = kind.as_str(), "changes in the cluster cannot be watched; going on without");
        }
    }
}

/// One kind that is watched.
struct Watched {
    kind: Kind,
    places: Places,
    environments: Environments,
    events: broadcast::Sender<Event>,
    known: Known,
    standing: watch::Sender<bool>,
}

/// By uid of Kubernetes: our name, and what changes with what is ours.
type Known = HashMap<String, (Key, String)>;

impl Watched {
    async fn run(mut self) {
        let config =
            watcher::Config::default().labels(&self.places.selector(self.kind.as_str(), None)).timeout(WATCH_SECONDS);
        let changes = watcher(self.places.api_of_all(self.kind, None), config).backoff(Pauses::default());
        let mut changes = std::pin::pin!(changes);
        let mut listed = Known::new();
        while let Some(change) = changes.next().await {
            match change {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(found)) => {
                    let Some((uid, state)) = self.state(&found) else { continue };
                    if *self.standing.borrow() && self.known.get(&uid) != Some(&state) {
                        self.tell(&found).await;
                    }
                    listed.insert(uid, state);
                }
                Ok(watcher::Event::InitDone) => {
                    let before = std::mem::replace(&mut self.known, std::mem::take(&mut listed));
                    self.tell_gone(before);
                    self.standing.send_replace(true);
                }
                Ok(watcher::Event::Apply(found)) => match self.state(&found) {
                    Some((uid, state)) => {
                        if self.known.insert(uid, state.clone()) != Some(state) {
                            self.tell(&found).await;
                        }
                    }
                    None => self.gone(&found),
                },
                Ok(watcher::Event::Delete(found)) => self.gone(&found),
                Err(error) => {
                    let kind = self.kind.as_str();
                    tracing::warn!(kind, %error, "watching the cluster failed; it is begun again");
                    // Nobody waits for a watch that may not be had; when there is one it tells all that there is.
                    self.standing.send_replace(true);
                }
            }
        }
    }

    /// `None` for what is not ours, or no more.
    fn state(&self, found: &DynamicObject) -> Option<(String, (Key, String))> {
        if !self.places.is_ours(self.kind, found) || is_going(self.kind, found) {
            return None;
        }
        let metadata = &found.metadata;
        // The resource version changes with the status, too; the generation of what has a status does not.
        let state = match (self.kind, metadata.generation) {
            (Kind::App, Some(generation)) => format!("{generation} {}", encoding::version(found).unwrap_or_default()),
            _ => metadata.resource_version.clone()?,
        };
        Some((metadata.uid.clone()?, (encoding::key(self.kind, found)?, state)))
    }

    async fn tell(&self, found: &DynamicObject) {
        let completed = match encoding::read(self.kind, found) {
            Ok(found) => self.environments.complete(found).await,
            Err(error) => Err(error),
        };
        match completed {
            // Nobody may be watching.
            Ok(Some(object)) => drop(self.events.send(Event::Put(object))),
            // It has changed again: the next event tells.
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a change in the cluster cannot be read"),
        }
    }

    fn gone(&mut self, found: &DynamicObject) {
        let known = found.metadata.uid.as_ref().and_then(|uid| self.known.remove(uid));
        if let Some((key, _)) = known {
            let _ = self.events.send(Event::Deleted(key));
        }
    }

    /// Tells what was known and is no more; what has taken its name was told already.
    fn tell_gone(&self, before: Known) {
        let now: std::collections::HashSet<&Key> = self.known.values().map(|(key, _)| key).collect();
        for (key, _) in before.into_values() {
            if !now.contains(&key) {
                let _ = self.events.send(Event::Deleted(key));
            }
        }
    }
}

/// Changes that a slow watcher may be behind.
const BUFFER: usize = 1024;
const BEGIN: Duration = Duration::from_secs(30);
/// A connection that died without a word is noticed after this.
const WATCH_SECONDS: u32 = 30;
