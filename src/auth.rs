//! Users, passwords and tokens: who somebody is, and what a build may do.
//!
//! Passwords are kept as argon2id hashes. A password that was checked once is remembered by a keyed hash, so that
//! the price is paid once and not for each request. Tokens of builds are signed claims; they are good only as long as
//! their staging is not finished, which the store knows, also after a restart.

mod token;
mod user;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::hmac;
use tokio::sync::Semaphore;

pub use token::{BuildClaims, Grant};
pub use user::{Principal, Role};

use self::user::User;
use crate::{
    model::UserName,
    oci::registry::{Action, Authenticator, Verdict},
    store::{self, Objects},
    telemetry::chain,
};

/// The name of the first user.
pub const ADMIN: &str = "admin";
/// How many passwords may be checked at once: each check takes 19 MiB.
const CHECKS_AT_ONCE: usize = 2;
/// How long somebody waits for a check of a password to begin.
const QUEUED: Duration = Duration::from_secs(2);
/// How long somebody waits whose password was wrong.
const WRONG: Duration = Duration::from_secs(1);
/// How many checked passwords are remembered.
const REMEMBERED: usize = 1024;
/// The user name that goes with a token where only a name and a password can be given.
const TOKEN_USER: &str = "token";

/// Checks who somebody is.
pub struct Auth {
    objects: Objects,
    signing: hmac::Key,
    /// Of this process only: what is remembered is worth nothing elsewhere.
    remembering: hmac::Key,
    remembered: Mutex<HashMap<String, (Vec<u8>, Principal)>>,
    checks: Arc<Semaphore>,
}

impl Auth {
    /// Reads the signing key, or makes one.
    pub async fn open(objects: Objects) -> Result<Arc<Self>, Error> {
        let signing = token::signing_key(&objects).await?;
        Ok(Arc::new(Self {
            objects,
            signing,
            remembering: hmac::Key::new(hmac::HMAC_SHA256, &random::<32>()),
            remembered: Mutex::default(),
            checks: Arc::new(Semaphore::new(CHECKS_AT_ONCE)),
        }))
    }

    pub async fn has_users(&self) -> Result<bool, Error> {
        Ok(!self.objects.list::<User>(None).await?.is_empty())
    }

    /// Creates the user [`ADMIN`].
    pub async fn create_admin(&self, password: String) -> Result<(), Error> {
        let name: UserName = ADMIN.parse().expect("the name follows the rules");
        let hash = user::hash(password).await?;
        self.objects.create(&User { name, hash, role: Role::Admin }).await?;
        Ok(())
    }

    /// Who has this name and password; none when nobody has.
    pub async fn check(&self, name: &str, password: &str) -> Result<Option<Principal>, Error> {
        let proof = hmac::sign(&self.remembering, format!("{name}\0{password}").as_bytes());
        if let Some(principal) = self.remembered(name, proof.as_ref()) {
            return Ok(Some(principal));
        }
        let turn = tokio::time::timeout(QUEUED, Arc::clone(&self.checks).acquire_owned()).await;
        let turn = turn.map_err(|_| Error::Busy)?.ok();
        // Whoever waited may find that somebody else has paid meanwhile.
        if let Some(principal) = self.remembered(name, proof.as_ref()) {
            return Ok(Some(principal));
        }
        let found = match name.parse::<UserName>() {
            Ok(name) => self.objects.get::<User>(&User::key_of(&name)).await?.map(|stored| stored.value),
            Err(_) => None,
        };
        // Somebody who does not exist takes as long as a wrong password.
        let hash = found.as_ref().map_or(user::NOBODY, |user| user.hash.as_str()).to_owned();
        let matches = user::verify(hash, password.to_owned(), turn).await?;
        let Some(user) = found.filter(|_| matches) else {
            // The turn is over: who guesses waits, and nobody else does.
            tokio::time::sleep(WRONG).await;
            return Ok(None);
        };
        let principal = Principal { name: user.name, role: user.role };
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(name.to_owned(), (proof.as_ref().to_vec(), principal.clone()));
        Ok(Some(principal))
    }

    /// The same, for an `Authorization: Basic` header.
    pub async fn check_basic(&self, header: &str) -> Result<Option<Principal>, Error> {
        match basic(header) {
            Some((name, password)) => self.check(&name, &password).await,
            None => Ok(None),
        }
    }

    fn remembered(&self, name: &str, proof: &[u8]) -> Option<Principal> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, principal) = remembered.get(name)?;
        // Both are hashes with a key that nobody else knows: how long the comparison takes says nothing.
        (known == proof).then(|| principal.clone())
    }
}

#[async_trait]
impl Authenticator for Auth {
    async fn permits(&self, authorization: Option<&str>, repository: Option<&str>, action: Action) -> Verdict {
        let Some(header) = authorization else { return Verdict::Unknown };
        let token = match (header.strip_prefix("Bearer "), basic(header)) {
            (Some(token), _) => Some(token.to_owned()),
            (None, Some((name, password))) if name == TOKEN_USER => Some(password),
            _ => None,
        };
        if let Some(begin) = token.as_deref().and_then(|token| self.verify_pull(token)) {
            let within = repository.is_none_or(|repository| repository.starts_with(&begin));
            return if within && action == Action::Pull { Verdict::Allowed } else { Verdict::Denied };
        }
        let result = match token {
            Some(token) => self.verify(&token).await.map(|claims| match claims {
                // What others there are is nothing to a build.
                Some(_) if action == Action::Catalog => Verdict::Denied,
                Some(claims) if repository.is_none_or(|repository| claims.grants(repository, action)) => {
                    Verdict::Allowed
                }
                Some(_) => Verdict::Denied,
                None => Verdict::Unknown,
            }),
            None => self.check_basic(header).await.map(|principal| match principal {
                Some(principal)
                    if principal.role == Role::Admin || matches!(action, Action::Pull | Action::Catalog) =>
                {
                    Verdict::Allowed
                }
                Some(_) => Verdict::Denied,
                None => Verdict::Unknown,
            }),
        };
        result.unwrap_or_else(|error| {
            tracing::error!(error = %chain(&error), "a credential could not be checked");
            Verdict::Denied
        })
    }
}

/// Name and password of an `Authorization: Basic` header.
fn basic(header: &str) -> Option<(String, String)> {
    let (scheme, encoded) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

/// A password that nobody guesses.
pub fn new_password() -> String {
    random::<16>().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random<const N: usize>() -> [u8; N] {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; N];
    ring::rand::SystemRandom::new().fill(&mut bytes).expect("the kernel has random bytes");
    bytes
}

/// What can go wrong with users and tokens.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("too many passwords are being checked; try again in a few seconds")]
    Busy,
    #[error("the password cannot be hashed: {0}")]
    Hash(String),
    #[error("a check of a password was interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
    #[error("the store failed")]
    Store(#[from] store::Error),
}

#[cfg(test)]
mod tests;
