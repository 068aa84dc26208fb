//! The ports by which requests come in, of what is brought along: the daemon's own edge, or Traefik.

use serde_json::{Value, json};

use super::Exposure;

/// The Pod Security level of a namespace, and why.
pub(super) fn level(exposure: Option<Exposure>) -> (&'static str, &'static str) {
    match exposure {
        Some(Exposure::HostPorts) => ("privileged", "Ports of a node need the Pod Security level privileged."),
        _ => ("restricted", "Nothing in it needs more than the strictest Pod Security level."),
    }
}

pub(super) fn service_type(exposure: Option<Exposure>) -> &'static str {
    match exposure {
        Some(Exposure::LoadBalancer) => "LoadBalancer",
        Some(Exposure::HostPorts) | None => "ClusterIP",
    }
}

pub(super) fn entrance_why(exposure: Option<Exposure>) -> &'static str {
    match exposure {
        Some(Exposure::LoadBalancer) => "The cluster's load balancer leads here.",
        Some(Exposure::HostPorts) => "From outside it is reached by ports 80 and 443 of its node.",
        None => "From outside it is reached by way of an ingress controller.",
    }
}

/// A port of a container: name, number, and the one of the node that leads to it.
pub(super) fn container_port(name: &str, port: u16, of_node: u16, exposure: Option<Exposure>) -> Value {
    let mut port = json!({ "name": name, "containerPort": port, "protocol": "TCP" });
    if exposure == Some(Exposure::HostPorts) {
        port["hostPort"] = json!(of_node);
    }
    port
}

pub(super) fn https_service_port() -> Value {
    json!({ "name": "https", "port": 443, "targetPort": "https", "protocol": "TCP" })
}
