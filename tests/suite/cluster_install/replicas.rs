//! Two replicas on S3: one works, the other takes over, whether the first was asked to end, was killed, or fell silent.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Place, Turn, mirrors};
use crate::{
    cluster_apps::python,
    support::{
        ACCESS, Bucket, Pushing, SECRET,
        cluster::{address_towards, server_of},
        wait_until,
    },
};

/// Lines that each build writes, and how long that takes.
const LINES: usize = 100;
/// What a build has in its environment is in its log.
const BUILD: &str = "import time\nsay(\" \".join(os.environ.values()))\nfor number in range(LINES):\n    say(f\"number {number}\")\n    time.sleep(0.04)";
const DAEMONS: &str = "app.kubernetes.io/component=daemon";
/// A node that is gone is noticed when its Lease has run out, after 15 s; the next one begins in a moment, and is found by
/// the nodes in another. The rest is for a machine that has much else to do.
const SILENT: Duration = Duration::from_secs(40);

#[test]
fn two_replicas_on_s3_take_over_from_one_another_in_the_middle_of_a_push() {
    let Some(place) = Turn::take("two replicas of the daemon on S3") else { return };
    let Some(bucket) = Bucket::start_at(&address_towards(&place.kubeconfig)) else { return };
    let before = place.everything();
    what_cannot_be_shared_is_refused(&place, &bucket);
    assert_eq!(place.everything(), before, "what is refused changes nothing");
    place.import_image();
    install(&place, &bucket);
    let first = leader(&place);
    who_waits_keeps_nobody(&place, &first);
    assert!(place.kubectl(&["get", "persistentvolumeclaims", "-n", "epiniod", "-o", "name"]).is_empty());

    let source = place.dir.path().join("numbers");
    edit(&source, "text-first");
    let url = place.run(&push(&source));
    place.wait_until_answers(&url, "text-first");
    a_push_survives_its_daemon(&place, &source, &[]);
    place.wait_until_answers(&url, "text-of-grace-0");
    a_push_survives_its_daemon(&place, &source, &["--force", "--grace-period=0"]);
    place.wait_until_answers(&url, "text-of-grace-2");
    assert_ne!(leader(&place), first);
    a_silent_one_is_replaced(&place, &url);
    pods_of_another_version_roll_in(&place);
    place.wait_until_answers(&url, "text-of-grace-2");
    let environment = place.run(&["apps", "exec", "numbers", "--", "env"]);
    assert!(environment.contains("PORT=") && !knows_the_keys(&environment), "{environment}");
    no_more_than_the_daemons_know_the_keys(&place);

    let going = place.epiniod(&["uninstall", "--apps", "--yes"]);
    let said = String::from_utf8_lossy(&going.stderr);
    assert!(going.status.success() && said.contains("stay in bucket shop") && said.contains("s3 rm"), "{said}");
    assert_eq!(place.everything(), before, "nothing is left");
    assert!(!bucket.files("blobs").is_empty(), "what is in the bucket is its owner's");
}

fn what_cannot_be_shared_is_refused(place: &Place, bucket: &Bucket) {
    let said = place.fails(2, &["install", "--replicas", "2", "--ephemeral-storage"]);
    assert!(said.contains("one pod's alone") && said.contains("--s3-bucket"), "{said}");
    let endpoint = bucket.endpoint();
    let on_a_bucket = ["install", "--replicas", "2", "--s3-bucket", "shop", "--s3-endpoint", &endpoint];
    let said = place.fails(2, &[&on_a_bucket[..], &["--expose", "host-ports"]].concat());
    assert!(said.contains("ports 80 and 443 of one node") && said.contains("--expose load-balancer"), "{said}");
    let said = place.fails(2, &[&on_a_bucket[..], &["--storage-path", "/srv"]].concat());
    assert!(said.contains("one pod has at a time"), "{said}");
}

/// Installs, and is the load balancer meanwhile: one that leads to the node, where kube-proxy answers for it.
fn install(place: &Place, bucket: &Bucket) {
    let (mirrors, endpoint) = (mirrors(), bucket.endpoint());
    let mut args = vec!["install", "--replicas", "2", "--s3-bucket", "shop", "--s3-endpoint", &endpoint];
    args.extend(["--expose", "load-balancer"]);
    args.extend(mirrors.iter().map(String::as_str));
    let mut install = place.command(&args);
    keys(&mut install).stdout(Stdio::piped()).stderr(Stdio::piped());
    let install = install.spawn().expect("epiniod can be run");
    let service = ["get", "service", "-n", "epiniod", "epiniod", "-o", "name", "--ignore-not-found"];
    wait_until("the service is there", Duration::from_secs(60), || !place.kubectl(&service).is_empty());
    let (node, _) = server_of(&place.kubeconfig);
    let status = format!(r#"{{"status":{{"loadBalancer":{{"ingress":[{{"ip":"{node}"}}]}}}}}}"#);
    place.kubectl(&[
        "patch",
        "service",
        "-n",
        "epiniod",
        "epiniod",
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ]);
    let output = install.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("does not reach it"), "{said}\n{}", daemons(place));
    assert!(String::from_utf8_lossy(&output.stdout).contains(&format!("http://epinio.{node}.sslip.io")), "{output:?}");
}

/// Where the registry of a pod would be that does not lead, connections are refused: who has one there comes again.
fn who_waits_keeps_nobody(place: &Place, leader: &str) {
    let addresses = r#"jsonpath={range .items[*]}{.metadata.name} {.status.podIP}{"\n"}{end}"#;
    let addresses = place.kubectl(&["get", "pods", "-n", "epiniod", "-l", DAEMONS, "-o", addresses]);
    let mut seen = 0;
    for (pod, address) in addresses.lines().filter_map(|line| line.split_once(' ')) {
        let url = format!("http://{address}:30500/v2/");
        let curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5", &url];
        let answer = place.on_node(&curl).output().expect("curl can be run");
        let answer = (answer.status.code(), String::from_utf8_lossy(&answer.stdout).into_owned());
        // 7: the connection was refused.
        let wanted = if pod == leader { (Some(0), "401".to_owned()) } else { (Some(7), "000".to_owned()) };
        assert_eq!(answer, wanted, "{pod} at {url}, where {leader} leads");
        seen += 1;
    }
    assert_eq!(seen, 2, "{addresses}");
}

fn keys(command: &mut Command) -> &mut Command {
    command.env("AWS_ACCESS_KEY_ID", ACCESS).env("AWS_SECRET_ACCESS_KEY", SECRET)
}

fn edit(source: &Path, text: &str) {
    let _ = fs::remove_dir_all(source);
    fs::create_dir_all(source).expect("a folder");
    python(source, text, &BUILD.replace("LINES", &LINES.to_string()));
}

fn push(source: &Path) -> [&str; 5] {
    ["push", "--name", "numbers", "--path", source.to_str().expect("a path in UTF-8")]
}

fn a_push_survives_its_daemon(place: &Place, source: &Path, force: &[&str]) {
    wait_for_two(place);
    edit(source, &format!("text-of-grace-{}", force.len()));
    let before = leader(place);
    let mut push = Pushing::begin("numbers", place.command(&push(source)));
    push.until("number 5", Duration::from_secs(120));
    no_more_than_the_daemons_know_the_keys(place);
    let deleted = Instant::now();
    place.kubectl(&[&["delete", "pod", "-n", "epiniod", "--wait=false", &before], force].concat());
    wait_until("another one leads", SILENT, || leaders(place).iter().any(|name| *name != before));
    eprintln!("deleted with {force:?}: another one led after {:.1} s", deleted.elapsed().as_secs_f64());
    let (succeeded, said) = push.end();
    assert!(succeeded, "{force:?}: the push did not end well:\n{said}\n{}", daemons(place));
    assert_eq!(numbers(&said), wanted(), "{force:?}: what the client was told has a gap or a line twice:\n{said}");
    assert!(!knows_the_keys(&said), "{said}");
    let log = place.run(&["apps", "logs", "numbers", "--staging"]);
    assert_eq!(numbers(&log), wanted(), "{force:?}: the log has a gap or a line twice:\n{log}");
    let builds = ["get", "jobs,pods,secrets", "-n", "epiniod-builds", "-l", "epiniod.dev/staging", "-o", "name"];
    wait_until("nothing is left of builds", Duration::from_secs(60), || place.kubectl(&builds).is_empty());
}

fn numbers(log: &str) -> Vec<String> {
    log.lines().filter_map(|line| line.split("number ").nth(1).map(|number| number.trim().to_owned())).collect()
}

fn wanted() -> Vec<String> {
    (0..LINES).map(|number| number.to_string()).collect()
}

/// All processes of its pod stand still, as those of a node that is gone: it neither answers nor says a last word.
fn a_silent_one_is_replaced(place: &Place, url: &str) {
    wait_for_two(place);
    let before = leader(place);
    let container = place.kubectl(&[
        "get",
        "pod",
        "-n",
        "epiniod",
        &before,
        "-o",
        "jsonpath={.status.containerStatuses[0].containerID}",
    ]);
    let container = container.trim_start_matches("containerd://").to_owned();
    let task = |verb: &str| {
        let done = place.on_node(&["ctr", "-n", "k8s.io", "tasks", verb, &container]).status();
        assert!(done.expect("ctr can be run").success(), "{verb} {container}");
    };
    task("pause");
    let silent = Instant::now();
    wait_until("another one leads", SILENT, || leaders(place).iter().any(|name| *name != before));
    eprintln!("silent: another one led after {:.1} s", silent.elapsed().as_secs_f64());
    place.wait_until_answers(url, "text-of-grace-2");
    let users = place.run(&["apps", "list"]);
    assert!(users.contains("numbers"), "who was logged in is so with the next one: {users}");
    task("resume");
    wait_until("the one that was silent begins anew, and waits", Duration::from_secs(60), || {
        let restarts = "jsonpath={.status.containerStatuses[0].restartCount}";
        let restarts = place.kubectl(&["get", "pod", "-n", "epiniod", &before, "-o", restarts]);
        restarts != "0" && leaders(place).iter().all(|name| *name != before)
    });
    wait_for_two(place);
}

/// A later install keeps what was chosen, and needs no keys.
fn pods_of_another_version_roll_in(place: &Place) {
    let names = || {
        let names = ["get", "pods", "-n", "epiniod", "-l", DAEMONS, "-o", "name"];
        place.kubectl(&names).lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let before = names();
    place.run(&["install", "--env", "COLOUR=blue"]);
    wait_for_two(place);
    assert!(before.is_disjoint(&names()), "{before:?}");
    assert!(place.run(&["apps", "list"]).contains("numbers"));
}

/// Two pods are ready, and one of them leads.
fn wait_for_two(place: &Place) {
    wait_until("two pods are ready, and one leads", Duration::from_secs(60), || {
        let ready = "jsonpath={.status.readyReplicas}";
        let ready = place.kubectl(&["get", "deployment", "-n", "epiniod", "epiniod", "-o", ready]);
        ready == "2" && leaders(place).len() == 1
    });
}

fn leader(place: &Place) -> String {
    let leaders = leaders(place);
    assert_eq!(leaders.len(), 1, "{leaders:?}\n{}", daemons(place));
    leaders.into_iter().next().expect("one")
}

/// The pods that the services lead to.
fn leaders(place: &Place) -> BTreeSet<String> {
    let label = "epiniod.dev/leader=true";
    let names = "jsonpath={.items[*].metadata.name}";
    let names = place.kubectl(&["get", "pods", "-n", "epiniod", "-l", label, "-o", names]);
    names.split_whitespace().map(str::to_owned).collect()
}

fn no_more_than_the_daemons_know_the_keys(place: &Place) {
    for namespace in ["epiniod-builds", "workspace"] {
        let all = "pods,jobs,deployments,replicasets,secrets,configmaps,apps.epiniod.dev";
        let objects = place.kubectl(&["get", all, "-n", namespace, "-o", "yaml"]);
        assert!(objects.contains("kind:") && !knows_the_keys(&objects), "the keys of the bucket are in {namespace}");
    }
}

/// As they are, and as secrets and the environment of secrets have them.
fn knows_the_keys(text: &str) -> bool {
    let known = |key: &str| text.contains(key) || text.contains(&STANDARD.encode(key));
    known(ACCESS) || known(SECRET) || text.contains("epiniod-s3")
}

fn daemons(place: &Place) -> String {
    let pods = place.kubectl(&["get", "pods", "-n", "epiniod", "--show-labels"]);
    format!("{pods}{}", place.kubectl(&["logs", "-n", "epiniod", "-l", DAEMONS, "--tail=40", "--prefix"]))
}
