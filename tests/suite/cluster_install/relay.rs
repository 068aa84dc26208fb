//! Where ports of services do not answer on the nodes' own 127.0.0.1: a push says so, and a relay on each node is the way.

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::Place;
use crate::support::{sample, wait_until};

const SETTINGS: [(&str, &str); 1] = [("EPINIOD_CLUSTER_LOCALHOST_NODE_PORTS", "false")];
const PAGE: &str = "Static sample";
/// What kubeadm writes where kube-proxy reads it.
const PROXY: &str = "mode: iptables\niptables:\n  localhostNodePorts: false\n";

#[test]
fn nodes_whose_ports_do_not_answer_on_localhost_pull_by_a_relay() {
    let what = "a cluster whose node ports do not answer on localhost";
    let Some(place) = Place::make_with(what, "relay", &SETTINGS) else { return };
    let before = place.everything();
    place.import_image();
    let data = place.folder("relayed");
    let site = sample("static");
    let push = ["push", "--name", "site", "--path", site.to_str().expect("a path")];

    // Nothing in the cluster says what its kube-proxy does.
    place.install(&["--storage-path", &data]);
    let begun = Instant::now();
    let said = place.fails(6, &push);
    eprintln!("the push failed after {:?}", begun.elapsed());
    assert!(said.contains("nobody answers on 127.0.0.1:30500 of its node (connection refused)"), "{said}");
    assert!(said.contains("'epiniod install --registry-relay always'"), "{said}");

    place.run(&["install", "--registry-relay", "always"]);
    assert_eq!(place.registry()["type"], "ClusterIP");
    is_harmless(&place.set());
    let url = place.run(&push);
    place.wait_until_answers(&url, PAGE);
    let pods = place.relays();
    place.run(&["install"]);
    assert_eq!((place.relays(), place.registry()["type"].as_str()), (pods, Some("ClusterIP")), "the wish is kept");

    place.run(&["install", "--registry-relay", "never"]);
    let registry = place.registry();
    assert_eq!((&registry["type"], &registry["ports"][0]["nodePort"]), (&json!("NodePort"), &json!(30500)));
    assert_eq!(place.kubectl(&["get", "namespace", "epiniod-relay", "--ignore-not-found"]), "");

    // Now it says it.
    let config = format!("--from-literal=config.conf={PROXY}");
    place.kubectl(&["create", "configmap", "kube-proxy", "-n", "kube-system", &config]);
    let somebody = Somebody::listens(&place);
    let said = place.fails(3, &["install", "--registry-relay", "auto"]);
    assert!(said.contains("epiniod-relay: ") && said.contains("127.0.0.1:30500 of this node"), "{said}");
    assert!(said.contains("in use"), "{said}");
    drop(somebody);
    place.run(&["install"]);
    let url = place.run(&["push", "--name", "again", "--path", sample("procfile").to_str().expect("a path")]);
    place.wait_until_answers(&url, "Hello from the Procfile sample");

    place.run(&["uninstall", "--apps", "--yes"]);
    assert_eq!(place.everything(), before, "nothing is left");
}

impl Place {
    fn json(&self, args: &[&str]) -> Value {
        let text = self.kubectl(&[&["get", "-o", "json"], args].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    fn registry(&self) -> Value {
        self.json(&["service", "-n", "epiniod", "epiniod-registry"])["spec"].take()
    }

    fn set(&self) -> Value {
        self.json(&["daemonset", "-n", "epiniod-relay", "epiniod-relay"])
    }

    fn relays(&self) -> String {
        self.kubectl(&["get", "pods", "-n", "epiniod-relay", "-o", "name"])
    }
}

/// Besides the node's network, nothing that the level `restricted` refuses.
fn is_harmless(set: &Value) {
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["tolerations"], json!([{ "operator": "Exists" }]), "every node has one");
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let container = &pod["containers"][0];
    assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    assert!(container["resources"]["limits"]["memory"].is_string(), "{container}");
    assert!(pod["volumes"].is_null() && container["volumeMounts"].is_null(), "{pod}");
}

/// A program of the node that has the port already, until its stdin ends.
struct Somebody(Child);

impl Somebody {
    fn listens(place: &Place) -> Self {
        let script = "busybox nc -ll -p 30500 -e true & cat >/dev/null; kill $!";
        let somebody = Self(place.on_node(&["sh", "-c", script]).stdin(Stdio::piped()).spawn().expect("a program"));
        wait_until("the port of the node is taken", Duration::from_secs(10), || {
            let sockets = place.on_node(&["cat", "/proc/net/tcp", "/proc/net/tcp6"]).output().expect("a list");
            // In hexadecimal, and the state of who listens.
            let sockets = String::from_utf8_lossy(&sockets.stdout).into_owned();
            sockets.lines().any(|line| line.contains(":7724 ") && line.contains(" 0A "))
        });
        somebody
    }
}

impl Drop for Somebody {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
