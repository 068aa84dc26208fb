//! A daemon that is killed at any moment: applications answer on, what was acknowledged is there, nothing is stuck or left over.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use crate::support::{Daemon, SplitMix, copy, get, sample, wait_until, write};

/// Kills, in each of the four moments.
const ROUNDS: usize = 6;
/// Another one makes other delays and other sources; `EPINIOD_TEST_SEED` sets it.
const SEED: u64 = 20_261_124;
/// What is added to the source, so that upload and export take a while.
const BALLAST: usize = 6 << 20;

/// After which line of a push the daemon is killed, and how much later at most, in milliseconds.
const MOMENTS: [(&str, &str, u64); 4] = [
    ("upload", "pushing ", 120),
    ("build", "staging ", 400),
    ("export", "===> EXPORTING", 300),
    ("deploy", "===> DEPLOYING", 60),
];

#[test]
fn a_daemon_that_is_killed_loses_nothing_and_leaves_nothing() {
    let seed = std::env::var("EPINIOD_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(SEED);
    let mut chaos = Chaos::start(seed);
    for round in 0..ROUNDS {
        for (moment, after, most) in MOMENTS {
            let name = format!("{moment}-{round}");
            chaos.kill_during(&name, after, most);
        }
    }
    chaos.ends_clean();
}

/// A push, and the lines that it said and nobody has looked at.
struct Push {
    child: Child,
    said: mpsc::Receiver<String>,
}

struct Chaos {
    daemon: Daemon,
    random: SplitMix,
    source: PathBuf,
    /// Where the application that is never pushed again answers, also without a daemon.
    steady: SocketAddr,
    steady_process: i32,
    acknowledged: Vec<String>,
    /// The text that the busy application may serve: the last that was seen, and all that were pushed since.
    texts: Vec<String>,
}

impl Chaos {
    fn start(seed: u64) -> Self {
        eprintln!("seed {seed} (EPINIOD_TEST_SEED)");
        let daemon = Daemon::start();
        daemon.push("steady", &sample("procfile"));
        let source = daemon.dir().join("busy");
        copy(&sample("procfile"), &source);
        let (steady, steady_process) = instance(&daemon.data_dir().join("workloads/workspace_steady_1/0"));
        let mut chaos = Self {
            daemon,
            random: SplitMix(seed),
            source,
            steady,
            steady_process,
            acknowledged: Vec::new(),
            texts: Vec::new(),
        };
        chaos.edit("text-0");
        chaos.daemon.push("busy", &chaos.source);
        chaos
    }

    /// A new version of the source.
    fn edit(&mut self, text: &str) {
        let script = fs::read_to_string(sample("procfile").join("answer.sh")).expect("the sample");
        write(&self.source, "answer.sh", &script.replace("Hello from the Procfile sample", text));
        let ballast: Vec<u8> = (0..BALLAST / 8).flat_map(|_| self.random.next().to_le_bytes()).collect();
        fs::write(self.source.join("ballast"), ballast).expect("a file");
        self.texts.push(text.to_owned());
    }

    fn kill_during(&mut self, name: &str, after: &str, most: u64) {
        // What was acknowledged before has to be there afterwards.
        self.daemon.run(["namespaces", "create", name]);
        self.acknowledged.push(name.to_owned());
        self.edit(&format!("text-{name}"));
        let mut push = self.push();
        let mut said = Vec::new();
        let staging = self.seen(&push, after, &mut said);
        std::thread::sleep(Duration::from_millis(self.random.next() % most));
        self.daemon.kill();
        self.steady_answers(name);
        self.daemon.resume();
        self.steady_answers(name);
        // Its client asks the next daemon, and pushes once more what had not arrived.
        let mut status = None;
        wait_until(&format!("{name}: the push has ended"), Duration::from_secs(60), || {
            status = push.child.try_wait().expect("its status");
            status.is_some()
        });
        said.extend(push.said.iter());
        let succeeded = status.is_some_and(|status| status.success());
        assert!(succeeded, "{name}: {status:?}\n{}\n{}", said.join("\n"), self.daemon.log_tail());
        if let Some(staging) = staging {
            self.push_was_carried_out(name, &staging);
        }
        self.answers(name);
    }

    fn push(&self) -> Push {
        let mut command =
            self.daemon.command(["push", "--name", "busy", "--path", self.source.to_str().expect("a path")]);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a push");
        let (lines, said) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        Push { child, said }
    }

    /// Reads what a push says until a line begins as wanted; the staging, when it was acknowledged.
    fn seen(&self, push: &Push, wanted: &str, said: &mut Vec<String>) -> Option<String> {
        let mut staging = None;
        for line in push.said.iter() {
            let id = line.strip_prefix("staging ").and_then(|rest| rest.split(' ').next());
            staging = staging.or(id.map(str::to_owned));
            said.push(line);
            if said.last().is_some_and(|line| line.starts_with(wanted)) {
                return staging;
            }
        }
        panic!("the push ended before '{wanted}':\n{}\n{}", said.join("\n"), self.daemon.log_tail());
    }

    /// What was acknowledged is what became of it.
    fn push_was_carried_out(&mut self, name: &str, staging: &str) {
        let wanted = self.texts.last().expect("a text").clone();
        let url = self.daemon.url("busy");
        wait_until(&format!("{name}: the push of staging {staging} is served"), Duration::from_secs(60), || {
            get(&url).is_ok_and(|page| page.body.contains(&wanted))
        });
        self.texts = vec![wanted];
        let shown = self.daemon.run(["apps", "show", "busy", "--output", "json"]);
        assert!(shown.contains(&format!("\"stage_id\": \"{staging}\"")), "{name}: {shown}");
        let log = self.daemon.run(["apps", "logs", "busy", "--staging"]);
        let whole = log.contains("===> EXPORTING") || log.contains("the image was out when the daemon was stopped");
        assert!(whole && log.contains("===> BUILDING"), "{name}: the log of the staging is not whole:\n{log}");
    }

    /// The busy application serves one of the versions that it may.
    fn answers(&self, name: &str) {
        let url = self.daemon.url("busy");
        let good = |body: &str| self.texts.iter().any(|text| body.trim_end() == text);
        wait_until(&format!("{name}: the busy application answers"), Duration::from_secs(20), || {
            get(&url).is_ok_and(|page| page.status == 200 && good(&page.body))
        });
    }

    fn steady_answers(&self, name: &str) {
        let page = get(&format!("http://{}/", self.steady))
            .unwrap_or_else(|error| panic!("{name}: the steady application: {error}"));
        assert!(page.body.contains("Hello from"), "{name}: {page:?}");
        assert!(
            Path::new(&format!("/proc/{}", self.steady_process)).exists(),
            "{name}: the instance was started again"
        );
    }

    fn ends_clean(mut self) {
        let namespaces = self.daemon.run(["namespaces", "list", "--output", "json"]);
        for name in &self.acknowledged {
            assert!(namespaces.contains(&format!("\"{name}\"")), "namespace {name} was acknowledged and is gone");
        }
        self.edit("the-last-text");
        let url = self.daemon.push("busy", &self.source);
        assert!(get(&url).expect("a page").body.contains("the-last-text"), "nothing is stuck");
        let data = self.daemon.data_dir();
        for folder in ["jobs", "blobs/tmp"] {
            wait_until(&format!("{folder} is empty"), Duration::from_secs(20), || is_empty(&data.join(folder)));
        }
        for app in ["busy", "steady"] {
            self.daemon.run(["apps", "delete", app]);
        }
        wait_until("the instances are gone", Duration::from_secs(20), || is_empty(&data.join("workloads")));
        self.daemon.stop();
        let left = leftovers(&data);
        assert!(left.is_empty(), "left over: {left:#?}");
    }
}

/// Where an instance listens, and its process.
fn instance(folder: &Path) -> (SocketAddr, i32) {
    let state = fs::read_to_string(folder.join("state")).expect("the state of an instance");
    let words: Vec<&str> = state.split_whitespace().collect();
    assert_eq!(words[2], "running", "{state}");
    let pid = words[3].parse().expect("a pid");
    let place: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("place.json")).expect("its place")).expect("JSON");
    let port = u16::try_from(place["port"].as_u64().expect("a port")).expect("a port");
    (SocketAddr::new(address_of(pid), port), pid)
}

/// The address of a process in a network namespace of its own, else loopback.
fn address_of(pid: i32) -> IpAddr {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).expect("a network namespace");
    if namespace("self") == namespace(&pid.to_string()) {
        return Ipv4Addr::LOCALHOST.into();
    }
    let routes = fs::read_to_string(format!("/proc/{pid}/net/fib_trie")).expect("its routes");
    let lines: Vec<&str> = routes.lines().map(str::trim).collect();
    let own =
        lines.windows(2).filter(|pair| pair[1] == "/32 host LOCAL").filter_map(|pair| pair[0].strip_prefix("|-- "));
    let mut addresses = own.filter_map(|address| address.parse::<IpAddr>().ok());
    addresses.find(|address| !address.is_loopback()).expect("an address")
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Processes, mounts, cgroups and interfaces of a data directory.
fn leftovers(data: &Path) -> Vec<String> {
    let data_text = data.to_str().expect("a path");
    let identity = epiniod::model::Digest::of(data.as_os_str().as_encoded_bytes());
    let short = &identity.hex()[..8];
    let mut left = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let process = entry.path();
        let text = |name: &str| {
            fs::read(process.join(name))
                .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
                .unwrap_or_default()
        };
        // The shell that cleans up after this test knows the folder, too.
        let command = text("cmdline");
        if (command.contains(data_text) && !command.starts_with("/bin/sh")) || text("mountinfo").contains(data_text) {
            left.push(format!("process {}: {command}", process.display()));
        }
    }
    let groups =
        Command::new("find").args(["/sys/fs/cgroup", "-name", &format!("epiniod-{short}")]).output().expect("find");
    left.extend(String::from_utf8_lossy(&groups.stdout).lines().map(|group| format!("cgroup {group}")));
    let interfaces = fs::read_dir("/sys/class/net")
        .expect("interfaces")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    left.extend(interfaces.filter(|name| name.contains(short)).map(|name| format!("interface {name}")));
    left
}
