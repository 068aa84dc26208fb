//! The nodes of a cluster, what kind of cluster that makes it, and how an image gets onto them by hand.

use k8s_openapi::api::core::v1::Node as ClusterNode;
use kube::ResourceExt as _;

/// A machine, or what passes for one.
#[derive(Debug, Clone, Default)]
pub struct Node {
    pub name: String,
    /// What a node selector calls it.
    pub hostname: String,
    /// Reached from outside, as far as is known.
    pub address: Option<String>,
    pub architecture: String,
    /// Container runtime and version, such as `containerd://1.7.2`.
    pub runtime: String,
    /// Its kubelet says that it is.
    pub is_ready: bool,
    /// Takes pods of ours.
    pub is_open: bool,
    /// Where its pods are.
    pub networks: Vec<String>,
    pub(super) images: Vec<String>,
    pub(super) kubelet: String,
    pub(super) provider: String,
}

/// What a cluster is run by, as far as that makes a difference to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Distribution {
    K3s,
    /// k3s in containers; its name.
    K3d(String),
    Rke2,
    /// Kubernetes in containers; its name.
    Kind(String),
    Minikube(String),
    Microk8s,
    DockerDesktop,
    /// A provider of clouds.
    Cloud(&'static str),
    Other,
}

/// What a node knows of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knowledge {
    There,
    Missing,
    /// It lists only some of many.
    Unknown,
}

impl Node {
    pub(super) fn read(node: &ClusterNode) -> Self {
        let (spec, status) = (node.spec.clone().unwrap_or_default(), node.status.clone().unwrap_or_default());
        let info = status.node_info.unwrap_or_default();
        let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        let tainted = spec.taints.iter().flatten().any(|taint| taint.effect != "PreferNoSchedule");
        let address = |kind: &str| {
            let found = status.addresses.iter().flatten().find(|address| address.type_ == kind);
            found.map(|address| address.address.clone())
        };
        Self {
            name: node.name_any(),
            hostname: node.labels().get("kubernetes.io/hostname").cloned().unwrap_or_else(|| node.name_any()),
            address: address("ExternalIP").or_else(|| address("InternalIP")),
            is_ready: ready,
            is_open: ready && !tainted && spec.unschedulable != Some(true) && info.operating_system == "linux",
            architecture: info.architecture,
            runtime: info.container_runtime_version,
            networks: spec.pod_cidrs.unwrap_or_default(),
            images: status.images.into_iter().flatten().flat_map(|image| image.names.unwrap_or_default()).collect(),
            kubelet: info.kubelet_version,
            provider: spec.provider_id.unwrap_or_default(),
        }
    }

    /// Whether it has an image under this name. A kubelet lists only its largest images.
    pub fn knows(&self, image: &str) -> Knowledge {
        if self.images.iter().any(|name| name == image) {
            return Knowledge::There;
        }
        if self.images.len() >= LISTED { Knowledge::Unknown } else { Knowledge::Missing }
    }

    /// A containerd that reads layers in zstd.
    pub fn reads_zstd(&self) -> bool {
        let Some(version) = self.runtime.strip_prefix("containerd://") else { return true };
        let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(u32::MAX));
        (parts.next(), parts.next()) >= (Some(1), Some(5))
    }
}

impl Distribution {
    pub(super) fn of(nodes: &[ClusterNode], read: &[Node]) -> Self {
        let Some((first, node)) = nodes.first().zip(read.first()) else { return Self::Other };
        let labelled = |label: &str| first.labels().get(label).cloned();
        let named = |suffix: &str| read.iter().find_map(|node| node.name.strip_suffix(suffix).map(str::to_owned));
        if node.provider.starts_with("kind://") {
            return Self::Kind(named("-control-plane").unwrap_or_else(|| "kind".to_owned()));
        }
        if let Some(name) = node.name.strip_prefix("k3d-") {
            let cluster = name.rsplit_once("-server-").or_else(|| name.rsplit_once("-agent-"));
            return Self::K3d(cluster.map_or(name, |(cluster, _)| cluster).to_owned());
        }
        if let Some(profile) = labelled("minikube.k8s.io/name") {
            return Self::Minikube(profile);
        }
        if labelled("microk8s.io/cluster").is_some() {
            return Self::Microk8s;
        }
        if node.kubelet.contains("+k3s") {
            return Self::K3s;
        }
        if node.kubelet.contains("+rke2") {
            return Self::Rke2;
        }
        if node.name == "docker-desktop" {
            return Self::DockerDesktop;
        }
        let provider = node.provider.split_once("://").map_or("", |(provider, _)| provider);
        CLOUDS.iter().find(|(id, _)| *id == provider).map_or(Self::Other, |(_, name)| Self::Cloud(name))
    }

    /// What to type so that the nodes have the image of this program.
    pub fn import(&self, runtime: &str, image: &str) -> String {
        let write = "epiniod image > epiniod.tar";
        match self {
            Self::K3s => format!("{write}, and on each node: sudo k3s ctr images import epiniod.tar"),
            Self::K3d(cluster) => format!("{write} && k3d image import epiniod.tar --cluster {cluster}"),
            Self::Rke2 => format!(
                "{write}, and on each node: sudo /var/lib/rancher/rke2/bin/ctr --address /run/k3s/containerd/containerd.sock -n k8s.io images import epiniod.tar"
            ),
            Self::Kind(cluster) => format!("{write} && kind load image-archive epiniod.tar --name {cluster}"),
            Self::Minikube(profile) => format!("{write} && minikube image load epiniod.tar --profile {profile}"),
            Self::Microk8s => format!("{write}, and on each node: microk8s ctr image import epiniod.tar"),
            Self::DockerDesktop => format!("{write} && docker load -i epiniod.tar"),
            Self::Cloud(_) => {
                "put it into a registry of yours: epiniod image > epiniod.tar && skopeo copy oci-archive:epiniod.tar docker://REGISTRY/epiniod; then epiniod install --image REGISTRY/epiniod".to_owned()
            }
            Self::Other if runtime.starts_with("cri-o://") => {
                format!("{write}, and on each node: sudo skopeo copy oci-archive:epiniod.tar containers-storage:{image}")
            }
            Self::Other if runtime.starts_with("docker://") => {
                format!("{write}, and on each node: docker load -i epiniod.tar")
            }
            Self::Other => format!("{write}, and on each node: sudo ctr -n k8s.io images import epiniod.tar"),
        }
    }

    /// Whether the nodes are containers or virtual machines of somebody's desktop.
    pub fn is_on_a_desktop(&self) -> bool {
        matches!(self, Self::K3d(_) | Self::Kind(_) | Self::Minikube(_) | Self::DockerDesktop)
    }

    /// Whether services of type LoadBalancer are answered there, as a rule.
    pub(super) fn balances_load(&self) -> bool {
        matches!(self, Self::K3s | Self::K3d(_) | Self::DockerDesktop | Self::Cloud(_))
    }

    pub fn name(&self) -> String {
        match self {
            Self::K3s => "k3s".to_owned(),
            Self::K3d(cluster) => format!("k3d ({cluster})"),
            Self::Rke2 => "RKE2".to_owned(),
            Self::Kind(cluster) => format!("kind ({cluster})"),
            Self::Minikube(profile) => format!("minikube ({profile})"),
            Self::Microk8s => "MicroK8s".to_owned(),
            Self::DockerDesktop => "Docker Desktop".to_owned(),
            Self::Cloud(provider) => (*provider).to_owned(),
            Self::Other => "distribution not known".to_owned(),
        }
    }
}

/// Images that a kubelet lists (nodeStatusMaxImages).
const LISTED: usize = 50;
/// What the provider's id of a node begins with.
const CLOUDS: [(&str, &str); 8] = [
    ("aws", "AWS"),
    ("gce", "Google Cloud"),
    ("azure", "Azure"),
    ("hcloud", "Hetzner Cloud"),
    ("digitalocean", "DigitalOcean"),
    ("openstack", "OpenStack"),
    ("scaleway", "Scaleway"),
    ("linode", "Linode"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, kubelet: &str, provider: &str) -> ClusterNode {
        serde_json::from_value(serde_json::json!({
            "metadata": { "name": name },
            "spec": { "providerID": provider },
            "status": { "nodeInfo": {
                "kubeletVersion": kubelet, "operatingSystem": "linux", "architecture": "amd64",
                "containerRuntimeVersion": "containerd://1.7.2", "bootID": "", "kernelVersion": "",
                "kubeProxyVersion": "", "machineID": "", "osImage": "", "systemUUID": "",
            } },
        }))
        .unwrap()
    }

    #[test]
    fn the_kind_of_a_cluster_decides_how_an_image_is_imported() {
        for (name, kubelet, provider, expected) in [
            ("box", "v1.33.1+k3s1", "k3s://box", "sudo k3s ctr images import epiniod.tar"),
            ("k3d-dev-server-0", "v1.33.1+k3s1", "", "k3d image import epiniod.tar --cluster dev"),
            (
                "dev-control-plane",
                "v1.33.1",
                "kind://docker/dev/dev-control-plane",
                "kind load image-archive epiniod.tar --name dev",
            ),
            ("box", "v1.33.1+rke2r1", "", "/var/lib/rancher/rke2/bin/ctr"),
            ("docker-desktop", "v1.33.1", "", "docker load"),
            ("ip-10-0-0-1", "v1.33.1", "aws:///eu/i-1", "skopeo copy"),
            ("box", "v1.33.1", "", "sudo ctr -n k8s.io images import epiniod.tar"),
        ] {
            let nodes = [node(name, kubelet, provider)];
            let read = [Node::read(&nodes[0])];
            let command = Distribution::of(&nodes, &read).import(&read[0].runtime, "localhost/epiniod:1");
            assert!(command.contains(expected), "{name} {kubelet}: {command}");
        }
    }

    #[test]
    fn a_containerd_that_is_too_old_is_noticed() {
        let with = |runtime: &str| Node { runtime: runtime.to_owned(), ..Node::default() }.reads_zstd();
        assert!(with("containerd://1.5.0") && with("containerd://2.0.1") && with("cri-o://1.30.0"));
        assert!(!with("containerd://1.4.13"));
    }
}
