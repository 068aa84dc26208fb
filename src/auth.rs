//! Users, passwords, tokens, and the log of what was done with them: who somebody is, and what a build may do.
//!
//! Passwords are kept as argon2id hashes. A password that was checked once is remembered by a keyed hash, so that
//! the price is paid once and not for each request. Who guesses waits (`backoff` says how). What nobody can guess (API tokens, and
//! passwords that were made here) is kept as a plain hash. Secrets are compared by HMACs with a key that nobody else knows,
//! in a time that says nothing; users that do not exist cost what wrong passwords do.
//!
//! Tokens of builds are signed claims; they are good only as long as their staging is not finished, which the store knows, also
//! after a restart.

mod address;
mod api_token;
mod audit;
mod backoff;
mod principal;
mod registry;
mod token;
mod user;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::hmac;
use tokio::sync::Semaphore;

pub use address::ClientAddress;
pub use api_token::{ApiToken, PREFIX, Wanted};
pub use audit::{Audit, Entry};
pub use principal::{Pass, Place, Principal, Role, Scope};
pub use token::{BuildClaims, Grant};

use self::{backoff::Backoff, user::User};
use crate::{
    model::{Timestamp, TokenName, UserName, random, random_hex},
    store::{self, Objects},
};

/// The name of the first user.
pub const ADMIN: &str = "admin";
/// How many passwords may be checked at once: each check takes 19 MiB.
const CHECKS_AT_ONCE: usize = 2;
/// How long somebody waits for a check of a password to begin.
const QUEUED: Duration = Duration::from_secs(2);
/// How many checked passwords are remembered.
const REMEMBERED: usize = 1024;
/// The user name that goes with a token where only a name and a password can be given.
const TOKEN_USER: &str = "token";

/// Checks who somebody is.
pub struct Auth {
    objects: Objects,
    audit: Audit,
    signing: hmac::Key,
    /// Of this process only: what is remembered is worth nothing elsewhere.
    remembering: hmac::Key,
    remembered: Mutex<HashMap<String, Remembered>>,
    /// Of passwords that were made here.
    unguessable: Mutex<HashMap<String, Remembered>>,
    tokens: Mutex<Vec<api_token::Known>>,
    backoff: Backoff,
    checks: Arc<Semaphore>,
}

/// Who has been right, and with what.
#[derive(Clone)]
struct Remembered {
    tag: hmac::Tag,
    principal: Principal,
}

/// The password of a new user.
pub enum Password {
    /// By somebody, who may have chosen a word.
    Chosen(String),
    /// By [`new_password`].
    Made(String),
}

/// What somebody shows.
enum Shown {
    Token(String),
    Password { name: String, password: String },
}

impl Auth {
    /// Reads keys, users and tokens; makes a signing key where there is none.
    pub async fn open(objects: Objects, audit: Audit) -> Result<Arc<Self>, Error> {
        let signing = token::signing_key(&objects).await?;
        let auth = Self {
            objects,
            audit,
            signing,
            remembering: hmac::Key::new(hmac::HMAC_SHA256, &random::<32>()),
            remembered: Mutex::default(),
            unguessable: Mutex::default(),
            tokens: Mutex::default(),
            backoff: Backoff::new(),
            checks: Arc::new(Semaphore::new(CHECKS_AT_ONCE)),
        };
        for user in auth.objects.list::<User>(None).await? {
            auth.know(&user.value);
        }
        let tokens = api_token::all(&auth.objects).await?.into_iter().map(|token| auth.known(token)).collect();
        *auth.tokens.lock().unwrap_or_else(PoisonError::into_inner) = tokens;
        Ok(Arc::new(auth))
    }

    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    pub async fn has_users(&self) -> Result<bool, Error> {
        Ok(!self.objects.list::<User>(None).await?.is_empty())
    }

    /// Creates the user [`ADMIN`].
    pub async fn create_admin(&self, password: Password) -> Result<(), Error> {
        let name: UserName = ADMIN.parse().expect("the name follows the rules");
        let (password, digest) = match password {
            Password::Chosen(password) => (password, None),
            Password::Made(password) => {
                let digest = api_token::digest(&password);
                (password, Some(digest))
            }
        };
        let hash = user::hash(password).await?;
        let user = User { name, hash, role: Role::Admin, digest };
        self.objects.create(&user).await?;
        self.know(&user);
        Ok(())
    }

    /// Whose `Authorization` header this is: of a user by password, or of a token, which may also stand in place of
    /// the password of any user.
    pub async fn identify(&self, header: Option<&str>, from: ClientAddress) -> Result<Principal, Error> {
        match shown(header.ok_or(Error::Missing)?)? {
            Shown::Token(token) => self.check_token(&token, from).await,
            Shown::Password { name, password } => self.check(&name, &password, from).await,
        }
    }

    /// Who has this name and password.
    pub async fn check(&self, name: &str, password: &str, from: ClientAddress) -> Result<Principal, Error> {
        let digest = api_token::digest(password);
        if let Some(principal) = self.recall(&self.unguessable, name, &digest) {
            return Ok(principal);
        }
        // Also the right one waits: who guesses would learn which it is.
        self.may_try(name, from)?;
        if let Some(principal) = self.recall(&self.remembered, name, &digest) {
            self.backoff.right(name, from.network(), Instant::now());
            return Ok(principal);
        }
        let turn = tokio::time::timeout(QUEUED, Arc::clone(&self.checks).acquire_owned()).await;
        let turn = turn.map_err(|_| Error::Busy)?.ok();
        // Whoever waited may find that others were wrong meanwhile, or that somebody else has paid.
        self.may_try(name, from)?;
        if let Some(principal) = self.recall(&self.remembered, name, &digest) {
            return Ok(principal);
        }
        let found = match name.parse::<UserName>() {
            Ok(name) => self.objects.get::<User>(&User::key_of(&name)).await?.map(|stored| stored.value),
            Err(_) => None,
        };
        // Somebody who does not exist takes as long as a wrong password.
        let hash = found.as_ref().map_or(user::NOBODY, |user| user.hash.as_str()).to_owned();
        let matches = user::verify(hash, password.to_owned(), turn).await?;
        match found {
            Some(user) if matches => {
                self.backoff.right(name, from.network(), Instant::now());
                let principal = user.principal();
                self.remember(&self.remembered, name, &digest, principal.clone());
                Ok(principal)
            }
            found => Err(self.wrong_password(name, found.as_ref(), from)),
        }
    }

    fn may_try(&self, name: &str, from: ClientAddress) -> Result<(), Error> {
        match self.backoff.wait(name, from.network(), Instant::now()) {
            Some(wait) => Err(Error::Wait { seconds: seconds(wait) }),
            None => Ok(()),
        }
    }

    fn wrong_password(&self, name: &str, user: Option<&User>, from: ClientAddress) -> Error {
        let wait = self.backoff.wrong(name, from.network(), Instant::now());
        // What a stranger made up may be anything, also a password in the wrong field.
        let user = user.map(|user| user.name.to_string());
        let wait_seconds = wait.map(seconds);
        self.audit.write_failure(Entry { user, status: Some(401), wait_seconds, ..Entry::new("login", from) });
        Error::Wrong
    }

    /// A token that is not right, for this reason; too many are not told it any more.
    fn wrong_token(&self, why: Error, from: ClientAddress) -> Error {
        let (network, now) = (from.network(), Instant::now());
        if let Some(wait) = self.backoff.wait(backoff::TOKENS, network, now) {
            return Error::Wait { seconds: seconds(wait) };
        }
        let wait_seconds = self.backoff.wrong(backoff::TOKENS, network, now).map(seconds);
        self.audit.write_failure(Entry { status: Some(401), wait_seconds, ..Entry::new("login", from) });
        why
    }

    fn know(&self, user: &User) {
        if let Some(digest) = &user.digest {
            self.remember(&self.unguessable, user.name.as_str(), digest, user.principal());
        }
    }

    fn remember(&self, all: &Mutex<HashMap<String, Remembered>>, name: &str, digest: &str, principal: Principal) {
        let tag = hmac::sign(&self.remembering, proof(name, digest).as_bytes());
        let mut all = lock(all);
        if all.len() >= REMEMBERED {
            all.clear();
        }
        all.insert(name.to_owned(), Remembered { tag, principal });
    }

    fn recall(&self, all: &Mutex<HashMap<String, Remembered>>, name: &str, digest: &str) -> Option<Principal> {
        let found = lock(all).get(name).cloned()?;
        let verified = hmac::verify(&self.remembering, proof(name, digest).as_bytes(), found.tag.as_ref());
        verified.is_ok().then_some(found.principal)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn proof(name: &str, digest: &str) -> String {
    format!("{name}\0{digest}")
}

/// Whole seconds, of which one is the least.
fn seconds(wait: Duration) -> u64 {
    wait.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX)
}

/// What an `Authorization` header has.
fn shown(header: &str) -> Result<Shown, Error> {
    let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(Shown::Token(rest.trim().to_owned()));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(Error::Unsupported);
    }
    let (name, password) = basic(rest).ok_or(Error::Wrong)?;
    // A password may begin as a token does: only where a token is meant is it told that it is damaged.
    if name == TOKEN_USER || api_token::is_whole(&password) {
        return Ok(Shown::Token(password));
    }
    Ok(Shown::Password { name, password })
}

/// Name and password of what follows `Basic`.
fn basic(encoded: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

/// A password that nobody guesses.
pub fn new_password() -> String {
    random_hex::<16>()
}

/// What can go wrong with users and tokens.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("missing credentials")]
    Missing,
    #[error("not supported Authorization Header")]
    Unsupported,
    #[error("wrong user or password")]
    Wrong,
    #[error("this is no whole token: a character of it is missing or wrong; copy it again")]
    TokenDamaged,
    #[error("this token is not known here: it was deleted, or is of another daemon")]
    TokenUnknown,
    #[error("token '{name}' expired at {at}; an administrator makes another with 'epiniod tokens create'")]
    TokenExpired { name: TokenName, at: Timestamp },
    #[error("token expired")]
    WebsocketToken,
    #[error("too many wrong credentials from this address; try again in {seconds} s")]
    Wait { seconds: u64 },
    #[error("too many passwords are being checked; try again in a few seconds")]
    Busy,
    #[error("there is a token '{0}' already; delete it first, or choose another name")]
    TokenExists(TokenName),
    #[error("token '{0}' does not exist")]
    NoSuchToken(TokenName),
    #[error("there are {0} tokens already; delete those that nobody uses")]
    TooManyTokens(usize),
    #[error("the password cannot be hashed: {0}")]
    Hash(String),
    #[error("a check of a password was interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
    #[error("the store failed")]
    Store(#[from] store::Error),
}

impl Error {
    /// How long somebody has to wait who is to come again, in seconds.
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Wait { seconds } => Some(*seconds),
            Self::Busy => Some(QUEUED.as_secs()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
