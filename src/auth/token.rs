//! Tokens of builds: claims and a signature.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac;
use serde::{Deserialize, Serialize};

use super::{Auth, ClientAddress, Error, Principal, Role};
use crate::{
    model::{Namespace, StageId, Staging, Timestamp, TokenName, UserName, random},
    oci::registry::Action,
    store::{self, Key, Kind, Objects, Resource},
};

/// How long the token of a websocket is good, in seconds (Epinio has 30).
const WEBSOCKET_SECONDS: i64 = 30;

/// How long nodes may pull with one token, in seconds: every daemon that starts hands out new ones.
const PULL_SECONDS: i64 = 366 * 24 * 3600;

/// What a build may do in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildClaims {
    pub namespace: Namespace,
    pub staging: StageId,
    pub grants: Vec<Grant>,
    pub expires_at: Timestamp,
}

/// One repository, and what may be done with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub repository: String,
    pub actions: Vec<Action>,
}

/// What the nodes of a cluster may do: pull images whose repositories begin so.
#[derive(Serialize, Deserialize)]
struct PullClaims {
    pull: String,
    expires_at: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct WebsocketClaims {
    websocket: UserName,
    role: Role,
    /// How far it reaches is how far this one does.
    #[serde(default)]
    token: Option<TokenName>,
    expires_at: Timestamp,
}

impl BuildClaims {
    pub(super) fn grants(&self, repository: &str, action: Action) -> bool {
        self.grants.iter().any(|grant| grant.repository == repository && grant.actions.contains(&action))
    }
}

impl Auth {
    /// A token for a build.
    pub fn sign(&self, claims: &BuildClaims) -> String {
        self.seal(claims)
    }

    /// Was it made here for a build? That build may have ended.
    pub(super) fn is_of_a_build(&self, token: &str) -> bool {
        self.open_token::<BuildClaims>(token).is_some()
    }

    /// The claims of a token that is genuine, not expired, and whose staging still goes on.
    pub async fn verify(&self, token: &str) -> Result<Option<BuildClaims>, Error> {
        let Some(claims) = self.open_token::<BuildClaims>(token) else { return Ok(None) };
        let staging = self.objects.get::<Staging>(&Key::staging(&claims.namespace, &claims.staging)).await?;
        let goes_on = staging.is_some_and(|stored| !stored.value.state.is_final());
        Ok(Some(claims).filter(|claims| goes_on && claims.expires_at > Timestamp::now()))
    }

    /// A name and a password with which images are pulled whose repositories begin so.
    pub fn pull_credential(&self, repositories: &str) -> (String, String) {
        let expires_at = Timestamp::from_second(Timestamp::now().as_second() + PULL_SECONDS);
        (super::TOKEN_USER.to_owned(), self.seal(&PullClaims { pull: repositories.to_owned(), expires_at }))
    }

    /// The beginning of the repositories that this token is for, when it is one of those.
    pub(super) fn verify_pull(&self, token: &str) -> Option<String> {
        let claims = self.open_token::<PullClaims>(token)?;
        (claims.expires_at > Timestamp::now()).then_some(claims.pull)
    }

    /// A token for a websocket, which cannot send a header from a browser.
    pub fn websocket_token(&self, principal: &Principal) -> String {
        let expires_at = Timestamp::from_second(Timestamp::now().as_second() + WEBSOCKET_SECONDS);
        let token = principal.token.as_ref().map(|pass| pass.name.clone());
        self.seal(&WebsocketClaims { websocket: principal.name.clone(), role: principal.role, token, expires_at })
    }

    /// Whose websocket it is.
    pub fn verify_websocket(&self, token: &str, from: ClientAddress) -> Result<Principal, Error> {
        let Some(claims) = self.open_token::<WebsocketClaims>(token) else {
            return Err(match token {
                // Nothing was tried.
                "" => Error::Missing,
                _ => self.wrong_token(Error::WebsocketToken, from),
            });
        };
        if claims.expires_at <= Timestamp::now() {
            return Err(Error::WebsocketToken);
        }
        match claims.token {
            Some(name) => self.principal_of_token(&name),
            None => Ok(Principal { name: claims.websocket, role: claims.role, token: None }),
        }
    }

    fn seal(&self, claims: &impl Serialize) -> String {
        let claims = serde_json::to_vec(claims).expect("claims are plain data");
        let signature = hmac::sign(&self.signing, &claims);
        format!("{}.{}", URL_SAFE_NO_PAD.encode(claims), URL_SAFE_NO_PAD.encode(signature))
    }

    fn open_token<T: for<'de> Deserialize<'de>>(&self, token: &str) -> Option<T> {
        let (claims, signature) = token.split_once('.')?;
        let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        hmac::verify(&self.signing, &claims, &signature).ok()?;
        serde_json::from_slice(&claims).ok()
    }
}

/// The key that tokens are signed with: builds survive a restart of the daemon.
pub(super) async fn signing_key(objects: &Objects) -> Result<hmac::Key, Error> {
    let name = || Key { kind: Kind::Secret, namespace: String::new(), name: SigningKey::NAME.to_owned() };
    loop {
        if let Some(stored) = objects.get::<SigningKey>(&name()).await? {
            return Ok(hmac::Key::new(hmac::HMAC_SHA256, &stored.value.key));
        }
        match objects.create(&SigningKey { key: random::<32>().to_vec() }).await {
            Ok(_) | Err(store::Error::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct SigningKey {
    key: Vec<u8>,
}

impl SigningKey {
    const NAME: &str = "token-signing-key";
}

impl Resource for SigningKey {
    const KIND: Kind = Kind::Secret;

    fn key(&self) -> Key {
        Key { kind: Kind::Secret, namespace: String::new(), name: Self::NAME.to_owned() }
    }
}
