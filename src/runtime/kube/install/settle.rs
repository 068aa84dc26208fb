//! Wishes, what was there before, and what the cluster has: settled into what is installed, or refused with the flags
//! that decide it.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use serde_json::json;

use super::{
    Brought, Bucket, Entrance, Error, Exposure, Findings, Installation, NAMESPACE, SYSTEM, Storage, Wishes,
    certificates, relay, replicas,
};
use crate::model::{Digest, Route};

/// An installation whose entrance may have to be opened first, for its domain to be known.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Its domain is empty where it is to be made of an address.
    pub installation: Installation,
    pub address: Option<IpAddr>,
    pub magic_dns: String,
    /// Whether a load balancer was asked for, or is only tried.
    pub certainty: Certainty,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certainty {
    Settled,
    /// Where no load balancer answers, ports of a node do.
    Tried,
}

/// `found` is none where there is no cluster to look at: then defaults take the place of what it would say.
pub fn settle(wishes: &Wishes, own_image: &str, found: Option<&Findings>) -> Result<Draft, Error> {
    check_namespace(&wishes.namespace)?;
    if found.is_some_and(|found| found.foreign_namespace) {
        let namespace = &wishes.namespace;
        return Err(Error::undecided(
            format!("the cluster has a namespace '{namespace}' that no 'epiniod install' made"),
            format!(
                "choose another with --namespace, or hand it over, with all that is in it, by 'kubectl label namespace {namespace} {SYSTEM}={namespace}'"
            ),
        ));
    }
    let before = found.and_then(|found| found.before.as_ref());
    let (entrance, certainty) = entrance(wishes, before, found)?;
    let bucket = bucket(wishes, before)?;
    let replicas = replicas::wanted(wishes, before, bucket.as_ref())?;
    let storage = storage(wishes, before, found)?;
    let node = node(wishes, before, found, &entrance, &storage)?;
    let certificates = certificates::settle(wishes, before, &entrance)?;
    let kept_image = before.map(|before| before.image.clone()).filter(|image| !image.starts_with(IMPORTED));
    let kept_domain = before.filter(|_| wishes.address.is_none()).map(|before| before.system_domain.clone());
    let system_domain = wishes.system_domain.clone().or(kept_domain).unwrap_or_default().to_ascii_lowercase();
    if !system_domain.is_empty() && format!("a.{system_domain}").parse::<Route>().is_err() {
        return Err(Error::undecided(
            format!("'{system_domain}' is not a domain"),
            "give one such as apps.example.com with --system-domain",
        ));
    }
    let mut environment = before.map(|before| before.environment.clone()).unwrap_or_default();
    environment.extend(wishes.env.iter().cloned().collect::<BTreeMap<_, _>>());
    let installation = Installation {
        namespace: wishes.namespace.clone(),
        image: wishes.image.clone().or(kept_image).unwrap_or_else(|| own_image.to_owned()),
        system_domain,
        entrance,
        storage,
        replicas,
        node,
        registry_node_port: wishes
            .registry_node_port
            .or(before.map(|before| before.registry_node_port))
            .unwrap_or(REGISTRY_NODE_PORT),
        pulls: relay::pulls(wishes, before, found),
        pod_networks: pod_networks(wishes, before, found),
        debian_mirror: wishes.debian_mirror.clone().or_else(|| before?.debian_mirror.clone()),
        debian_security_mirror: wishes
            .debian_security_mirror
            .clone()
            .or_else(|| before?.debian_security_mirror.clone()),
        environment,
        build_ca: authorities(wishes.build_ca_file.as_deref(), "--build-ca-file")?.or_else(|| before?.build_ca.clone()),
        bucket,
        bucket_ca: authorities(wishes.s3_ca_file.as_deref(), "--s3-ca-file")?.or_else(|| before?.bucket_ca.clone()),
        certificates,
        acme_ca: authorities(wishes.acme_ca_file.as_deref(), "--acme-ca-file")?.or_else(|| before?.acme_ca.clone()),
        settings: before.and_then(|before| before.settings.clone()),
    };
    replicas::check(&installation)?;
    Ok(Draft { installation, address: wishes.address, magic_dns: wishes.magic_dns.clone(), certainty })
}

impl Draft {
    /// The same with these settings of the daemon, in place of those of before.
    pub fn with_settings(mut self, files: Option<&BTreeMap<String, Vec<u8>>>) -> Self {
        let hash = |files| Digest::of(json!(files).to_string().as_bytes()).hex()[..16].to_owned();
        self.installation.settings = files.map(hash).or(self.installation.settings);
        self
    }

    /// The installation where there is no cluster to ask for an address.
    pub fn without_cluster(mut self) -> Result<Installation, Error> {
        if let (true, Some(address)) = (self.installation.system_domain.is_empty(), self.address) {
            self.installation.system_domain = magic_domain(address, &self.magic_dns);
        }
        if self.installation.system_domain.is_empty() {
            return Err(Error::undecided(
                "without a cluster to look at, nobody knows the address that a domain could be made of",
                "give --system-domain DOMAIN, or --address IP of the cluster's entrance",
            ));
        }
        Ok(self.installation)
    }
}

/// `192.0.2.7.sslip.io`; the colons of an address of version 6 become dashes, as those providers have it.
pub(super) fn magic_domain(address: IpAddr, provider: &str) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}.{provider}"),
        IpAddr::V6(address) => format!("{}.{provider}", address.to_string().replace(':', "-")),
    }
}

fn check_namespace(namespace: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits = namespace.starts_with(|c: char| c.is_ascii_lowercase())
        && namespace.len() <= LONGEST
        && namespace.chars().all(plain)
        && !namespace.ends_with('-');
    let taken = namespace == "default" || namespace.starts_with("kube-");
    if fits && !taken {
        return Ok(());
    }
    Err(Error::undecided(
        format!("'{namespace}' cannot be the namespace of the daemon"),
        format!(
            "give --namespace one of its own such as {NAMESPACE}: at most {LONGEST} lower-case letters, digits and '-'"
        ),
    ))
}

fn entrance(
    wishes: &Wishes,
    before: Option<&Installation>,
    found: Option<&Findings>,
) -> Result<(Entrance, Certainty), Error> {
    let exposed_before = before.and_then(|before| match &before.entrance {
        Entrance::Edge(exposure) | Entrance::Traefik { exposure, .. } => Some(*exposure),
        Entrance::Class(_) => None,
    });
    let certainty = match (wishes.expose.or(exposed_before), found) {
        (None, Some(_)) => Certainty::Tried,
        _ => Certainty::Settled,
    };
    let exposure = wishes.expose.or(exposed_before).unwrap_or(Exposure::LoadBalancer);
    let traefik = || Entrance::Traefik { image: wishes.traefik_image.clone(), exposure };
    match (wishes.ingress, &wishes.ingress_class) {
        (Some(Brought::Own), _) => return Ok((Entrance::Edge(exposure), certainty)),
        (Some(Brought::Traefik), _) => return Ok((traefik(), certainty)),
        (None, Some(class)) => return known_class(class, found).map(|class| (class, Certainty::Settled)),
        (None, None) => {}
    }
    if let Some(before) = before {
        return Ok(match &before.entrance {
            Entrance::Class(class) => (Entrance::Class(class.clone()), Certainty::Settled),
            Entrance::Edge(_) => (Entrance::Edge(exposure), certainty),
            Entrance::Traefik { image, .. } => (Entrance::Traefik { image: image.clone(), exposure }, certainty),
        });
    }
    let classes = found.map(|found| found.classes.as_slice()).unwrap_or_default();
    let default: Vec<_> = classes.iter().filter(|class| class.is_default).collect();
    match (classes, default.as_slice()) {
        ([], _) => Ok((Entrance::Edge(exposure), certainty)),
        ([only], _) => Ok((Entrance::Class(only.name.clone()), Certainty::Settled)),
        (_, [only]) => Ok((Entrance::Class(only.name.clone()), Certainty::Settled)),
        _ => {
            let names: Vec<&str> = classes.iter().map(|class| class.name.as_str()).collect();
            Err(Error::undecided(
                format!(
                    "the cluster has several ingress classes, and not one that is the default: {}",
                    names.join(", ")
                ),
                "choose one with --ingress-class, or --ingress own",
            ))
        }
    }
}

fn known_class(class: &str, found: Option<&Findings>) -> Result<Entrance, Error> {
    let classes = found.map(|found| found.classes.as_slice());
    if let Some(classes) = classes.filter(|classes| classes.iter().all(|known| known.name != class)) {
        let names: Vec<&str> = classes.iter().map(|class| class.name.as_str()).collect();
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(Error::undecided(
            format!("the cluster has no ingress class '{class}'"),
            format!("there is: {there}; without --ingress-class the daemon's own edge is the ingress"),
        ));
    }
    Ok(Entrance::Class(class.to_owned()))
}

fn storage(wishes: &Wishes, before: Option<&Installation>, found: Option<&Findings>) -> Result<Storage, Error> {
    let size_before = before.and_then(|before| match &before.storage {
        Storage::Claim { size, .. } | Storage::Node { size, .. } => Some(size.clone()),
        Storage::Ephemeral => None,
    });
    let size = wishes.storage_size.clone().or(size_before).unwrap_or_else(|| SIZE.to_owned());
    let wished = match (&wishes.storage_class, &wishes.storage_path) {
        (Some(class), _) => Some(Storage::Claim { class: Some(class.clone()), size: size.clone() }),
        (None, Some(path)) => Some(Storage::Node { path: path.display().to_string(), size: size.clone() }),
        (None, None) => wishes.ephemeral_storage.then_some(Storage::Ephemeral),
    };
    if let Some(before) = before {
        return kept_storage(wished, &before.storage, size);
    }
    if wished.is_none() && wishes.s3_bucket.is_some() {
        return Ok(Storage::Ephemeral);
    }
    let classes = found.map(|found| found.storage_classes.as_slice());
    let names = || classes.unwrap_or_default().iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    match (wished, classes) {
        (Some(Storage::Claim { class: Some(class), .. }), Some(classes))
            if classes.iter().all(|(name, _)| *name != class) =>
        {
            let there = if classes.is_empty() { "none".to_owned() } else { names() };
            Err(Error::undecided(
                format!("the cluster has no storage class '{class}'"),
                format!("there is: {there}; {ELSEWHERE}"),
            ))
        }
        (Some(wished), _) => Ok(wished),
        (None, Some([])) => Err(Error::undecided(
            "the cluster has no storage class: nobody there provides the volume that the daemon keeps its data on",
            ELSEWHERE,
        )),
        (None, Some(classes)) if classes.iter().all(|(_, default)| !default) => Err(Error::undecided(
            "none of the cluster's storage classes is the default one",
            format!("choose one with --storage-class: {}", names()),
        )),
        (None, _) => Ok(Storage::Claim { class: None, size }),
    }
}

/// Data does not move: what it is kept on stays.
fn kept_storage(wished: Option<Storage>, before: &Storage, size: String) -> Result<Storage, Error> {
    let kept = match before.clone() {
        Storage::Claim { class, .. } => Storage::Claim { class, size },
        Storage::Node { path, .. } => Storage::Node { path, size },
        Storage::Ephemeral => Storage::Ephemeral,
    };
    match wished {
        Some(wished) if wished != kept => Err(Error::undecided(
            "the daemon's data is kept elsewhere already, and does not move",
            "leave the storage flags out, or begin anew: epiniod uninstall, then epiniod install",
        )),
        _ => Ok(kept),
    }
}

/// The hostname of the daemon's node, where it matters.
fn node(
    wishes: &Wishes,
    before: Option<&Installation>,
    found: Option<&Findings>,
    entrance: &Entrance,
    storage: &Storage,
) -> Result<Option<String>, Error> {
    let open: Vec<_> = found.map(|found| found.open_nodes().collect()).unwrap_or_default();
    if let Some(found) = found.filter(|_| open.is_empty()) {
        let architectures: Vec<&str> = found.nodes.iter().map(|node| node.architecture.as_str()).collect();
        return Err(Error::undecided(
            format!("no node of the cluster takes pods of architecture {}", crate::oci::architecture()),
            format!(
                "nodes have {}; look at them with 'kubectl get nodes': they have to be Ready, without taint and not cordoned",
                architectures.join(", ")
            ),
        ));
    }
    if let Some(name) = &wishes.node {
        let known = open.iter().find(|node| node.name == *name || node.hostname == *name);
        return match (known, found) {
            (Some(node), _) => Ok(Some(node.hostname.clone())),
            (None, None) => Ok(Some(name.clone())),
            (None, Some(_)) => {
                let names: Vec<&str> = open.iter().map(|node| node.name.as_str()).collect();
                Err(Error::undecided(
                    format!("no node '{name}' takes pods of the daemon"),
                    format!("choose another with --node: {}", names.join(", ")),
                ))
            }
        };
    }
    if let Some(node) = before.and_then(|before| before.node.clone()) {
        return Ok(Some(node));
    }
    match (storage, open.as_slice()) {
        (Storage::Node { .. }, [only]) => Ok(Some(only.hostname.clone())),
        (Storage::Node { .. }, _) => {
            let names: Vec<&str> = open.iter().map(|node| node.name.as_str()).collect();
            Err(Error::undecided(
                "a directory of a node is on one node",
                format!("name it with --node: {}", names.join(", ")),
            ))
        }
        _ if uses_host_ports(entrance) => Ok(open.first().map(|node| node.hostname.clone())),
        _ => Ok(None),
    }
}

pub(super) fn uses_host_ports(entrance: &Entrance) -> bool {
    matches!(entrance, Entrance::Edge(Exposure::HostPorts) | Entrance::Traefik { exposure: Exposure::HostPorts, .. })
}

fn pod_networks(wishes: &Wishes, before: Option<&Installation>, found: Option<&Findings>) -> Vec<String> {
    if !wishes.pod_cidr.is_empty() {
        return wishes.pod_cidr.clone();
    }
    let mut networks: Vec<String> =
        found.iter().flat_map(|found| &found.nodes).flat_map(|node| node.networks.clone()).collect();
    networks.extend(before.iter().flat_map(|before| before.pod_networks.clone()));
    networks.sort();
    networks.dedup();
    networks
}

fn authorities(path: Option<&Path>, flag: &str) -> Result<Option<String>, Error> {
    let Some(path) = path else { return Ok(None) };
    let wrong = |cause: String| {
        Err(Error::undecided(format!("{} {cause}", path.display()), format!("name another file with {flag}")))
    };
    match std::fs::read_to_string(path) {
        Ok(text) if text.contains("-----BEGIN CERTIFICATE-----") => Ok(Some(text)),
        Ok(_) => wrong("has no certificate in PEM".to_owned()),
        Err(error) => wrong(format!("cannot be read: {error}")),
    }
}

/// Blobs do not move either.
fn bucket(wishes: &Wishes, before: Option<&Installation>) -> Result<Option<Bucket>, Error> {
    let kept = before.and_then(|before| before.bucket.clone());
    let name = wishes.s3_bucket.clone().or_else(|| kept.as_ref().map(|kept| kept.name.clone()));
    if let Some(before) = before.filter(|before| before.bucket.as_ref().map(|bucket| &bucket.name) != name.as_ref()) {
        let place =
            before.bucket.as_ref().map_or("the daemon's volume".to_owned(), |kept| format!("bucket {}", kept.name));
        return Err(Error::undecided(
            format!("images and sources are in {place} already, and do not move"),
            "leave --s3-bucket out, or begin anew: epiniod uninstall, then epiniod install",
        ));
    }
    let Some(name) = name else {
        return match wishes.s3_endpoint {
            Some(_) => Err(Error::undecided("an endpoint of S3 is named, and no bucket", "name one with --s3-bucket")),
            None => Ok(None),
        };
    };
    let endpoint = wishes.s3_endpoint.clone().or_else(|| kept.as_ref()?.endpoint.clone());
    let region = wishes.s3_region.clone().or_else(|| kept.as_ref()?.region.clone());
    Ok(Some(Bucket { name, endpoint, region }))
}

const REGISTRY_NODE_PORT: u16 = 30500;
const SIZE: &str = "20Gi";
/// So that NAME-builds fits, and names that are made of it.
const LONGEST: usize = 50;
/// Images that no registry has.
const IMPORTED: &str = "localhost/";
const ELSEWHERE: &str = "keep the data in a directory of a node with --storage-path /var/lib/epiniod, or, to try it out, in \
                         the pod with --ephemeral-storage (lost with the pod)";

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::runtime::kube::install::{
        detect::{Class, NodePorts},
        nodes::{Distribution, Node},
    };

    const IMAGE: &str = "localhost/epiniod:2";

    pub fn cluster() -> Findings {
        Findings {
            version: "v1.34.0".to_owned(),
            distribution: Distribution::Other,
            nodes: vec![node("one", "192.0.2.1"), node("two", "192.0.2.2")],
            classes: Vec::new(),
            storage_classes: vec![("fast".to_owned(), true)],
            node_ports: NodePorts::Unknown,
            balances_load: false,
            metrics: false,
            before: None,
            others: Vec::new(),
            foreign_namespace: false,
        }
    }

    fn node(name: &str, address: &str) -> Node {
        Node {
            name: name.to_owned(),
            hostname: name.to_owned(),
            address: Some(address.to_owned()),
            architecture: crate::oci::architecture().to_owned(),
            is_open: true,
            ..Node::default()
        }
    }

    fn class(name: &str, is_default: bool) -> Class {
        Class {
            name: name.to_owned(),
            is_default,
            controller: String::new(),
            service: None,
            addresses: vec!["192.0.2.9".to_owned()],
            ports: Vec::new(),
        }
    }

    fn wishes() -> Wishes {
        Wishes { namespace: "epiniod".to_owned(), magic_dns: "sslip.io".to_owned(), ..Wishes::default() }
    }

    fn settled(wishes: &Wishes, found: &Findings) -> Result<Installation, String> {
        let draft = settle(wishes, IMAGE, Some(found)).map_err(|error| error.to_string())?;
        super::super::assume(draft, found).map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_cluster_has_decides() {
        let bare = settled(&wishes(), &cluster()).unwrap();
        assert_eq!(bare.entrance, Entrance::Edge(Exposure::HostPorts));
        assert_eq!((bare.node.as_deref(), bare.system_domain.as_str()), (Some("one"), "192.0.2.1.sslip.io"));
        assert_eq!(bare.storage, Storage::Claim { class: None, size: "20Gi".to_owned() });
        let balanced = settled(&wishes(), &Findings { balances_load: true, ..cluster() }).unwrap();
        assert_eq!((balanced.entrance, balanced.node), (Entrance::Edge(Exposure::LoadBalancer), None));
        let only = settled(&wishes(), &Findings { classes: vec![class("traefik", false)], ..cluster() }).unwrap();
        assert_eq!(only.entrance, Entrance::Class("traefik".to_owned()));
        assert_eq!(only.system_domain, "192.0.2.9.sslip.io");
    }

    #[test]
    fn what_only_a_person_can_decide_is_asked_and_not_guessed() {
        let several = Findings { classes: vec![class("a", false), class("b", false)], ..cluster() };
        assert!(settled(&wishes(), &several).unwrap_err().contains("several ingress classes"));
        let marked = Findings { classes: vec![class("a", false), class("b", true)], ..cluster() };
        assert_eq!(settled(&wishes(), &marked).unwrap().entrance, Entrance::Class("b".to_owned()));
        let nothing = Findings { storage_classes: Vec::new(), ..cluster() };
        assert!(settled(&wishes(), &nothing).unwrap_err().contains("no storage class"));
        let unmarked = Findings { storage_classes: vec![("slow".to_owned(), false)], ..cluster() };
        assert!(settled(&wishes(), &unmarked).unwrap_err().contains("default"));
        let path = Wishes { storage_path: Some("/srv".into()), ..wishes() };
        assert!(settled(&path, &cluster()).unwrap_err().contains("on one node"));
        let unknown = Wishes { ingress_class: Some("c".to_owned()), ..wishes() };
        assert!(settled(&unknown, &several).unwrap_err().contains("no ingress class 'c'"));
        let closed = Findings { nodes: vec![Node { is_open: false, ..node("one", "192.0.2.1") }], ..cluster() };
        assert!(settled(&wishes(), &closed).unwrap_err().contains("no node"));
        let foreign = Findings { foreign_namespace: true, ..cluster() };
        assert!(settled(&wishes(), &foreign).unwrap_err().contains("no 'epiniod install' made"));
    }

    #[test]
    fn a_later_install_keeps_what_no_flag_names_and_never_moves_data() {
        let first = Wishes {
            system_domain: Some("Apps.Example.com".to_owned()),
            storage_class: Some("fast".to_owned()),
            env: vec![("A".to_owned(), "b".to_owned())],
            ..wishes()
        };
        let mut before = settled(&first, &cluster()).unwrap();
        assert_eq!(before.system_domain, "apps.example.com");
        before.image = "localhost/epiniod:1".to_owned();
        let found = Findings { before: Some(before.clone()), balances_load: true, ..cluster() };
        let later = settled(&wishes(), &found).unwrap();
        assert_eq!(later, Installation { image: IMAGE.to_owned(), ..before.clone() }, "only the version changes");
        let elsewhere = Wishes { ephemeral_storage: true, ..wishes() };
        assert!(settled(&elsewhere, &found).unwrap_err().contains("does not move"));
        before.image = "registry.example.com/epiniod:1".to_owned();
        let found = Findings { before: Some(before), ..cluster() };
        assert_eq!(settled(&wishes(), &found).unwrap().image, "registry.example.com/epiniod:1");
    }

    #[test]
    fn an_address_becomes_a_domain() {
        assert_eq!(magic_domain("192.0.2.7".parse().unwrap(), "sslip.io"), "192.0.2.7.sslip.io");
        assert_eq!(magic_domain("2001:db8::1".parse().unwrap(), "sslip.io"), "2001-db8--1.sslip.io");
    }

    #[test]
    fn a_namespace_has_to_be_its_own() {
        for bad in ["", "default", "kube-system", "Epiniod", "9lives", "a-", "a_b"] {
            let wishes = Wishes { namespace: bad.to_owned(), ..wishes() };
            assert!(settle(&wishes, IMAGE, None).is_err(), "{bad:?}");
        }
    }
}
