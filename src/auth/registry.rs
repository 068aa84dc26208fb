//! Who may do what in the registry.

use async_trait::async_trait;

use super::{Auth, ClientAddress, Entry, Error, Place, Principal, Role, Scope, Shown, shown};
use crate::{
    oci::registry::{Action, Authenticator, Change, Credential, Verdict},
    telemetry::chain,
};

#[async_trait]
impl Authenticator for Auth {
    async fn permits(&self, credential: Credential<'_>, repository: Option<&str>, action: Action) -> Verdict {
        let Some(header) = credential.header else { return Verdict::Unknown };
        let result = match own_token(header) {
            Some(token) if self.verify_pull(&token).is_some() || self.is_of_a_build(&token) => {
                self.permits_token(&token, repository, action).await
            }
            _ => {
                let identified = self.identify(Some(header), ClientAddress::direct(credential.from)).await;
                identified.map(|principal| permits_principal(&principal, repository, action))
            }
        };
        result.unwrap_or_else(|error| verdict(&error))
    }

    /// What builds write is part of a push, which has its own line.
    async fn changed(&self, credential: Credential<'_>, change: Change<'_>) {
        if credential.header.and_then(own_token).is_some_and(|token| self.is_of_a_build(&token)) {
            return;
        }
        let from = ClientAddress::direct(credential.from);
        // Who was right a moment ago still is, and it costs nothing.
        let Ok(principal) = self.identify(credential.header, from).await else { return };
        let action = if change.action == Action::Delete { "image.delete" } else { "image.push" };
        let (namespace, name) = change.repository.split_once('/').unwrap_or(("", change.repository));
        self.audit.write(&Entry {
            user: Some(principal.name.to_string()),
            token: principal.token.map(|token| token.name.to_string()),
            namespace: Some(namespace.to_owned()),
            name: Some(format!("{name}:{}", change.reference.chars().take(128).collect::<String>())),
            status: Some(change.status),
            ..Entry::new(action, from)
        });
    }
}

impl Auth {
    /// What the daemon itself has signed, for its builds and for nodes.
    async fn permits_token(&self, token: &str, repository: Option<&str>, action: Action) -> Result<Verdict, Error> {
        if let Some(begin) = self.verify_pull(token) {
            let within = repository.is_none_or(|repository| repository.starts_with(&begin));
            return Ok(if within && action == Action::Pull { Verdict::Allowed } else { Verdict::Denied });
        }
        Ok(match self.verify(token).await? {
            // What others there are is nothing to a build.
            Some(_) if action == Action::Catalog => Verdict::Denied,
            Some(claims) if repository.is_none_or(|repository| claims.grants(repository, action)) => Verdict::Allowed,
            Some(_) => Verdict::Denied,
            None => Verdict::Unknown,
        })
    }
}

/// Images are written by builds, and by administrators; who may list and show may pull.
fn permits_principal(principal: &Principal, repository: Option<&str>, action: Action) -> Verdict {
    let place = match (repository, action) {
        (_, Action::Catalog) => Place::Everywhere,
        (None, _) => Place::Anywhere,
        (Some(repository), _) => Place::Namespace(repository.split('/').next().unwrap_or_default()),
    };
    let reads = matches!(action, Action::Pull | Action::Catalog);
    let needed: &[Scope] = match action {
        // The first question of every client, whatever it wants.
        Action::Pull if repository.is_none() => &[Scope::Read, Scope::Push],
        Action::Pull | Action::Catalog => &[Scope::Read],
        Action::Push | Action::Delete => &[Scope::Admin],
    };
    let may = principal.may(needed, place) && (reads || principal.role == Role::Admin);
    if may { Verdict::Allowed } else { Verdict::Denied }
}

fn verdict(error: &Error) -> Verdict {
    match error {
        Error::Wait { .. } | Error::Busy => Verdict::Wait { seconds: error.retry_after().unwrap_or(1) },
        Error::Store(_) | Error::Hash(_) | Error::Interrupted(_) => {
            tracing::error!(error = %chain(error), "a credential could not be checked");
            Verdict::Unavailable
        }
        _ => Verdict::Unknown,
    }
}

/// What may be a token of the daemon's own.
fn own_token(header: &str) -> Option<String> {
    match shown(header).ok()? {
        Shown::Token(token) => Some(token),
        Shown::Password { .. } => None,
    }
}
