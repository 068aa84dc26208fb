//! The daemon's pod is deleted at any moment of a push: the next one ends what was begun, and the client gets its URL.

use std::{fs, path::Path, time::Duration};

use super::{Place, Turn};
use crate::{
    cluster_apps::python,
    support::{Pushing, SplitMix, wait_until},
};

/// Deletions; `EPINIOD_TEST_CLUSTER_KILLS` sets another number.
const DELETIONS: usize = 4;
/// Another one makes other delays; `EPINIOD_TEST_SEED` sets it.
const SEED: u64 = 20_261_126;
/// Lines that each build writes, and how long that takes.
const LINES: usize = 150;
const BUILD: &str = "import time\nfor number in range(LINES):\n    say(f\"number {number}\")\n    time.sleep(0.02)";
/// What is added to the source, so that the upload takes a while.
const BALLAST: usize = 48 << 20;

/// After which line of a push the pod is deleted, and how much later at most, in milliseconds.
const MOMENTS: [(&str, u64); 6] = [
    ("pushing ", 1000),
    ("job build-", 3000),
    ("number 0", 3000),
    ("===> EXPORTING", 700),
    ("===> DEPLOYING", 1500),
    ("staging ", 2500),
];

#[test]
fn a_daemon_whose_pod_is_deleted_loses_no_push_and_leaves_nothing() {
    let Some(place) = Turn::take("a daemon whose pod is deleted") else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = number("EPINIOD_TEST_SEED").unwrap_or(SEED);
    let deletions = number("EPINIOD_TEST_CLUSTER_KILLS").map_or(DELETIONS, |kills| kills as usize);
    eprintln!("seed {seed} (EPINIOD_TEST_SEED), {deletions} deletions (EPINIOD_TEST_CLUSTER_KILLS)");
    let mut random = SplitMix(seed);
    place.import_image();
    let data = place.folder("replaced");
    place.install(&["--storage-path", &data]);
    let source = place.dir.path().join("numbers");
    edit(&source, "text-first", &mut random);
    let url = place.run(&["push", "--name", "numbers", "--path", source.to_str().expect("a path")]);
    place.wait_until_answers(&url, "text-first");
    for round in 0..deletions {
        let (after, most) = MOMENTS[round % MOMENTS.len()];
        let delay = Duration::from_millis(random.next() % most);
        eprintln!("round {round}: {delay:?} after '{after}'");
        edit(&source, &format!("text-{round}-end"), &mut random);
        interrupted_push_ends(&place, &source, round, after, delay);
        place.wait_until_answers(&url, &format!("text-{round}-end"));
    }
    place.run(&["apps", "delete", "numbers"]);
    nothing_is_left(&place, &data);
}

fn edit(source: &Path, text: &str, random: &mut SplitMix) {
    let _ = fs::remove_dir_all(source);
    fs::create_dir_all(source).expect("a folder");
    python(source, text, &BUILD.replace("LINES", &LINES.to_string()));
    let ballast: Vec<u8> = (0..BALLAST / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    fs::write(source.join("ballast"), ballast).expect("a file");
}

fn interrupted_push_ends(place: &Place, source: &Path, round: usize, after: &str, delay: Duration) {
    let before = pod(place);
    let push = place.command(&["push", "--name", "numbers", "--path", source.to_str().expect("a path")]);
    let mut push = Pushing::begin("numbers", push);
    push.until(after, Duration::from_secs(90));
    // The moment is what is tested.
    std::thread::sleep(delay);
    // With grace, and without.
    let force: &[&str] = if round.is_multiple_of(2) { &[] } else { &["--force", "--grace-period=0"] };
    place.kubectl(&[&["delete", "pod", "-n", "epiniod", "--wait=false", before.trim()], force].concat());
    let (succeeded, said) = push.end();
    let daemon = || place.kubectl(&["logs", "-n", "epiniod", "deployment/epiniod", "--tail=50"]);
    assert!(succeeded, "round {round}: the push did not end well:\n{said}\n{}", daemon());
    wait_until("another pod takes the place of the one that was deleted", Duration::from_secs(60), || {
        let now = pod(place);
        !now.is_empty() && now != before
    });
    wait_until("the next daemon answers", Duration::from_secs(60), || place.epiniod(&["info"]).status.success());
    let heard: Vec<&str> = said.lines().filter_map(|line| line.trim().strip_prefix("number ")).collect();
    let wanted: Vec<String> = (0..LINES).map(|number| number.to_string()).collect();
    assert_eq!(heard, wanted, "round {round}: what the client was told has a gap or a line twice:\n{said}");
    let log = place.run(&["apps", "logs", "numbers", "--staging"]);
    let kept = log.lines().filter(|line| line.contains("number ")).count();
    assert_eq!(kept, LINES, "round {round}: the log has a gap or a line twice:\n{log}");
}

fn pod(place: &Place) -> String {
    let selector = "app.kubernetes.io/component=daemon";
    let phase = "--field-selector=status.phase=Running";
    place.kubectl(&["get", "pods", "-n", "epiniod", "-l", selector, phase, "-o", "jsonpath={.items[0].metadata.name}"])
}

/// Of builds nothing is left in the cluster, and of the application nothing at all.
fn nothing_is_left(place: &Place, data: &str) {
    let builds = ["get", "jobs,pods,secrets", "-n", "epiniod-builds", "-l", "epiniod.dev/staging", "-o", "name"];
    wait_until("nothing is left of builds", Duration::from_secs(60), || place.kubectl(&builds).is_empty());
    let app = ["get", "all,secrets", "-n", "workspace", "-l", "epiniod.dev/app=numbers", "-o", "name"];
    wait_until("nothing is left of the application", Duration::from_secs(60), || place.kubectl(&app).is_empty());
    let half = format!("{data}/epiniod/blobs/tmp");
    wait_until("no half of a blob is left", Duration::from_secs(60), || {
        let found = place.on_node(&["find", &half, "-type", "f"]).output().expect("find can be run");
        found.status.success() && found.stdout.is_empty()
    });
}
