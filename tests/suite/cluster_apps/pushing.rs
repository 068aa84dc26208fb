//! A push, from the job to the page, and what is left when the application is deleted.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{HELLO, watch::Watch};
use crate::support::{driven, sample, wait_until};

#[test]
fn a_push_becomes_a_job_an_image_and_a_deployment_and_deleting_leaves_nothing() {
    let Some(driven) = driven("a push to a cluster") else { return };
    let (pods, secrets) = (Watch::of_builds(&driven, "pods"), Watch::of_builds(&driven, "secrets"));
    let said = driven.push("page", &sample("procfile"), &[]);
    in_order(
        &said,
        &["===> DETECTING", "job build-", "===> BUILDING", "Procfile: 1 process", "===> EXPORTING", "===> DEPLOYING"],
    );
    driven.wait_until_answers("page", HELLO);
    let log = driven.daemon.run(["apps", "logs", "page", "--staging"]);
    in_order(&log, &["===> DETECTING", "job build-", "===> BUILDING", "Procfile: 1 process", "===> EXPORTING"]);
    driven.wait_until_builds_are_gone();
    wait_until("the watch has told of the pod's end", Duration::from_secs(20), || {
        pods.seen().iter().any(|pod| pod["status"]["phase"] == "Succeeded")
    });
    let pod = pods.seen().pop().expect("a pod");
    is_harmless(&pod);
    let secret = secrets.seen().into_iter().find(|secret| secret["data"].is_object()).expect("a secret");
    builds_know_no_credential(&pod, &secret);

    let jobs = pods.seen().len();
    let again = driven.push("page", &sample("procfile"), &[]);
    assert!(again.contains("nothing changed since staging") && !again.contains("job build-"), "{again}");
    assert_eq!(pods.seen().len(), jobs, "a push without a change needs no pod");
    driven.wait_until_answers("page", HELLO);

    driven.daemon.run(["apps", "delete", "page"]);
    let kinds = driven.kubectl(&["api-resources", "--verbs=list", "--namespaced", "-o", "name"]);
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    let kinds = kinds.join(",");
    wait_until("nothing of the application is left", Duration::from_secs(60), || {
        driven.kubectl(&["get", &kinds, "-n", "workspace", "-l", "epiniod.dev/app=page", "-o", "name"]).is_empty()
    });
    let all = driven.kubectl(&["get", &kinds, "-n", "workspace", "-o", "name"]);
    assert!(!all.lines().any(|name| name.contains("page")), "{all}");
}

/// What the Pod Security level `restricted` asks for, and more: no account, nothing from the environment.
fn is_harmless(pod: &Value) {
    let spec = &pod["spec"];
    let names = |list: &Value| -> Vec<String> {
        let all = list.as_array().expect("containers").iter();
        all.map(|container| container["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&spec["initContainers"]), ["prepare", "build"]);
    assert_eq!(names(&spec["containers"]), ["export"]);
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    for volume in spec["volumes"].as_array().expect("volumes") {
        assert!(volume["projected"].is_null() && volume["hostPath"].is_null(), "{volume}");
    }
    for container in containers(pod) {
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false, "{container}");
        assert_eq!(container["securityContext"]["capabilities"]["drop"], serde_json::json!(["ALL"]), "{container}");
        assert!(container["env"].is_null() && container["envFrom"].is_null(), "{container}");
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        assert!(mounts.iter().all(|mount| !mount["mountPath"].as_str().expect("a path").contains("serviceaccount")));
    }
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let list = |name: &str| pod["spec"][name].as_array().expect("containers").iter();
    list("initContainers").chain(list("containers"))
}

/// The token of the staging is in what the container `build` may read neither as a file nor in its specification.
fn builds_know_no_credential(pod: &Value, secret: &Value) {
    let step = |name: &str| {
        let text = STANDARD.decode(secret["data"][name].as_str().expect("a step")).expect("base64");
        String::from_utf8(text).expect("text")
    };
    let prepare: Value = serde_json::from_str(&step("prepare")).expect("JSON");
    let token = prepare["files"]["/run/epiniod/token"].as_str().expect("the token of the staging").to_owned();
    assert!(step("export").contains(&token) && !step("build").contains(&token), "{}", step("build"));
    let build = containers(pod).find(|container| container["name"] == "build").expect("the build");
    let mounted =
        |volume: &Value| build["volumeMounts"].as_array().expect("mounts").iter().any(|m| m["name"] == volume["name"]);
    for volume in pod["spec"]["volumes"].as_array().expect("volumes").iter().filter(|volume| mounted(volume)) {
        assert!(volume["name"] != "run-prepare" && volume["name"] != "run-export", "{volume}");
        if volume["secret"].is_object() {
            assert_eq!(volume["secret"]["items"], serde_json::json!([{ "key": "build", "path": "step.json" }]));
        }
    }
}

pub(super) fn in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let at = rest.find(part).unwrap_or_else(|| panic!("'{part}' is missing, or too early, in:\n{text}"));
        rest = &rest[at + part.len()..];
    }
}
