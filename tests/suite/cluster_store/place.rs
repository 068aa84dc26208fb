//! A part of a real cluster for one test: a system namespace and two others with names of their own, gone with it.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use epiniod::store::{
    Error, Key, Kind, Object, SharedStore,
    kube::{Cluster, KubeConfig, KubeStore, connect, install_definition, rights},
};
use serde_json::json;

use super::super::{
    store_contract::Subject,
    support::{self, cluster::Cluster as TestCluster},
};

pub struct Place {
    cluster: &'static TestCluster,
    pub kubeconfig: PathBuf,
    pub system: String,
    pub namespaces: [String; 2],
}

impl Place {
    /// `None`, loudly, where there is no cluster.
    pub async fn make(what: &str) -> Option<Self> {
        let cluster = support::cluster(&format!("{what}, in a cluster"))?;
        let word = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap()[..8].to_owned();
        let place = Self {
            cluster,
            kubeconfig: cluster.kubeconfig.clone(),
            system: format!("t{word}-system"),
            namespaces: [format!("t{word}-a"), format!("t{word}-b")],
        };
        install_definition(&place.connect().await).await.unwrap();
        place.kubectl(&["create", "namespace", &place.system]);
        Some(place)
    }

    pub async fn connect(&self) -> Cluster {
        connect(Some(&self.kubeconfig)).await.unwrap()
    }

    pub async fn open(&self) -> Arc<KubeStore> {
        self.try_open(&self.kubeconfig).await.unwrap()
    }

    pub async fn try_open(&self, kubeconfig: &Path) -> Result<Arc<KubeStore>, Error> {
        let cluster = connect(Some(kubeconfig)).await?;
        KubeStore::open(KubeConfig { cluster, namespace: self.system.clone() }).await
    }

    /// A store, with its two namespaces.
    pub async fn subject(&self) -> Subject {
        self.subject_of(self.open().await).await
    }

    pub async fn subject_of(&self, store: SharedStore) -> Subject {
        for name in &self.namespaces {
            let key = Key { kind: Kind::Namespace, namespace: String::new(), name: name.clone() };
            let object = Object { key, uid: String::new(), version: 0, schema: 1, body: json!({ "name": name }) };
            store.put(object).await.unwrap();
        }
        Subject { store, namespaces: self.namespaces.clone() }
    }

    /// Gives the service account `epiniod` of the system namespace what the manifest says.
    pub fn grant(&self) {
        let manifest = rights().replace("namespace: epiniod", &format!("namespace: {}", self.system));
        self.kubectl_with(&["create", "-f", "-"], &manifest.replace("epiniod-state", &self.system));
    }

    /// Runs kubectl, which has to succeed; returns what it says.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.kubectl_with(arguments, "")
    }

    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> String {
        let mut command = self.cluster.kubectl();
        command.args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "kubectl {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The same cluster as somebody else.
    pub fn kubeconfig_as(&self, user: &str) -> tempfile::NamedTempFile {
        let text = std::fs::read_to_string(&self.kubeconfig).unwrap();
        let mut kubeconfig: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
        kubeconfig["users"][0]["user"]["as"] = json!(user);
        file(&kubeconfig.to_string())
    }

    /// The same cluster by another way.
    pub fn kubeconfig_by(&self, address: std::net::SocketAddr) -> tempfile::NamedTempFile {
        let text = std::fs::read_to_string(&self.kubeconfig).unwrap();
        let mut kubeconfig: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
        let cluster = &mut kubeconfig["clusters"][0]["cluster"];
        cluster["tls-server-name"] = json!(self.server().0);
        cluster["server"] = json!(format!("https://{address}"));
        file(&kubeconfig.to_string())
    }

    /// Host and port of the API server.
    pub fn server(&self) -> (String, u16) {
        self.cluster.server()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let delete = |what: &str, names: &[&String]| {
            let mut command = self.cluster.kubectl();
            command.args(["delete", what, "--ignore-not-found"]);
            let _ = command.arg("--wait=false").args(names).stdout(Stdio::null()).status();
        };
        delete("namespace", &[&self.namespaces[0], &self.namespaces[1], &self.system]);
        delete("clusterrole,clusterrolebinding", &[&self.system]);
    }
}

/// A file that is gone with its owner.
pub fn file(content: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file
}
