//! How a daemon begins and ends: `up`, `serve`, `stop`, signals, its first credential.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::support::{Daemon, get, sample, send, wait_until, write};

#[test]
fn up_serves_until_ctrl_c_and_leaves_nothing_running() {
    let daemon = Daemon::idle();
    let source = sample("procfile");
    let talk = daemon.dir().join("talk");
    let mut up = daemon
        .command(["up", "--name", "shop", source.to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&talk).unwrap())
        .spawn()
        .unwrap();
    let said = || fs::read_to_string(&talk).unwrap();
    let mut url = String::new();
    BufReader::new(up.stdout.take().unwrap()).read_line(&mut url).unwrap();
    assert_eq!(url.trim(), daemon.url("shop"), "{}", said());
    assert!(get(url.trim()).unwrap().body.contains("Hello from"));
    assert!(said().contains("the password of user admin is "), "{}", said());
    wait_until("it follows the log", Duration::from_secs(10), || said().contains("Ctrl-C stops the daemon"));
    send(&up, Signal::SIGINT);
    let mut status = None;
    wait_until("it has ended", Duration::from_secs(40), || {
        status = up.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.and_then(|status| status.code()), Some(130), "{}", said());
    assert!(get(url.trim()).is_err(), "the listener is gone");
    let workloads = fs::read_dir(daemon.data_dir().join("workloads")).unwrap();
    assert_eq!(workloads.count(), 0, "instances were left");
}

#[test]
fn up_in_the_background_says_how_it_is_stopped() {
    let daemon = Daemon::idle();
    let source = sample("procfile");
    let output = daemon.output(["up", "--detach", "--name", "shop", source.to_str().unwrap()]);
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{talk}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), daemon.url("shop"));
    assert!(get(&daemon.url("shop")).unwrap().body.contains("Hello from"));
    let stop = talk.lines().find_map(|line| line.split_once("all applications: ")).expect(&talk).1.to_owned();
    assert!(stop.contains("--data-dir"), "it is not the usual one: {stop}");
    // As somebody types it who has set no variable.
    let mut typed = Command::new("/bin/sh");
    typed.args(["-c", &stop]).env_remove("EPINIOD_DATA_DIR");
    let stopped = typed.output().unwrap();
    let talk = String::from_utf8_lossy(&stopped.stderr).into_owned();
    assert!(stopped.status.success() && talk.contains("stopped the daemon and all applications"), "{stop}: {talk}");
    assert!(get(&daemon.url("shop")).is_err());
}

#[test]
fn a_daemon_that_dies_at_its_start_says_why_at_once() {
    let daemon = Daemon::idle();
    let _taken = TcpListener::bind(("127.0.0.1", daemon.port)).unwrap();
    let started = Instant::now();
    let source = sample("procfile");
    let output = daemon.output(["up", "--detach", source.to_str().unwrap()]);
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{talk}");
    assert!(talk.contains("ended with exit status: 3") && talk.contains("cannot listen on"), "{talk}");
    assert!(started.elapsed() < Duration::from_secs(20), "it waited for a process that was gone: {talk}");
}

#[test]
fn applications_run_on_when_the_daemon_is_stopped_or_gets_sigterm() {
    let mut daemon = Daemon::start();
    let url = daemon.push("lasting", &sample("procfile"));
    let started = |daemon: &Daemon| {
        let shown = daemon.run(["apps", "show", "lasting", "--output", "json"]);
        let app: serde_json::Value = serde_json::from_str(&shown).unwrap();
        app["deployment"]["replicas"]["lasting-1-0"]["createdAt"].clone()
    };
    let before = started(&daemon);
    assert!(before.is_string());
    let output = daemon.output(["stop"]);
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && talk.contains("applications run on"), "{talk}");
    assert!(daemon.ended().success());
    daemon.resume();
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().success());
    daemon.resume();
    wait_until("the route is back", Duration::from_secs(10), || get(&url).is_ok_and(|page| page.status == 200));
    assert_eq!(started(&daemon), before, "the instance was started again");
}

#[test]
fn a_stop_during_a_deployment_leaves_nothing_running() {
    let mut daemon = Daemon::start();
    daemon.push("steady", &sample("procfile"));
    let source = daemon.dir().join("src");
    write(&source, "Procfile", "web: sleep 600\n");
    let mut push = daemon
        .command(["push", "--name", "late", "--path", source.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(push.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "===> DEPLOYING"));
    let workloads = daemon.data_dir().join("workloads");
    let count = || fs::read_dir(&workloads).unwrap().count();
    wait_until("the new version is started", Duration::from_secs(20), || count() == 2);
    daemon.stop();
    assert_eq!(count(), 0, "instances were left: {}", daemon.log_tail());
    // As nothing takes the place of the daemon, nothing is waited for.
    let told: Vec<String> = lines.collect();
    assert!(told.iter().any(|line| line.contains("it goes on with this push when it is started again")), "{told:?}");
    assert!(!push.wait().unwrap().success(), "nobody knows whether it would have come up");
}

#[test]
fn a_daemon_that_was_killed_before_its_user_was_stored_takes_the_password_from_the_file() {
    let mut daemon = Daemon::idle();
    daemon.password.clear();
    write(&daemon.data_dir(), "client.yaml", "api: http://127.0.0.1:1\nuser: admin\npass: bGVmdA==\n");
    daemon.resume();
    assert_eq!(daemon.run(["apps", "list", "--output", "json"]).trim(), "[]");
    let kept = fs::read_to_string(daemon.data_dir().join("client.yaml")).unwrap();
    assert!(kept.contains("bGVmdA==") && kept.contains(&format!("http://127.0.0.1:{}", daemon.port)), "{kept}");
}

#[test]
fn the_settings_file_that_clients_share_is_written_where_it_is_ours() {
    // What a client finds that knows nothing but the file.
    let info = |daemon: &Daemon| {
        let mut command = daemon.command(["info"]);
        command.env_remove("EPINIOD_DATA_DIR").output().unwrap().status.success()
    };
    let file = |daemon: &Daemon| daemon.dir().join("settings.yaml");
    let mut daemon = Daemon::idle();
    daemon.resume();
    assert!(info(&daemon), "there was none: it has to be written");
    daemon.kill();
    write(daemon.dir(), "settings.yaml", &(fs::read_to_string(file(&daemon)).unwrap() + "theirs: kept\n"));
    let registry_port = daemon.registry_port;
    daemon.registry_port = std::mem::replace(&mut daemon.port, registry_port);
    daemon.resume();
    let text = fs::read_to_string(file(&daemon)).unwrap();
    assert!(info(&daemon) && text.contains("theirs: kept"), "it is ours, and the API has moved: {text}");
    daemon.kill();
    fs::remove_file(file(&daemon)).unwrap();
    daemon.resume();
    assert!(!file(&daemon).exists(), "somebody logged out, and is logged in again");

    let mut daemon = Daemon::idle();
    let other = "api: https://epinio.example.com\nuser: me\npass: eA==\n";
    write(daemon.dir(), "settings.yaml", other);
    daemon.resume();
    assert_eq!(fs::read_to_string(file(&daemon)).unwrap(), other, "a login to another API was overwritten");

    let mut daemon = Daemon::idle();
    let ours = format!("api: http://epinio.localhost:{}\nuser: old\npass: eA==\n", daemon.port);
    write(daemon.dir(), "settings.yaml", &ours);
    daemon.resume();
    assert!(info(&daemon), "it names this API, whose users are new");
    assert!(Path::new(&daemon.data_dir().join("client.yaml")).exists());
}
