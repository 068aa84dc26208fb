//! A node pulls images over plain HTTP from a port of its own loopback, behind which is a registry of ours: so the
//! nodes of any cluster reach the daemon's registry without a certificate.

use std::{io::Write, net::UdpSocket, sync::Arc};

use async_trait::async_trait;
use epiniod::{
    blob::DiskBlobs,
    oci::{
        Client, Compression, ConfigFile, Descriptor, MEDIA_TYPE_CONFIG, Manifest, RootFs,
        registry::{Action, Authenticator, Credential, Registry, Verdict},
    },
    store::{DiskStore, Objects, SharedStore},
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::json;

use super::node_port;
use crate::support::{
    self,
    cluster::{Level, Origin},
};

struct Everybody;

#[async_trait]
impl Authenticator for Everybody {
    async fn permits(&self, _: Credential<'_>, _: Option<&str>, _: Action) -> Verdict {
        Verdict::Allowed
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_pulls_from_a_port_of_its_loopback() {
    let what = "images from a port of a node's loopback";
    let Some(cluster) = support::cluster(what) else { return };
    if cluster.origin == Origin::Named {
        support::not_run(&format!("{what}: the node may not reach this process, EPINIOD_TEST_KUBECONFIG names one"));
        return;
    }
    let place = cluster.namespace(Level::Privileged).await;
    // The one address of this machine that the node knows.
    let towards = UdpSocket::bind("0.0.0.0:0").unwrap();
    towards.connect((node_address(&place.client).await.as_str(), 1)).unwrap();
    let ip = towards.local_addr().unwrap().ip();
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let store: SharedStore = DiskStore::open(&dir.path().join("store")).unwrap();
    let registry = Registry::new(Objects::new(Arc::clone(&store)), DiskBlobs::open(&dir.path().join("blobs")).unwrap());
    let listener = tokio::net::TcpListener::bind((ip, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = registry.router(Arc::new(Everybody));
    tokio::spawn(async move { axum::serve(listener, router).await });
    push(&address.to_string()).await;

    let service = json!({ "type": "NodePort", "ports": [{ "port": 80, "targetPort": address.port() }] });
    let port = node_port(&place.create::<Service>("registry", json!({ "spec": service })).await);
    let slice = json!({
        "metadata": { "name": "registry", "labels": { "kubernetes.io/service-name": "registry" } },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": [ip] }],
        "ports": [{ "port": address.port(), "protocol": "TCP" }],
    });
    place.create::<EndpointSlice>("registry", slice).await;
    let image = format!("127.0.0.1:{port}/workspace/pulled:one");
    let container = json!({ "name": "main", "image": image, "command": ["/busybox", "echo", "pulled"] });
    assert_eq!(place.run("pulled", "", json!({ "containers": [container] })).await, "pulled\n");
}

/// An image of one program, that of the machine's own busybox.
async fn push(registry: &str) {
    let client = Client::new(registry, "").unwrap();
    let write = |out: &mut dyn Write| {
        let mut archive = tar::Builder::new(out);
        archive.append_path_with_name("/bin/busybox", "busybox")?;
        archive.finish()
    };
    let layer = client.push_layer("workspace/pulled", Compression::Zstd, write).await.unwrap();
    let config = ConfigFile {
        architecture: epiniod::oci::architecture().to_owned(),
        os: "linux".to_owned(),
        rootfs: RootFs { diff_ids: vec![layer.diff_id], ..RootFs::default() },
        ..ConfigFile::default()
    };
    let config = serde_json::to_vec(&config).unwrap();
    let size = config.len() as u64;
    let digest = client.push_blob("workspace/pulled", config).await.unwrap();
    let manifest = Manifest::image(Descriptor::new(MEDIA_TYPE_CONFIG, digest, size), vec![layer.blob]);
    client.push_manifest("workspace/pulled", "one", &manifest).await.unwrap();
}

async fn node_address(client: &kube::Client) -> String {
    let nodes = kube::Api::<k8s_openapi::api::core::v1::Node>::all(client.clone());
    let node = nodes.list(&kube::api::ListParams::default()).await.unwrap().items.remove(0);
    node.status.unwrap().addresses.unwrap().remove(0).address
}
