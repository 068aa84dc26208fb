//! The way into a cluster and out of it: what is there is looked at, what is wished is settled with that, and becomes
//! manifests, which are applied and watched until the daemon answers.
//!
//! What was settled is written beside the daemon ([`Installation`]), so that a later `install` without any flag changes
//! nothing but the version. What only a person can decide (which of several ingress classes, where data is kept on a
//! cluster that offers nothing) is refused with the flags that decide it, and never guessed.

mod apply;
mod certificates;
mod connection;
mod detect;
mod entrance;
mod events;
mod nodes;
mod plan;
mod ports;
mod provide;
mod relay;
mod remove;
mod replicas;
mod settle;
mod watch;

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use self::{
    apply::{Change, Mode, apply},
    certificates::Certificates,
    connection::Connection,
    detect::{Findings, NodePorts, detect},
    entrance::{assume, open},
    plan::{Manifest, plan},
    provide::{Password, provide_keys, provide_password, provide_settings},
    relay::{Pulls, RegistryRelay, Way},
    remove::{Fate, Inventory, inventory, remove, remove_unwanted},
    settle::{Draft, settle},
    watch::wait_until_ready,
};

/// What somebody wants of an installation; what is not said is found out, kept from before, or a default.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Wishes {
    /// Namespace of the daemon; builds run in NAME-builds
    #[arg(long, env = "EPINIOD_SYSTEM_NAMESPACE", value_name = "NAME", default_value = NAMESPACE)]
    pub namespace: String,
    /// Image of the daemon, from a registry that the nodes reach [default: localhost/epiniod:VERSION, imported into each node]
    #[arg(long, value_name = "REFERENCE")]
    pub image: Option<String>,
    /// Domain of API and applications; `*.DOMAIN` has to lead to the cluster [default: ADDRESS.sslip.io]
    #[arg(long, value_name = "DOMAIN")]
    pub system_domain: Option<String>,
    /// Address that the domain is made of, where none is given [default: that of the ingress or of a node]
    #[arg(long, value_name = "IP", conflicts_with = "system_domain")]
    pub address: Option<std::net::IpAddr>,
    /// Who resolves ADDRESS.PROVIDER to ADDRESS
    #[arg(long, value_name = "PROVIDER", default_value = "sslip.io")]
    pub magic_dns: String,

    /// Class of the ingresses, of a controller that is there [default: the cluster's only or default class]
    #[arg(long, value_name = "CLASS", conflicts_with = "ingress", help_heading = "Entrance")]
    pub ingress_class: Option<String>,
    /// Bring the ingress along: the daemon's own edge, or Traefik [default: own, where the cluster has none]
    #[arg(long, value_enum, help_heading = "Entrance")]
    pub ingress: Option<Brought>,
    /// How what is brought along is reached [default: a load balancer if the cluster has one, else host ports]
    #[arg(long, value_enum, help_heading = "Entrance")]
    pub expose: Option<Exposure>,
    /// Image of Traefik, with --ingress traefik
    #[arg(long, value_name = "REFERENCE", default_value = TRAEFIK, help_heading = "Entrance")]
    pub traefik_image: String,
    /// Node of the daemon: for host ports, and for data in a directory of a node
    #[arg(long, value_name = "NAME", help_heading = "Entrance")]
    pub node: Option<String>,
    /// Port on the nodes where they reach the registry; images are named by 30500, so another serves no pulls
    #[arg(long, value_name = "PORT", help_heading = "Entrance")]
    pub registry_node_port: Option<u16>,
    /// Pull images by a relay on each node, in place of a node port [default: auto, by what is seen of the cluster]
    #[arg(long, value_enum, value_name = "WHEN", help_heading = "Entrance")]
    pub registry_relay: Option<RegistryRelay>,

    /// Whom certificates are asked of: letsencrypt, letsencrypt-staging, the URL of an ACME directory that pods reach, or off
    /// [default: letsencrypt with a system domain of the public]
    #[arg(long, env = "EPINIOD_ACME_DIRECTORY", value_name = "URL", help_heading = "Certificates")]
    pub acme_directory: Option<String>,
    /// Whom the authority writes to
    #[arg(long, env = "EPINIOD_ACME_EMAIL", value_name = "ADDRESS", help_heading = "Certificates")]
    pub acme_email: Option<String>,
    /// Who signed the certificate of the authority's own server, PEM
    #[arg(long, env = "EPINIOD_ACME_CA_FILE", value_name = "FILE", help_heading = "Certificates")]
    pub acme_ca_file: Option<PathBuf>,
    /// Leave certificates to cert-manager, with this ClusterIssuer, or off; the daemon then asks nobody
    #[arg(long, env = "EPINIOD_TLS_ISSUER", value_name = "NAME", help_heading = "Certificates")]
    pub tls_issuer: Option<String>,

    /// Storage class of the daemon's volume [default: the cluster's default class]
    #[arg(long, value_name = "CLASS", help_heading = "Storage")]
    pub storage_class: Option<String>,
    /// Size of the daemon's volume [default: 20Gi]
    #[arg(long, value_name = "SIZE", help_heading = "Storage")]
    pub storage_size: Option<String>,
    /// Keep data in this directory of a node, where the cluster provides no volumes
    #[arg(long, value_name = "DIR", conflicts_with = "storage_class", help_heading = "Storage")]
    pub storage_path: Option<PathBuf>,
    /// Keep data in the daemon's pod: all of it is lost with the pod
    #[arg(long, conflicts_with_all = ["storage_class", "storage_path", "storage_size"], help_heading = "Storage")]
    pub ephemeral_storage: bool,

    /// Bucket of S3 for sources, images and caches, in place of a volume; the keys are AWS_ACCESS_KEY_ID and
    /// AWS_SECRET_ACCESS_KEY
    #[arg(long, env = "EPINIOD_S3_BUCKET", value_name = "BUCKET", help_heading = "Storage")]
    pub s3_bucket: Option<String>,
    /// URL of an S3 API that pods reach [default: that of AWS in the region]
    #[arg(long, env = "EPINIOD_S3_ENDPOINT", value_name = "URL", help_heading = "Storage")]
    pub s3_endpoint: Option<String>,
    /// Region of the bucket
    #[arg(long, env = "EPINIOD_S3_REGION", value_name = "REGION", help_heading = "Storage")]
    pub s3_region: Option<String>,
    /// Certificate authorities of the endpoint, PEM
    #[arg(long, env = "EPINIOD_S3_CA_FILE", value_name = "FILE", help_heading = "Storage")]
    pub s3_ca_file: Option<PathBuf>,

    /// Pods of the daemon, of which one works and the others take over when it goes: with --s3-bucket only [default: 1]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=MOST_REPLICAS), help_heading = "Storage")]
    pub replicas: Option<u32>,

    /// Network of pods, which builds may not reach; may be given several times [default: what the nodes say]
    #[arg(long, value_name = "CIDR", help_heading = "Builds")]
    pub pod_cidr: Vec<String>,
    /// Mirror of the Debian archive
    #[arg(long, env = "EPINIOD_DEBIAN_MIRROR", value_name = "URL", help_heading = "Builds")]
    pub debian_mirror: Option<String>,
    /// Mirror of Debian's security updates
    #[arg(long, env = "EPINIOD_DEBIAN_SECURITY_MIRROR", value_name = "URL", help_heading = "Builds")]
    pub debian_security_mirror: Option<String>,
    /// Certificate authorities that builds trust, PEM
    #[arg(long, env = "EPINIOD_BUILD_CA_FILE", value_name = "FILE", help_heading = "Builds")]
    pub build_ca_file: Option<PathBuf>,
    /// Settings of the daemon, TOML, with the files that they name beside them; kept as a secret
    #[arg(long, env = "EPINIOD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Variable of the daemon, such as HTTPS_PROXY for builds; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable, help_heading = "Builds")]
    pub env: Vec<(String, String)>,
}

/// An ingress that is brought along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Brought {
    Own,
    Traefik,
}

/// How something of ours is reached from outside of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Exposure {
    LoadBalancer,
    /// Ports 80 and 443 of the node that it runs on.
    HostPorts,
}

/// By what requests come in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entrance {
    /// A controller that is there, for ingresses of this class.
    Class(String),
    /// The daemon itself.
    Edge(Exposure),
    Traefik {
        image: String,
        exposure: Exposure,
    },
}

/// Where the daemon's data is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    /// A volume of this class, or of the cluster's default one.
    Claim { class: Option<String>, size: String },
    /// A directory of the daemon's node.
    Node { path: String, size: String },
    /// The pod's own, gone with it.
    Ephemeral,
}

/// Where blobs are, in place of the daemon's volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

/// What opens a bucket.
pub struct Keys {
    pub id: String,
    pub secret: String,
}

/// Everything that the manifests are made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    pub namespace: String,
    pub image: String,
    pub system_domain: String,
    pub entrance: Entrance,
    pub storage: Storage,
    #[serde(default = "one")]
    pub replicas: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<Bucket>,
    /// The node of the daemon, where it cannot be any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    pub registry_node_port: u16,
    #[serde(default)]
    pub pulls: Pulls,
    /// Where pods are: builds do not reach them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pod_networks: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debian_mirror: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debian_security_mirror: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// PEM; kept in a config map of its own.
    #[serde(skip)]
    pub build_ca: Option<String>,
    /// PEM; beside the other.
    #[serde(skip)]
    pub bucket_ca: Option<String>,
    #[serde(default = "Certificates::of_before")]
    pub certificates: Certificates,
    /// PEM; beside the others.
    #[serde(skip)]
    pub acme_ca: Option<String>,
    /// A hash of the daemon's settings, where it has a file of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<String>,
}

impl Installation {
    /// Where the API is.
    pub fn url(&self) -> String {
        let scheme = if self.is_secure() { "https" } else { "http" };
        format!("{scheme}://epinio.{}", self.system_domain)
    }

    /// The class of the ingresses of API and applications; none where the daemon's own edge routes.
    fn ingress_class(&self) -> Option<String> {
        match &self.entrance {
            Entrance::Class(class) => Some(class.clone()),
            Entrance::Traefik { .. } => Some(format!("{}-traefik", self.namespace)),
            Entrance::Edge(_) => None,
        }
    }
}

/// Why there is no installation, or no end of one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the cluster cannot be reached: {cause}")]
    Unreachable { cause: String },
    #[error("{doing}: this user may not do that in the cluster: {cause}")]
    Forbidden { doing: String, cause: String },
    #[error("{doing}: {cause}")]
    Failed { doing: String, cause: String },
    /// Only a person can decide it.
    #[error("{problem}")]
    Undecided { problem: String, choices: String },
    #[error("the daemon does not get ready: {cause}")]
    NotReady { cause: String, details: String, next: String },
    #[error("this is still there after {seconds} s: {}", left.join(", "))]
    Left { seconds: u64, left: Vec<String> },
}

impl Error {
    fn undecided(problem: impl Into<String>, choices: impl Into<String>) -> Self {
        Self::Undecided { problem: problem.into(), choices: choices.into() }
    }
}

/// What the API server refused or did not answer.
fn failed(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    let doing = doing.into();
    move |error| match error {
        kube::Error::Api(status) if matches!(status.code, 401 | 403) => {
            Error::Forbidden { doing, cause: status.message.clone() }
        }
        // What follows the first line compares whole objects.
        kube::Error::Api(status) => {
            Error::Failed { doing, cause: status.message.lines().next().unwrap_or_default().to_owned() }
        }
        other => Error::Unreachable { cause: crate::telemetry::chain(&other) },
    }
}

/// What installations have that were made before there could be several.
fn one() -> u32 {
    1
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// Where the daemon is unless somebody says otherwise.
pub const NAMESPACE: &str = "epiniod";
/// More than these only wait.
const MOST_REPLICAS: i64 = 5;
/// The ingress controller that `--ingress traefik` brings.
const TRAEFIK: &str = "docker.io/library/traefik:v3.6.12";
/// Who applies: not the daemon's own name, which would drop what it does not know.
const MANAGER: &str = "epiniod-install";
/// The installation that an object belongs to.
const SYSTEM: &str = "epiniod.dev/system";
/// What the daemon was installed with, beside it.
const INSTALLATION: &str = "epiniod.dev/installation";
/// Deployment, service, ingress, account: in the daemon's namespace they have one name.
const DAEMON: &str = "epiniod";
/// The secret with the password of the user `admin`.
const ADMIN_SECRET: &str = "epiniod-admin";
/// The secret with the keys of the bucket.
const BUCKET_SECRET: &str = "epiniod-s3";
/// The secret with the settings of the daemon and what they name.
const SETTINGS_SECRET: &str = "epiniod-settings";
/// The config map with certificate authorities, and where the daemon's pod has it.
const TRUST: &str = "epiniod-trust";
const TRUST_FOLDER: &str = "/etc/epiniod/trust";
