//! How an installation speaks TLS with clients: whom the daemon asks for certificates, or that cert-manager does.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Entrance, Error, Installation, TRUST_FOLDER, Wishes};
use crate::{
    model::{directory_of_authority, is_mail_address, is_public_domain},
    runtime::kube::names,
};

/// Who comes by certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificates {
    /// As `--acme-directory` has it; none leaves it to the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// The ClusterIssuer of cert-manager that does it in the daemon's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
}

impl Certificates {
    /// Of installations that were made before there were any: whoever is in front of those may speak TLS in a way of its own.
    pub(super) fn of_before() -> Self {
        Self { directory: Some(OFF.to_owned()), ..Self::default() }
    }
}

impl Installation {
    /// Whether the daemon asks an authority of the public.
    pub fn asks_for_certificates(&self) -> bool {
        let Certificates { directory, issuer, .. } = &self.certificates;
        issuer.is_none()
            && directory.as_ref().map_or_else(|| is_public_domain(&self.system_domain), |directory| directory != OFF)
    }

    /// Whether clients are to find API and applications with TLS.
    pub(super) fn is_secure(&self) -> bool {
        self.asks_for_certificates() || self.certificates.issuer.is_some()
    }

    /// Flags of the daemon.
    pub(super) fn certificate_flags(&self) -> [(&'static str, Option<String>); 5] {
        let Certificates { directory, email, issuer } = &self.certificates;
        let edge = matches!(self.entrance, Entrance::Edge(_));
        [
            ("--listen-tls", edge.then(|| format!("0.0.0.0:{TLS_PORT}"))),
            ("--acme-directory", directory.clone()),
            ("--acme-email", email.clone()),
            ("--acme-ca-file", self.acme_ca.as_ref().map(|_| format!("{TRUST_FOLDER}/{ACME_CA}"))),
            ("--tls-issuer", issuer.clone()),
        ]
    }

    /// What the ingress of the API says of certificates, where that is not left to the daemon: an annotation and a part of
    /// its specification, as YAML.
    pub(super) fn issued(&self) -> [String; 2] {
        let Some(issuer) = &self.certificates.issuer else { return Default::default() };
        let host = format!("epinio.{}", self.system_domain);
        let tls = format!("{{hosts: [{host}], secretName: {}}}", names::issued_certificate(&host));
        [format!("\n    {}: {}", names::ISSUER, json!(issuer)), format!("\n  tls:\n  - {tls}")]
    }
}

/// What was wished, else what was there before.
pub(super) fn settle(
    wishes: &Wishes,
    before: Option<&Installation>,
    entrance: &Entrance,
) -> Result<Certificates, Error> {
    let kept = before.map(|before| before.certificates.clone()).unwrap_or_default();
    let has_ingresses = !matches!(entrance, Entrance::Edge(_));
    let issuer = match wishes.tls_issuer.as_deref() {
        None => kept.issuer.filter(|_| has_ingresses),
        Some("" | OFF) => None,
        Some(name) => Some(name.to_owned()),
    };
    if let Some(issuer) = issuer.as_ref().filter(|_| !has_ingresses) {
        return Err(Error::undecided(
            format!("cert-manager cannot come by certificates with '{issuer}': the daemon's own edge has no ingresses"),
            "leave --tls-issuer out, and the daemon asks an authority itself; or choose --ingress-class, or --ingress traefik",
        ));
    }
    let directory = wishes.acme_directory.clone().or(kept.directory);
    if let Some(directory) = directory.as_ref().filter(|directory| !is_directory(directory)) {
        return Err(Error::undecided(
            format!("'{directory}' is no directory of an authority"),
            "give --acme-directory letsencrypt, letsencrypt-staging, off, or the https:// URL of a directory",
        ));
    }
    let email = wishes.acme_email.clone().or(kept.email);
    if let Some(email) = email.as_ref().filter(|email| !is_mail_address(email)) {
        return Err(Error::undecided(
            format!("'{email}' is not an address of mail"),
            "give one such as admin@example.com with --acme-email",
        ));
    }
    Ok(Certificates { directory, email, issuer })
}

fn is_directory(text: &str) -> bool {
    text == OFF || directory_of_authority(text).is_some()
}

/// What `--acme-directory` and `--tls-issuer` say for nobody.
const OFF: &str = "off";
/// Where the daemon listens for TLS.
pub(super) const TLS_PORT: u16 = 8443;
/// The entry of the config map with who signed the certificate of the authority's own server.
pub(super) const ACME_CA: &str = "acme.crt";

#[cfg(test)]
mod tests {
    use super::{
        super::{Exposure, settle as settle_all},
        *,
    };

    fn wishes() -> Wishes {
        Wishes {
            namespace: "epiniod".to_owned(),
            system_domain: Some("apps.example.com".to_owned()),
            ingress_class: Some("nginx".to_owned()),
            ..Wishes::default()
        }
    }

    fn settled(wishes: &Wishes) -> Installation {
        settle_all(wishes, "localhost/epiniod:1", None).unwrap().installation
    }

    #[test]
    fn a_domain_of_the_public_has_certificates_and_another_has_none_unless_somebody_is_named() {
        let public = settled(&wishes());
        assert!(public.asks_for_certificates() && public.url() == "https://epinio.apps.example.com");
        let magic = Wishes { system_domain: Some("192.0.2.7.sslip.io".to_owned()), ..wishes() };
        assert_eq!(settled(&magic).url(), "http://epinio.192.0.2.7.sslip.io");
        let directory = Some("https://ca.example.com/dir".to_owned());
        assert!(settled(&Wishes { acme_directory: directory.clone(), ..magic }).asks_for_certificates());
        assert!(!settled(&Wishes { acme_directory: Some(OFF.to_owned()), ..wishes() }).asks_for_certificates());
        let flags = settled(&Wishes { acme_directory: directory, ..wishes() }).certificate_flags();
        assert_eq!(flags[0].1, None, "the ingress controller speaks TLS");
        assert_eq!(flags[1].1.as_deref(), Some("https://ca.example.com/dir"));
    }

    #[test]
    fn cert_manager_does_it_with_ingresses_only_and_the_daemon_then_asks_nobody() {
        let issued = settled(&Wishes { tls_issuer: Some("letsencrypt".to_owned()), ..wishes() });
        assert!(!issued.asks_for_certificates() && issued.url().starts_with("https://"));
        let own = Wishes { ingress_class: None, expose: Some(Exposure::HostPorts), ..wishes() };
        let refused = settle_all(&Wishes { tls_issuer: Some("x".to_owned()), ..own.clone() }, "i", None).unwrap_err();
        assert!(refused.to_string().contains("no ingresses"), "{refused}");
        let kept = settle(&own, Some(&issued), &Entrance::Edge(Exposure::HostPorts)).unwrap();
        assert_eq!(kept.issuer, None, "an edge of its own has none, whatever was before");
        let off = Wishes { tls_issuer: Some(OFF.to_owned()), ..wishes() };
        assert_eq!(settle(&off, Some(&issued), &issued.entrance).unwrap().issuer, None);
        assert_eq!(settle(&wishes(), Some(&issued), &issued.entrance).unwrap(), issued.certificates, "it is kept");
    }

    #[test]
    fn what_was_installed_without_certificates_gets_none_by_a_later_version() {
        let mut record = serde_json::to_value(settled(&wishes())).unwrap();
        record.as_object_mut().unwrap().remove("certificates");
        let before: Installation = serde_json::from_value(record).unwrap();
        let later = settle(&wishes(), Some(&before), &before.entrance).unwrap();
        assert!(!Installation { certificates: later, ..before }.asks_for_certificates());
    }

    #[test]
    fn what_no_daemon_would_take_is_refused() {
        for wrong in [
            Wishes { acme_directory: Some("http://ca.example.com".to_owned()), ..wishes() },
            Wishes { acme_email: Some("nobody".to_owned()), ..wishes() },
        ] {
            assert!(settle_all(&wrong, "i", None).is_err(), "{wrong:?}");
        }
    }
}
