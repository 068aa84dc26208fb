//! The cluster that other tests use: what they rely on holds, and nothing of it stays.

use std::{fs, process::Command};

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::json;

use crate::support::{
    self,
    cluster::{Level, Origin, borrow, give_back, script},
};

mod pulling;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_on_a_ready_node_and_its_log_is_read() {
    let Some(cluster) = support::cluster("pods and their logs") else { return };
    let place = cluster.namespace(Level::Privileged).await;
    let nodes = Api::<Node>::all(place.client.clone()).list(&ListParams::default()).await.unwrap();
    assert!(!nodes.items.is_empty());
    for node in nodes {
        let conditions = node.status.unwrap().conditions.unwrap();
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        assert_eq!(ready.status, "True", "{ready:?}");
    }
    assert_eq!(place.run("greeter", "echo hello from $HOSTNAME", json!({})).await, "hello from greeter\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_resolve_names_of_the_cluster() {
    let Some(cluster) = support::cluster("names of a cluster") else { return };
    let place = cluster.namespace(Level::Privileged).await;
    let services: Api<Service> = Api::namespaced(place.client.clone(), "default");
    let address = services.get("kubernetes").await.unwrap().spec.unwrap().cluster_ip.unwrap();
    let answer = place.run("asker", "nslookup kubernetes.default.svc.cluster.local", json!({})).await;
    assert!(answer.contains(&format!("Address: {address}")), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_of_a_service_answers_on_the_loopback_of_its_node() {
    let what = "a node's ports on its loopback";
    let Some(cluster) = support::cluster(what) else { return };
    if cluster.origin == Origin::Named {
        support::not_run(&format!("{what}: not every cluster has them there, EPINIOD_TEST_KUBECONFIG names one"));
        return;
    }
    let place = cluster.namespace(Level::Privileged).await;
    place.start("web", "mkdir /www; echo it is me >/www/index.html; exec httpd -f -p 8080 -h /www").await;
    let ports = json!([{ "port": 80, "targetPort": 8080 }]);
    let service = json!({ "type": "NodePort", "selector": { "test": "web" }, "ports": ports });
    let port = node_port(&place.create("web", json!({ "spec": service })).await);
    let script = format!("until wget -q -O - http://127.0.0.1:{port}/; do usleep 100000; done");
    let answer = place.run("visitor", &script, json!({ "hostNetwork": true, "activeDeadlineSeconds": 60 })).await;
    assert!(answer.ends_with("it is me\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restricted_namespace_refuses_pods_of_root() {
    let Some(cluster) = support::cluster("restricted namespaces") else { return };
    let place = cluster.namespace(Level::Restricted).await;
    let containers = json!([{ "name": "main", "image": cluster.image }]);
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "root" },
        "spec": { "containers": containers },
    }))
    .unwrap();
    let refused = place.api().create(&PostParams::default(), &pod).await.unwrap_err().to_string();
    assert!(refused.contains("violates PodSecurity \"restricted"), "{refused}");
}

#[test]
fn a_cluster_goes_with_whom_it_was_lent_to() {
    let name = support::cluster::name("lent");
    let (lender, kubeconfig) = match borrow(&name) {
        Ok(borrowed) => borrowed,
        Err(reason) => return support::not_run(&format!("a lent cluster goes: {reason}")),
    };
    assert!(kubeconfig.exists());
    let run = ["run", "sleeper", "--image=localhost/busybox:test", "--command", "--", "sleep", "3600"];
    assert!(script("kubectl", &name).args(run).status().unwrap().success());
    let wait = ["wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s"];
    assert!(script("kubectl", &name).args(wait).status().unwrap().success());
    assert_ne!(left_of(&name), Vec::<String>::new(), "the search finds nothing: it is broken");
    assert!(give_back(lender).success(), "what is left of the cluster stands above");
    assert_eq!(left_of(&name), Vec::<String>::new());
    assert!(!kubeconfig.exists());
}

fn node_port(service: &Service) -> i32 {
    service.spec.as_ref().unwrap().ports.as_ref().unwrap()[0].node_port.expect("a port of the node")
}

/// Processes, mounts, namespaces, rules, interfaces and control groups that a cluster has on this machine. Not as
/// `down` looks for them: a process tells by its own words that it belongs there, a rule by its comment.
fn left_of(name: &str) -> Vec<String> {
    let mut left = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        // One that has ended and waits for its parent has none; that one is the machine's init, in its own time.
        if process.path().join("exe").read_link().is_err() {
            continue;
        }
        for file in ["cmdline", "cgroup"] {
            let text = fs::read(process.path().join(file)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).replace('\0', " ");
            let of_scripts = text.contains("tests/cluster/");
            if pid != std::process::id() && text.contains(name) && !of_scripts {
                left.push(format!("process {pid}: {text}"));
            }
        }
    }
    for (what, program, args) in [
        ("mount", "cat", &["/proc/self/mountinfo"] as &[_]),
        ("rule", "iptables-save", &[]),
        ("interface", "ip", &["-o", "-4", "addr"]),
        ("namespace", "ip", &["netns"]),
        ("control group", "find", &["/sys/fs/cgroup", "-name", name]),
    ] {
        let output = Command::new(program).args(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        left.extend(text.lines().filter(|line| line.contains(name)).map(|line| format!("{what}: {line}")));
    }
    left
}
