//! The entrance of an installation, opened before anything else where its address decides the domain, or where only
//! trying tells whether the cluster has a load balancer.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Service;
use kube::Api;

use super::{
    Connection, Draft, Entrance, Error, Exposure, Findings, Installation, Mode, apply,
    detect::addresses_of,
    failed, plan, replicas,
    settle::{Certainty, magic_domain, uses_host_ports},
};

/// Opens the entrance, and completes the draft with what is known then.
pub async fn open(
    cluster: &Connection,
    draft: Draft,
    found: &Findings,
    mut tell: impl FnMut(&str),
) -> Result<Installation, Error> {
    let Draft { mut installation, address, magic_dns, certainty } = draft;
    let mut balancer = Vec::new();
    if exposure(&installation.entrance) == Some(Exposure::LoadBalancer)
        && (certainty == Certainty::Tried || (installation.system_domain.is_empty() && address.is_none()))
    {
        tell("waiting for an address of the cluster's load balancer");
        apply(cluster, &plan::services(&installation), Mode::Apply, |_| {}).await?;
        let patience = if found.balances_load || certainty == Certainty::Settled { PATIENCE } else { TRY };
        balancer = wait_for_address(cluster, &installation, patience).await?;
        match (balancer.is_empty(), certainty) {
            (false, _) => {}
            (true, Certainty::Settled) => return Err(unanswered(&installation)),
            (true, Certainty::Tried) => use_host_ports(&mut installation, found),
        }
    }
    finish(installation, address, &magic_dns, &balancer, found)
}

/// What `open` would come to, as far as that can be said without touching anything.
pub fn assume(draft: Draft, found: &Findings) -> Result<Installation, Error> {
    let Draft { mut installation, address, magic_dns, certainty } = draft;
    if certainty == Certainty::Tried && !found.balances_load {
        use_host_ports(&mut installation, found);
    }
    // Where a load balancer would lead to is not known: a node stands in for it.
    let node: Vec<String> = found.open_nodes().filter_map(|node| node.address.clone()).take(1).collect();
    finish(installation, address, &magic_dns, &node, found)
}

fn finish(
    installation: Installation,
    address: Option<IpAddr>,
    magic_dns: &str,
    balancer: &[String],
    found: &Findings,
) -> Result<Installation, Error> {
    replicas::check(&installation)?;
    if !installation.system_domain.is_empty() {
        return Ok(installation);
    }
    let known = match &installation.entrance {
        Entrance::Class(class) => {
            let class = found.classes.iter().find(|known| known.name == *class);
            class.map(|class| class.addresses.clone()).unwrap_or_default()
        }
        _ if uses_host_ports(&installation.entrance) => {
            let node =
                |node: &&super::nodes::Node| installation.node.as_deref().is_none_or(|name| node.hostname == name);
            found.open_nodes().filter(node).filter_map(|node| node.address.clone()).take(1).collect()
        }
        _ => balancer.to_vec(),
    };
    if let Some(address) = address.or_else(|| known.iter().find_map(|address| address.parse().ok())) {
        return Ok(named(installation, address, magic_dns));
    }
    match known.first() {
        Some(name) => Err(Error::undecided(
            format!("the cluster's entrance has a name ({name}) and no address that a domain could be made of"),
            format!("give --system-domain DOMAIN, with a record *.DOMAIN that leads to {name}"),
        )),
        None => Err(Error::undecided("nothing in the cluster says at which address its entrance is reached", ADDRESS)),
    }
}

fn named(mut installation: Installation, address: IpAddr, magic_dns: &str) -> Installation {
    installation.system_domain = magic_domain(address, magic_dns);
    installation
}

fn unanswered(installation: &Installation) -> Error {
    let service = service_of(installation);
    Error::undecided(
        format!("the service {} of type LoadBalancer got no address within {} s", service.1, PATIENCE.as_secs()),
        "use the ports of a node with --expose host-ports, or give the --address or --system-domain that will lead there",
    )
}

fn use_host_ports(installation: &mut Installation, found: &Findings) {
    match &mut installation.entrance {
        Entrance::Edge(exposure) | Entrance::Traefik { exposure, .. } => *exposure = Exposure::HostPorts,
        Entrance::Class(_) => {}
    }
    if installation.node.is_none() {
        installation.node = found.open_nodes().next().map(|node| node.hostname.clone());
    }
}

fn exposure(entrance: &Entrance) -> Option<Exposure> {
    match entrance {
        Entrance::Edge(exposure) | Entrance::Traefik { exposure, .. } => Some(*exposure),
        Entrance::Class(_) => None,
    }
}

/// Namespace and name.
fn service_of(installation: &Installation) -> (String, &'static str) {
    match installation.entrance {
        Entrance::Traefik { .. } => (format!("{}-ingress", installation.namespace), "traefik"),
        _ => (installation.namespace.clone(), super::DAEMON),
    }
}

async fn wait_for_address(
    cluster: &Connection,
    installation: &Installation,
    patience: Duration,
) -> Result<Vec<String>, Error> {
    let (namespace, name) = service_of(installation);
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), &namespace);
    let until = Instant::now() + patience;
    loop {
        let service = services.get(name).await.map_err(failed(format!("looking at service {namespace}/{name}")))?;
        let addresses = addresses_of(&service);
        if !addresses.is_empty() || Instant::now() >= until {
            return Ok(addresses);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How long a load balancer may take that is there, as far as we know; clouds make one.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long is waited where none was seen.
const TRY: Duration = Duration::from_secs(8);
const LOOK: Duration = Duration::from_millis(500);
const ADDRESS: &str =
    "give the address that it is reached at with --address, or a domain that leads there with --system-domain";
