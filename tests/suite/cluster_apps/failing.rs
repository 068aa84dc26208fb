//! What may go wrong with a build in a cluster: each is said while the push is looked at, and what passes is waited for.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{page, python};
use crate::{
    cluster_store::outages::{Line, Way},
    support::{driven, sources, write},
};

/// How soon a user is told.
const SOON: Duration = Duration::from_secs(40);
/// A build that can be seen to go on.
const SLOW: &str = "import time\nfor number in range(100):\n    say(f\"number {number}\")\n    time.sleep(0.1)";

/// For how many seconds the API server is away; `EPINIOD_TEST_AWAY_SECONDS` sets another number.
const AWAY: u64 = 20;

#[test]
fn a_build_that_takes_too_much_ends_and_the_message_names_the_setting() {
    let Some(mut driven) = driven("limits of builds in a cluster") else { return };
    driven.configure("[builds]\nmemory_bytes = 268435456\ndeadline_seconds = 20\n");
    let (greedy, slow) = (sources(&driven, "greedy"), sources(&driven, "slow"));
    python(&greedy, "greedy", "block = bytearray(1 << 30)\nfor at in range(0, len(block), 4096):\n    block[at] = 1");
    python(&slow, "slow", "import time\ntime.sleep(600)");
    let (greedy, slow) = (driven.begin_push("greedy", &greedy, &[]), driven.begin_push("slow", &slow, &[]));
    for (push, wanted) in [(greedy, "raise builds.memory_bytes"), (slow, "raise builds.deadline_seconds")] {
        let (succeeded, said) = push.end();
        assert!(!succeeded && said.contains(wanted), "'{wanted}' is missing in:\n{said}");
    }
    driven.wait_until_builds_are_gone();
    driven.daemon.run(["apps", "delete", "greedy", "slow"]);
}

#[test]
fn a_build_that_cannot_start_says_why_and_starts_when_it_can() {
    let Some(driven) = driven("builds that cannot start in a cluster") else { return };
    let builds = driven.builds();
    driven.kubectl(&["create", "quota", "none", "-n", &builds, "--hard=pods=0"]);
    let mut push = driven.begin_push("waits", &page(&driven, "waits", "at last"), &[]);
    push.until("a quota of the namespace forbids it", SOON);
    driven.kubectl(&["delete", "quota", "none", "-n", &builds]);
    let (succeeded, said) = push.end();
    assert!(succeeded, "{said}");
    driven.wait_until_answers("waits", "at last");

    let nodes = driven.kubectl(&["get", "nodes", "-o", "name"]);
    let nodes: Vec<&str> = nodes.lines().collect();
    driven.kubectl(&[&["cordon"], &nodes[..]].concat());
    let mut push = driven.begin_push("waits", &page(&driven, "waits", "at last again"), &[]);
    let told =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| push.until("no node of the cluster takes it", SOON)));
    driven.kubectl(&[&["uncordon"], &nodes[..]].concat());
    told.expect("it was told");
    let (succeeded, said) = push.end();
    assert!(succeeded, "{said}");
    driven.wait_until_answers("waits", "at last again");
    driven.daemon.run(["apps", "delete", "waits"]);
}

#[test]
fn a_build_whose_image_pod_or_job_is_lost_says_so() {
    let Some(mut driven) = driven("builds that are lost in a cluster") else { return };
    let builds = driven.builds();
    // Also for the secret: that is looked at from time to time.
    driven.push("lost", &page(&driven, "lost", "one"), &[]);
    driven.kubectl(&["delete", "secret", "epiniod-pull", "-n", &builds]);
    let source = page(&driven, "lost", "two");
    write(&source, "Aptfile", "socat\ntree\n");
    let said = driven.push_fails("lost", &source, &[]);
    assert!(said.contains("cannot be pulled") && said.contains("every node has to reach"), "{said}");
    driven.wait_until_answers("lost", "one");
    driven.configure("");

    python(&source, "three", SLOW);
    let mut push = driven.begin_push("lost", &source, &[]);
    push.until("number 0", Duration::from_secs(120));
    driven.kubectl(&["delete", "pods", "-n", &builds, "-l", "epiniod.dev/staging", "--wait=false"]);
    let (succeeded, said) = push.end();
    assert!(!succeeded && said.contains("somebody deleted its pod") && said.contains("push again"), "{said}");

    let mut push = driven.begin_push("lost", &source, &[]);
    push.until("number 0", Duration::from_secs(120));
    driven.kubectl(&["delete", "jobs", "-n", &builds, "-l", "epiniod.dev/staging", "--wait=false"]);
    let (succeeded, said) = push.end();
    assert!(!succeeded && said.contains("somebody deleted"), "{said}");
    driven.wait_until_builds_are_gone();
    driven.wait_until_answers("lost", "one");
    driven.daemon.run(["apps", "delete", "lost"]);
}

#[test]
fn a_permission_that_is_missing_is_named() {
    let Some(mut driven) = driven("a daemon with few permissions") else { return };
    let role = format!("{}-few", driven.system);
    let everything =
        |groups: &[&str], verbs: &[&str]| json!({ "apiGroups": groups, "resources": ["*"], "verbs": verbs });
    let groups =
        ["", "apps", "discovery.k8s.io", "coordination.k8s.io", "epiniod.dev", "events.k8s.io", "apiextensions.k8s.io"];
    let rules = [everything(&groups, &["*"]), everything(&["*"], &["get", "list", "watch"])];
    let role_object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": role }, "rules": rules,
    });
    driven.apply(&role_object);
    driven.kubectl(&["create", "clusterrolebinding", &role, &format!("--clusterrole={role}"), "--user=few"]);
    let kubeconfig = driven.kubeconfig(|kubeconfig| kubeconfig["users"][0]["user"]["as"] = json!("few"));
    driven.connect_by(&kubeconfig);
    let said = driven.push_fails("few", &page(&driven, "few", "never"), &[]);
    for part in ["making job build-", "jobs.batch", "cannot create", "epiniod install"] {
        assert!(said.contains(part), "'{part}' is missing in:\n{said}");
    }
    driven.daemon.run(["apps", "delete", "few"]);
    driven.kubectl(&["delete", "clusterrole,clusterrolebinding", &role]);
}

#[test]
fn builds_and_applications_outlive_an_api_server_that_is_away() {
    let Some(mut driven) = driven("a daemon whose API server is away") else { return };
    driven.push("steady", &page(&driven, "steady", "steady"), &[]);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let (host, port) = driven.cluster.server();
    let line = runtime.block_on(Line::to(&(host.clone(), port)));
    let address = line.address;
    let kubeconfig = driven.kubeconfig(|kubeconfig| {
        kubeconfig["clusters"][0]["cluster"]["tls-server-name"] = json!(host);
        kubeconfig["clusters"][0]["cluster"]["server"] = json!(format!("https://{address}"));
    });
    driven.connect_by(&kubeconfig);
    let source = sources(&driven, "away");
    python(&source, "built meanwhile", SLOW);
    let mut push = driven.begin_push("away", &source, &[]);
    push.until("number 0", Duration::from_secs(120));
    line.set(Way::Cut);
    // So long the server is away: the build ends meanwhile.
    let away = std::env::var("EPINIOD_TEST_AWAY_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(AWAY);
    std::thread::sleep(Duration::from_secs(away));
    assert!(driven.ask("steady").contains("steady"));
    line.set(Way::Open);
    let (succeeded, said) = push.end();
    assert!(succeeded, "{said}\n{}", driven.daemon.log_tail());
    driven.wait_until_answers("away", "built meanwhile");
    let numbers: Vec<usize> =
        said.lines().filter_map(|line| line.strip_prefix("number ")?.trim().parse().ok()).collect();
    assert_eq!(numbers, (0..100).collect::<Vec<_>>(), "the log is whole:\n{said}");
    driven.wait_until_builds_are_gone();
    driven.daemon.run(["apps", "delete", "away", "steady"]);

    // Whoever tells the daemon to stop does not wait until the server is back.
    line.set(Way::Cut);
    let told = Instant::now();
    driven.daemon.stop();
    assert!(told.elapsed() < Duration::from_secs(60), "it took {:?}", told.elapsed());
    drop(runtime);
}
