//! How a daemon drives a cluster: from inside, as a pod, or from outside.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

/// The cluster that builds and applications run in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubernetes {
    /// None in a pod: the cluster gives it a credential.
    pub kubeconfig: Option<PathBuf>,
    /// Where the daemon's own objects are.
    pub namespace: String,
    /// Host or address where nodes and pods reach the daemon's registry; none where a Service does that.
    pub advertise: Option<String>,
    /// The class of ingresses; none where the daemon's own edge routes.
    pub ingress_class: Option<String>,
    /// The ClusterIssuer by which cert-manager comes by the certificates of ingresses; none where the daemon does.
    pub tls_issuer: Option<String>,
}

impl Kubernetes {
    /// Whether the daemon is a pod of the cluster.
    pub fn is_inside(&self) -> bool {
        self.kubeconfig.is_none()
    }

    /// Whether an ingress controller is what clients of the daemon reach. Of a daemon outside of the cluster that is not
    /// known: no service leads to it.
    pub fn is_behind_ingress(&self) -> bool {
        self.is_inside() && self.ingress_class.is_some()
    }
}

#[derive(Debug, Clone, Default, clap::Args)]
pub struct KubernetesFlags {
    /// Run builds and applications in this cluster, from outside of it
    #[arg(long, env = "EPINIOD_KUBECONFIG", value_name = "FILE", help_heading = "Kubernetes")]
    pub kubeconfig: Option<PathBuf>,
    /// Run builds and applications in the cluster that this is a pod of
    #[arg(long, env = "EPINIOD_IN_CLUSTER", conflicts_with = "kubeconfig", help_heading = "Kubernetes")]
    pub in_cluster: bool,
    /// The namespace of the daemon's own objects [default: that of its pod, else epiniod]
    #[arg(long, env = "EPINIOD_SYSTEM_NAMESPACE", value_name = "NAMESPACE", help_heading = "Kubernetes")]
    pub system_namespace: Option<String>,
    /// Address where nodes and pods reach the registry of a daemon outside of the cluster
    #[arg(long, env = "EPINIOD_ADVERTISE", value_name = "ADDRESS", help_heading = "Kubernetes")]
    pub advertise: Option<String>,
    /// Class of the ingresses of applications [default: the daemon's own edge routes]
    #[arg(long, env = "EPINIOD_INGRESS_CLASS", value_name = "CLASS", help_heading = "Kubernetes")]
    pub ingress_class: Option<String>,
    /// Leave the certificates of ingresses to cert-manager, with this ClusterIssuer
    #[arg(long, env = "EPINIOD_TLS_ISSUER", value_name = "NAME", help_heading = "Kubernetes")]
    pub tls_issuer: Option<String>,
}

/// Where a pod finds the name of its namespace.
const OWN_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
const NAMESPACE: &str = "epiniod";

impl KubernetesFlags {
    /// Whether anything runs in a cluster.
    pub(super) fn is_wanted(&self) -> bool {
        self.kubeconfig.is_some() || self.in_cluster
    }

    pub(super) fn settle(self, registry: SocketAddr, problems: &mut Vec<String>) -> Option<Kubernetes> {
        if self.kubeconfig.is_none() && !self.in_cluster {
            return None;
        }
        if let Some(path) = self.kubeconfig.as_ref().filter(|path| !path.is_file()) {
            problems.push(format!("kubeconfig: '{}' is not a file", path.display()));
        }
        if self.kubeconfig.is_some() {
            match &self.advertise {
                None => problems.push("advertise: say under which address of this machine the nodes reach it".to_owned()),
                Some(address) if address.parse::<std::net::IpAddr>().is_err() => {
                    problems.push(format!("advertise: '{address}' is not an IP address"));
                }
                Some(_) if registry.ip().is_loopback() => problems.push(format!(
                    "registry_listen: {registry} cannot be reached from the nodes; listen on 0.0.0.0 or the advertised address"
                )),
                Some(_) => {}
            }
        }
        let is_given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        if is_given(&self.tls_issuer) && !is_given(&self.ingress_class) {
            problems.push("tls_issuer: cert-manager needs ingresses; name their class with --ingress-class".to_owned());
        }
        let own = || Some(std::fs::read_to_string(OWN_NAMESPACE).ok()?.trim().to_owned()).filter(|_| self.in_cluster);
        let namespace = self.system_namespace.clone().or_else(own).unwrap_or_else(|| NAMESPACE.to_owned());
        Some(Kubernetes {
            kubeconfig: self.kubeconfig.clone(),
            namespace,
            advertise: self.advertise.clone(),
            ingress_class: self.ingress_class.clone().filter(|class| !class.is_empty()),
            tls_issuer: self.tls_issuer.clone().filter(|issuer| !issuer.is_empty()),
        })
    }

    pub(super) fn to_args(&self) -> Vec<(&'static str, Option<OsString>)> {
        let text = |value: &Option<String>| value.clone().map(Into::into);
        let kubeconfig =
            self.kubeconfig.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        vec![
            ("--kubeconfig", kubeconfig.map(Into::into)),
            ("--system-namespace", text(&self.system_namespace)),
            ("--advertise", text(&self.advertise)),
            ("--ingress-class", text(&self.ingress_class)),
            ("--tls-issuer", text(&self.tls_issuer)),
        ]
    }
}
