//! What somebody else changes in the cluster is made as it was.

use std::time::{Duration, Instant};

use super::page;
use crate::support::{Driven, driven, wait_until};

/// What watches tell is put right as soon as it is told.
const AT_ONCE: Duration = Duration::from_secs(20);
/// All else when everything is looked at.
const NEXT_LOOK: Duration = Duration::from_secs(75);

#[test]
fn what_people_change_by_hand_is_put_right() {
    let Some(driven) = driven("changes by hand in a cluster") else { return };
    driven.push("heal", &page(&driven, "heal", "still here"), &["-e", "A=1"]);
    driven.wait_until_answers("heal", "still here");
    let of_app = ["-n", "workspace"];
    // These are seen later than the others, so they come first.
    driven.kubectl(&[&["delete", "secret", "epiniod-pull", "heal-env-1"], &of_app[..]].concat());
    let deleted = Instant::now();

    driven.daemon.run(["apps", "scale", "heal", "2"]);
    wait_until("two instances are ready", Duration::from_secs(60), || ready(&driven).len() == 2);

    driven.kubectl(&[&["scale", "deployment", "heal", "--replicas=3"], &of_app[..]].concat());
    let replicas = ["get", "deployment", "heal", "-n", "workspace", "-o", "jsonpath={.spec.replicas}"];
    wait_until("there are two again", AT_ONCE, || driven.kubectl(&replicas) == "2");

    driven.kubectl(&[&["delete", "service", "heal"], &of_app[..]].concat());
    wait_until("the service is there again", AT_ONCE, || {
        !driven.kubectl(&["get", "services", "heal", "-n", "workspace", "--ignore-not-found"]).is_empty()
    });
    driven.wait_until_answers("heal", "still here");

    driven.kubectl(&[&["set", "image", "deployment/heal", "app=localhost/busybox:test"], &of_app[..]].concat());
    let image =
        ["get", "deployment", "heal", "-n", "workspace", "-o", "jsonpath={.spec.template.spec.containers[0].image}"];
    wait_until("it has its own image again", AT_ONCE, || driven.kubectl(&image).starts_with("127.0.0.1:30500/"));
    driven.wait_until_answers("heal", "still here");

    let before = ready(&driven);
    driven.kubectl(&[&["delete", "pod", "--wait=false", &before[0]], &of_app[..]].concat());
    wait_until("another pod is in its place", Duration::from_secs(60), || {
        let now = ready(&driven);
        now.len() == 2 && !now.contains(&before[0])
    });

    driven.kubectl(&[&["delete", "deployment", "heal"], &of_app[..]].concat());
    wait_until("the deployment is there again", AT_ONCE, || {
        !driven.kubectl(&["get", "deployments", "heal", "-n", "workspace", "--ignore-not-found"]).is_empty()
    });
    let secrets =
        ["get", "secrets", "epiniod-pull", "heal-env-1", "-n", "workspace", "--ignore-not-found", "-o", "name"];
    wait_until("the secrets are there again", NEXT_LOOK.saturating_sub(deleted.elapsed()), || {
        driven.kubectl(&secrets).lines().count() == 2
    });
    wait_until("two instances are ready", Duration::from_secs(60), || ready(&driven).len() == 2);
    driven.wait_until_answers("heal", "still here");
    driven.daemon.run(["apps", "delete", "heal"]);
}

/// The pods that serve.
fn ready(driven: &Driven) -> Vec<String> {
    let pods = driven.objects(&["pods", "-n", "workspace", "-l", "epiniod.dev/app=heal"]);
    let is_ready = |pod: &&serde_json::Value| {
        let conditions = pod["status"]["conditions"].as_array();
        pod["metadata"]["deletionTimestamp"].is_null()
            && conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
    };
    pods.iter().filter(is_ready).map(|pod| pod["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
}
