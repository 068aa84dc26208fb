//! The way of an authority for certificates through an ingress controller: for each host that is being looked at a
//! temporary ingress, by which one path of the host leads to the daemon.

use std::collections::BTreeSet;

use k8s_openapi::api::networking::v1::Ingress;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    Cluster,
    call::{call, call_unless_missing},
    names,
};
use crate::runtime::Error;

/// RFC 8555, section 8.3.
const PATH: &str = "/.well-known/acme-challenge";

/// Makes the ingresses of these hosts, and takes others away that an order before has left.
pub(super) async fn lead(cluster: &Cluster, class: &str, hosts: &BTreeSet<String>) -> Result<(), Error> {
    let doing = "leading an authority for certificates to the daemon";
    let system = cluster.settings.namespace.as_str();
    let ingresses: Api<Ingress> = Api::namespaced(cluster.client.clone(), system);
    let ours = ListParams::default().labels(&names::ours_with(system, names::CHALLENGE));
    let there: BTreeSet<String> =
        call(doing, || ingresses.list_metadata(&ours)).await?.items.iter().map(|ingress| ingress.name_any()).collect();
    for host in hosts {
        let name = names::challenge(host);
        if !there.contains(&name) {
            let (force, ingress) =
                (PatchParams::apply(names::MANAGER).force(), Patch::Apply(ingress(system, class, host)));
            call(doing, || ingresses.patch(&name, &force, &ingress)).await?;
        }
    }
    let wanted: BTreeSet<String> = hosts.iter().map(|host| names::challenge(host)).collect();
    for name in there.difference(&wanted) {
        let at_once = DeleteParams::default();
        call_unless_missing(doing, || ingresses.delete(name, &at_once)).await?;
    }
    Ok(())
}

fn ingress(system: &str, class: &str, host: &str) -> Value {
    let backend = json!({ "service": { "name": names::DAEMON, "port": { "number": 80 } } });
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {
            "name": names::challenge(host),
            "labels": { names::SYSTEM: system, names::MANAGED_BY: names::MANAGER, names::CHALLENGE: "true" },
            // An authority comes without TLS.
            "annotations": { "nginx.ingress.kubernetes.io/ssl-redirect": "false" },
        },
        "spec": {
            "ingressClassName": class,
            "rules": [{ "host": host, "http": { "paths": [{ "path": PATH, "pathType": "Prefix", "backend": backend }] } }],
        },
    })
}
