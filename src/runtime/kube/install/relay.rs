//! How the nodes reach the registry by `127.0.0.1:30500`, as images are named: by a node port, or by a relay of ours on each.
//!
//! A node port answers there where kube-proxy is in iptables mode. Others do not do it, and where nothing says who is at
//! work nobody can see it through the API server: then it is a node port, and a push whose images cannot be pulled names
//! the flag.

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Namespace, Pod},
};
use kube::{Api, ResourceExt as _, api::DeleteParams};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Connection, Error, Findings, Installation, SYSTEM, Wishes, detect::NodePorts, failed, nodes::Node,
    remove::wait_until_gone,
};

/// When there is a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RegistryRelay {
    /// Where node ports do not answer on the nodes' 127.0.0.1, as far as that can be seen
    #[default]
    Auto,
    /// In any case
    Always,
    /// Nowhere
    Never,
}

/// What answers the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    #[default]
    NodePort,
    Relay,
}

/// What was wished, and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pulls {
    pub wish: RegistryRelay,
    pub by: Way,
}

pub(super) fn pulls(wishes: &Wishes, before: Option<&Installation>, found: Option<&Findings>) -> Pulls {
    let before = before.map(|before| before.pulls).unwrap_or_default();
    let wish = wishes.registry_relay.unwrap_or(before.wish);
    let seen = found.map_or(&NodePorts::Unknown, |found| &found.node_ports);
    let by = match (wish, seen) {
        (RegistryRelay::Always, _) | (RegistryRelay::Auto, NodePorts::DoNot(_)) => Way::Relay,
        (RegistryRelay::Never, _) | (RegistryRelay::Auto, NodePorts::Answer(_)) => Way::NodePort,
        // What was seen once holds until something else is seen.
        (RegistryRelay::Auto, NodePorts::Unknown) if before.wish == RegistryRelay::Auto => before.by,
        (RegistryRelay::Auto, NodePorts::Unknown) => Way::NodePort,
    };
    Pulls { wish, by }
}

pub(super) fn template(installation: &Installation) -> Option<&'static str> {
    (installation.pulls.by == Way::Relay).then_some(RELAY)
}

/// The type of the registry's service.
pub(super) fn service_type(installation: &Installation) -> &'static str {
    match installation.pulls.by {
        Way::NodePort => "NodePort",
        Way::Relay => "ClusterIP",
    }
}

/// For the comment of that service.
pub(super) fn why(installation: &Installation) -> &'static str {
    match installation.pulls.by {
        Way::NodePort => "by a port of each node.",
        Way::Relay => "by the relay there. A port of the nodes would be one more way in, and of no use.",
    }
}

pub(super) fn service_port(installation: &Installation) -> Value {
    let mut port = json!({ "name": "registry", "port": 30500, "targetPort": "registry", "protocol": "TCP" });
    if installation.pulls.by == Way::NodePort {
        port["nodePort"] = json!(installation.registry_node_port);
    }
    port
}

/// Whether it runs on every node that is ready: one that is away is not waited for.
pub(super) fn is_everywhere(set: &DaemonSet, nodes: &[Node]) -> bool {
    let Some(status) = &set.status else { return false };
    let away = nodes.iter().filter(|node| !node.is_ready).count();
    let wanted = status.desired_number_scheduled.saturating_sub(i32::try_from(away).unwrap_or(i32::MAX));
    status.observed_generation >= set.metadata.generation
        && status.updated_number_scheduled.unwrap_or_default() >= wanted
        && status.number_available.unwrap_or_default() >= wanted
}

/// A pod that is not ready, of a node that is.
pub(super) fn missing<'a>(pods: &'a [Pod], nodes: &[Node]) -> Option<&'a Pod> {
    let is_away = |pod: &Pod| {
        let name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        nodes.iter().any(|node| Some(node.name.as_str()) == name && !node.is_ready)
    };
    let is_ready = |pod: &Pod| {
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    pods.iter().find(|pod| !is_ready(pod) && !is_away(pod))
}

/// Takes away the relay of an installation before this one, where there is to be none.
pub(super) async fn remove_unwanted(
    cluster: &Connection,
    installation: &Installation,
    mut tell: impl FnMut(&str),
) -> Result<(), Error> {
    if installation.pulls.by == Way::Relay {
        return Ok(());
    }
    let name = format!("{}{SUFFIX}", installation.namespace);
    let doing = || format!("taking the relay in namespace {name} away");
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let Some(there) = namespaces.get_opt(&name).await.map_err(failed(doing()))? else { return Ok(()) };
    if there.labels().get(SYSTEM) != Some(&installation.namespace) {
        return Ok(());
    }
    tell(&doing());
    namespaces.delete(&name, &DeleteParams::background()).await.map_err(failed(doing()))?;
    wait_until_gone(cluster, &[name], &mut tell).await
}

/// After the name of the daemon's namespace: the relay has one of its own.
pub(super) const SUFFIX: &str = "-relay";
pub(super) const NAME: &str = "epiniod-relay";
pub(super) const PODS: &str = "app.kubernetes.io/name=epiniod,app.kubernetes.io/component=relay";
const RELAY: &str = include_str!("../../../../embedded/kubernetes/relay.yaml");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_decides_unless_somebody_does_and_stays_while_nothing_is_seen() {
        use NodePorts::{Answer, DoNot, Unknown};
        use RegistryRelay::{Always, Auto, Never};
        let auto = |by| Pulls { wish: Auto, by };
        for (wish, before, seen, wanted) in [
            (None, None, Unknown, auto(Way::NodePort)),
            (None, None, Answer("x"), auto(Way::NodePort)),
            (None, None, DoNot("x"), auto(Way::Relay)),
            (None, Some(auto(Way::Relay)), Unknown, auto(Way::Relay)),
            (None, Some(auto(Way::Relay)), Answer("x"), auto(Way::NodePort)),
            (Some(Always), None, Answer("x"), Pulls { wish: Always, by: Way::Relay }),
            (Some(Never), Some(auto(Way::Relay)), DoNot("x"), Pulls { wish: Never, by: Way::NodePort }),
            (None, Some(Pulls { wish: Always, by: Way::Relay }), Answer("x"), Pulls { wish: Always, by: Way::Relay }),
            (Some(Auto), Some(Pulls { wish: Always, by: Way::Relay }), Unknown, auto(Way::NodePort)),
        ] {
            let case = format!("{wish:?} {before:?} {seen:?}");
            let settled = settled(wish, before, seen);
            assert_eq!(settled.pulls, wanted, "{case}");
            let manifests = super::super::plan(&settled);
            let relay = manifests.iter().find(|manifest| manifest.kind() == "DaemonSet");
            let registry = manifests.iter().find(|manifest| manifest.name() == "epiniod-registry").unwrap();
            let has_node_port = registry.object["spec"]["ports"][0]["nodePort"] == 30500;
            assert_eq!(
                (relay.is_some(), has_node_port),
                (wanted.by == Way::Relay, wanted.by == Way::NodePort),
                "{case}"
            );
        }
    }

    fn settled(wish: Option<RegistryRelay>, before: Option<Pulls>, seen: NodePorts) -> Installation {
        let wishes = Wishes {
            namespace: "epiniod".to_owned(),
            system_domain: Some("apps.example.com".to_owned()),
            registry_relay: wish,
            ..Wishes::default()
        };
        let mut installation = super::super::settle(&wishes, "localhost/epiniod:1", None).unwrap().installation;
        installation.pulls = before.unwrap_or_default();
        let kept = before.map(|_| installation.clone());
        installation.pulls = by_findings(&wishes, kept.as_ref(), seen);
        installation
    }

    fn by_findings(wishes: &Wishes, before: Option<&Installation>, seen: NodePorts) -> Pulls {
        let found = Findings { node_ports: seen, ..super::super::settle::tests::cluster() };
        pulls(wishes, before, Some(&found))
    }
}
