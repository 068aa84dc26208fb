//! Users, and the checking of their passwords.

use argon2::{Argon2, PasswordHash, PasswordHasher as _, PasswordVerifier as _};
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::{Error, Principal, Role};
use crate::{
    model::UserName,
    store::{Key, Kind, Resource},
};

/// A user as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct User {
    pub name: UserName,
    /// In the PHC string format.
    pub hash: String,
    pub role: Role,
    /// SHA-256 of a password that was made here: as nobody can guess it, it needs neither a slow hash nor waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

impl User {
    pub fn principal(&self) -> Principal {
        Principal { name: self.name.clone(), role: self.role, token: None }
    }

    pub fn key_of(name: &UserName) -> Key {
        Key { kind: Kind::User, namespace: String::new(), name: name.to_string() }
    }
}

impl Resource for User {
    const KIND: Kind = Kind::User;

    fn key(&self) -> Key {
        Self::key_of(&self.name)
    }
}

/// The hash of a password that nobody knows.
pub(super) const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$qHkoUfZiWZUvLuqwYQ9qzEFSuXUOGfNDvJpDEdBDVmY";

pub(super) async fn hash(password: String) -> Result<String, Error> {
    let hashed = tokio::task::spawn_blocking(move || {
        Argon2::default()
            .hash_password(password.as_bytes())
            .map(|hash| hash.to_string())
            .map_err(|error| error.to_string())
    });
    hashed.await?.map_err(Error::Hash)
}

/// The turn ends with the check, also when nobody waits for it any more.
pub(super) async fn verify(hash: String, password: String, turn: Option<OwnedSemaphorePermit>) -> Result<bool, Error> {
    let verified = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let parsed = PasswordHash::new(&hash).map_err(|error| error.to_string())?;
        Ok(Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok())
    });
    verified.await?.map_err(Error::Hash)
}
