//! The manifests of an installation, made from the templates in `embedded/kubernetes`.
//!
//! A template is YAML with `${names}`; what takes their place is one line of JSON or plain text. So what is printed reads
//! as what is embedded does, comments and all, and two runs print the same.

use kube::api::TypeMeta;
use serde_json::{Value, json};

use super::{ADMIN_SECRET, Entrance, Exposure, Installation, Storage};
use crate::{model::Digest, oci::architecture};

/// One object, as text and as what is sent.
#[derive(Debug, Clone)]
pub struct Manifest {
    pub text: String,
    pub object: Value,
}

impl Manifest {
    pub fn kind(&self) -> &str {
        self.object["kind"].as_str().unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    pub fn namespace(&self) -> Option<&str> {
        self.object["metadata"]["namespace"].as_str()
    }

    pub(super) fn types(&self) -> TypeMeta {
        let api_version = self.object["apiVersion"].as_str().unwrap_or_default().to_owned();
        TypeMeta { api_version, kind: self.kind().to_owned() }
    }

    /// What it is called when people are told of it.
    pub fn title(&self) -> String {
        let place = self.namespace().map(|namespace| format!("{namespace}/")).unwrap_or_default();
        format!("{} {place}{}", self.kind(), self.name())
    }
}

/// All manifests, in the order in which they have to be applied.
pub fn plan(installation: &Installation) -> Vec<Manifest> {
    let mut templates: Vec<&str> = vec![NAMESPACES];
    templates.extend(DEFINITIONS);
    templates.extend([PERMISSIONS, NETWORK]);
    match installation.storage {
        Storage::Claim { .. } => templates.push(VOLUME),
        Storage::Node { .. } => templates.extend([NODE_VOLUME, VOLUME]),
        Storage::Ephemeral => {}
    }
    if installation.build_ca.is_some() {
        templates.push(TRUST);
    }
    templates.push(SERVICES);
    if matches!(installation.entrance, Entrance::Traefik { .. }) {
        templates.push(TRAEFIK);
    }
    templates.push(DAEMON);
    if installation.ingress_class().is_some() {
        templates.push(INGRESS);
    }
    let values = values(installation);
    let mut manifests: Vec<Manifest> = templates.iter().flat_map(|template| fill(template, &values)).collect();
    for manifest in &mut manifests {
        if manifest.kind() == "PersistentVolumeClaim" {
            bind(manifest, installation);
        }
    }
    manifests
}

/// The namespaces and services alone: what an address for the domain is waited for with.
pub(super) fn services(installation: &Installation) -> Vec<Manifest> {
    let all = plan(installation);
    all.into_iter().filter(|manifest| matches!(manifest.kind(), "Namespace" | "Service")).collect()
}

/// The class of a claim is left out where the cluster's default one is meant, and is nothing for a node's directory.
fn bind(claim: &mut Manifest, installation: &Installation) {
    let class = match &installation.storage {
        Storage::Claim { class: Some(class), .. } => class.clone(),
        Storage::Node { .. } => String::new(),
        Storage::Claim { class: None, .. } | Storage::Ephemeral => return,
    };
    claim.text.push_str(&format!("  storageClassName: {}\n", json!(class)));
    claim.object["spec"]["storageClassName"] = json!(class);
    if let Storage::Node { .. } = installation.storage {
        let volume = format!("{}-data", installation.namespace);
        claim.text.push_str(&format!("  volumeName: {volume}\n"));
        claim.object["spec"]["volumeName"] = json!(volume);
    }
}

fn fill(template: &str, values: &[(&str, String)]) -> Vec<Manifest> {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("${{{name}}}"), value);
    }
    let manifest = |text: &str| Manifest {
        object: serde_yaml_ng::from_str(text).expect("a template is YAML, whatever a test of each has put in"),
        text: format!("{}\n", text.trim_end()),
    };
    text.split("\n---\n").map(manifest).collect()
}

fn values(installation: &Installation) -> Vec<(&'static str, String)> {
    let text = |text: &str| json!(text).to_string();
    let edge = match &installation.entrance {
        Entrance::Edge(exposure) => Some(*exposure),
        _ => None,
    };
    let brought = match &installation.entrance {
        Entrance::Edge(exposure) | Entrance::Traefik { exposure, .. } => Some(*exposure),
        Entrance::Class(_) => None,
    };
    let (traefik, traefik_image) = match &installation.entrance {
        Entrance::Traefik { exposure, image } => (Some(*exposure), image.as_str()),
        _ => (None, ""),
    };
    let level_of = |exposure| match exposure {
        Some(Exposure::HostPorts) => ("privileged", "Ports of a node need the Pod Security level privileged."),
        _ => ("restricted", "Nothing in it needs more than the strictest Pod Security level."),
    };
    let (level, level_why) = level_of(edge.or(traefik));
    let (service_type, entrance_why) = match brought {
        Some(Exposure::LoadBalancer) => ("LoadBalancer", "The cluster's load balancer leads here."),
        Some(Exposure::HostPorts) => ("ClusterIP", "From outside it is reached by port 80 of its node."),
        None => ("ClusterIP", "From outside it is reached by the cluster's ingress controller."),
    };
    let size = match &installation.storage {
        Storage::Claim { size, .. } | Storage::Node { size, .. } => size.as_str(),
        Storage::Ephemeral => "",
    };
    let path = match &installation.storage {
        Storage::Node { path, .. } => path.as_str(),
        _ => "",
    };
    let record = serde_json::to_string(installation).unwrap_or_default();
    vec![
        ("namespace", installation.namespace.clone()),
        ("level", level.to_owned()),
        ("level_why", level_why.to_owned()),
        ("service_type", if edge.is_some() || traefik.is_some() { service_type } else { "ClusterIP" }.to_owned()),
        ("entrance_why", entrance_why.to_owned()),
        ("registry_node_port", installation.registry_node_port.to_string()),
        ("size", text(size)),
        ("path", text(path)),
        ("node", text(installation.node.as_deref().unwrap_or_default())),
        ("not_for_builds", json!(not_for_builds(installation, Family::V4)).to_string()),
        ("not_for_builds_6", json!(not_for_builds(installation, Family::V6)).to_string()),
        ("installation", text(&record)),
        ("surroundings", text(&surroundings(installation))),
        ("node_selector", node_selector(installation.node.as_deref()).to_string()),
        ("image", text(&installation.image)),
        ("args", args(installation).to_string()),
        ("env", env(installation).to_string()),
        ("http_port", http_port(8080, edge).to_string()),
        ("data_volume", data_volume(installation).to_string()),
        ("authorities", text(installation.build_ca.as_deref().unwrap_or_default())),
        ("ingress_class", text(&installation.ingress_class().unwrap_or_default())),
        ("system_domain", installation.system_domain.clone()),
        ("traefik_image", text(traefik_image)),
        ("traefik_node_selector", node_selector(installation.node.as_deref()).to_string()),
        ("traefik_http_port", http_port(8000, traefik).to_string()),
    ]
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// Link-local addresses, and where pods are.
fn not_for_builds(installation: &Installation, family: Family) -> Vec<&str> {
    let link_local = match family {
        Family::V4 => ["169.254.0.0/16"].as_slice(),
        Family::V6 => ["fe80::/10", "fd00:ec2::254/128"].as_slice(),
    };
    let pods = installation.pod_networks.iter().map(String::as_str);
    link_local.iter().copied().chain(pods.filter(|network| network.contains(':') == (family == Family::V6))).collect()
}

/// What a pod does not notice by itself.
fn surroundings(installation: &Installation) -> String {
    let all = json!([installation.build_ca, installation.environment]);
    Digest::of(all.to_string().as_bytes()).hex()[..16].to_owned()
}

fn node_selector(node: Option<&str>) -> Value {
    let mut selector = json!({ "kubernetes.io/os": "linux", "kubernetes.io/arch": architecture() });
    if let Some(node) = node {
        selector["kubernetes.io/hostname"] = json!(node);
    }
    selector
}

fn args(installation: &Installation) -> Value {
    let mut args = vec![
        "serve",
        "--in-cluster",
        "--listen=0.0.0.0:8080",
        "--registry-listen=0.0.0.0:30500",
        // Below the volume: its own folder belongs to root.
        "--data-dir=/data/epiniod",
    ]
    .into_iter()
    .map(str::to_owned)
    .collect::<Vec<_>>();
    args.push(format!("--system-domain={}", installation.system_domain));
    let more = [
        ("--ingress-class", installation.ingress_class()),
        ("--debian-mirror", installation.debian_mirror.clone()),
        ("--debian-security-mirror", installation.debian_security_mirror.clone()),
        ("--build-ca-file", installation.build_ca.as_ref().map(|_| "/etc/epiniod/trust/ca.crt".to_owned())),
    ];
    args.extend(more.into_iter().filter_map(|(flag, value)| Some(format!("{flag}={}", value?))));
    json!(args)
}

fn env(installation: &Installation) -> Value {
    let reference = json!({ "name": ADMIN_SECRET, "key": "password", "optional": true });
    let mut env = vec![json!({ "name": "EPINIOD_ADMIN_PASSWORD", "valueFrom": { "secretKeyRef": reference } })];
    env.extend(installation.environment.iter().map(|(name, value)| json!({ "name": name, "value": value })));
    json!(env)
}

fn http_port(port: u16, exposure: Option<Exposure>) -> Value {
    let mut port = json!({ "name": "http", "containerPort": port, "protocol": "TCP" });
    if exposure == Some(Exposure::HostPorts) {
        port["hostPort"] = json!(80);
    }
    port
}

fn data_volume(installation: &Installation) -> Value {
    match installation.storage {
        Storage::Ephemeral => json!({ "name": "data", "emptyDir": {} }),
        Storage::Claim { .. } | Storage::Node { .. } => {
            json!({ "name": "data", "persistentVolumeClaim": { "claimName": "epiniod-data" } })
        }
    }
}

/// What has to be defined in the cluster before anything of ours can be there; the manifests of other rooms.
const DEFINITIONS: [&str; 0] = [];
const NAMESPACES: &str = include_str!("../../../../embedded/kubernetes/namespaces.yaml");
const PERMISSIONS: &str = include_str!("../../../../embedded/kubernetes/permissions.yaml");
const NETWORK: &str = include_str!("../../../../embedded/kubernetes/network.yaml");
const VOLUME: &str = include_str!("../../../../embedded/kubernetes/volume.yaml");
const NODE_VOLUME: &str = include_str!("../../../../embedded/kubernetes/node-volume.yaml");
const TRUST: &str = include_str!("../../../../embedded/kubernetes/trust.yaml");
const SERVICES: &str = include_str!("../../../../embedded/kubernetes/services.yaml");
const TRAEFIK: &str = include_str!("../../../../embedded/kubernetes/traefik.yaml");
const DAEMON: &str = include_str!("../../../../embedded/kubernetes/daemon.yaml");
const INGRESS: &str = include_str!("../../../../embedded/kubernetes/ingress.yaml");
