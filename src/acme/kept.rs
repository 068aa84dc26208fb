//! What is kept of certificates: the ones there are, the orders that are under way, and what went wrong.

use std::sync::Arc;

use instant_acme::CertificateIdentifier;
use jiff::{SignedDuration, Timestamp};
use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize};
use x509_parser::parse_x509_certificate;

use super::{Error, dns::TextRecord};
use crate::{
    model::Digest,
    store::{Key, Kind, Resource},
};

/// All about one certificate, wanted or there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// What it is for: hosts, or `*.DOMAIN`; sorted.
    pub names: Vec<String>,
    pub issued: Option<Issued>,
    pub pending: Option<Pending>,
    pub trouble: Option<Trouble>,
}

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Issued {
    /// PEM: the certificate, and those that lead to one that clients know.
    pub chain: String,
    /// PEM.
    pub key: String,
    /// Of whom it is.
    pub directory: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// When the next one is to be asked for.
    pub renewal: Timestamp,
    /// When the authority is to be asked again whether it should be sooner (RFC 9773).
    pub look: Timestamp,
}

/// An order that was made: whoever starts again goes on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub order: String,
    pub directory: String,
    /// PEM: of the certificate that it will be.
    pub key: String,
    /// What was put into DNS for it.
    pub records: Vec<TextRecord>,
}

/// What went wrong last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trouble {
    pub cause: String,
    /// How often, one after the other.
    pub attempts: u32,
    /// Not before this it is tried again.
    pub next: Timestamp,
    /// The fingerprint of the settings that it failed under.
    pub under: u64,
}

impl Resource for Kept {
    const KIND: Kind = Kind::Certificate;

    fn key(&self) -> Key {
        key_of(&self.names)
    }
}

/// Hosts are longer than names of objects may be.
pub(super) fn key_of(names: &[String]) -> Key {
    let name = Digest::of(names.join(",").as_bytes()).hex()[..32].to_owned();
    Key { kind: Kind::Certificate, namespace: String::new(), name }
}

impl Kept {
    pub fn new(names: Vec<String>) -> Self {
        Self { names, issued: None, pending: None, trouble: None }
    }

    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|own| own == name)
    }
}

impl Issued {
    /// Of a chain that an authority gave; it is checked that it is one for the key and the names.
    pub fn read(chain: String, key: String, directory: &str, names: &[String], jitter: f64) -> Result<Self, Error> {
        let wrong =
            |cause: String| Error::Key { doing: format!("taking the certificate for {}", names.join(", ")), cause };
        let first = CertificateDer::from_pem_slice(chain.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        let (_, parsed) = parse_x509_certificate(&first).map_err(|error| wrong(error.to_string()))?;
        let time = |second| Timestamp::from_second(second).map_err(|error| wrong(error.to_string()));
        let not_before = time(parsed.validity().not_before.timestamp())?;
        let not_after = time(parsed.validity().not_after.timestamp())?;
        let alternatives = parsed.subject_alternative_name().ok().flatten();
        let has = |name: &String| {
            let is_it = |general: &x509_parser::extensions::GeneralName<'_>| matches!(general, x509_parser::extensions::GeneralName::DNSName(dns) if dns.eq_ignore_ascii_case(name));
            alternatives.as_ref().is_some_and(|found| found.value.general_names.iter().any(is_it))
        };
        if let Some(missing) = names.iter().find(|name| !has(name)) {
            return Err(wrong(format!("it is not for {missing}")));
        }
        let look = Timestamp::now();
        let renewal = renewal(not_before, not_after, jitter).max(soonest(not_before, not_after, look));
        let issued = Self { chain, key, directory: directory.to_owned(), not_before, not_after, renewal, look };
        issued.certified()?;
        Ok(issued)
    }

    /// As rustls takes it.
    pub fn certified(&self) -> Result<Arc<CertifiedKey>, Error> {
        let wrong = |cause: String| Error::Key { doing: "reading a certificate that is kept".to_owned(), cause };
        let chain = CertificateDer::pem_slice_iter(self.chain.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| wrong(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        let key = any_supported_type(&key).map_err(|error| wrong(error.to_string()))?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|error| wrong(error.to_string()))?;
        Ok(Arc::new(certified))
    }

    /// Its name at its authority.
    pub fn identifier(&self) -> Option<CertificateIdentifier<'static>> {
        let first = CertificateDer::from_pem_slice(self.chain.as_bytes()).ok()?;
        Some(CertificateIdentifier::try_from(&first).ok()?.into_owned())
    }
}

/// After two thirds of its life, give or take: `jitter` is from 0 to 1. Many that were made together are then not
/// renewed together.
pub(super) fn renewal(not_before: Timestamp, not_after: Timestamp, jitter: f64) -> Timestamp {
    let life = not_after.duration_since(not_before).as_secs_f64();
    let share = 0.64 + 0.05 * jitter;
    not_before + SignedDuration::from_millis((life * share * 1000.0) as i64)
}

/// A tenth of its life from when it came. Where the clock here is far ahead each new certificate is an old one, and an
/// authority would be asked for the next at once, and again.
fn soonest(not_before: Timestamp, not_after: Timestamp, now: Timestamp) -> Timestamp {
    now + not_after.duration_since(not_before) / 10
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn a_certificate_that_is_old_when_it_comes_is_not_renewed_at_once() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 3, 31));
        let chain = params.self_signed(&key).unwrap().pem();
        let names = ["a.test".to_owned()];
        let issued = Issued::read(chain, key.serialize_pem(), "https://ca.test", &names, 0.5).unwrap();
        let days = issued.renewal.duration_since(Timestamp::now()).as_hours() / 24;
        assert!((8..=9).contains(&days), "{days} days");
    }
}
