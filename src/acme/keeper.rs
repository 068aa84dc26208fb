//! Sees to it that there are certificates: for new hosts at once, for old ones in time, and never in a loop.
//!
//! It looks at what is wanted and at what is there, and does what is due. What fails is tried again later, and later still;
//! when is kept with why, so that a daemon that starts again and again asks nobody more often for it. Behind an ingress
//! controller a host is led here for as long as its order is under way, and only the way without TLS is: who speaks TLS
//! there is the controller.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    Certificates, Challenges, Directory, Error, Settings,
    account::Client,
    failure::Failure,
    here,
    kept::{Issued, Kept, Trouble, key_of},
    order::{Ordering, Way},
    plan::{self, Plan},
};
use crate::{
    model::random,
    runtime::{self, Front},
    store::{self, Objects, Stored},
};

/// The hosts that are served now.
pub type Hosts = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// Who gets certificates, and keeps them.
pub struct Keeper {
    objects: Objects,
    settings: Settings,
    /// With a wildcard certificate below it, where records of DNS can be made.
    system_domain: String,
    hosts: Hosts,
    certificates: Arc<Certificates>,
    challenges: Arc<Challenges>,
    /// Who speaks with clients in place of the edge, if somebody does.
    front: Option<Arc<dyn Front>>,
    /// Hosts that an authority looks at by way of who is in front.
    led: tokio::sync::Mutex<BTreeSet<String>>,
    kept: Mutex<Vec<Stored<Kept>>>,
    clients: tokio::sync::Mutex<HashMap<String, Client>>,
    /// Authorities that are not to be asked before a time.
    closed: Mutex<HashMap<String, Timestamp>>,
    at_once: Semaphore,
}

/// How many orders are under way at a time.
const AT_ONCE: usize = 4;
/// Longest between two looks: clocks are set, and machines sleep.
const LOOK: Duration = Duration::from_secs(60);
/// How long an authority that was away is passed over, where there is another one.
const AWAY: SignedDuration = SignedDuration::from_mins(5);
/// How long it is waited before the next attempt, in seconds, by how often it failed. Let's Encrypt takes five failures of
/// a name in an hour.
const PAUSES: [i64; 7] = [60, 300, 900, 3600, 2 * 3600, 6 * 3600, 12 * 3600];
/// The same where no authority was asked, or none answered.
const SHORT_PAUSES: [i64; 6] = [10, 30, 60, 120, 300, 600];
/// How long an ingress controller may take until it leads a host here.
const LEARNING: Duration = Duration::from_secs(30);
/// Bounds for how often an authority is asked when to renew, in seconds.
const LOOKS: std::ops::RangeInclusive<i64> = 60..=86_400;

impl Keeper {
    /// Takes up what is kept: what there is of certificates is served from now on.
    pub async fn open(
        objects: Objects,
        settings: Settings,
        system_domain: String,
        hosts: Hosts,
        certificates: Arc<Certificates>,
        challenges: Arc<Challenges>,
        front: Option<Arc<dyn Front>>,
    ) -> Result<Arc<Self>, Error> {
        let mut kept = objects.list::<Kept>(None).await?;
        // Much may have happened meanwhile, and somebody may have mended something.
        let (now, under) = (Timestamp::now(), settings.fingerprint());
        for kept in kept.iter_mut().map(|kept| &mut kept.value) {
            kept.issued.iter_mut().for_each(|issued| issued.look = now);
            kept.trouble.iter_mut().filter(|trouble| trouble.under != under).for_each(|trouble| trouble.next = now);
        }
        let keeper = Self {
            objects,
            settings,
            system_domain,
            hosts,
            certificates,
            challenges,
            front,
            led: tokio::sync::Mutex::default(),
            kept: Mutex::new(kept),
            clients: tokio::sync::Mutex::default(),
            closed: Mutex::default(),
            at_once: Semaphore::new(AT_ONCE),
        };
        keeper.serve();
        Ok(Arc::new(keeper))
    }

    /// Works until it is told to stop. An order that is under way then is gone on with by the next daemon.
    pub async fn run(self: Arc<Self>, mut changed: tokio::sync::watch::Receiver<()>, stop: CancellationToken) {
        let mut orders = JoinSet::new();
        let mut busy: HashMap<tokio::task::Id, Vec<String>> = HashMap::new();
        tokio::select! {
            () = stop.cancelled() => return,
            () = self.begin() => {}
        }
        loop {
            let (plan, look) = self.plan(&busy);
            for names in plan.orders {
                let (keeper, wanted) = (Arc::clone(&self), names.clone());
                let task = orders.spawn(async move { keeper.order(wanted).await });
                busy.insert(task.id(), names);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _ = changed.changed() => {}
                Some(ended) = orders.join_next_with_id() => {
                    let id = match &ended {
                        Ok((id, ())) => *id,
                        Err(error) => error.id(),
                    };
                    if let Err(error) = ended {
                        tracing::error!(%error, "an order for a certificate broke off");
                    }
                    busy.remove(&id);
                    self.clear().await;
                }
                () = tokio::time::sleep(look) => self.look().await,
            }
        }
    }

    /// What a daemon before left in front goes: it is made again for the orders that are gone on with.
    async fn begin(&self) {
        if let Err(error) = self.lead(|_| {}).await {
            tracing::warn!(error = %crate::telemetry::chain(&error), "what led to a daemon before may still be there");
        }
        self.look().await;
    }

    /// Changes which hosts are led here from who is in front.
    async fn lead(&self, change: impl FnOnce(&mut BTreeSet<String>)) -> Result<(), runtime::Error> {
        let Some(front) = &self.front else { return Ok(()) };
        let mut led = self.led.lock().await;
        change(&mut led);
        front.lead_challenges(&led).await
    }

    fn plan(&self, busy: &HashMap<tokio::task::Id, Vec<String>>) -> (Plan, Duration) {
        let (wanted, now) = (self.wanted(), Timestamp::now());
        let busy: HashSet<String> = busy.values().flatten().cloned().collect();
        let plan = Plan::new(&wanted, &self.values(), &busy, now);
        let until = plan.next.map_or(LOOK, |next| Duration::try_from(next.duration_since(now)).unwrap_or_default());
        (plan, until.clamp(Duration::from_millis(100), LOOK))
    }

    fn wanted(&self) -> BTreeSet<String> {
        let wildcard = self.settings.dns.as_ref().map(|_| self.system_domain.as_str());
        plan::names((self.hosts)(), wildcard)
    }

    fn values(&self) -> Vec<Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|kept| kept.value.clone()).collect()
    }

    /// One order, of which the outcome is kept, whatever it is.
    async fn order(&self, names: Vec<String>) {
        let Ok(_place) = self.at_once.acquire().await else { return };
        let started = std::time::Instant::now();
        // A name with a wildcard is shown by DNS.
        let hosts: Vec<_> = names.iter().filter(|name| !name.starts_with("*.")).cloned().collect();
        let outcome = match self.lead(|led| led.extend(hosts.iter().cloned())).await {
            Ok(()) => self.obtain(&names).await,
            Err(error) => Err(Failure::Front(crate::telemetry::chain(&error))),
        };
        if let Err(error) = self.lead(|led| led.retain(|host| !hosts.contains(host))).await {
            tracing::warn!(error = %crate::telemetry::chain(&error), "hosts are still led here, until the next order");
        }
        let listed = names.join(", ");
        match outcome {
            Ok(issued) => {
                let (millis, until) = (started.elapsed().as_millis(), issued.not_after);
                tracing::info!(names = listed, directory = issued.directory, %until, duration_ms = %millis, "there is a certificate");
            }
            Err(Failure::Names(failed)) => {
                for (name, cause) in failed {
                    let name = self.own_name(&names, &name);
                    self.trouble(vec![name], &cause, &PAUSES, None).await;
                }
            }
            Err(Failure::Limited { cause, until }) => self.trouble(names, &cause, &PAUSES, until).await,
            Err(Failure::Away(cause) | Failure::Front(cause)) => self.trouble(names, &cause, &SHORT_PAUSES, None).await,
            Err(Failure::Account(cause) | Failure::Refused(cause)) => self.trouble(names, &cause, &PAUSES, None).await,
            Err(Failure::Here(error)) => {
                self.trouble(names, &crate::telemetry::chain(&error), &SHORT_PAUSES, None).await;
            }
        }
    }

    /// The name of an order that an authority speaks of: it leaves out `*.`.
    fn own_name(&self, names: &[String], said: &str) -> String {
        let is_it = |name: &&String| name.as_str() == said || name.strip_prefix("*.") == Some(said);
        names.iter().find(is_it).cloned().unwrap_or_else(|| said.to_owned())
    }

    async fn obtain(&self, names: &[String]) -> Result<Issued, Failure> {
        self.are_here(names).await?;
        let mut kept = self.record(names).await?;
        let attempts = kept.value.trouble.as_ref().map_or(0, |trouble| trouble.attempts);
        // What did not do may do another way; at first at once, as a port may be closed for good.
        let way = if attempts % 2 == 0 || self.front.is_some() { Way::Http } else { Way::Tls };
        let issued = match self.ask_each(&mut kept, way).await {
            Err(Failure::Names(_)) if attempts == 0 && self.front.is_none() => {
                self.ask_each(&mut kept, Way::Tls).await?
            }
            outcome => outcome?,
        };
        kept.value.issued = Some(issued.clone());
        kept.value.trouble = None;
        // Whether or not it can be kept: it is served.
        self.put(kept.clone());
        self.serve();
        let saved = self.objects.update(&kept).await.map_err(Error::from)?;
        self.put(saved);
        Ok(issued)
    }

    /// Those that lead elsewhere are not asked for.
    async fn are_here(&self, names: &[String]) -> Result<(), Failure> {
        let mut elsewhere = Vec::new();
        let patience = if self.front.is_some() { LEARNING } else { Duration::ZERO };
        for name in names.iter().filter(|name| !name.starts_with("*.")) {
            if let Err(why) = here::check(name, &self.challenges, patience).await {
                elsewhere.push((name.clone(), why));
            }
        }
        if elsewhere.is_empty() {
            return Ok(());
        }
        for (name, why) in &elsewhere {
            self.trouble(vec![name.clone()], why, &SHORT_PAUSES, None).await;
        }
        Err(Failure::Names(Vec::new()))
    }

    /// Asks one authority after the other, until one says what is for all of them.
    async fn ask_each(&self, kept: &mut Stored<Kept>, way: Way) -> Result<Issued, Failure> {
        let open: Vec<&Directory> = self.open_directories();
        let mut said = Vec::new();
        let mut until = None;
        for directory in open {
            let failure = match self.ask_one(directory, kept, way).await {
                Ok(issued) => return Ok(issued),
                Err(failure) => failure,
            };
            let (cause, closed) = match failure {
                Failure::Away(cause) => (cause, Timestamp::now() + AWAY),
                Failure::Limited { cause, until: again } => {
                    until = until.min(again).or(again);
                    (cause, again.unwrap_or(Timestamp::now() + AWAY))
                }
                other => return Err(other),
            };
            tracing::warn!(directory = directory.url, cause, "an authority for certificates cannot be used now");
            self.closed.lock().unwrap_or_else(PoisonError::into_inner).insert(directory.url.clone(), closed);
            said.push(format!("{}: {cause}", directory.url));
        }
        let cause = said.join("; ");
        Err(if until.is_some() { Failure::Limited { cause, until } } else { Failure::Away(cause) })
    }

    /// All of them where all are closed: what is asked for now was not asked for in vain yet, or long ago.
    fn open_directories(&self) -> Vec<&Directory> {
        let now = Timestamp::now();
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        closed.retain(|_, until| now < *until);
        let all = &self.settings.directories;
        let open: Vec<_> = all.iter().filter(|directory| !closed.contains_key(&directory.url)).collect();
        if open.is_empty() { all.iter().collect() } else { open }
    }

    async fn ask_one(&self, directory: &Directory, kept: &mut Stored<Kept>, way: Way) -> Result<Issued, Failure> {
        let mut again = true;
        loop {
            let client = self.client(directory).await?;
            let ordering = Ordering {
                objects: &self.objects,
                settings: &self.settings,
                challenges: &self.challenges,
                directory,
                client: &client,
                way,
            };
            match ordering.fulfil(kept, fraction()).await {
                Err(Failure::Account(cause)) if again => {
                    tracing::warn!(directory = directory.url, cause, "the account is not wanted; another one is made");
                    self.clients.lock().await.remove(&directory.url);
                    Client::forget(&self.objects, directory).await?;
                    again = false;
                }
                Err(failure) => {
                    // Directories change, and so do addresses.
                    self.clients.lock().await.remove(&directory.url);
                    return Err(failure);
                }
                Ok(issued) => return Ok(issued),
            }
        }
    }

    async fn client(&self, directory: &Directory) -> Result<Client, Failure> {
        // Whoever comes second finds the account of who came first.
        let mut clients = self.clients.lock().await;
        if let Some(client) = clients.get(&directory.url) {
            return Ok(client.clone());
        }
        let client = Client::open(&self.objects, directory, self.settings.email.as_deref()).await?;
        clients.insert(directory.url.clone(), client.clone());
        Ok(client)
    }

    /// What is kept for these names, or a beginning of it.
    async fn record(&self, names: &[String]) -> Result<Stored<Kept>, Error> {
        let known = self.objects.get::<Kept>(&key_of(names)).await?;
        let kept = match known {
            Some(known) => known,
            None => self.objects.create(&Kept::new(names.to_vec())).await?,
        };
        self.put(kept.clone());
        Ok(kept)
    }

    fn put(&self, new: Stored<Kept>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.iter_mut().find(|known| known.value.names == new.value.names) {
            Some(known) => *known = new,
            None => kept.push(new),
        }
    }

    /// Writes down why there is none, and when it is tried again.
    async fn trouble(&self, names: Vec<String>, cause: &str, pauses: &[i64], until: Option<Timestamp>) {
        let listed = names.join(", ");
        let kept = self.record(&names).await;
        let mut kept = kept.unwrap_or_else(|_| Stored { uid: String::new(), version: 0, value: Kept::new(names) });
        let attempts = kept.value.trouble.as_ref().map_or(0, |trouble| trouble.attempts) + 1;
        let next = next_attempt(attempts, pauses, until);
        let (cause, under) = (cause.to_owned(), self.settings.fingerprint());
        tracing::warn!(names = listed, cause, %next, "there is no certificate");
        kept.value.trouble = Some(Trouble { cause, attempts, next, under });
        match self.objects.update(&kept).await {
            Ok(saved) => self.put(saved),
            Err(error) => {
                tracing::error!(error = %crate::telemetry::chain(&error), "nothing can be kept of certificates");
                self.put(kept);
            }
        }
        self.serve();
    }

    /// Deletes what nobody needs.
    async fn clear(&self) {
        let (wanted, all, now) = (self.wanted(), self.values(), Timestamp::now());
        for (index, kept) in all.iter().enumerate() {
            let others = [&all[..index], &all[index + 1..]];
            if kept.pending.is_none() && plan::is_over(kept, &wanted, others, now) {
                match self.objects.delete(&key_of(&kept.names)).await {
                    Ok(()) | Err(store::Error::NotFound(_)) => {
                        let mut known = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                        known.retain(|known| known.value.names != kept.names);
                    }
                    Err(error) => {
                        tracing::warn!(error = %crate::telemetry::chain(&error), "a certificate cannot be deleted")
                    }
                }
            }
        }
        self.serve();
    }

    /// Asks authorities whether they want certificates to be renewed sooner (RFC 9773): they do when they have to revoke.
    async fn look(&self) {
        let now = Timestamp::now();
        let all = self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for mut kept in all {
            let Some(issued) = kept.value.issued.as_mut().filter(|issued| issued.look <= now) else { continue };
            let Some(directory) = self.settings.directories.iter().find(|known| known.url == issued.directory) else {
                continue;
            };
            let (Some(identifier), Ok(client)) = (issued.identifier(), self.client(directory).await) else { continue };
            let pause = match client.account.renewal_info(&identifier).await {
                Ok((info, pause)) => {
                    let window = &info.suggested_window;
                    let (from, to) = (window.start.unix_timestamp(), window.end.unix_timestamp());
                    let at = from + ((to - from).max(0) as f64 * fraction()) as i64;
                    let at = Timestamp::from_second(at).unwrap_or(issued.renewal);
                    // A window that has not moved leaves the moment that was chosen in it.
                    if !(from..=to).contains(&issued.renewal.as_second()) {
                        tracing::info!(names = kept.value.names.join(", "), renewal = %at, "the authority says when to renew");
                        issued.renewal = at;
                    }
                    i64::try_from(pause.as_secs()).unwrap_or(*LOOKS.end())
                }
                Err(_) => *LOOKS.end(),
            };
            issued.look = now + SignedDuration::from_secs(pause.clamp(*LOOKS.start(), *LOOKS.end()));
            match self.objects.update(&kept).await {
                Ok(saved) => self.put(saved),
                Err(error) => {
                    tracing::warn!(error = %crate::telemetry::chain(&error), "nothing can be kept of certificates")
                }
            }
        }
    }

    /// Hands what there is to the edge, and to who is in front of it. Connections that are open keep what they have.
    fn serve(&self) {
        self.certificates.serve(&self.values());
        if let Some(front) = &self.front {
            front.present(self.certificates.public());
        }
    }
}

/// Where an authority says when, that holds.
fn next_attempt(attempts: u32, pauses: &[i64], until: Option<Timestamp>) -> Timestamp {
    if let Some(until) = until.filter(|until| Timestamp::now() < *until) {
        return until + SignedDuration::from_millis((fraction() * 1000.0) as i64);
    }
    let index = usize::try_from(attempts - 1).unwrap_or(usize::MAX).min(pauses.len() - 1);
    // Up to a quarter more, so that those who failed together do not come back together.
    let pause = (pauses[index] as f64 * (1.0 + fraction() / 4.0) * 1000.0) as i64;
    Timestamp::now() + SignedDuration::from_millis(pause)
}

/// From 0 to 1, by chance.
fn fraction() -> f64 {
    f64::from(u32::from_le_bytes(random())) / f64::from(u32::MAX)
}
