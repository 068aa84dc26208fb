//! The same source is the same image, wherever it is built.

use super::python;
use crate::support::{Daemon, driven, sample, sources};

#[test]
fn a_cluster_and_one_machine_make_the_same_images() {
    let Some(driven) = driven("images of a cluster and of one machine") else { return };
    let local = Daemon::start();
    let own = sources(&driven, "own");
    python(&own, "the same everywhere", "pass");
    for (name, path) in
        [("static", sample("static")), ("procfile", sample("procfile")), ("python", sample("python")), ("own", own)]
    {
        local.push(name, &path);
        driven.push(name, &path, &[]);
        assert_eq!(image(&driven.daemon, name), image(&local, name), "the image of {name}");
        driven.daemon.run(["apps", "delete", name]);
    }
}

pub(super) fn image(daemon: &Daemon, app: &str) -> String {
    let shown: serde_json::Value =
        serde_json::from_str(&daemon.run(["apps", "show", app, "--output", "json"])).expect("JSON");
    let image = shown["image_url"].as_str().expect("an image").to_owned();
    assert!(image.contains("@sha256:"), "{image}");
    image
}
