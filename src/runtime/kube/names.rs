//! What our objects are called in a cluster, and the labels that they are found by.

use std::fmt;

use crate::{
    model::{AppName, Digest, Namespace, ReleaseId},
    runtime::JobId,
};

/// Who writes: the field manager of server-side apply, and the value of `app.kubernetes.io/managed-by`.
pub(super) const MANAGER: &str = "epiniod";
pub(super) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The namespace of the daemon: there may be several in a cluster.
pub(super) const SYSTEM: &str = "epiniod.dev/system";
pub(super) const APP: &str = "epiniod.dev/app";
pub(super) const RELEASE: &str = "epiniod.dev/release";
pub(super) const STAGING: &str = "epiniod.dev/staging";
/// What an object was made from, in an annotation: equal text, equal object.
pub(super) const APPLIED: &str = "epiniod.dev/applied";

/// The pods of a daemon that is in its cluster.
pub(super) const DAEMON_PODS: &str = "app.kubernetes.io/name=epiniod,app.kubernetes.io/component=daemon";
/// Of these the one that the services lead to.
pub(super) const LEADER: &str = "epiniod.dev/leader";

/// The secret with which the kubelet pulls, one in each namespace.
pub(super) const PULL_SECRET: &str = "epiniod-pull";
/// The service in front of a daemon that was installed into its cluster, and the ingress of the API.
pub(super) const DAEMON: &str = "epiniod";
/// A temporary ingress, by which an authority for certificates comes to the daemon.
pub(super) const CHALLENGE: &str = "epiniod.dev/challenge";
/// A secret with a certificate that the daemon came by.
pub(super) const CERTIFICATE: &str = "epiniod.dev/certificate";
/// By which cert-manager knows that a certificate is its to come by.
pub(super) const ISSUER: &str = "cert-manager.io/cluster-issuer";
/// Of the names of secrets: of certificates of ours, and of those of cert-manager, which are its own to delete.
const TLS: &str = "epiniod-tls-";
const ISSUED_TLS: &str = "tls-";
/// The longest name of an object.
const LONGEST: usize = 253;

/// Certificate authorities that builds trust.
pub(super) const BUILD_CA: &str = "epiniod-build-ca";

pub(super) fn job(id: &JobId) -> String {
    format!("build-{id}")
}

/// The environment of a release.
pub(super) fn environment(id: &ReleaseId) -> String {
    format!("{}-env-{}", id.app, id.number)
}

/// The secret of a certificate of ours; `name` is a host or `*.DOMAIN`.
pub(super) fn certificate(name: &str) -> String {
    secret(TLS, name)
}

/// Whether a secret has a certificate that is ours to delete.
pub(super) fn is_certificate(secret: &str) -> bool {
    secret.starts_with(TLS)
}

/// The secret that cert-manager is to make for a host.
pub(super) fn issued_certificate(host: &str) -> String {
    secret(ISSUED_TLS, host)
}

fn secret(prefix: &str, name: &str) -> String {
    let plain = format!("{prefix}{}", name.replace('*', "wildcard"));
    if plain.len() <= LONGEST { plain } else { format!("{prefix}{}", hash(name)) }
}

/// The temporary ingress of a host.
pub(super) fn challenge(host: &str) -> String {
    format!("epiniod-challenge-{}", hash(host))
}

fn hash(text: &str) -> String {
    Digest::of(text.as_bytes()).hex()[..16].to_owned()
}

/// All of this installation that have this label.
pub(super) fn ours_with(system: &str, label: &str) -> String {
    format!("{MANAGED_BY}={MANAGER},{SYSTEM}={system},{label}")
}

pub(super) fn of_staging(id: &JobId) -> String {
    format!("{STAGING}={id}")
}

/// An instance is called after its pod, in the way of the other runtime: `APP-RELEASE-SUFFIX`.
pub(super) struct InstanceName<'a> {
    pub app: &'a str,
    pub release: &'a str,
    pub pod: &'a str,
}

impl fmt::Display for InstanceName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = self.pod.rsplit_once('-').map_or(self.pod, |(_, suffix)| suffix);
        write!(f, "{}-{}-{suffix}", self.app, self.release)
    }
}

/// The release that labels speak of.
pub(super) fn release_id(namespace: Option<&str>, app: Option<&String>, release: Option<&String>) -> Option<ReleaseId> {
    let namespace: Namespace = namespace?.parse().ok()?;
    let app: AppName = app?.parse().ok()?;
    Some(ReleaseId { namespace, app, number: release?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_called_after_its_host_as_long_as_that_fits() {
        assert_eq!(certificate("shop.example.com"), "epiniod-tls-shop.example.com");
        assert_eq!(certificate("*.example.com"), "epiniod-tls-wildcard.example.com");
        assert_eq!(issued_certificate("shop.example.com"), "tls-shop.example.com");
        assert!(is_certificate(&certificate("a.test")) && !is_certificate(&issued_certificate("a.test")));
        let long = ["a".repeat(62), "b".repeat(62), "c".repeat(62), "d".repeat(60)].join(".");
        assert!(certificate(&long).len() < LONGEST && certificate(&long).starts_with(TLS));
    }

    #[test]
    fn an_instance_is_called_after_its_release_and_the_end_of_its_pod() {
        let name = InstanceName { app: "shop", release: "3", pod: "shop-7d9c5b8f4-x7k2p" };
        assert_eq!(name.to_string(), "shop-3-x7k2p");
    }
}
