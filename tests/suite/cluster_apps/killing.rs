//! A daemon that is killed at any moment of a push: the cluster goes on, and the next daemon ends what was begun.

use std::{fs, path::Path, time::Duration};

use super::python;
use crate::support::{SplitMix, Turn, driven, sources, wait_until};

/// Kills; `EPINIOD_TEST_CLUSTER_KILLS` sets another number.
const KILLS: usize = 4;
/// Another one makes other delays; `EPINIOD_TEST_SEED` sets it.
const SEED: u64 = 20_261_126;
/// Lines that each build writes, and how long that takes.
const LINES: usize = 150;
const BUILD: &str = "import time\nfor number in range(LINES):\n    say(f\"number {number}\")\n    time.sleep(0.02)";

/// After which line of a push the daemon is killed, and how much later at most, in milliseconds.
const MOMENTS: [(&str, u64); 4] =
    [("job build-", 3000), ("number 0", 3000), ("===> EXPORTING", 700), ("staging ", 2500)];

#[test]
fn a_daemon_that_is_killed_loses_no_line_and_leaves_nothing_in_the_cluster() {
    let Some(mut driven) = driven("a daemon that is killed while a cluster builds") else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = number("EPINIOD_TEST_SEED").unwrap_or(SEED);
    let kills = number("EPINIOD_TEST_CLUSTER_KILLS").map_or(KILLS, |kills| kills as usize);
    eprintln!("seed {seed} (EPINIOD_TEST_SEED), {kills} kills (EPINIOD_TEST_CLUSTER_KILLS)");
    let mut random = SplitMix(seed);
    let source = sources(&driven, "numbers");
    edit(&source, "text-first");
    driven.push("numbers", &source, &[]);
    for round in 0..kills {
        let (after, most) = MOMENTS[round % MOMENTS.len()];
        let delay = Duration::from_millis(random.next() % most);
        eprintln!("round {round}: {delay:?} after '{after}'");
        edit(&source, &format!("text-{round}-end"));
        killed_push_ends(&mut driven, &source, round, after, delay);
    }
    driven.wait_until_builds_are_gone();
    driven.daemon.run(["apps", "delete", "numbers"]);
    let left = ["get", "all,secrets", "-n", "workspace", "-l", "epiniod.dev/app=numbers", "-o", "name"];
    wait_until("nothing of the application is left", Duration::from_secs(60), || driven.kubectl(&left).is_empty());
}

fn edit(source: &Path, text: &str) {
    let _ = fs::remove_dir_all(source);
    fs::create_dir_all(source).expect("a folder");
    python(source, text, &BUILD.replace("LINES", &LINES.to_string()));
}

fn killed_push_ends(driven: &mut Turn, source: &Path, round: usize, after: &str, delay: Duration) {
    let mut push = driven.begin_push("numbers", source, &[]);
    let staging = push.staging();
    push.until(after, Duration::from_secs(90));
    // The moment is what is tested.
    std::thread::sleep(delay);
    driven.daemon.kill();
    driven.daemon.resume();
    let (succeeded, said) = push.end();
    assert!(succeeded, "round {round}: the push did not end well:\n{said}\n{}", driven.daemon.log_tail());
    let shown = driven.daemon.run(["apps", "show", "numbers", "--output", "json"]);
    assert!(shown.contains(&format!("\"stage_id\": \"{staging}\"")), "round {round}: {shown}");
    let heard = said.lines().filter(|line| line.contains("number ")).count();
    assert_eq!(heard, LINES, "round {round}: what the client was told has a gap or a line twice:\n{said}");
    driven.wait_until_answers("numbers", &format!("text-{round}-end"));
    let log = driven.daemon.run(["apps", "logs", "numbers", "--staging"]);
    let numbers: Vec<usize> =
        log.lines().filter_map(|line| line.split("number ").nth(1)?.trim().parse().ok()).collect();
    let wanted: Vec<usize> = (0..LINES).collect();
    assert_eq!(numbers, wanted, "round {round}: the log of staging {staging} has a gap or a line twice:\n{log}");
    // Once before the job, as it tells what the job is made of, and once in it.
    for (part, times) in [("===> DETECTING", 2), ("===> BUILDING", 1), ("===> EXPORTING", 1)] {
        let found = log.lines().filter(|line| line.contains(part)).count();
        assert_eq!(found, times, "round {round}: '{part}' in the log of staging {staging}:\n{log}");
    }
}
