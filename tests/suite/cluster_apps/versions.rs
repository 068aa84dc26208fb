//! Versions that do not come up: the message says why, the one before serves, nothing of the other stays.

use std::time::Duration;

use super::{page, program};
use crate::support::{Driven, driven, request, wait_until};

#[test]
fn a_version_that_does_not_come_up_is_undone_and_its_last_words_are_said() {
    let Some(driven) = driven("versions that fail in a cluster") else { return };
    driven.push("shop", &page(&driven, "shop", "the good one"), &[]);
    // This one takes the whole time that a version may take.
    let deaf = program(&driven, "deaf", "echo my ears are shut; exec sleep 1000");
    let deaf = driven.begin_push("deaf", &deaf, &[]);

    let dies = program(&driven, "dies", "echo there is no database; exit 3");
    let said = driven.push_fails("shop", &dies, &[]);
    for part in ["there is no database", "exit code 3"] {
        assert!(said.contains(part), "'{part}' is missing in:\n{said}");
    }
    driven.wait_until_answers("shop", "the good one");
    nothing_stays(&driven, "shop", 2);

    without_its_image(&driven);

    let (succeeded, said) = deaf.end();
    assert!(!succeeded && said.contains("my ears are shut") && said.contains("$PORT"), "{said}");
    nothing_stays(&driven, "deaf", 1);
    let services =
        driven.kubectl(&["get", "deployments,services", "-n", "workspace", "-l", "epiniod.dev/app=deaf", "-o", "name"]);
    assert_eq!(services, "", "nothing serves");
    driven.daemon.run(["apps", "delete", "shop"]);
    driven.daemon.run(["apps", "delete", "deaf"]);
}

/// The registry has lost an image that the node does not have either.
fn without_its_image(driven: &Driven) {
    let second = page(driven, "second", "the other one");
    let said = driven.push("lost", &second, &[]);
    let image = said.lines().find_map(|line| line.strip_prefix("image ")?.split(": ").next()).expect("an image");
    let (name, digest) = image.split_once('@').expect("a digest");
    let repository = name.split_once('/').expect("a repository").1;
    driven.daemon.run(["apps", "scale", "lost", "0"]);
    wait_until("it is stopped", Duration::from_secs(60), || {
        driven.kubectl(&["get", "pods", "-n", "workspace", "-l", "epiniod.dev/app=lost", "-o", "name"]).is_empty()
    });
    let Some(mut enter) = driven.cluster.on_node() else {
        return crate::support::not_run(
            "a node that loses an image: EPINIOD_TEST_KUBECONFIG names a cluster of others",
        );
    };
    let removed = enter.args(["ctr", "-n", "k8s.io", "images", "rm", image]).output().expect("ctr runs");
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    let url = format!("http://{}/v2/{repository}/manifests/{digest}", driven.registry);
    let user = format!("admin:{}", driven.daemon.password);
    let answer = request(&["-u", &user, "-X", "DELETE", &url]).expect("an answer");
    assert_eq!(answer.status, 202, "{}", answer.body);
    driven.daemon.run(["apps", "scale", "lost", "1"]);
    let output = driven.daemon.output(["apps", "restart", "lost"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("cannot be pulled") && said.contains(digest), "{said}");
    driven.daemon.run(["apps", "delete", "lost"]);
}

/// Neither pods nor the environment of a release.
fn nothing_stays(driven: &Driven, app: &str, release: u32) {
    let label = format!("epiniod.dev/app={app},epiniod.dev/release={release}");
    let left = driven.kubectl(&["get", "pods,secrets", "-n", "workspace", "-l", &label, "-o", "name"]);
    assert_eq!(left, "", "of release {release} of {app}");
}
