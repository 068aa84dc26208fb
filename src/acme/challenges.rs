//! What the edge answers to an authority that wants to see that a host is served here.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::Notify;

use super::{Error, authority::certified};

/// The answers that are waited for now; most of the time there are none.
#[derive(Default)]
pub struct Challenges {
    /// http-01 (RFC 8555, section 8.3): what is at `/.well-known/acme-challenge/TOKEN`.
    texts: RwLock<HashMap<String, Answer<String>>>,
    /// tls-alpn-01 (RFC 8737): the certificate for a host.
    certificates: RwLock<HashMap<String, Answer<Arc<CertifiedKey>>>>,
}

struct Answer<T> {
    value: T,
    asked: Arc<Notify>,
}

/// An answer that is given as long as this lives.
pub(super) struct Given {
    challenges: Arc<Challenges>,
    name: Name,
    asked: Arc<Notify>,
}

enum Name {
    Token(String),
    Host(String),
}

/// Before the token, in the path of a request.
const WELL_KNOWN: &str = "/.well-known/acme-challenge/";
/// What a client that wants a certificate of a challenge says instead of a version of HTTP.
pub const ALPN: &[u8] = b"acme-tls/1";

impl Challenges {
    /// What a request for this path is answered with. Other paths, and tokens of others, are the application's.
    pub fn text(&self, path: &str) -> Option<String> {
        let token = path.strip_prefix(WELL_KNOWN)?;
        let texts = self.texts.read().unwrap_or_else(PoisonError::into_inner);
        let answer = texts.get(token)?;
        answer.asked.notify_one();
        Some(answer.value.clone())
    }

    pub(super) fn give_text(self: &Arc<Self>, token: &str, text: String) -> Given {
        let asked = Arc::new(Notify::new());
        let answer = Answer { value: text, asked: Arc::clone(&asked) };
        self.texts.write().unwrap_or_else(PoisonError::into_inner).insert(token.to_owned(), answer);
        Given { challenges: Arc::clone(self), name: Name::Token(token.to_owned()), asked }
    }

    /// `digest` is SHA-256 of the key authorization.
    pub(super) fn give_certificate(self: &Arc<Self>, host: &str, digest: &[u8]) -> Result<Given, Error> {
        let asked = Arc::new(Notify::new());
        let answer = Answer { value: certificate(host, digest)?, asked: Arc::clone(&asked) };
        self.certificates.write().unwrap_or_else(PoisonError::into_inner).insert(host.to_owned(), answer);
        Ok(Given { challenges: Arc::clone(self), name: Name::Host(host.to_owned()), asked })
    }
}

impl Given {
    /// Where it is looked at: a path of the host.
    pub fn path_of(token: &str) -> String {
        format!("{WELL_KNOWN}{token}")
    }

    /// Ends when somebody has asked.
    pub async fn was_asked(&self) {
        self.asked.notified().await;
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        match &self.name {
            Name::Token(token) => {
                self.challenges.texts.write().unwrap_or_else(PoisonError::into_inner).remove(token);
            }
            Name::Host(host) => {
                self.challenges.certificates.write().unwrap_or_else(PoisonError::into_inner).remove(host);
            }
        }
    }
}

impl ResolvesServerCert for Challenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let host = hello.server_name()?.to_ascii_lowercase();
        let certificates = self.certificates.read().unwrap_or_else(PoisonError::into_inner);
        let answer = certificates.get(&host)?;
        answer.asked.notify_one();
        Some(Arc::clone(&answer.value))
    }
}

impl fmt::Debug for Challenges {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Challenges").finish_non_exhaustive()
    }
}

/// RFC 8737, section 3: signed by itself, with the digest in an extension.
fn certificate(host: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, Error> {
    let doing = || format!("making the certificate of a challenge for {host}");
    let failed = |source| Error::Certificate { doing: doing(), source };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(failed)?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key).map_err(failed)?;
    certified(&certificate, &key, doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_given_as_long_as_it_is_waited_for() {
        let challenges = Arc::new(Challenges::default());
        let path = Given::path_of("abc");
        assert_eq!(challenges.text(&path), None);
        let given = challenges.give_text("abc", "abc.thumb".to_owned());
        assert_eq!(challenges.text(&path).as_deref(), Some("abc.thumb"));
        assert_eq!(challenges.text("/.well-known/acme-challenge/other"), None, "a token of an application's own");
        assert_eq!(challenges.text("/abc"), None);
        drop(given);
        assert_eq!(challenges.text(&path), None);
    }
}
