//! The manifests of an installation, made from the templates in `embedded/kubernetes`.
//!
//! A template is YAML with `${names}`; what takes their place is one line of JSON or plain text. So what is printed reads
//! as what is embedded does, comments and all, and two runs print the same.

use std::collections::BTreeMap;

use kube::api::TypeMeta;
use serde_json::{Value, json};

use super::{
    ADMIN_SECRET, BUCKET_SECRET, Entrance, Installation, Storage, TRUST_FOLDER,
    certificates::{ACME_CA, TLS_PORT},
    ports::{container_port, entrance_why, https_service_port, level, service_type},
    relay,
    replicas::strategy,
};
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
    if !authorities(installation).is_empty() {
        templates.push(TRUST);
    }
    templates.push(SERVICES);
    templates.extend(relay::template(installation));
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
    let (traefik, traefik_image) = match &installation.entrance {
        Entrance::Traefik { exposure, image } => (Some(*exposure), image.as_str()),
        _ => (None, ""),
    };
    let size = match &installation.storage {
        Storage::Claim { size, .. } | Storage::Node { size, .. } => size.as_str(),
        Storage::Ephemeral => "",
    };
    let path = match &installation.storage {
        Storage::Node { path, .. } => path.as_str(),
        _ => "",
    };
    let [issuer, issued_tls] = installation.issued();
    let record = serde_json::to_string(installation).unwrap_or_default();
    vec![
        ("namespace", installation.namespace.clone()),
        ("level", level(edge).0.to_owned()),
        ("level_why", level(edge).1.to_owned()),
        ("traefik_level", level(traefik).0.to_owned()),
        ("traefik_level_why", level(traefik).1.to_owned()),
        ("service_type", service_type(edge).to_owned()),
        ("traefik_service_type", service_type(traefik).to_owned()),
        ("entrance_why", entrance_why(edge).to_owned()),
        ("traefik_entrance_why", entrance_why(traefik).to_owned()),
        ("registry_type", relay::service_type(installation).to_owned()),
        ("registry_why", relay::why(installation).to_owned()),
        ("registry_port", flow(&relay::service_port(installation))),
        ("relay_selector", flow(&node_selector(None))),
        ("replicas", installation.replicas.to_string()),
        ("strategy", flow(&strategy(installation).0)),
        ("strategy_why", strategy(installation).1.to_owned()),
        ("size", text(size)),
        ("path", text(path)),
        ("node", text(installation.node.as_deref().unwrap_or_default())),
        ("not_for_builds", flow(&json!(not_for_builds(installation, Family::V4)))),
        ("not_for_builds_6", flow(&json!(not_for_builds(installation, Family::V6)))),
        ("installation", text(&record)),
        ("surroundings", text(&surroundings(installation))),
        ("node_selector", flow(&node_selector(installation.node.as_deref()))),
        ("image", text(&installation.image)),
        ("args", block(&args(installation))),
        ("env", block(&env(installation))),
        ("http_port", flow(&container_port("http", 8080, 80, edge))),
        ("https_port", edge.map(|_| item(8, &container_port("https", TLS_PORT, 443, edge))).unwrap_or_default()),
        ("https_service_port", edge.map(|_| item(2, &https_service_port())).unwrap_or_default()),
        (
            "https_policy_port",
            edge.map(|_| item(4, &json!({ "protocol": "TCP", "port": TLS_PORT }))).unwrap_or_default(),
        ),
        ("data_volume", flow(&data_volume(installation))),
        ("authorities", json!(authorities(installation)).to_string()),
        ("ingress_class", text(&installation.ingress_class().unwrap_or_default())),
        ("system_domain", installation.system_domain.clone()),
        ("traefik_image", text(traefik_image)),
        ("traefik_http_port", flow(&container_port("http", 8000, 80, traefik))),
        ("traefik_https_port", flow(&container_port("https", TLS_PORT, 443, traefik))),
        ("issuer", issuer),
        ("issued_tls", issued_tls),
    ]
}

/// A value in one line, as people write it.
fn flow(value: &Value) -> String {
    match value {
        Value::Object(all) => {
            let entries: Vec<String> = all.iter().map(|(name, value)| format!("{name}: {}", flow(value))).collect();
            format!("{{{}}}", entries.join(", "))
        }
        Value::Array(all) => format!("[{}]", all.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::String(text) if is_plain(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A list with a line for each, where a container has its lists.
fn block(list: &Value) -> String {
    list.as_array().into_iter().flatten().map(|value| item(8, value)).collect()
}

/// A line of a list, so far to the right.
fn item(indent: usize, value: &Value) -> String {
    format!("\n{}- {}", " ".repeat(indent), flow(value))
}

/// What YAML takes for a text without quotes, wherever it is.
fn is_plain(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text.to_ascii_lowercase().as_str())
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

fn authorities(installation: &Installation) -> BTreeMap<&'static str, &str> {
    let all =
        [(BUILD_CA, &installation.build_ca), (BUCKET_CA, &installation.bucket_ca), (ACME_CA, &installation.acme_ca)];
    all.into_iter().filter_map(|(name, text)| Some((name, text.as_deref()?))).collect()
}

/// What a pod does not notice by itself.
fn surroundings(installation: &Installation) -> String {
    let all = json!([authorities(installation), installation.environment, installation.settings]);
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
    let bucket = installation.bucket.as_ref();
    let more = [
        ("--config", installation.settings.as_ref().map(|_| "/etc/epiniod/settings/config.toml".to_owned())),
        ("--ingress-class", installation.ingress_class()),
        ("--debian-mirror", installation.debian_mirror.clone()),
        ("--debian-security-mirror", installation.debian_security_mirror.clone()),
        ("--build-ca-file", installation.build_ca.as_ref().map(|_| format!("{TRUST_FOLDER}/{BUILD_CA}"))),
        ("--s3-bucket", bucket.map(|bucket| bucket.name.clone())),
        ("--s3-endpoint", bucket.and_then(|bucket| bucket.endpoint.clone())),
        ("--s3-region", bucket.and_then(|bucket| bucket.region.clone())),
        ("--s3-ca-file", installation.bucket_ca.as_ref().map(|_| format!("{TRUST_FOLDER}/{BUCKET_CA}"))),
    ];
    let more = more.into_iter().chain(installation.certificate_flags());
    args.extend(more.filter_map(|(flag, value)| Some(format!("{flag}={}", value?))));
    json!(args)
}

fn env(installation: &Installation) -> Value {
    // Without it the daemon makes a password, and logs it once.
    let password = json!({ "name": ADMIN_SECRET, "key": "password", "optional": true });
    let mut env = vec![json!({ "name": "EPINIOD_ADMIN_PASSWORD", "valueFrom": { "secretKeyRef": password } })];
    if installation.bucket.is_some() {
        env.extend(
            ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(
                |key| json!({ "name": key, "valueFrom": { "secretKeyRef": { "name": BUCKET_SECRET, "key": key } } }),
            ),
        );
    }
    env.extend(installation.environment.iter().map(|(name, value)| json!({ "name": name, "value": value })));
    json!(env)
}

fn data_volume(installation: &Installation) -> Value {
    match installation.storage {
        Storage::Ephemeral => json!({ "name": "data", "emptyDir": {} }),
        Storage::Claim { .. } | Storage::Node { .. } => {
            json!({ "name": "data", "persistentVolumeClaim": { "claimName": "epiniod-data" } })
        }
    }
}

/// Entries of the config map with certificate authorities.
pub(super) const BUILD_CA: &str = "ca.crt";
pub(super) const BUCKET_CA: &str = "s3.crt";
/// What has to be defined in the cluster before anything of ours can be there; the manifests of other rooms.
const DEFINITIONS: [&str; 1] = [include_str!("../../../../embedded/kubernetes/crd.yaml")];
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::kube::install::{Bucket, Certificates, Exposure};

    fn installation(entrance: Entrance, storage: Storage) -> Installation {
        Installation {
            namespace: "epiniod".to_owned(),
            image: "localhost/epiniod:1".to_owned(),
            system_domain: "apps.example.com".to_owned(),
            entrance,
            storage,
            replicas: 1,
            node: None,
            registry_node_port: 30500,
            pulls: relay::Pulls::default(),
            pod_networks: vec!["10.244.0.0/16".to_owned(), "fd00:10:244::/56".to_owned()],
            debian_mirror: None,
            debian_security_mirror: None,
            environment: BTreeMap::new(),
            build_ca: None,
            bucket: None,
            bucket_ca: None,
            certificates: Certificates::default(),
            acme_ca: None,
            settings: None,
        }
    }

    fn all() -> Vec<Installation> {
        let claim = |class: Option<&str>| Storage::Claim { class: class.map(str::to_owned), size: "20Gi".to_owned() };
        let traefik = |exposure| Entrance::Traefik { image: "docker.io/library/traefik:v3".to_owned(), exposure };
        let mut odd = installation(
            Entrance::Edge(Exposure::HostPorts),
            Storage::Node { path: "/srv/with space: and \"quotes\"".to_owned(), size: "1Gi".to_owned() },
        );
        odd.node = Some("node-1".to_owned());
        odd.environment =
            BTreeMap::from([("HTTPS_PROXY".to_owned(), "http://user:pass@proxy:3128 # \"x\"".to_owned())]);
        odd.build_ca = Some("-----BEGIN CERTIFICATE-----\nabc\n---\n-----END CERTIFICATE-----\n".to_owned());
        odd.bucket = Some(Bucket {
            name: "images".to_owned(),
            endpoint: Some("https://s3.example.com".to_owned()),
            region: None,
        });
        odd.bucket_ca = odd.build_ca.clone();
        odd.acme_ca = odd.build_ca.clone();
        odd.settings = Some("0123456789abcdef".to_owned());
        odd.debian_mirror = Some("http://mirror.example.com/debian".to_owned());
        vec![
            installation(Entrance::Edge(Exposure::LoadBalancer), claim(None)),
            Installation {
                certificates: Certificates { issuer: Some("own: \"x\"".to_owned()), ..Certificates::default() },
                ..installation(Entrance::Class("nginx".to_owned()), claim(Some("fast")))
            },
            Installation {
                pulls: relay::Pulls { wish: relay::RegistryRelay::Auto, by: relay::Way::Relay },
                ..installation(traefik(Exposure::LoadBalancer), Storage::Ephemeral)
            },
            installation(traefik(Exposure::HostPorts), Storage::Ephemeral),
            odd,
        ]
    }

    fn find<'a>(manifests: &'a [Manifest], kind: &str, name: &str) -> &'a Value {
        let found = manifests.iter().find(|manifest| (manifest.kind(), manifest.name()) == (kind, name));
        &found.unwrap_or_else(|| panic!("no {kind} {name}")).object
    }

    #[test]
    fn what_is_printed_is_what_is_applied() {
        for installation in all() {
            for manifest in plan(&installation) {
                let read: Value = serde_yaml_ng::from_str(&manifest.text).unwrap();
                assert_eq!(read, manifest.object, "{}", manifest.text);
                assert!(!manifest.text.contains("${"), "{}", manifest.text);
                // What applications are is defined once, for all daemons of a cluster.
                let is_shared = manifest.kind() == "CustomResourceDefinition";
                let system = &manifest.object["metadata"]["labels"][super::super::SYSTEM];
                assert_eq!(system == "epiniod", !is_shared, "{}", manifest.title());
            }
        }
    }

    #[test]
    fn odd_values_arrive_as_they_are() {
        let odd = all().pop().unwrap();
        let manifests = plan(&odd);
        let pod = &find(&manifests, "Deployment", "epiniod")["spec"]["template"]["spec"];
        assert_eq!(pod["containers"][0]["env"][3]["value"], odd.environment["HTTPS_PROXY"]);
        let of_node = |port: usize| &pod["containers"][0]["ports"][port]["hostPort"];
        assert_eq!((of_node(0), of_node(1)), (&json!(80), &json!(443)));
        assert_eq!(find(&manifests, "ConfigMap", "epiniod-trust")["data"]["ca.crt"], *odd.build_ca.as_ref().unwrap());
        let Storage::Node { path, .. } = &odd.storage else { unreachable!() };
        assert_eq!(find(&manifests, "PersistentVolume", "epiniod-data")["spec"]["local"]["path"], *path);
        let record = &find(&manifests, "Deployment", "epiniod")["metadata"]["annotations"][super::super::INSTALLATION];
        let read: Installation = serde_json::from_str(record.as_str().unwrap()).unwrap();
        let (build_ca, bucket_ca, acme_ca) = (odd.build_ca.clone(), odd.bucket_ca.clone(), odd.acme_ca.clone());
        assert_eq!(Installation { build_ca, bucket_ca, acme_ca, ..read }, odd);
    }

    #[test]
    fn the_ingress_of_the_api_asks_cert_manager_where_that_is_wished_and_else_says_nothing_of_tls() {
        let ingress = |installation: &Installation| find(&plan(installation), "Ingress", "epiniod").clone();
        let (issued, ours) = (ingress(&all()[1]), ingress(&all()[2]));
        assert_eq!(issued["metadata"]["annotations"]["cert-manager.io/cluster-issuer"], "own: \"x\"");
        let tls = json!([{ "hosts": ["epinio.apps.example.com"], "secretName": "tls-epinio.apps.example.com" }]);
        assert_eq!(issued["spec"]["tls"], tls);
        assert!(ours["spec"].get("tls").is_none(), "it is the daemon's to say");
    }

    #[test]
    fn only_ports_of_a_node_lower_the_security_level() {
        let levels = all().into_iter().map(|installation| {
            let manifests = plan(&installation);
            let level = |name: &str| {
                let found = manifests.iter().find(|manifest| (manifest.kind(), manifest.name()) == ("Namespace", name));
                found.map(|found| found.object["metadata"]["labels"]["pod-security.kubernetes.io/enforce"].clone())
            };
            [level("epiniod"), level("epiniod-builds"), level("epiniod-ingress"), level("epiniod-relay")]
                .map(|level| level.map_or("", |level| if level == "privileged" { "privileged" } else { "restricted" }))
        });
        let levels: Vec<_> = levels.collect();
        assert_eq!(levels[0], ["restricted", "restricted", "", ""]);
        assert_eq!(levels[1], ["restricted", "restricted", "", ""]);
        assert_eq!(levels[2], ["restricted", "restricted", "restricted", "privileged"]);
        assert_eq!(levels[3], ["restricted", "restricted", "privileged", ""]);
        assert_eq!(levels[4], ["privileged", "restricted", "", ""]);
    }

    #[test]
    fn pods_roll_where_nothing_durable_is_in_them_and_services_lead_to_the_one_that_leads() {
        let daemon = |installation: &Installation| {
            let manifests = plan(installation);
            for name in ["epiniod", "epiniod-registry"] {
                let selector = &find(&manifests, "Service", name)["spec"]["selector"];
                assert_eq!(selector["epiniod.dev/leader"], "true", "{name}: {selector}");
            }
            find(&manifests, "Deployment", "epiniod")["spec"].clone()
        };
        let mut shared = installation(Entrance::Edge(Exposure::LoadBalancer), Storage::Ephemeral);
        assert_eq!(daemon(&shared)["strategy"]["type"], "Recreate", "the pod has the only copy");
        shared.bucket = Some(Bucket { name: "images".to_owned(), endpoint: None, region: None });
        shared.replicas = 2;
        let daemon = daemon(&shared);
        assert_eq!((&daemon["strategy"]["type"], &daemon["replicas"]), (&json!("RollingUpdate"), &json!(2)));
        let volumes = daemon["template"]["spec"]["volumes"].as_array().unwrap();
        assert!(volumes.iter().all(|volume| volume.get("persistentVolumeClaim").is_none()), "{volumes:?}");
    }

    #[test]
    fn nobody_may_do_everything() {
        for manifest in plan(&all()[2]) {
            for rule in manifest.object["rules"].as_array().into_iter().flatten() {
                let names = |field: &str| rule[field].as_array().into_iter().flatten().filter_map(Value::as_str);
                assert!(names("apiGroups").chain(names("resources")).all(|name| name != "*"), "{rule}");
                for verb in names("verbs") {
                    assert!(!["*", "escalate", "bind", "impersonate"].contains(&verb), "{rule}");
                }
            }
        }
    }

    #[test]
    fn builds_reach_neither_pods_nor_link_local_addresses() {
        let manifests = plan(&all()[0]);
        let rules = &find(&manifests, "NetworkPolicy", "epiniod-builds")["spec"]["egress"];
        assert_eq!(rules[2]["to"][0]["ipBlock"]["except"], json!(["169.254.0.0/16", "10.244.0.0/16"]));
        assert!(rules[2]["to"][1]["ipBlock"]["except"].as_array().unwrap().contains(&json!("fd00:10:244::/56")));
    }
}
