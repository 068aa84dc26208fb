//! `install` replaces the daemon while a push goes on: the push ends well, and its client is told so.

use std::time::Duration;

use super::{
    Turn,
    replacing::{SEED, edit, nothing_is_left, nothing_is_missing, pod},
};
use crate::support::{Pushing, SplitMix};

/// After which line of a push `install` begins.
const MOMENTS: [&str; 4] = ["pushing ", "number 0", "===> EXPORTING", "===> DEPLOYING"];

#[test]
fn an_install_that_replaces_the_daemon_interrupts_no_push() {
    let Some(place) = Turn::take("an install while a push goes on") else { return };
    let mut random = SplitMix(SEED);
    place.import_image();
    let data = place.folder("upgraded");
    place.install(&["--storage-path", &data]);
    let source = place.dir.path().join("upgraded");
    for (round, after) in MOMENTS.into_iter().enumerate() {
        let text = format!("text-{round}-end");
        edit(&source, &text, &mut random);
        let before = pod(&place);
        let push = place.command(&["push", "--name", "numbers", "--path", source.to_str().expect("a path")]);
        let mut push = Pushing::begin("numbers", push);
        push.until(after, Duration::from_secs(90));
        place.run(&["install", "--env", &format!("COLOUR=red{round}")]);
        assert_ne!(pod(&place), before, "after '{after}': the daemon was not replaced");
        let (succeeded, said) = push.end();
        let daemon = || place.kubectl(&["logs", "-n", "epiniod", "deployment/epiniod", "--tail=50"]);
        assert!(succeeded, "after '{after}': the push did not end well:\n{said}\n{}", daemon());
        nothing_is_missing(&place, &said);
        let url = said.lines().last().expect("a URL").to_owned();
        place.wait_until_answers(&url, &text);
    }
    place.run(&["apps", "delete", "numbers"]);
    nothing_is_left(&place, &data);
}
