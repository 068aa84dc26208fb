//! Showing that a domain is ours by a record in it (dns-01, RFC 8555, section 8.4): the one way to a certificate for all
//! names below a domain. Who serves the domain takes the record by one of three ways; then it is waited for until all of
//! its servers have it.

mod message;
mod programs;
mod update;

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

pub use self::update::{Algorithm, UpdateKey};
use super::failure::Failure;

/// How records get into a domain, and who is asked whether they are there.
#[derive(Debug, Clone, Hash)]
pub struct Settings {
    pub provider: Provider,
    /// Who is asked for the servers of the domain; none are those of this machine (`/etc/resolv.conf`).
    pub resolvers: Vec<SocketAddr>,
    /// How long it may take until all servers have the record.
    pub patience: Duration,
}

/// Who changes the domain.
#[derive(Debug, Clone, Hash)]
pub enum Provider {
    /// Its server takes updates (RFC 2136), signed with a key.
    Update { server: String, key: Option<UpdateKey> },
    /// A service takes `{"action": "present" | "remove", "name": …, "value": …}` by POST.
    Webhook { url: String, token: Option<String> },
    /// A program is run: `PROGRAM present|remove NAME VALUE`.
    Program(PathBuf),
}

/// A record of text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextRecord {
    pub name: String,
    pub value: String,
}

/// What is done with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Present,
    Remove,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Remove => "remove",
        }
    }
}

/// Before the domain, in the name of the record.
const LABEL: &str = "_acme-challenge";
/// Between two looks whether the record is there.
const PAUSE: Duration = Duration::from_millis(500);

impl TextRecord {
    /// `domain` is without `*.`; `value` is the digest of the key authorization, base64url.
    pub fn of_challenge(domain: &str, value: String) -> Self {
        Self { name: format!("{LABEL}.{domain}"), value }
    }
}

impl Settings {
    /// Puts a record into its domain.
    pub(super) async fn present(&self, record: &TextRecord) -> Result<(), Failure> {
        self.change(Action::Present, record).await.map_err(|cause| failed(record, &cause))
    }

    /// Takes it out again. What cannot be taken out harms nobody: it is logged.
    pub(super) async fn remove(&self, record: &TextRecord) {
        if let Err(cause) = self.change(Action::Remove, record).await {
            tracing::warn!(record = record.name, cause, "a record of a challenge is left in DNS");
        }
    }

    async fn change(&self, action: Action, record: &TextRecord) -> Result<(), String> {
        match &self.provider {
            Provider::Update { server, key } => update::change(action, record, server, key.as_ref(), self).await,
            Provider::Webhook { url, token } => programs::post(action, record, url, token.as_deref()).await,
            Provider::Program(path) => programs::run(action, record, path).await,
        }
    }

    /// Ends when every server of the domain has the record.
    pub(super) async fn wait_for(&self, record: &TextRecord) -> Result<(), Failure> {
        let deadline = Instant::now() + self.patience;
        loop {
            let missing = match self.is_missing(record).await {
                Ok(None) => return Ok(()),
                Ok(Some(server)) => format!("{server} does not have it"),
                Err(cause) => cause,
            };
            if Instant::now() >= deadline {
                let seconds = self.patience.as_secs();
                return Err(failed(record, &format!("after {seconds} s {missing}")));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A server without the record.
    async fn is_missing(&self, record: &TextRecord) -> Result<Option<SocketAddr>, String> {
        for server in message::servers_of(&record.name, &self.resolvers()?).await? {
            if !message::texts(&record.name, server).await?.contains(&record.value) {
                return Ok(Some(server));
            }
        }
        Ok(None)
    }

    fn resolvers(&self) -> Result<Vec<SocketAddr>, String> {
        if self.resolvers.is_empty() { message::own_resolvers() } else { Ok(self.resolvers.clone()) }
    }
}

fn failed(record: &TextRecord, cause: &str) -> Failure {
    let domain = record.name.strip_prefix(LABEL).map_or(record.name.as_str(), |rest| rest.trim_start_matches('.'));
    Failure::Names(vec![(domain.to_owned(), format!("the record {} is not in DNS: {cause}", record.name))])
}
