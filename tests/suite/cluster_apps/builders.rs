//! A builder of others in a job: its user, its buildpacks, its run image, and the same image as on one machine.

use super::images::image;
use crate::{
    builders::{
        application,
        house::{GID, Image, STAFF, UID, Upstream, WEB, builder, run_image, run_image_of_web},
    },
    support::{Daemon, driven, sample, sources, write},
};

#[test]
fn a_builder_of_others_builds_in_a_job_what_it_builds_on_one_machine() {
    let Some(driven) = driven("builders of others in a cluster") else { return };
    let local = Daemon::start();
    local.push("base", &sample("procfile"));
    let base = Image::base(&local, "base");
    let upstream = Upstream::start();
    upstream.let_read(&local);
    upstream.let_read(&driven.daemon);
    let run_name = upstream.name("epiniod/run:1");
    upstream.push(&run_image(&base, "the run image"), "epiniod/run", "1");
    upstream.push(&builder(&base, &run_name), "test/builder", "1");
    let name = upstream.name("test/builder:1");
    let source = sources(&driven, "built");
    application(&source);
    let push = |more: &[&str]| {
        let said = driven.push("built", &source, more);
        let output = local.command(["push", "--name", "built", "--path", source.to_str().unwrap()]).args(more).output();
        assert!(output.unwrap().status.success(), "the same push on one machine: {}", local.log_tail());
        assert_eq!(image(&driven.daemon, "built"), image(&local, "built"), "{said}");
        said
    };

    let said = push(&["--builder", &name]);
    let built = format!("built by {UID}:{GID} for test-os on test.stack");
    for part in ["copying image", "job build-", &built, "buildpacks: test_never test_site \n", "the link is whole"] {
        assert!(said.contains(part), "'{part}' is missing in:\n{said}");
    }
    let page = format!("the first page as {UID}:{GID} on the run image with a tool");
    driven.wait_until_answers("built", &page);

    // Nothing says the builder again, and the layer comes from the cache.
    write(&source, "page.txt", "the second page");
    let said = push(&[]);
    assert!(said.contains(&built) && said.contains("the tool is there"), "{said}");
    driven.wait_until_answers("built", &page.replace("first", "second"));
    let said = driven.daemon.output(["apps", "restage", "built"]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("builder and run image are the same"), "{said}");

    // A kubelet does not look a name up, and refuses what may be root.
    upstream.push(&run_image_of_web(&base, "another"), "epiniod/run", "1");
    push(&[]);
    driven.wait_until_answers("built", &format!("the second page as {WEB}:{STAFF} on another with "));
    driven.wait_until_builds_are_gone();
    driven.daemon.run(["apps", "delete", "built"]);
}
