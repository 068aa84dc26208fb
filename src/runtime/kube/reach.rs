//! The way from the nodes to the registry of a daemon outside of the cluster: a service without pods, whose one endpoint
//! is the daemon's address. A daemon inside has a service of its own from its installation.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{call::call, names};
use crate::runtime::Error;

/// The service and the port on every node, where image names have the registry.
const SERVICE: &str = "epiniod-registry";
const NODE_PORT: u16 = 30500;

/// The namespace of a daemon outside of the cluster.
pub(super) async fn make_namespace(client: &Client, namespace: &str) -> Result<(), Error> {
    let labels = json!({ names::MANAGED_BY: names::MANAGER });
    let own = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace, "labels": labels } });
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let force = PatchParams::apply(names::MANAGER).force();
    let own = Patch::Apply(own);
    call(&format!("making namespace {namespace}"), || namespaces.patch(namespace, &force, &own)).await.map(drop)
}

pub(super) async fn from_nodes(client: &Client, namespace: &str, daemon: SocketAddr) -> Result<(), Error> {
    let doing = format!("making service {SERVICE} in namespace {namespace}");
    let force = PatchParams::apply(names::MANAGER).force();
    let labels = json!({ names::MANAGED_BY: names::MANAGER });
    let port = daemon.port();
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": SERVICE, "labels": labels },
        "spec": { "type": "NodePort", "ports": [{ "name": "registry", "port": NODE_PORT, "nodePort": NODE_PORT, "targetPort": port }] },
    });
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let service = Patch::Apply(service);
    call(&doing, || services.patch(SERVICE, &force, &service)).await?;
    let family = match daemon.ip() {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    };
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": SERVICE, "labels": {
            names::MANAGED_BY: names::MANAGER,
            "kubernetes.io/service-name": SERVICE,
        } },
        "addressType": family,
        "ports": [{ "name": "registry", "port": port, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [daemon.ip().to_string()], "conditions": { "ready": true } }],
    });
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let slice = Patch::Apply(slice);
    call(&doing, || slices.patch(SERVICE, &force, &slice)).await.map(drop)
}
