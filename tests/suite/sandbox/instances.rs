//! Instances: started, ready, restarted, stopped; and what a daemon finds when it starts.

use std::{fs, time::Duration};

use epiniod::runtime::{Ended, InstanceState, LogQuery, LogStream, Runtime as _};
use futures::StreamExt as _;

use super::house::{House, PATIENCE, as_root, ask, image, text};

/// A monitor may not be larger, in KiB.
const MONITOR_KIB: u64 = 1024;

#[test]
fn an_instance_runs_what_the_image_says_and_is_told_its_port() {
    as_root(async {
        let house = House::open().await;
        let mut workload = house.workload("hello", 1);
        workload.env.insert("FROM_RELEASE".to_owned(), "yes".to_owned());
        let address = house.start(&workload).await[0];
        assert_eq!(address.port(), 8080);
        assert_eq!(ask(address, "hello"), "you said hello\n");
        let expected = [("PORT", "8080"), ("FROM_IMAGE", "yes"), ("FROM_RELEASE", "yes"), ("HOME", "/home/cnb")];
        for (name, value) in expected {
            assert_eq!(ask(address, &format!("variable {name}")).trim(), value, "{name}");
        }
        assert_eq!(ask(address, "orphans"), "0 zombies\n");
        let answer = ask(address, "shout-to-dev-stdout hello-from-dev-stdout");
        assert!(answer.starts_with("Ok"), "{answer}");
        house.wait_for_log(&workload, "hello-from-dev-stdout").await;
        let status = house.runtime.status(&workload.id).await.unwrap().unwrap();
        assert_eq!(status.instances[0].name, "hello-1-0");
        assert!(status.instances[0].memory_bytes.is_some());
        house.close().await;
    });
}

#[test]
fn instances_come_and_go_with_the_scale() {
    as_root(async {
        let house = House::open().await;
        let mut workload = house.workload("scaled", 1);
        workload.instances = 3;
        let mut addresses = house.start(&workload).await;
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 3);
        workload.instances = 1;
        house.runtime.apply(&workload).await.unwrap();
        house.wait(&workload, "one is left", |states| (states.len() == 1).then_some(())).await;
        house.ready(&workload).await;
        house.close().await;
    });
}

#[test]
fn the_only_other_port_gets_the_traffic_and_the_log_says_so() {
    as_root(async {
        let house = House::open().await;
        let mut workload = house.workload("stubborn", 1);
        workload.image = image(&house.blobs, "serve 0.0.0.0 3000").await;
        let address = house.start(&workload).await[0];
        assert_eq!((address.port(), ask(address, "hello").as_str()), (3000, "you said hello\n"));
        let logs = house.logs(&workload).await;
        let note = logs.iter().find(|line| line.stream == LogStream::Note).expect("a note");
        assert!(note.text.contains("3000 instead of PORT=8080"), "{}", note.text);
        house.close().await;
    });
}

#[test]
fn another_port_is_given_up_for_the_one_that_was_told() {
    as_root(async {
        let house = House::open().await;
        let mut workload = house.workload("late", 1);
        workload.image = image(&house.blobs, "serve-late 9229 0").await;
        assert_eq!(
            house.start(&workload).await[0].port(),
            8080,
            "one that comes at once has no time to be the only one"
        );
        let mut later = house.workload("later", 1);
        later.image = image(&house.blobs, "serve-late 9229 3").await;
        assert_eq!(house.start(&later).await[0].port(), 9229);
        let told = |states: &[InstanceState]| match states {
            [InstanceState::Ready { address }] if address.port() == 8080 => Some(()),
            _ => None,
        };
        house.wait(&later, "the traffic goes to the port that was told", told).await;
        house.close().await;
    });
}

#[test]
fn who_is_stopped_at_once_is_gone() {
    as_root(async {
        let house = House::open().await;
        let workload = house.workload("brief", 1);
        let started = std::time::Instant::now();
        for _ in 0..10 {
            house.runtime.apply(&workload).await.unwrap();
            house.runtime.remove(&workload.id, PATIENCE).await.unwrap();
        }
        assert!(started.elapsed() < PATIENCE, "SIGTERM is not lost, however early: {:?}", started.elapsed());
        let mut scaled = house.workload("scaled", 1);
        for instances in [2, 1, 2] {
            scaled.instances = instances;
            house.runtime.apply(&scaled).await.unwrap();
        }
        house.ready(&scaled).await;
        house.close().await;
    });
}

#[test]
fn a_monitor_is_started_again_with_what_the_machine_is_like_now() {
    as_root(async {
        let house = House::open().await;
        let workload = house.workload("moved", 1);
        let address = house.start(&workload).await[0];
        let spec = instance(&house).join("spec.json");
        kill(monitor(&house));
        wait_for_end(monitor(&house)).await;
        // As if the machine had been started anew, in another network.
        let house = house
            .reopen_after(|| {
                let text = fs::read_to_string(&spec).unwrap();
                fs::write(&spec, text.replace(&address.ip().to_string(), "10.99.99.9")).unwrap();
            })
            .await;
        assert_eq!(house.ready(&workload).await, [address]);
        assert_eq!(ask(address, "hello"), "you said hello\n");
        house.close().await;
    });
}

#[test]
fn what_cannot_be_read_any_more_is_ended() {
    as_root(async {
        let house = House::open().await;
        let address = house.start(&house.workload("damaged", 1)).await[0];
        let folder = instance(&house).parent().unwrap().to_owned();
        let house = house.reopen_after(|| fs::write(folder.join("workload.json"), "{").unwrap()).await;
        assert_eq!(house.runtime.workloads().await.unwrap(), []);
        assert!(!folder.exists());
        let gone = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1));
        assert!(gone.is_err(), "nothing runs without being known");
        house.close().await;
    });
}

#[test]
fn who_listens_on_loopback_only_is_told() {
    as_root(async {
        let house = House::open().await;
        let mut workload = house.workload("shy", 1);
        workload.image = image(&house.blobs, "serve 127.0.0.1 8080").await;
        house.runtime.apply(&workload).await.unwrap();
        house.wait_for_log(&workload, "listens on 127.0.0.1 only").await;
        house.close().await;
    });
}

#[test]
fn who_crashes_is_started_again_with_his_last_words_kept() {
    as_root(async {
        let house = House::open().await;
        let mut workload = house.workload("crashing", 1);
        workload.image = image(&house.blobs, "crash-after-serving").await;
        house.runtime.apply(&workload).await.unwrap();
        let (ended, last_words) = house.wait(&workload, "it is in back-off", back_off).await;
        assert_eq!(ended, Ended::Exit(3));
        assert_eq!(last_words, ["about to crash"]);
        house.wait_for_log(&workload, "started again in 2 s").await;
        house.close().await;
    });
}

#[test]
fn an_image_without_its_program_says_so() {
    as_root(async {
        let house = House::open().await;
        let mut workload = house.workload("empty", 1);
        workload.image = super::house::image_of(&house.blobs, &["/no-such-program"]).await;
        house.runtime.apply(&workload).await.unwrap();
        let (ended, last_words) = house.wait(&workload, "it is in back-off", back_off).await;
        assert_eq!(ended, Ended::Exit(127));
        assert!(last_words[0].contains("starting /no-such-program failed"), "{last_words:?}");
        house.close().await;
    });
}

#[test]
fn a_crashed_instance_comes_back_on_the_same_address() {
    as_root(async {
        let house = House::open().await;
        let workload = house.workload("phoenix", 1);
        let address = house.start(&workload).await[0];
        ask(address, "crash");
        house.wait(&workload, "it is in back-off", back_off).await;
        assert_eq!(house.ready(&workload).await, [address]);
        assert_eq!(ask(address, "hello"), "you said hello\n");
        let status = house.runtime.status(&workload.id).await.unwrap().unwrap();
        assert_eq!(status.instances[0].restarts, 1);
        house.close().await;
    });
}

#[test]
fn a_stop_is_quick_for_who_listens_and_ends_who_does_not() {
    as_root(async {
        let house = House::open().await;
        let (polite, mut deaf) = (house.workload("polite", 1), house.workload("deaf", 1));
        deaf.image = image(&house.blobs, "deaf").await;
        house.start(&polite).await;
        house.start(&deaf).await;
        let started = std::time::Instant::now();
        house.runtime.remove(&polite.id, PATIENCE).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(5), "SIGTERM ends it: {:?}", started.elapsed());
        let started = std::time::Instant::now();
        house.runtime.remove(&deaf.id, Duration::from_millis(500)).await.unwrap();
        assert!(started.elapsed() >= Duration::from_millis(500), "it has its time: {:?}", started.elapsed());
        assert_eq!(house.runtime.workloads().await.unwrap(), []);
        house.close().await;
    });
}

#[test]
fn instances_outlive_the_daemon_and_the_next_one_finds_them() {
    as_root(async {
        let house = House::open().await;
        let workload = house.workload("survivor", 1);
        let address = house.start(&workload).await[0];
        let monitor = monitor(&house);
        let house = house.reopen().await;
        assert_eq!(house.ready(&workload).await, [address]);
        assert_eq!(self::monitor(&house), monitor, "it is the same one");
        assert_eq!(ask(address, "hello"), "you said hello\n");
        assert_eq!(house.runtime.workloads().await.unwrap(), std::slice::from_ref(&workload.id));
        house.close().await;
    });
}

#[test]
fn what_was_prepared_and_never_started_is_started() {
    as_root(async {
        let house = House::open().await;
        let workload = house.workload("interrupted", 1);
        house.start(&workload).await;
        // As if the daemon had been killed right before it started the monitor.
        let folder = instance(&house);
        kill(monitor(&house));
        wait_for_end(monitor(&house)).await;
        let house = {
            let house = house.reopen_after(|| fs::remove_file(folder.join("state")).unwrap()).await;
            house.ready(&workload).await;
            house
        };
        house.close().await;
    });
}

#[test]
fn an_instance_whose_monitor_was_killed_is_started_again() {
    as_root(async {
        let house = House::open().await;
        let workload = house.workload("orphan", 1);
        let address = house.start(&workload).await[0];
        let killed = monitor(&house);
        kill(killed);
        house.wait(&workload, "there is another monitor", |_| (monitor(&house) != killed).then_some(())).await;
        let address_now = house.ready(&workload).await;
        assert_eq!(address_now, [address]);
        house.close().await;
    });
}

#[test]
fn a_monitor_is_small() {
    as_root(async {
        let house = House::open().await;
        house.start(&house.workload("small", 1)).await;
        let status = fs::read_to_string(format!("/proc/{}/status", monitor(&house))).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib <= MONITOR_KIB, "{kib} KiB");
        house.close().await;
    });
}

#[test]
fn a_log_is_followed_over_rotation_and_stop() {
    as_root(async {
        let house = House::open().await;
        let workload = house.workload("chatty", 1);
        let address = house.start(&workload).await[0];
        let query = LogQuery { tail: Some(0), follow: true };
        let mut logs = house.runtime.logs(&workload.id.namespace, &workload.id.app, query).await.unwrap();
        let lines = 1500;
        let talk = async {
            for number in 0..lines {
                let shout = format!("shout {number}-{}", "x".repeat(4000));
                tokio::task::spawn_blocking(move || ask(address, &shout)).await.unwrap();
            }
        };
        let listen = async {
            for number in 0..lines {
                let line = tokio::time::timeout(PATIENCE, logs.next()).await.expect("a line in time").expect("a line");
                assert!(line.text.starts_with(&format!("{number}-")), "{number}: {:.20}", line.text);
            }
        };
        tokio::join!(talk, listen);
        drop(logs);
        assert!(instance(&house).join("log.1").exists(), "it was rotated");
        let tail = LogQuery { tail: Some(2), follow: false };
        let last = house.runtime.logs(&workload.id.namespace, &workload.id.app, tail).await.unwrap();
        let last: Vec<_> = last.map(|line| line.text[..5].to_owned()).collect().await;
        assert_eq!(last, ["1498-", "1499-"]);
        house.runtime.remove(&workload.id, PATIENCE).await.unwrap();
        assert!(text(&house.logs(&workload).await).contains("1499-"), "the log stays when the instance goes");
        house.close().await;
    });
}

#[test]
fn layers_of_what_runs_are_kept_whatever_is_collected() {
    as_root(async {
        let house = House::open().await;
        let address = house.start(&house.workload("kept", 1)).await[0];
        // The next daemon does not remember that somebody asked for them.
        let house = house.reopen().await;
        house.runtime_collects_nothing_that_runs(address).await;
        assert_eq!(fs::read_dir(house.dir.path().join("layers")).unwrap().count(), 1);
        for id in house.runtime.workloads().await.unwrap() {
            house.runtime.remove(&id, PATIENCE).await.unwrap();
        }
        house.runtime.collect(&[]).await.unwrap();
        assert_eq!(fs::read_dir(house.dir.path().join("layers")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(house.dir.path().join("logs")).unwrap().count(), 0);
        house.close().await;
    });
}

fn back_off(states: &[InstanceState]) -> Option<(Ended, Vec<String>)> {
    states.iter().find_map(|state| match state {
        InstanceState::BackOff { ended, last_words, .. } => Some((*ended, last_words.clone())),
        _ => None,
    })
}

/// The folder of the only instance.
fn instance(house: &House) -> std::path::PathBuf {
    let workloads = house.dir.path().join("workloads");
    let workload = fs::read_dir(workloads).unwrap().next().expect("a workload").unwrap().path();
    workload.join("0")
}

/// The monitor of the only instance.
fn monitor(house: &House) -> i32 {
    let state = fs::read_to_string(instance(house).join("state")).unwrap_or_default();
    state.split(' ').next().and_then(|pid| pid.parse().ok()).unwrap_or(0)
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

async fn wait_for_end(pid: i32) {
    let until = std::time::Instant::now() + PATIENCE;
    while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(std::time::Instant::now() < until, "waited for the end of {pid}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
