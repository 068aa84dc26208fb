//! Builders of others: images with buildpacks from registries and OCI layouts, and what is built on their run images.

pub mod house;

use std::{fs, path::Path};

use serde_json::json;

use self::house::{GID, Image, OTHERS, STAFF, UID, Upstream, WEB, builder, layout, run_image, run_image_of_web};
use crate::support::{Daemon, Packages, RunBy, Surroundings, get, request, sample, write};

/// A daemon that has pushed a sample, and the base of that sample.
fn daemon_and_base() -> (Daemon, Image) {
    let daemon = Daemon::start();
    daemon.push("base", &sample("procfile"));
    let base = Image::base(&daemon, "base");
    (daemon, base)
}

/// An application that no embedded buildpack takes.
pub fn application(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    write(dir, "page.txt", "the first page");
    fs::copy(sample("procfile").join("serve.sh"), dir.join("serve.sh")).unwrap();
    write(
        dir,
        "answer.sh",
        "#!/bin/bash\nwhile read -r line && [ \"${line%$'\\r'}\" != \"\" ]; do :; done\n\
         body=\"$(cat page.txt) as $(id -u):$(id -g) on $(cat /etc/run-image) with $(tool)\"\n\
         printf 'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n%s' \"${#body}\" \"$body\"\n",
    );
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(dir.join("answer.sh"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// What a push says, which has to succeed or to fail.
fn push(daemon: &Daemon, path: &Path, more: &[&str], succeeds: bool) -> String {
    let output =
        daemon.command(["push", "--name", "site", "--path", path.to_str().unwrap()]).args(more).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.success(), succeeds, "push {more:?}:\n{text}\n--- daemon\n{}", daemon.log_tail());
    text
}

fn page(daemon: &Daemon) -> String {
    get(&daemon.url("site")).unwrap().body
}

fn shown_builder(daemon: &Daemon) -> String {
    let shown = daemon.run(["apps", "show", "site", "--output", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    shown["staging"]["builder"].as_str().unwrap_or("default").to_owned()
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "'{part}' is missing in:\n{text}");
    }
}

#[test]
fn an_application_is_built_with_a_builder_from_a_registry_until_it_is_told_otherwise() {
    let (daemon, base) = daemon_and_base();
    let mut upstream = Upstream::start();
    upstream.let_read(&daemon);
    // In this registry only tags below `epiniod` may move.
    let run_name = upstream.name("epiniod/run:1");
    upstream.push(&run_image(&base, "the first run image"), "epiniod/run", "1");
    upstream.push(&builder(&base, &run_name), "epiniod/builder", "1");
    let name = upstream.name("epiniod/builder:1");
    let source = daemon.dir().join("source");
    application(&source);

    let said = push(&daemon, &source, &["--builder", &name], true);
    let built = format!("built by {UID}:{GID} for test-os on test.stack");
    has(&said, &[&built, "buildpacks: test_never test_site \n", "the link is whole", "copying image", "test/site 1"]);
    for wrong in ["the removed file is there", "the fifo is there", "the tool is there"] {
        assert!(!said.contains(wrong), "{said}");
    }
    let first = format!("the first page as {UID}:{GID} on the first run image with a tool");
    assert_eq!(page(&daemon), first);
    assert_eq!(shown_builder(&daemon), name);
    let of_image = house::run_image_of(&daemon, "site");
    assert_eq!(of_image["image"], run_name, "what a rebase looks for is the name that the builder gives");
    assert!(of_image["reference"].as_str().unwrap().starts_with("127.0.0.1:30500/epiniod/run-images@"), "{of_image}");

    // Nothing says the builder again: it stays the application's.
    has(&push(&daemon, &source, &[], true), &["nothing changed since staging", "builder and run image are the same"]);
    write(&source, "page.txt", "the second page");
    let said = push(&daemon, &source, &[], true);
    has(&said, &[&built, "the tool is there"]);
    assert!(!said.contains("copying image"), "what is here is not fetched again: {said}");
    assert_eq!(page(&daemon), first.replace("first page", "second page"));

    // The tag of the run image moves.
    upstream.push(&run_image(&base, "the second run image"), "epiniod/run", "1");
    has(&push(&daemon, &source, &[], true), &["copying image"]);
    assert_eq!(page(&daemon), format!("the second page as {UID}:{GID} on the second run image with a tool"));

    // A registry that is down stops nobody who has a copy.
    upstream.stop();
    write(&source, "page.txt", "the third page");
    let said = push(&daemon, &source, &[], true);
    has(&said, &["cannot be reached", "the copy that was used before is used"]);
    assert_eq!(page(&daemon), format!("the third page as {UID}:{GID} on the second run image with a tool"));

    // A push that fails changes nothing, also not the builder.
    has(&push(&daemon, &source, &["--builder", "default"], false), &["there is no requirements.txt"]);
    assert_eq!(shown_builder(&daemon), name);
    push(&daemon, &sample("procfile"), &["--builder-image", "default"], true);
    assert_eq!(page(&daemon).trim(), "Hello from the Procfile sample");
    assert_eq!(shown_builder(&daemon), "default");
}

#[test]
fn a_builder_in_an_oci_layout_brings_its_run_image_and_needs_no_rights() {
    let (_daemon, base) = daemon_and_base();
    let daemon = Daemon::start_with(Packages::Own, RunBy::Nobody);
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (run_name, run) = ("registry.invalid/test/run:1", run_image(&base, "a run image in a folder"));
    layout(folder.path(), &[("24", &builder(&base, run_name)), (run_name, &run)]);
    let source = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(source.path(), fs::Permissions::from_mode(0o755)).unwrap();
    application(source.path());
    let name = |tag: &str| format!("oci:{}{tag}", folder.path().display());
    let there = format!("24, {run_name}");
    has(&push(&daemon, source.path(), &["--builder", &name("")], false), &["it is one of several", &there]);
    has(&push(&daemon, source.path(), &["--builder", &name(":25")], false), &["there is no image '25'", &there]);
    let said = push(&daemon, source.path(), &["--builder", &name(":24")], true);
    has(&said, &[&format!("built by {UID}:{GID}"), "buildpacks: test_never test_site \n"]);
    assert_eq!(page(&daemon), format!("the first page as {UID}:{GID} on a run image in a folder with a tool"));
}

#[test]
fn an_application_runs_as_whom_its_run_image_names() {
    let (daemon, base) = daemon_and_base();
    let upstream = Upstream::start();
    upstream.let_read(&daemon);
    let source = daemon.dir().join("source");
    application(&source);
    upstream.push(&builder(&base, &upstream.name("epiniod/run:1")), "test/builder", "1");
    let builder = upstream.name("test/builder:1");
    for (user, uid, gid) in [("web", WEB, STAFF), ("web:others", WEB, OTHERS), (&format!("{WEB}"), WEB, STAFF)] {
        upstream.push(&run_image_of_web(&base, user).with_user(user), "epiniod/run", "1");
        push(&daemon, &source, &["--builder", &builder], true);
        // The tool is its builder's alone.
        assert_eq!(page(&daemon), format!("the first page as {uid}:{gid} on {user} with "));
        assert_eq!(house::user_of(&daemon, "site"), format!("{uid}:{gid}"), "in numbers, for who reads no files");
    }
}

#[test]
fn what_is_no_builder_for_this_machine_is_refused_with_the_reason() {
    let (daemon, base) = daemon_and_base();
    let upstream = Upstream::start();
    let run = run_image(&base, "a run image");
    let right = builder(&base, &upstream.name("test/run:1"));
    upstream.push(&run, "test/run", "1");
    upstream.push(&right, "test/builder", "1");
    upstream.push(&builder(&base, &upstream.name("test/missing:1")), "test/builder", "without-run-image");
    let mut other = right.clone();
    other.config.architecture = "s390x".to_owned();
    upstream.push(&other, "test/builder", "other");
    let root = right.clone().with_env("CNB_USER_ID", "0");
    upstream.push(&root, "test/builder", "root");
    let source = daemon.dir().join("source");
    application(&source);
    let refused = |name: &str, parts: &[&str]| {
        let said = push(&daemon, &source, &["--builder", name], false);
        has(&said, &[&[name], parts].concat());
    };

    upstream.give_credential(&daemon, "reader:wrong");
    refused(&upstream.name("test/builder:1"), &["does not let us read image", "registries.json"]);
    fs::write(daemon.data_dir().join("registries.json"), "no JSON").unwrap();
    let said = push(&daemon, &source, &["--builder", &upstream.name("test/builder:1")], false);
    has(&said, &["the credentials of registries in", "registries.json cannot be read"]);
    upstream.let_read(&daemon);
    refused(&upstream.name("test/builder:2"), &["there is no image", "check its name and tag"]);
    refused(&upstream.name("test/nothing"), &["there is no image"]);
    refused("127.0.0.1:9/test/builder:1", &["registry 127.0.0.1:9", "cannot be reached"]);
    refused(&upstream.name("test/run:1"), &["is no builder: it has no label io.buildpacks.builder.metadata"]);
    refused(&upstream.name("test/builder:other"), &["is for linux/s390x, and this machine is linux/"]);
    refused(&upstream.name("test/builder:root"), &["its CNB_USER_ID is '0'"]);
    let missing = upstream.name("test/missing:1");
    refused(
        &upstream.name("test/builder:without-run-image"),
        &["the run image of builder", &missing, "there is no image"],
    );
    for (user, why) in [
        ("root", "applications would run as root on it, as its User is 'root'"),
        ("0:7", "applications would run as root on it, as its User is '0:7'"),
        ("", "applications would run as root on it, as its User is ''"),
        ("someone", "its User is 'someone', and its /etc/passwd has no 'someone'"),
        ("web:someones", "its User is 'web:someones', and its /etc/group has no 'someones'"),
        ("70000:1", "its User is '70000:1', which is 70000:1, and users go up to 65535"),
    ] {
        upstream.push(&run_image_of_web(&base, "a run image").with_user(user), "epiniod/run", "user");
        upstream.push(&builder(&base, &upstream.name("epiniod/run:user")), "test/builder", "user");
        let name = upstream.name("test/builder:user");
        let said = push(&daemon, &source, &["--builder", &name], false);
        has(&said, &[&upstream.name("epiniod/run:user"), why, "choose a builder with another run image"]);
    }
    refused("oci:/nonexistent", &["cannot be read from /nonexistent/index.json"]);
    for wrong in ["oci:relative", "UPPER CASE", "https://host/x"] {
        let said = push(&daemon, &source, &["--builder", wrong], false);
        has(&said, &[wrong, "is not valid"]);
    }
    let answer = request(&[
        "-u",
        &format!("admin:{}", daemon.password),
        "-T",
        source.join("page.txt").to_str().unwrap(),
        &daemon.api("/push/workspace/site?builder=A%20B"),
    ]);
    let answer = answer.unwrap();
    assert!(answer.status == 400 && answer.body.contains("builder 'A B' is not valid"), "{answer:?}");

    fs::remove_file(source.join("page.txt")).unwrap();
    let said = push(&daemon, &source, &["--builder", &upstream.name("test/builder:1")], false);
    has(&said, &["site looks for page.txt", "detection by buildpack test/site failed: it ended with exit code 1"]);
    assert!(get(&daemon.url("site")).unwrap().status >= 400, "nothing of this was deployed");
}

#[test]
fn a_builder_whose_labels_say_nothing_of_it_has_a_file_that_names_its_run_image() {
    let (_daemon, base) = daemon_and_base();
    // Registries on this machine are not behind the proxy of its user.
    let environment = vec![("http_proxy", "http://127.0.0.1:9".to_owned())];
    let surroundings = Surroundings { environment, ..Surroundings::default() };
    let daemon = Daemon::start_in(surroundings, Packages::Shared, RunBy::Caller);
    let upstream = Upstream::start();
    upstream.let_read(&daemon);
    let run_name = upstream.name("test/run:1");
    upstream.push(&run_image(&base, "the run image of a file"), "test/run", "1");
    let text = format!("[[images]]\nimage = \"{run_name}\"\n");
    let image = builder(&base, "unused.invalid/x")
        .with_label("io.buildpacks.builder.metadata", &json!({ "description": "of old" }))
        .with_layer(|layer| house::file(layer, "cnb/run.toml", 0o644, &text));
    upstream.push(&image, "test/builder", "1");
    let source = daemon.dir().join("source");
    application(&source);
    push(&daemon, &source, &["--builder", &upstream.name("test/builder:1")], true);
    has(&page(&daemon), &["on the run image of a file"]);
}

#[test]
fn the_api_sets_the_builder_of_an_application_and_takes_one_with_a_staging() {
    let (daemon, base) = daemon_and_base();
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let run_name = "registry.invalid/test/run:1";
    let run = run_image(&base, "a run image");
    layout(folder.path(), &[("24", &builder(&base, run_name)), (run_name, &run)]);
    let name = format!("oci:{}:24", folder.path().display());
    let source = daemon.dir().join("source");
    application(&source);
    push(&daemon, &source, &["--builder", &name], true);
    let call = |method: &str, path: &str, body: &serde_json::Value| {
        let (user, url) = (format!("admin:{}", daemon.password), daemon.api(&format!("/api/v1{path}")));
        let answer = request(&["-u", &user, "-X", method, "-d", &body.to_string(), &url]).unwrap();
        (answer.status, answer.body)
    };
    let app = "/namespaces/workspace/applications/site";
    assert_eq!(call("PATCH", app, &json!({ "builderimage": "default", "restart": false })).0, 200);
    assert_eq!(shown_builder(&daemon), "default");
    let (status, body) = call("PATCH", app, &json!({ "builderimage": "A B" }));
    assert!(status == 400 && body.contains("builder 'A B' is not valid"), "{status} {body}");

    let staging = |body: serde_json::Value| {
        let (status, body) = call("POST", &format!("{app}/stage"), &body);
        assert_eq!(status, 200, "{body}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let id = body["stage"]["id"].as_str().unwrap().to_owned();
        call("GET", &format!("/namespaces/workspace/staging/{id}/complete"), &json!({}))
    };
    let (status, body) = staging(json!({ "app": { "name": "site" } }));
    assert!(status == 500 && body.contains("no buildpack takes this source"), "the embedded builder: {status} {body}");
    assert_eq!(staging(json!({ "app": { "name": "site" }, "builderimage": name })).0, 200);
    assert_eq!(shown_builder(&daemon), name);
    assert_eq!(staging(json!({ "app": { "name": "site" }, "builderimage": "" })).0, 200, "the one of before");
}
