//! Into a cluster that has neither a storage class nor an ingress controller, and out of it again.

use std::fs;

use super::{Turn, mirrors};
use crate::support::sample;

const PAGE: &str = "Static sample";

#[test]
fn into_a_bare_cluster_and_out_of_it_again() {
    let Some(place) = Turn::take("install into a cluster") else { return };
    let before = place.everything();

    let said = place.fails(2, &["install"]);
    assert!(said.contains("no storage class") && said.contains("--storage-path"), "{said}");
    assert_eq!(place.everything(), before, "what cannot be decided changes nothing");

    place.run(&["install", "--ephemeral-storage", "--dry-run"]);
    assert_eq!(place.everything(), before, "a dry run changes nothing");

    let data = place.folder("bare");
    let without = place.on_node(&["ctr", "-n", "k8s.io", "images", "rm", &image()]).output();
    assert!(without.expect("ctr can be run").status.success());
    let mirrors = mirrors();
    let install: Vec<&str> =
        ["install", "--storage-path", &data].into_iter().chain(mirrors.iter().map(String::as_str)).collect();
    let said = place.fails(3, &install);
    assert!(said.contains("does not have the image") && said.contains("ctr -n k8s.io images import"), "{said}");

    place.import_image();
    let login = place.install(&["--storage-path", &data]);
    assert_eq!(login.user, "admin");
    let settings = fs::read_to_string(place.settings()).expect("the settings were written");
    assert!(settings.contains(&login.url), "{settings}");

    let app = place.run(&["push", "--name", "site", "--path", sample("static").to_str().unwrap()]);
    place.wait_until_answers(&app, PAGE);

    let pods = || place.kubectl(&["get", "pods", "-n", "epiniod", "-o", "name"]);
    let pod = pods();
    let again = place.run(&["install"]);
    assert!(again.contains("as before") && again.contains(&login.url), "{again}");
    assert_eq!(pods(), pod, "an install that changes nothing replaces nothing");

    place.run(&["install", "--env", "COLOUR=blue"]);
    assert_ne!(pods(), pod);
    place.wait_until_answers(&app, PAGE);

    let said = place.fails(2, &["uninstall"]);
    assert!(said.contains("--yes"), "{said}");
    place.run(&["uninstall", "--yes"]);
    let kept = place.kubectl(&["get", "deployments", "-n", "workspace", "-o", "name"]);
    assert_eq!(kept.trim(), "deployment.apps/site", "applications are kept unless told otherwise");
    place.run(&["uninstall", "--apps", "--yes"]);
    assert_eq!(place.everything(), before, "nothing is left");
}

/// As a node without an image of its own has it.
fn image() -> String {
    format!("localhost/epiniod:{}", env!("CARGO_PKG_VERSION"))
}
