//! What a service manager hears of a daemon, on a socket as systemd has one; and the unit that is given to systemd.

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::support::{Daemon, epiniod, get, not_run, sample, send, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon that is told of a socket, and what is heard there.
struct Managed {
    daemon: Daemon,
    child: Child,
    heard: Receiver<String>,
}

impl Managed {
    fn start(daemon: Daemon, socket: UnixDatagram, name: &str) -> Self {
        let (say, heard) = channel();
        // It ends with this process, or when nobody listens any more.
        std::thread::spawn(move || {
            let mut message = [0; 4096];
            while let Ok(length) = socket.recv(&mut message) {
                if say.send(String::from_utf8_lossy(&message[..length]).into_owned()).is_err() {
                    return;
                }
            }
        });
        let child = daemon
            .command(["serve"])
            .env("NOTIFY_SOCKET", name)
            .env("WATCHDOG_USEC", "600000")
            .env("EPINIOD_ADMIN_PASSWORD", &daemon.password)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(daemon.dir().join("daemon.log")).unwrap())
            .spawn()
            .unwrap();
        Self { daemon, child, heard }
    }

    /// Waits for a message that has a line; the whole message.
    fn hear(&self, line: &str) -> String {
        loop {
            let message = self.heard.recv_timeout(PATIENCE);
            let message = message.unwrap_or_else(|_| panic!("'{line}' was not said:\n{}", self.daemon.log_tail()));
            assert!(line == "READY=1" || !message.contains("READY=1"), "it is ready once: {message}");
            if message.lines().any(|said| said == line) {
                return message;
            }
        }
    }

    /// Its place, where another may be started.
    fn stop(mut self) -> Daemon {
        send(&self.child, Signal::SIGTERM);
        let said = self.hear("STOPPING=1");
        assert!(said.contains("EXTEND_TIMEOUT_USEC="), "{said}");
        let mut status = None;
        wait_until("the daemon has ended", PATIENCE, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.is_some_and(|status| status.success()), "{status:?}\n{}", self.daemon.log_tail());
        self.daemon
    }
}

#[test]
fn a_manager_hears_of_a_daemon_that_serves_lives_and_stops_and_of_nobody_else() {
    let daemon = Daemon::idle();
    let path = daemon.dir().join("notify");
    let managed = Managed::start(daemon, UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap());
    let said = managed.hear("READY=1");
    let answer = get(&managed.daemon.api("/ready")).unwrap();
    assert_eq!(answer.status, 200, "it said that it is ready");
    assert!(said.contains(&format!("STATUS=serving on 127.0.0.1:{}", managed.daemon.port)), "{said}");
    for _ in 0..3 {
        managed.hear("WATCHDOG=1");
    }

    let url = managed.daemon.push("web", &sample("procfile"));
    assert_eq!(get(&url).unwrap().status, 200);
    let data_dir = managed.daemon.data_dir();
    let monitors = || processes(|command| command.contains(&format!("{}/workloads/", data_dir.display())));
    let monitor = monitors();
    assert!(!monitor.is_empty(), "the monitor of the instance is not found");
    let others = processes(|_| true).into_iter().filter(|pid| *pid != managed.child.id());
    let told: Vec<u32> = others.filter(|pid| read(*pid, "environ").contains(path.to_str().unwrap())).collect();
    assert!(told.is_empty(), "these could speak in the daemon's name: {told:?}");
    let inside = managed.daemon.run(["apps", "exec", "web", "--", "env"]);
    assert!(inside.contains("PORT=") && !inside.contains("NOTIFY_SOCKET"), "{inside}");
    let mut daemon = managed.stop();

    // The manager ends nothing but the daemon; the next one finds the instance, and is who can end it.
    assert_eq!(monitors(), monitor, "the instance did not run on");
    daemon.resume();
    wait_until("the route is back", PATIENCE, || get(&url).is_ok_and(|page| page.status == 200));
    daemon.stop();
    assert!(monitors().is_empty(), "the instance was left behind");
}

#[test]
fn a_manager_may_listen_where_there_is_no_file() {
    let daemon = Daemon::idle();
    let name = format!("epiniod-test-{}-{}", std::process::id(), daemon.port);
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let managed = Managed::start(daemon, socket, &format!("@{name}"));
    managed.hear("READY=1");
    drop(managed.stop());
}

#[test]
fn systemd_takes_the_unit_and_finds_it_hardened() {
    let unit = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/epiniod.service")).unwrap();
    for needed in ["Type=notify", "NotifyAccess=main", "KillMode=process", "Delegate=yes", "StateDirectoryMode=0700"] {
        assert!(unit.lines().any(|line| line == needed), "{needed}");
    }
    // Sandboxes could not be made, or what runs in them would not.
    for breaking in [
        "RestrictNamespaces",
        "PrivateUsers",
        "ProtectKernelTunables",
        "ProtectControlGroups",
        "ProtectHostname",
        "RestrictSUIDSGID",
        "MemoryDenyWriteExecute",
        "SystemCallFilter",
    ] {
        assert!(!unit.lines().any(|line| line.starts_with(breaking)), "{breaking}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("epiniod.service");
    fs::write(&path, unit.replace("/usr/bin/epiniod", &epiniod())).unwrap();
    let analyze = |args: &[&str]| Command::new("systemd-analyze").args(args).arg(&path).output();
    let Ok(verified) = analyze(&["verify", "--man=no"]) else {
        assert!(std::env::var_os("EPINIOD_TEST_TOOLS").is_none(), "systemd-analyze is not installed");
        return not_run("the unit, by systemd-analyze: it is not installed");
    };
    assert!(verified.status.success() && verified.stderr.is_empty(), "{verified:?}");
    let secure = analyze(&["security", "--offline=true", "--threshold=72", "--no-pager"]).unwrap();
    assert!(secure.status.success(), "{}", String::from_utf8_lossy(&secure.stdout));
}

/// Processes by their command lines.
fn processes(is_meant: impl Fn(&str) -> bool) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_meant(&read(*pid, "cmdline"))).collect()
}

/// Empty where the process has ended.
fn read(pid: u32, file: &str) -> String {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}
