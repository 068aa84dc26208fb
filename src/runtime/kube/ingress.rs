//! The ingresses of applications and of the API, where a controller is there for them, and their certificates: a secret of
//! the type `kubernetes.io/tls` for each host, in the namespace of who is behind it.
//!
//! An ingress names a secret only when there is a certificate for it: until then a controller answers without TLS as
//! before, and afterwards it may send clients to TLS, as some do. No field of an ingress says whether it should, so that
//! is the controller's to decide. Secrets of other namespaces are written and never read (the daemon may not list them):
//! what an ingress names is how it is known what there is, so a secret goes before the ingress that names it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::{core::v1::Secret, networking::v1::Ingress};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    Cluster, Routes,
    call::{call, call_unless_missing},
    names,
    workload::labels,
};
use crate::{
    model::{AppName, Digest, Namespace, Route, wildcard_of},
    runtime::{Error, HostCertificate},
    telemetry::chain,
};

/// Who comes by certificates for ingresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Issuing {
    /// The daemon, as far as it asks an authority.
    Daemon,
    /// cert-manager, by this ClusterIssuer.
    ClusterIssuer(String),
}

/// What is in front of applications, and with which certificates.
#[derive(Default)]
pub(super) struct Facade {
    presented: Mutex<Presented>,
    /// What was exposed last, when, and of which round of certificates.
    exposed: Mutex<Option<(Instant, Routes, u64)>>,
    /// What secrets were last written from, and when.
    written: Mutex<HashMap<Place, (Digest, Instant)>>,
}

#[derive(Default)]
struct Presented {
    /// By their names: hosts and `*.DOMAIN`.
    certificates: BTreeMap<String, Arc<Known>>,
    /// Another one whenever there are others.
    round: u64,
}

/// A certificate, and a hash of it.
struct Known {
    certificate: HostCertificate,
    digest: Digest,
}

/// Namespace and name of a secret.
type Place = (String, String);

/// What hosts are to have: secrets by their names, and what their ingress says of TLS.
struct Secured {
    secrets: BTreeMap<String, Arc<Known>>,
    tls: Vec<Value>,
}

/// So long it is believed that what was written is still there: nothing tells. Everything is looked at each minute.
const SEEN: Duration = Duration::from_secs(25);
const DOING: &str = "writing ingresses";

impl Facade {
    /// Whether anything is new.
    pub fn present(&self, certificates: Vec<HostCertificate>) -> bool {
        let mut presented = lock(&self.presented);
        let known = &presented.certificates;
        let is_same = |one: &HostCertificate| known.get(&one.name).is_some_and(|known| known.certificate == *one);
        if known.len() == certificates.len() && certificates.iter().all(is_same) {
            return false;
        }
        presented.certificates =
            certificates.into_iter().map(|one| (one.name.clone(), Arc::new(Known::of(one)))).collect();
        presented.round += 1;
        true
    }

    /// Makes secrets and ingresses what they should be, but for what was seen to be so a moment ago.
    pub async fn expose(&self, cluster: &Cluster, routes: Routes) -> Result<(), Error> {
        let round = lock(&self.presented).round;
        let issuing = &cluster.settings.issuing;
        let secured: Vec<_> =
            routes.iter().map(|(.., own)| self.secured(issuing, own.iter().map(Route::host))).collect();
        let kept = self.write_all_secrets(cluster, &routes, &secured).await;
        let is_seen =
            |(at, before, of): &(Instant, Routes, u64)| at.elapsed() < SEEN && *before == routes && *of == round;
        if lock(&self.exposed).as_ref().is_some_and(is_seen) {
            return Ok(());
        }
        *lock(&self.exposed) = None;
        self.write(cluster, &routes, secured, kept).await?;
        *lock(&self.exposed) = Some((Instant::now(), routes, round));
        Ok(())
    }

    /// Of applications, and of the API; all that there should be.
    async fn write_all_secrets(&self, cluster: &Cluster, routes: &Routes, secured: &[Secured]) -> BTreeSet<Place> {
        let mut kept = BTreeSet::new();
        for ((namespace, ..), secured) in routes.iter().zip(secured) {
            self.write_secrets(cluster, namespace.as_str(), &secured.secrets).await;
            kept.extend(secured.secrets.keys().map(|name| (namespace.to_string(), name.clone())));
        }
        let api = self.secured_api(cluster);
        self.write_secrets(cluster, &cluster.settings.namespace, &api.secrets).await;
        kept
    }

    async fn write(
        &self,
        cluster: &Cluster,
        routes: &Routes,
        secured: Vec<Secured>,
        kept: BTreeSet<Place>,
    ) -> Result<(), Error> {
        let settings = &cluster.settings;
        let all: Api<Ingress> = Api::all(cluster.client.clone());
        let ours = ListParams::default().labels(&names::ours_with(&settings.namespace, names::APP));
        let there = call(DOING, || all.list(&ours)).await?.items;
        for place in there.iter().flat_map(secrets_of).filter(|place| !kept.contains(place)) {
            self.delete_secret(cluster, &place).await?;
        }
        for ((namespace, app, routes), secured) in routes.iter().zip(secured) {
            let class = settings.ingress_class.as_deref();
            let wanted = ingress(&settings.namespace, namespace, app, class, routes, secured.tls);
            write_ingress(cluster, namespace, app, wanted, &there).await?;
        }
        for ingress in there {
            let (namespace, name) = (ingress.namespace().unwrap_or_default(), ingress.name_any());
            if !routes.iter().any(|(ns, app, _)| ns.as_str() == namespace && app.as_str() == name) {
                let ingresses: Api<Ingress> = Api::namespaced(cluster.client.clone(), &namespace);
                let at_once = DeleteParams::default();
                call_unless_missing(DOING, || ingresses.delete(&name, &at_once)).await?;
            }
        }
        self.secure_api(cluster).await
    }

    /// The ingress of the API is of the installation; what it says of TLS is the daemon's, unless another issues.
    async fn secure_api(&self, cluster: &Cluster) -> Result<(), Error> {
        let namespace = cluster.settings.namespace.as_str();
        if cluster.settings.api_host.is_none() {
            return Ok(());
        }
        let secured = self.secured_api(cluster);
        if has_api_ingress(cluster) {
            let ingresses: Api<Ingress> = Api::namespaced(cluster.client.clone(), namespace);
            let ours = ListParams::default().labels(&format!("{}={namespace}", names::SYSTEM));
            let there = call(DOING, || ingresses.list(&ours)).await?.items;
            let own = there.iter().find(|ingress| ingress.name_any() == names::DAEMON);
            let now = own.map(|own| own.spec.as_ref().and_then(|spec| json!(spec.tls).as_array().cloned()));
            // Whoever applies manifests in another way may have none.
            if now.is_some_and(|now| now.unwrap_or_default() != secured.tls) {
                let change = Patch::Merge(json!({ "spec": { "tls": secured.tls } }));
                let params = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
                call_unless_missing(DOING, || ingresses.patch(names::DAEMON, &params, &change)).await?;
            }
        }
        // In its own namespace it may see what there is.
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
        let of_certificates = ListParams::default().labels(&names::ours_with(namespace, names::CERTIFICATE));
        for left in call(DOING, || secrets.list_metadata(&of_certificates)).await?.items {
            if !secured.secrets.contains_key(&left.name_any()) {
                self.delete_secret(cluster, &(namespace.to_owned(), left.name_any())).await?;
            }
        }
        Ok(())
    }

    fn secured_api(&self, cluster: &Cluster) -> Secured {
        let host = cluster.settings.api_host.as_deref().filter(|_| has_api_ingress(cluster));
        self.secured(&cluster.settings.issuing, host)
    }

    fn secured<'a>(&self, issuing: &Issuing, hosts: impl IntoIterator<Item = &'a str>) -> Secured {
        // Two routes may be of one host.
        let hosts: BTreeSet<&str> = hosts.into_iter().collect();
        let mut of_secret: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        let mut secrets = BTreeMap::new();
        let presented = lock(&self.presented);
        for host in hosts {
            if let Issuing::ClusterIssuer(_) = issuing {
                of_secret.entry(names::issued_certificate(host)).or_default().push(host);
            } else if let Some(known) = find(&presented.certificates, host) {
                let name = names::certificate(&known.certificate.name);
                of_secret.entry(name.clone()).or_default().push(host);
                secrets.insert(name, Arc::clone(known));
            }
        }
        let entry = |(secret, hosts)| json!({ "hosts": hosts, "secretName": secret });
        Secured { secrets, tls: of_secret.into_iter().map(entry).collect() }
    }

    /// What was written a moment ago is believed to be there. A namespace that takes none, as it is going perhaps, holds up
    /// no others.
    async fn write_secrets(&self, cluster: &Cluster, namespace: &str, wanted: &BTreeMap<String, Arc<Known>>) {
        for (name, known) in wanted {
            let place = (namespace.to_owned(), name.clone());
            let is_believed = |(before, at): &(Digest, Instant)| *before == known.digest && at.elapsed() < SEEN;
            if lock(&self.written).get(&place).is_some_and(is_believed) {
                continue;
            }
            match self.write_secret(cluster, &place, &known.certificate).await {
                Ok(()) => drop(lock(&self.written).insert(place, (known.digest, Instant::now()))),
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "an ingress has no certificate; trying again in a minute");
                }
            }
        }
    }

    async fn write_secret(&self, cluster: &Cluster, place: &Place, certificate: &HostCertificate) -> Result<(), Error> {
        let (namespace, name) = place;
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
        let doing = format!("writing the certificate for {} into namespace {namespace}", certificate.name);
        let force = PatchParams::apply(names::MANAGER).force();
        let secret = Patch::Apply(secret(&cluster.settings.namespace, name, certificate));
        if call(&doing, || secrets.patch(name, &force, &secret)).await.is_ok() {
            return Ok(());
        }
        // Somebody may have made one of another type, or one that is not to be changed.
        self.delete_secret(cluster, place).await?;
        call(&doing, || secrets.patch(name, &force, &secret)).await.map(drop)
    }

    async fn delete_secret(&self, cluster: &Cluster, place: &Place) -> Result<(), Error> {
        let (namespace, name) = place;
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
        let doing = format!("deleting secret {name} in namespace {namespace}");
        let at_once = DeleteParams::default();
        call_unless_missing(&doing, || secrets.delete(name, &at_once)).await?;
        lock(&self.written).remove(place);
        Ok(())
    }
}

impl Known {
    fn of(certificate: HostCertificate) -> Self {
        let digest = Digest::of(format!("{}\n{}", certificate.chain, certificate.key).as_bytes());
        Self { certificate, digest }
    }
}

/// Whether the API has an ingress that says of TLS what the daemon wants.
fn has_api_ingress(cluster: &Cluster) -> bool {
    cluster.settings.issuing == Issuing::Daemon && cluster.settings.ingress_class.is_some()
}

/// The one of the host itself, or of all names that are where it is.
fn find<'a>(known: &'a BTreeMap<String, Arc<Known>>, host: &str) -> Option<&'a Arc<Known>> {
    known.get(host).or_else(|| known.get(&wildcard_of(host)?))
}

/// The secrets of ours that an ingress names.
fn secrets_of(ingress: &Ingress) -> Vec<Place> {
    let namespace = ingress.namespace().unwrap_or_default();
    let tls = ingress.spec.iter().flat_map(|spec| spec.tls.iter().flatten());
    let ours = tls.filter_map(|tls| tls.secret_name.clone()).filter(|name| names::is_certificate(name));
    ours.map(|name| (namespace.clone(), name)).collect()
}

fn secret(system: &str, name: &str, certificate: &HostCertificate) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {
            "name": name,
            "labels": { names::SYSTEM: system, names::MANAGED_BY: names::MANAGER, names::CERTIFICATE: "true" },
        },
        "data": { "tls.crt": STANDARD.encode(&certificate.chain), "tls.key": STANDARD.encode(&certificate.key) },
    })
}

async fn write_ingress(
    cluster: &Cluster,
    namespace: &Namespace,
    app: &AppName,
    mut wanted: Value,
    there: &[Ingress],
) -> Result<(), Error> {
    let mut annotations = json!({});
    if let Issuing::ClusterIssuer(issuer) = &cluster.settings.issuing {
        annotations[names::ISSUER] = json!(issuer);
    }
    let applied = Digest::of(json!([wanted, annotations]).to_string().as_bytes()).to_string();
    let same = |ingress: &Ingress| {
        ingress.namespace().as_deref() == Some(namespace.as_str())
            && ingress.name_any() == app.as_str()
            && ingress.annotations().get(names::APPLIED) == Some(&applied)
    };
    if there.iter().any(same) {
        return Ok(());
    }
    annotations[names::APPLIED] = json!(applied);
    wanted["metadata"]["annotations"] = annotations;
    let ingresses: Api<Ingress> = Api::namespaced(cluster.client.clone(), namespace.as_str());
    let (force, wanted) = (PatchParams::apply(names::MANAGER).force(), Patch::Apply(wanted));
    call(DOING, || ingresses.patch(app.as_str(), &force, &wanted)).await.map(drop)
}

fn ingress(
    system: &str,
    namespace: &Namespace,
    app: &AppName,
    class: Option<&str>,
    routes: &[Route],
    tls: Vec<Value>,
) -> Value {
    let rule = |route: &Route| {
        let path = if route.path().is_empty() { "/" } else { route.path() };
        let backend = json!({ "service": { "name": app, "port": { "number": 80 } } });
        json!({ "host": route.host(), "http": { "paths": [{ "path": path, "pathType": "Prefix", "backend": backend }] } })
    };
    let mut ingress = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": { "name": app, "labels": labels(system, namespace, app) },
        "spec": { "ingressClassName": class, "rules": routes.iter().map(rule).collect::<Vec<_>>() },
    });
    if !tls.is_empty() {
        ingress["spec"]["tls"] = json!(tls);
    }
    ingress
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(name: &str) -> HostCertificate {
        HostCertificate { name: name.to_owned(), chain: format!("chain of {name}"), key: "key".to_owned() }
    }

    #[test]
    fn hosts_share_a_wildcard_and_those_without_a_certificate_name_no_secret() {
        let facade = Facade::default();
        assert!(facade.present(vec![certificate("*.a.test"), certificate("own.a.test")]));
        assert!(!facade.present(vec![certificate("*.a.test"), certificate("own.a.test")]), "nothing is new");
        let hosts = ["one.a.test", "two.a.test", "own.a.test", "x.one.a.test", "other.test", "one.a.test"];
        let secured = facade.secured(&Issuing::Daemon, hosts);
        assert_eq!(
            secured.tls,
            [
                json!({ "hosts": ["own.a.test"], "secretName": "epiniod-tls-own.a.test" }),
                json!({ "hosts": ["one.a.test", "two.a.test"], "secretName": "epiniod-tls-wildcard.a.test" }),
            ]
        );
        assert_eq!(secured.secrets.len(), 2);
        assert!(facade.secured(&Issuing::Daemon, ["other.test"]).tls.is_empty());
    }

    #[test]
    fn cert_manager_gets_a_name_for_each_host_and_nothing_is_written() {
        let facade = Facade::default();
        facade.present(vec![certificate("one.a.test")]);
        let secured = facade.secured(&Issuing::ClusterIssuer("letsencrypt".to_owned()), ["one.a.test", "b.test"]);
        assert!(secured.secrets.is_empty());
        assert_eq!(
            secured.tls,
            [
                json!({ "hosts": ["b.test"], "secretName": "tls-b.test" }),
                json!({ "hosts": ["one.a.test"], "secretName": "tls-one.a.test" }),
            ]
        );
    }
}
