//! An authority of our own. Its certificate says what it may sign (RFC 5280, section 4.2.1.10): names of the system domain, and
//! this machine. Who trusts it trusts it with nothing else.

use std::{net::IpAddr, sync::Arc};

use jiff::{Timestamp, ToSpan as _, tz::TimeZone};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType, date_time_ymd,
};
use rustls::{
    crypto::ring::sign::any_ecdsa_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize};

use super::Error;
use crate::{
    model::Digest,
    store::{self, Key, Kind, Objects, Resource},
};

/// How long the authority may be trusted, in days, and each certificate that it signs: browsers take no more than 398.
const AUTHORITY_DAYS: i64 = 10 * 365;
const LEAF_DAYS: i64 = 90;
/// A clock may be wrong by this many days.
const SLACK: i64 = 1;
const LOCALHOST: &str = "localhost";

pub struct Authority {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What is kept of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    /// The names that it may sign are of this one.
    domain: String,
    /// PEM, both.
    certificate: String,
    key: String,
}

impl Resource for Record {
    const KIND: Kind = Kind::Secret;

    fn key(&self) -> Key {
        Self::key_of()
    }
}

impl Record {
    fn key_of() -> Key {
        Key { kind: Kind::Secret, namespace: String::new(), name: "authority".to_owned() }
    }

    fn new(domain: &str) -> Result<Self, Error> {
        let doing = || "making an authority for certificates".to_owned();
        let failed = |source| Error::Certificate { doing: doing(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("epiniod, {domain}"));
        params.distinguished_name.push(DnType::OrganizationName, "epiniod");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let loopback = [
            GeneralSubtree::IpAddress(CidrSubnet::V4([127, 0, 0, 0], [255, 0, 0, 0])),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix(
                [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
                128,
            )),
        ];
        let names = [domain, LOCALHOST].map(|name| GeneralSubtree::DnsName(name.to_owned()));
        let permitted_subtrees = names.into_iter().chain(loopback).collect();
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
        set_validity(&mut params, AUTHORITY_DAYS);
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self { domain: domain.to_owned(), certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

impl Authority {
    /// The one that is kept, or a new one: at the first start, and for another domain.
    pub async fn open(objects: &Objects, domain: &str) -> Result<Self, Error> {
        let known = objects.get::<Record>(&Record::key_of()).await?;
        match known {
            Some(known) if known.value.domain == domain => return Self::read(&known.value),
            Some(mut known) => {
                tracing::warn!(
                    domain,
                    before = known.value.domain,
                    "the domain is another one: a new authority for certificates has to be trusted"
                );
                known.value = Record::new(domain)?;
                objects.update(&known).await?;
            }
            None => match objects.create(&Record::new(domain)?).await {
                Ok(_) | Err(store::Error::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            },
        }
        Self::read(&objects.require::<Record>(&Record::key_of()).await?.value)
    }

    fn read(record: &Record) -> Result<Self, Error> {
        let doing = || "reading the authority for certificates".to_owned();
        let failed = |source| Error::Certificate { doing: doing(), source };
        let key = KeyPair::from_pem(&record.key).map_err(failed)?;
        let certificate = CertificateDer::from_pem_slice(record.certificate.as_bytes())
            .map_err(|error| Error::Key { doing: doing(), cause: error.to_string() })?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(failed)?;
        Ok(Self { certificate, pem: record.certificate.clone(), issuer })
    }

    /// The certificate that clients trust.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of the certificate, as openssl prints it but for the colons.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(self.certificate.as_ref())
    }

    /// A certificate for names and addresses, with a key of its own, and when another one should take its place.
    pub fn sign(&self, names: &[String], addresses: &[IpAddr]) -> Result<(Arc<CertifiedKey>, Timestamp), Error> {
        let doing = || format!("signing a certificate for {}", names.join(", "));
        let failed = |source| Error::Certificate { doing: doing(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(names.to_vec()).map_err(failed)?;
        params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.distinguished_name.push(DnType::CommonName, names.first().cloned().unwrap_or_default());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, LEAF_DAYS);
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let renewal = Timestamp::now() + (LEAF_DAYS * 24 * 2 / 3).hours();
        Ok((certified(&certificate, &key, doing)?, renewal))
    }

    /// What is left of the life of a certificate when another one takes its place.
    pub(super) fn grace() -> jiff::Span {
        (LEAF_DAYS * 24 / 3).hours()
    }
}

/// A certificate that was made here, as rustls takes it.
pub(super) fn certified(
    certificate: &Certificate,
    key: &KeyPair,
    doing: impl Fn() -> String,
) -> Result<Arc<CertifiedKey>, Error> {
    let private = PrivateKeyDer::try_from(key.serialize_der())
        .and_then(|key| any_ecdsa_type(&key).map_err(|_| "the key is not one of ECDSA"))
        .map_err(|cause| Error::Key { doing: doing(), cause: cause.to_owned() })?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], private)))
}

fn set_validity(params: &mut CertificateParams, days: i64) {
    let date = |days: i64| {
        let date = (Timestamp::now() + (days * 24).hours()).to_zoned(TimeZone::UTC).date();
        date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    (params.not_before, params.not_after) = (date(-SLACK), date(days));
}

#[cfg(test)]
mod tests {
    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
        crypto::ring::default_provider,
        pki_types::{ServerName, UnixTime},
    };

    use super::*;

    fn accepted(authority: &Authority, names: &[&str], addresses: &[IpAddr], asked: &str) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let provider = Arc::new(default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let (key, renewal) = authority.sign(&names, addresses).unwrap();
        assert!(renewal > Timestamp::now());
        let asked = ServerName::try_from(asked.to_owned()).unwrap();
        verifier.verify_server_cert(&key.cert[0], &[], &asked, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn what_it_signs_is_of_its_domain_or_of_this_machine() {
        let authority = Authority::read(&Record::new("apps.example.com").unwrap()).unwrap();
        let loopback: IpAddr = [127, 0, 0, 1].into();
        assert!(accepted(&authority, &["shop.apps.example.com"], &[], "shop.apps.example.com"));
        assert!(accepted(&authority, &["epinio.apps.example.com"], &[loopback], "127.0.0.1"));
        assert!(accepted(&authority, &["shop.localhost"], &[], "shop.localhost"));
        assert!(!accepted(&authority, &["shop.example.com"], &[], "shop.example.com"), "a name of others");
        assert!(
            !accepted(&authority, &["shop.localhost"], &[[10, 0, 0, 1].into()], "10.0.0.1"),
            "an address of others"
        );
    }
}
