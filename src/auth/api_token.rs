//! API tokens: a credential for programs, with scopes, namespaces and an end.
//!
//! A token is `epiniod_`, 256 random bits and a checksum, so that a typo is told from a token that is gone, and scanners of
//! secrets find one that was published. It is shown once; its SHA-256 is kept, which is enough for what nobody
//! can guess. All of them are in memory: this daemon is the only one that writes them.

use std::sync::PoisonError;

use ring::{digest, hmac};
use serde::{Deserialize, Serialize};

use super::{Auth, ClientAddress, Error, Pass, Principal, Role, Scope};
use crate::{
    model::{Namespace, Timestamp, TokenName, UserName, hex, random_hex},
    store::{self, Key, Kind, Objects, Resource},
    telemetry::chain,
};

/// How every token begins.
pub const PREFIX: &str = "epiniod_";
/// The hexadecimal digits of a checksum.
const CHECKSUM: usize = 8;
const SECRET_BYTES: usize = 32;
/// How many tokens there may be.
const MOST: usize = 1000;
/// The last use is written when the one that is known is so old, in seconds.
const ROUGHLY: i64 = 3600;

/// A token as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApiToken {
    pub name: TokenName,
    /// SHA-256 of the token.
    digest: String,
    /// In whose name it acts.
    pub user: UserName,
    pub role: Role,
    pub scopes: Vec<Scope>,
    /// None named is all.
    pub namespaces: Vec<Namespace>,
    pub created_at: Timestamp,
    /// None is never.
    pub expires_at: Option<Timestamp>,
    /// To about an hour.
    pub last_used_at: Option<Timestamp>,
}

/// What somebody wants of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub name: TokenName,
    pub scopes: Vec<Scope>,
    pub namespaces: Vec<Namespace>,
    pub expires_at: Option<Timestamp>,
}

/// One in memory, with what its digest is compared by.
pub(super) struct Known {
    token: ApiToken,
    tag: hmac::Tag,
}

impl Resource for ApiToken {
    const KIND: Kind = Kind::Token;

    fn key(&self) -> Key {
        key_of(&self.name)
    }
}

impl ApiToken {
    fn principal(&self) -> Principal {
        let (scopes, namespaces) = (self.scopes.clone(), self.namespaces.clone());
        let token = Some(Pass { name: self.name.clone(), scopes, namespaces });
        Principal { name: self.user.clone(), role: self.role, token }
    }

    fn check_expiry(&self) -> Result<(), Error> {
        match self.expires_at {
            Some(at) if at <= Timestamp::now() => Err(Error::TokenExpired { name: self.name.clone(), at }),
            _ => Ok(()),
        }
    }
}

impl Auth {
    /// Makes a token; the text is not known to anybody afterwards.
    pub async fn create_token(&self, wanted: Wanted, by: &Principal) -> Result<(ApiToken, String), Error> {
        if self.tokens().len() >= MOST {
            return Err(Error::TooManyTokens(MOST));
        }
        let secret = new_secret();
        let token = ApiToken {
            name: wanted.name,
            digest: digest(&secret),
            user: by.name.clone(),
            role: by.role,
            scopes: wanted.scopes,
            namespaces: wanted.namespaces,
            created_at: Timestamp::now(),
            expires_at: wanted.expires_at,
            last_used_at: None,
        };
        match self.objects.create(&token).await {
            Err(store::Error::Conflict(_)) => return Err(Error::TokenExists(token.name)),
            result => drop(result?),
        }
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).push(self.known(token.clone()));
        Ok((token, secret))
    }

    /// All tokens, in order of their names, also those that have expired.
    pub fn tokens(&self) -> Vec<ApiToken> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = tokens.iter().map(|known| known.token.clone()).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    /// Nobody comes in by it any more when this returns.
    pub async fn delete_token(&self, name: &TokenName) -> Result<(), Error> {
        match self.objects.delete(&key_of(name)).await {
            Err(store::Error::NotFound(_)) => return Err(Error::NoSuchToken(name.clone())),
            result => result?,
        }
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| known.token.name != *name);
        Ok(())
    }

    /// Whose token it is. What was wrong too often is not told what is wrong with it; one that is right always is.
    pub(super) async fn check_token(&self, text: &str, from: ClientAddress) -> Result<Principal, Error> {
        let found = is_whole(text).then(|| self.find(text)).flatten();
        let Some(token) = found else {
            let why = if is_whole(text) { Error::TokenUnknown } else { Error::TokenDamaged };
            return Err(self.wrong_token(why, from));
        };
        token.check_expiry()?;
        self.note_use(&token).await;
        Ok(token.principal())
    }

    /// The same once more, for who has shown the token before.
    pub(super) fn principal_of_token(&self, name: &TokenName) -> Result<Principal, Error> {
        let token = self.tokens().into_iter().find(|token| token.name == *name).ok_or(Error::TokenUnknown)?;
        token.check_expiry()?;
        Ok(token.principal())
    }

    fn find(&self, text: &str) -> Option<ApiToken> {
        let digest = digest(text);
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        // How long this takes says how many there are, and nothing about them.
        let mut found = None;
        for known in tokens.iter() {
            if hmac::verify(&self.remembering, digest.as_bytes(), known.tag.as_ref()).is_ok() {
                found = Some(&known.token);
            }
        }
        found.cloned()
    }

    async fn note_use(&self, token: &ApiToken) {
        let now = Timestamp::now();
        if token.last_used_at.is_some_and(|last| now.as_second() - last.as_second() < ROUGHLY) {
            return;
        }
        {
            let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            for known in tokens.iter_mut().filter(|known| known.token.name == token.name) {
                known.token.last_used_at = Some(now);
            }
        }
        match self.objects.modify::<ApiToken>(&token.key(), |token| token.last_used_at = Some(now)).await {
            Ok(_) | Err(store::Error::NotFound(_)) => {}
            // It is worth knowing, and no reason to refuse anybody.
            Err(error) => {
                tracing::warn!(token = %token.name, error = %chain(&error), "the use of a token cannot be noted")
            }
        }
    }

    pub(super) fn known(&self, token: ApiToken) -> Known {
        Known { tag: hmac::sign(&self.remembering, token.digest.as_bytes()), token }
    }
}

pub(super) async fn all(objects: &Objects) -> Result<Vec<ApiToken>, Error> {
    Ok(objects.list::<ApiToken>(None).await?.into_iter().map(|stored| stored.value).collect())
}

/// Is it a token that was copied as a whole?
pub(super) fn is_whole(text: &str) -> bool {
    let Some(rest) = text.strip_prefix(PREFIX) else { return false };
    rest.len() == SECRET_BYTES * 2 + CHECKSUM
        && rest.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        && rest.ends_with(&digest(&text[..text.len() - CHECKSUM])[..CHECKSUM])
}

fn new_secret() -> String {
    let random = format!("{PREFIX}{}", random_hex::<SECRET_BYTES>());
    let checksum = &digest(&random)[..CHECKSUM];
    format!("{random}{checksum}")
}

/// SHA-256, hexadecimal.
pub(super) fn digest(text: &str) -> String {
    hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}

fn key_of(name: &TokenName) -> Key {
    Key { kind: Kind::Token, namespace: String::new(), name: name.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_is_not_whole_is_seen() {
        let secret = new_secret();
        assert!(is_whole(&secret), "{secret}");
        assert_ne!(secret, new_secret());
        for place in 0..secret.len() {
            let mut changed = secret.clone().into_bytes();
            changed[place] = if changed[place] == b'a' { b'b' } else { b'a' };
            assert!(!is_whole(std::str::from_utf8(&changed).unwrap()), "the change at {place} was not seen");
        }
        for wrong in
            ["", PREFIX, &secret[..secret.len() - 1], &secret.to_uppercase(), &format!("{secret}0"), "epiniod_é"]
        {
            assert!(!is_whole(wrong), "{wrong}");
        }
    }
}
