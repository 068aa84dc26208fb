//! One order, from names to a certificate. Every step is kept before it is taken, so that whoever starts again goes on
//! with the order and does not make another one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use instant_acme::{
    AuthorizationStatus, ChallengeType, Identifier, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use super::{
    Challenges, Directory, Error, Settings,
    account::Client,
    challenges::Given,
    dns::TextRecord,
    failure::Failure,
    kept::{Issued, Kept, Pending},
};
use crate::store::{Objects, Stored};

/// How a host is shown to be served here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Http,
    Tls,
}

/// An order for what is kept.
pub(super) struct Ordering<'a> {
    pub objects: &'a Objects,
    pub settings: &'a Settings,
    pub challenges: &'a Arc<Challenges>,
    pub directory: &'a Directory,
    pub client: &'a Client,
    /// For names that no record of DNS is made for.
    pub way: Way,
}

/// What was made for an authority to look at.
#[derive(Default)]
struct Shown {
    given: Vec<Given>,
    records: Vec<TextRecord>,
}

/// Between two looks at an order: the first, and how much longer each is.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LONGER: f32 = 1.6;
/// An authority that has not asked by now may know the answer already.
const ASKED: Duration = Duration::from_secs(2);

impl Ordering<'_> {
    /// The certificate; what is kept has no order under way any more, unless the authority was away.
    pub async fn fulfil(&self, kept: &mut Stored<Kept>, jitter: f64) -> Result<Issued, Failure> {
        let mut order = match self.resume(kept).await? {
            Some(order) => order,
            None => self.begin(kept).await?,
        };
        let mut shown = Shown::default();
        let ended = tokio::time::timeout(self.settings.patience, self.pursue(&mut order, kept, &mut shown)).await;
        drop(shown.given);
        if let Some(dns) = &self.settings.dns {
            for record in &shown.records {
                dns.remove(record).await;
            }
        }
        let ended = ended.unwrap_or_else(|_| Err(self.failure(instant_acme::Error::Timeout(None))));
        if !matches!(ended, Err(Failure::Away(_))) {
            self.keep(kept, |kept| kept.pending = None).await?;
        }
        let (chain, key) = ended?;
        Ok(Issued::read(chain, key, &self.directory.url, &kept.value.names, jitter)?)
    }

    /// The order that was under way, if its authority still goes on with it.
    async fn resume(&self, kept: &mut Stored<Kept>) -> Result<Option<Order>, Failure> {
        let Some(pending) = kept.value.pending.clone() else { return Ok(None) };
        if let Some(dns) = &self.settings.dns {
            for record in &pending.records {
                dns.remove(record).await;
            }
        }
        if pending.directory == self.directory.url {
            match self.client.account.order(pending.order).await {
                Ok(mut order) => {
                    if order.state().status != OrderStatus::Invalid {
                        return Ok(Some(order));
                    }
                }
                Err(error) => {
                    if let away @ (Failure::Away(_) | Failure::Limited { .. }) = self.failure(error) {
                        return Err(away);
                    }
                }
            }
        }
        self.keep(kept, |kept| kept.pending = None).await?;
        Ok(None)
    }

    async fn begin(&self, kept: &mut Stored<Kept>) -> Result<Order, Failure> {
        let failed = |source| Error::Certificate { doing: "making a key for a certificate".to_owned(), source };
        let key = KeyPair::generate().map_err(failed)?.serialize_pem();
        let names: Vec<_> = kept.value.names.iter().map(|name| Identifier::Dns(name.clone())).collect();
        if let Some(profile) = &self.settings.profile {
            self.check_profile(profile)?;
        }
        let new = || match &self.settings.profile {
            Some(profile) => NewOrder::new(&names).profile(profile),
            None => NewOrder::new(&names),
        };
        let replaced = kept.value.issued.as_ref().filter(|issued| issued.directory == self.directory.url);
        let made = match replaced.and_then(Issued::identifier) {
            Some(replaced) => match self.client.account.new_order(&new().replaces(replaced)).await {
                // An authority that knows nothing of what is replaced, or saw it replaced already, says so in many ways; Pebble by
                // an error of its own.
                Err(error @ instant_acme::Error::Api(_))
                    if matches!(Failure::of(&error, &self.client.heard), Failure::Refused(_) | Failure::Away(_)) =>
                {
                    self.client.account.new_order(&new()).await
                }
                made => made,
            },
            None => self.client.account.new_order(&new()).await,
        };
        let order = made.map_err(|error| self.failure(error))?;
        let pending =
            Pending { order: order.url().to_owned(), directory: self.directory.url.clone(), key, records: Vec::new() };
        self.keep(kept, |kept| kept.pending = Some(pending.clone())).await?;
        Ok(order)
    }

    fn check_profile(&self, profile: &str) -> Result<(), Failure> {
        let known: Vec<_> = self.client.account.profiles().map(|known| known.name.to_owned()).collect();
        if known.iter().any(|known| known == profile) {
            return Ok(());
        }
        let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
        Err(Failure::Refused(format!("it has no certificates of the profile '{profile}'; {known}")))
    }

    /// Chain and key.
    async fn pursue(
        &self,
        order: &mut Order,
        kept: &mut Stored<Kept>,
        shown: &mut Shown,
    ) -> Result<(String, String), Failure> {
        let looks = RetryPolicy::new().initial_delay(FIRST_LOOK).backoff(LONGER).timeout(self.settings.patience);
        if order.state().status == OrderStatus::Pending {
            self.show(order, kept, shown).await?;
            let ready = match self.be_looked_at(order, shown).await {
                Ok(()) => order.poll_ready(&looks).await,
                // An authority that is fast answers with what it saw.
                Err(error) => Err(error),
            };
            if !matches!(ready, Ok(OrderStatus::Ready)) {
                return Err(self.rejected(order, ready.err()).await);
            }
        }
        let pending = kept.value.pending.as_ref();
        let key = pending.map(|pending| pending.key.clone()).unwrap_or_default();
        if order.state().status == OrderStatus::Ready {
            let csr = request(&kept.value.names, &key)?;
            order.finalize_csr(&csr).await.map_err(|error| self.failure(error))?;
        }
        let chain = order.poll_certificate(&looks).await.map_err(|error| self.failure(error))?;
        Ok((chain, key))
    }

    /// Has everything in place that the authority will look at.
    async fn show(&self, order: &mut Order, kept: &mut Stored<Kept>, shown: &mut Shown) -> Result<(), Failure> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|error| self.failure(error))?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let (name, kind) = self.kind(&authorization);
            let offered = authorization.challenges.iter().map(|challenge| format!("{:?}", challenge.r#type));
            let offered = offered.collect::<Vec<_>>().join(", ");
            let Some(challenge) = authorization.challenge(kind.clone()) else {
                return Err(Failure::Names(vec![(name, format!("it offers only {offered} to show it by"))]));
            };
            let answer = challenge.key_authorization();
            match kind {
                ChallengeType::Http01 => {
                    shown.given.push(self.challenges.give_text(&challenge.token, answer.as_str().to_owned()));
                }
                ChallengeType::TlsAlpn01 => {
                    shown.given.push(self.challenges.give_certificate(&name, answer.digest().as_ref())?);
                }
                _ => shown.records.push(TextRecord::of_challenge(&name, answer.dns_value())),
            }
        }
        let Some(dns) = self.settings.dns.as_ref().filter(|_| !shown.records.is_empty()) else { return Ok(()) };
        // Whoever starts again takes them out.
        let records = shown.records.clone();
        self.keep(kept, |kept| kept.pending.iter_mut().for_each(|pending| pending.records.clone_from(&records)))
            .await?;
        for record in &records {
            dns.present(record).await?;
        }
        for record in &records {
            dns.wait_for(record).await?;
        }
        Ok(())
    }

    /// Tells the authority to look, and waits until it did.
    async fn be_looked_at(&self, order: &mut Order, shown: &Shown) -> Result<(), instant_acme::Error> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let (_, kind) = self.kind(&authorization);
            if let Some(mut challenge) = authorization.challenge(kind) {
                challenge.set_ready().await?;
            }
        }
        let until = Instant::now() + ASKED;
        for given in &shown.given {
            let _ = tokio::time::timeout_at(until.into(), given.was_asked()).await;
        }
        Ok(())
    }

    /// The name that is to be shown, and by which kind of challenge.
    fn kind(&self, authorization: &instant_acme::AuthorizationState) -> (String, ChallengeType) {
        let identifier = authorization.identifier();
        let name = match identifier.identifier {
            Identifier::Dns(name) => name.trim_start_matches("*.").to_owned(),
            other => format!("{other:?}"),
        };
        let kind = match (identifier.wildcard, self.way) {
            (true, _) => ChallengeType::Dns01,
            (false, Way::Http) => ChallengeType::Http01,
            (false, Way::Tls) => ChallengeType::TlsAlpn01,
        };
        (name, kind)
    }

    /// Why an order is not ready: the names that the authority did not find to be ours.
    async fn rejected(&self, order: &mut Order, error: Option<instant_acme::Error>) -> Failure {
        let mut names = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let Ok(mut authorization) = authorization else { continue };
            if authorization.refresh().await.is_err() || authorization.status != AuthorizationStatus::Invalid {
                continue;
            }
            let identifier = authorization.identifier();
            let why =
                authorization.challenges.iter().find_map(|challenge| Some(of_challenge(challenge.error.as_ref()?)));
            names.push((identifier.to_string(), why.unwrap_or_else(|| "the authority does not say why".to_owned())));
        }
        match (names.is_empty(), error) {
            (false, _) => Failure::Names(names).with_clock(&self.client.heard),
            (true, Some(error)) => self.failure(error),
            (true, None) => Failure::Refused("it does not say why the order came to nothing".to_owned()),
        }
    }

    async fn keep(&self, kept: &mut Stored<Kept>, change: impl FnOnce(&mut Kept)) -> Result<(), Error> {
        change(&mut kept.value);
        *kept = self.objects.update(kept).await?;
        Ok(())
    }

    fn failure(&self, error: instant_acme::Error) -> Failure {
        Failure::of(&error, &self.client.heard).with_clock(&self.client.heard)
    }
}

/// Why a host was not found to be ours.
fn of_challenge(problem: &Problem) -> String {
    let said = problem.detail.as_deref().unwrap_or("the authority does not say why");
    // RFC 8555, section 6.7, which not all keep to.
    let is_connection = problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:connection");
    if is_connection || said.contains("connect") {
        return format!("{said}; let everybody reach this machine at ports 80 and 443");
    }
    said.to_owned()
}

/// What is to be signed, DER.
fn request(names: &[String], key: &str) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Certificate { doing: "asking for a certificate".to_owned(), source };
    let key = KeyPair::from_pem(key).map_err(failed)?;
    let mut params = CertificateParams::new(names.to_vec()).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&key).map_err(failed)?.der().to_vec())
}
