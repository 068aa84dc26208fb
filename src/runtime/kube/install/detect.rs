//! What a cluster is and has, as far as it can be seen through its API.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Namespace, Node as ClusterNode, PersistentVolumeClaim, Pod, Service},
    networking::v1::{Ingress, IngressClass},
    storage::v1::StorageClass,
};
use kube::{Api, ResourceExt as _, api::ListParams};

use super::{
    Connection, DAEMON, Error, INSTALLATION, Installation, TRUST, failed,
    nodes::{Distribution, Knowledge, Node},
};
use crate::runtime::kube::names;

/// What there is.
#[derive(Debug, Clone)]
pub struct Findings {
    /// Of the API server.
    pub version: String,
    pub distribution: Distribution,
    pub nodes: Vec<Node>,
    pub classes: Vec<Class>,
    /// Names, and whether it is the default one.
    pub storage_classes: Vec<(String, bool)>,
    pub node_ports: NodePorts,
    /// Whether a service of type LoadBalancer has got an address, or will as a rule.
    pub balances_load: bool,
    /// Whether the cluster measures what pods use.
    pub metrics: bool,
    /// What was installed before, in this namespace.
    pub before: Option<Installation>,
    /// Namespaces of other daemons in this cluster.
    pub others: Vec<String>,
    /// Whether the namespace is there and nobody of us made it.
    pub foreign_namespace: bool,
}

/// A class of ingresses, and where its controller is reached.
#[derive(Debug, Clone)]
pub struct Class {
    pub name: String,
    pub is_default: bool,
    pub controller: String,
    /// The controller's service, `NAMESPACE/NAME`.
    pub service: Option<String>,
    pub addresses: Vec<String>,
    /// From outside.
    pub ports: Vec<i32>,
}

/// Whether ports of services answer on the nodes' 127.0.0.1, where images are pulled from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePorts {
    Answer(&'static str),
    DoNot(&'static str),
    Unknown,
}

/// Looks at everything that decides something.
pub async fn detect(cluster: &Connection, namespace: &str) -> Result<Findings, Error> {
    let client = &cluster.client;
    let all = ListParams::default();
    let nodes: Api<ClusterNode> = Api::all(client.clone());
    let nodes = nodes.list(&all).await.map_err(failed("looking at the nodes"))?.items;
    let read: Vec<Node> = nodes.iter().map(Node::read).collect();
    let distribution = Distribution::of(&nodes, &read);
    let services: Api<Service> = Api::all(client.clone());
    let services = services.list(&all).await.map_err(failed("looking at services"))?.items;
    let storage: Api<StorageClass> = Api::all(client.clone());
    let storage = storage.list(&all).await.map_err(failed("looking at storage classes"))?.items;
    let groups = client.list_api_groups().await.map_err(failed("looking at what the cluster offers"))?;
    let daemons: Api<Deployment> = Api::all(client.clone());
    let daemons = daemons.list(&ListParams::default().labels(names::DAEMON_PODS)).await;
    let daemons = daemons.map_err(failed("looking for other installations"))?.items;
    let own: Api<Namespace> = Api::all(client.clone());
    let own = own.get_opt(namespace).await.map_err(failed(format!("looking at namespace {namespace}")))?;
    Ok(Findings {
        version: cluster.version.clone(),
        classes: classes(cluster, &services).await?,
        storage_classes: storage
            .iter()
            .map(|class| (class.name_any(), is_marked(class, "storageclass.kubernetes.io/is-default-class")))
            .collect(),
        node_ports: node_ports(cluster, &distribution).await,
        balances_load: distribution.balances_load() || services.iter().any(|service| !addresses_of(service).is_empty()),
        metrics: groups.groups.iter().any(|group| group.name == "metrics.k8s.io"),
        before: before(cluster, namespace).await?,
        others: daemons.iter().filter_map(|daemon| daemon.namespace()).filter(|other| other != namespace).collect(),
        foreign_namespace: own.is_some_and(|own| !own.labels().contains_key(super::SYSTEM)),
        nodes: read,
        distribution,
    })
}

impl Findings {
    /// Nodes that take the daemon's pod.
    pub fn open_nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.is_open && node.architecture == crate::oci::architecture())
    }

    /// The open nodes that are known not to have an image.
    pub fn without(&self, image: &str) -> Vec<&Node> {
        self.open_nodes().filter(|node| node.knows(image) == Knowledge::Missing).collect()
    }

    /// What to type so that the nodes have the image.
    pub fn import(&self, image: &str) -> String {
        let runtime = self.nodes.first().map_or("", |node| node.runtime.as_str());
        self.distribution.import(runtime, image)
    }

    /// What people should know, as name and text.
    pub fn report(&self) -> Vec<(&'static str, String)> {
        let mut runtimes: Vec<&str> = self.nodes.iter().map(|node| node.runtime.as_str()).collect();
        runtimes.sort_unstable();
        runtimes.dedup();
        let or_none = |texts: Vec<String>| if texts.is_empty() { "none".to_owned() } else { texts.join("; ") };
        let storage = |(name, default): &(String, bool)| format!("{name}{}", if *default { " (default)" } else { "" });
        let node_ports = match &self.node_ports {
            NodePorts::Answer(why) => format!("answer on the nodes' 127.0.0.1 ({why})"),
            NodePorts::DoNot(why) => format!(
                "do not answer on the nodes' 127.0.0.1 ({why}); unless --registry-relay says otherwise, images are pulled by a \
                 relay on each node"
            ),
            NodePorts::Unknown => "whether they answer on the nodes' 127.0.0.1 cannot be seen from here; kube-proxy \
                                   in iptables mode does it"
                .to_owned(),
        };
        let mut lines = vec![
            ("cluster", format!("Kubernetes {}, {}", self.version, self.distribution.name())),
            (
                "nodes",
                format!("{}, of which {} take pods of this architecture", self.nodes.len(), self.open_nodes().count()),
            ),
            ("runtime", or_none(runtimes.into_iter().map(str::to_owned).collect())),
            ("ingress", or_none(self.classes.iter().map(Class::describe).collect())),
            ("load balancer", if self.balances_load { "there is one" } else { "none seen" }.to_owned()),
            ("storage", or_none(self.storage_classes.iter().map(storage).collect())),
            ("node ports", node_ports),
            ("metrics", if self.metrics { "metrics.k8s.io" } else { "none (no metrics server)" }.to_owned()),
        ];
        if self.nodes.iter().any(|node| !node.reads_zstd()) {
            lines.push((
                "warning",
                "a containerd before 1.5 cannot read the layers of images (zstd): update it".to_owned(),
            ));
        }
        if !self.others.is_empty() {
            let others = self.others.join(", ");
            lines.push((
                "warning",
                format!(
                    "another epiniod is in namespace {others}: nodes pull from the one that has node port 30500 only"
                ),
            ));
        }
        lines
    }
}

impl Class {
    fn describe(&self) -> String {
        let mut text = format!("class {}{}", self.name, if self.is_default { " (default)" } else { "" });
        if let Some(service) = &self.service {
            text.push_str(&format!(", service {service}"));
        }
        if !self.addresses.is_empty() {
            text.push_str(&format!(", at {}", self.addresses.join(", ")));
        }
        if !self.ports.is_empty() {
            let ports: Vec<String> = self.ports.iter().map(i32::to_string).collect();
            text.push_str(&format!(", ports {}", ports.join(", ")));
        }
        text
    }
}

/// Address or name of each balancer that answers a service.
pub(super) fn addresses_of(service: &Service) -> Vec<String> {
    let balancers = service.status.iter().filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    balancers.flatten().filter_map(|ingress| ingress.ip.clone().or_else(|| ingress.hostname.clone())).collect()
}

async fn classes(cluster: &Connection, services: &[Service]) -> Result<Vec<Class>, Error> {
    let classes: Api<IngressClass> = Api::all(cluster.client.clone());
    let doing = "looking at ingress classes";
    let classes = classes.list(&ListParams::default()).await.map_err(failed(doing))?.items;
    if classes.is_empty() {
        return Ok(Vec::new());
    }
    let ingresses: Api<Ingress> = Api::all(cluster.client.clone());
    let ingresses = ingresses.list(&ListParams::default()).await.map_err(failed("looking at ingresses"))?.items;
    let mut found = Vec::with_capacity(classes.len());
    for class in &classes {
        let mut class = read_class(class, services, &ingresses);
        if class.addresses.is_empty() {
            find_host_ports(cluster, &mut class).await?;
        }
        found.push(class);
    }
    Ok(found)
}

/// A controller that listens on ports of its nodes needs no service, and says nothing in ingresses.
async fn find_host_ports(cluster: &Connection, class: &mut Class) -> Result<(), Error> {
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    let product = product(&class.name, &class.controller);
    for label in ["app.kubernetes.io/name", "app"] {
        let of_product = ListParams::default().labels(&format!("{label}={product}"));
        for pod in pods.list(&of_product).await.map_err(failed("looking for the ingress controller"))?.items {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let ports: Vec<i32> = containers
                .flat_map(|container| container.ports.iter().flatten())
                .filter_map(|port| port.host_port)
                .filter(|port| WEB.contains(port))
                .collect();
            if !ports.is_empty() && !pod.labels().contains_key(super::SYSTEM) {
                class.addresses.extend(pod.status.and_then(|status| status.host_ip));
                class.ports = ports;
            }
        }
        if !class.addresses.is_empty() {
            return Ok(());
        }
    }
    Ok(())
}

fn read_class(class: &IngressClass, services: &[Service], ingresses: &[Ingress]) -> Class {
    let name = class.name_any();
    let controller = class.spec.as_ref().and_then(|spec| spec.controller.clone()).unwrap_or_default();
    let service = services.iter().filter(|service| leads_to(service, &name, &controller)).max_by_key(|service| {
        // Of several, the one that is reached from outside.
        (
            addresses_of(service).len(),
            service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer")),
        )
    });
    let mut addresses = service.map(addresses_of).unwrap_or_default();
    if addresses.is_empty() {
        // What the controller says of ingresses that it serves.
        let of_class = |ingress: &&Ingress| {
            ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_deref()) == Some(name.as_str())
        };
        let balancers = ingresses
            .iter()
            .filter(of_class)
            .filter_map(|ingress| ingress.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?.first());
        addresses = balancers.filter_map(|at| at.ip.clone().or_else(|| at.hostname.clone())).take(1).collect();
    }
    let ports = service.and_then(|service| service.spec.as_ref()?.ports.as_ref());
    Class {
        is_default: is_marked(class, "ingressclass.kubernetes.io/is-default-class"),
        service: service.map(|service| format!("{}/{}", service.namespace().unwrap_or_default(), service.name_any())),
        ports: ports.into_iter().flatten().map(|port| port.port).collect(),
        addresses,
        controller,
        name,
    }
}

/// Whether a service is that of the controller of a class. No field says it: names and labels have to.
fn leads_to(service: &Service, class: &str, controller: &str) -> bool {
    let product = product(class, controller);
    let named = service.labels().get("app.kubernetes.io/name").is_some_and(|name| name == product);
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let serves = ports.into_iter().any(|port| WEB.contains(&port.port));
    serves && !service.labels().contains_key(super::SYSTEM) && (named || service.name_any() == product)
}

/// What a controller calls itself in labels.
fn product<'a>(class: &'a str, controller: &str) -> &'a str {
    match controller {
        "traefik.io/ingress-controller" => "traefik",
        "k8s.io/ingress-nginx" => "ingress-nginx",
        _ => class,
    }
}

fn is_marked(object: &impl kube::ResourceExt, annotation: &str) -> bool {
    object.annotations().get(annotation).is_some_and(|value| value == "true")
}

/// What the mode of kube-proxy says; whoever replaces it has its own rules.
async fn node_ports(cluster: &Connection, distribution: &Distribution) -> NodePorts {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "kube-system");
    let text = |map: Option<ConfigMap>, key: &str| map.and_then(|map| map.data?.get(key).cloned());
    let cilium = text(maps.get_opt("cilium-config").await.ok().flatten(), "kube-proxy-replacement");
    if cilium.is_some_and(|replaced| matches!(replaced.as_str(), "true" | "strict")) {
        return NodePorts::DoNot("Cilium in place of kube-proxy");
    }
    if matches!(distribution, Distribution::K3s | Distribution::K3d(_)) {
        return NodePorts::Answer("k3s");
    }
    let Some(config) = text(maps.get_opt("kube-proxy").await.ok().flatten(), "config.conf") else {
        return NodePorts::Unknown;
    };
    let Ok(config) = serde_yaml_ng::from_str::<serde_json::Value>(&config) else { return NodePorts::Unknown };
    match config["mode"].as_str().unwrap_or_default() {
        "ipvs" => NodePorts::DoNot("kube-proxy in IPVS mode"),
        "nftables" => NodePorts::DoNot("kube-proxy in nftables mode"),
        _ if config["iptables"]["localhostNodePorts"] == false => {
            NodePorts::DoNot("kube-proxy with localhostNodePorts: false")
        }
        _ => NodePorts::Answer("kube-proxy in iptables mode"),
    }
}

/// What the daemon that is there was installed with.
async fn before(cluster: &Connection, namespace: &str) -> Result<Option<Installation>, Error> {
    let doing = || format!("looking at what is in namespace {namespace}");
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
    let Some(daemon) = deployments.get_opt(DAEMON).await.map_err(failed(doing()))? else { return Ok(None) };
    let Some(record) = daemon.annotations().get(INSTALLATION) else { return Ok(None) };
    let read = serde_json::from_str::<Installation>(record);
    let mut before = read.map_err(|error| Error::Failed {
        doing: doing(),
        cause: format!("the annotation {INSTALLATION} of deployment {DAEMON} cannot be read ({error}); a newer version may have written it"),
    })?;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let trust = maps.get_opt(TRUST).await.map_err(failed(doing()))?;
    let mut trust = trust.and_then(|map| map.data).unwrap_or_default();
    before.build_ca = trust.remove(super::plan::BUILD_CA);
    before.bucket_ca = trust.remove(super::plan::BUCKET_CA);
    before.acme_ca = trust.remove(super::certificates::ACME_CA);
    Ok(Some(before))
}

/// The claim of the daemon's volume, if there is one.
pub(super) async fn claim(cluster: &Connection, namespace: &str) -> Option<PersistentVolumeClaim> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), namespace);
    claims.get_opt("epiniod-data").await.ok().flatten()
}

const WEB: [i32; 2] = [80, 443];
