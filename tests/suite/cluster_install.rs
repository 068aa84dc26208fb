//! `epiniod install` and `uninstall`, against a cluster of their own: ports of its nodes are part of what is tested.

mod audit;
mod bare;
mod certificates;
mod relay;
mod replacing;
mod replicas;
mod upgrading;

use std::{
    collections::BTreeSet,
    fs,
    ops::Deref,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::support::{
    cluster::{borrow_with, name, script},
    epiniod, not_run, request, wait_until,
};

/// A cluster to install into.
struct Place {
    dir: tempfile::TempDir,
    kubeconfig: PathBuf,
    name: String,
    /// The cluster goes when its stdin is closed.
    _lender: Child,
}

/// The cluster of these tests, for one of them at a time, and with nothing of ours in it.
struct Turn(MutexGuard<'static, Option<Place>>);

/// What `install` ends with.
struct Login {
    url: String,
    user: String,
}

impl Turn {
    /// None where there is no cluster: then `what` is said not to have been tested.
    fn take(what: &str) -> Option<Self> {
        static PLACE: Mutex<Option<Place>> = Mutex::new(None);
        // A test that failed has left nothing either: its turn has ended.
        let mut turn = PLACE.lock().unwrap_or_else(PoisonError::into_inner);
        if turn.is_none() {
            *turn = Place::make(what);
        }
        turn.is_some().then(|| Self(turn))
    }
}

impl Deref for Turn {
    type Target = Place;

    fn deref(&self) -> &Place {
        self.0.as_ref().expect("it was made")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.kubectl(&["get", "pods,events", "-A"]));
            for (namespace, label) in
                [("epiniod", "app.kubernetes.io/component"), ("epiniod-builds", "epiniod.dev/staging")]
            {
                eprintln!(
                    "{}",
                    self.kubectl(&["logs", "-n", namespace, "-l", label, "--all-containers", "--prefix", "--tail=60"])
                );
            }
        }
        self.epiniod(&["uninstall", "--apps", "--yes"]);
        let _ = fs::remove_file(self.settings());
    }
}

impl Place {
    fn make(what: &str) -> Option<Self> {
        Self::make_with(what, "install", &[])
    }

    /// A cluster for this purpose, with settings that `tests/cluster/up` explains.
    fn make_with(what: &str, purpose: &str, settings: &[(&str, &str)]) -> Option<Self> {
        let name = name(purpose);
        match borrow_with(&name, settings) {
            Ok((lender, kubeconfig)) => {
                let dir = tempfile::tempdir().expect("a temporary folder");
                Some(Self { dir, kubeconfig, name, _lender: lender })
            }
            Err(reason) => {
                not_run(&format!("{what}: {reason}"));
                None
            }
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(epiniod());
        command
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("EPINIO_SETTINGS", self.settings())
            .env("HOME", self.dir.path())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    fn epiniod(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("epiniod can be run")
    }

    /// stdout of a command that has to succeed.
    fn run(&self, args: &[&str]) -> String {
        let output = self.epiniod(args);
        assert!(output.status.success(), "epiniod {args:?}: {output:?}\n{}", self.kubectl(&["get", "events", "-A"]));
        String::from_utf8(output.stdout).expect("text")
    }

    /// stderr of a command that has to end with this code.
    fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.epiniod(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "epiniod {args:?}:\n{said}");
        said
    }

    /// Installs with these flags, and where this machine has its packages from.
    fn install(&self, args: &[&str]) -> Login {
        let mirrors = mirrors();
        let all: Vec<&str> =
            ["install"].iter().chain(args).copied().chain(mirrors.iter().map(String::as_str)).collect();
        let printed = self.run(&all);
        let field = |name: &str| {
            let line = printed.lines().find(|line| line.starts_with(name));
            let line = line.unwrap_or_else(|| panic!("no {name}: {printed}"));
            line.split_whitespace().nth(1).expect("a value").to_owned()
        };
        Login { url: field("url"), user: field("user") }
    }

    fn kubectl(&self, args: &[&str]) -> String {
        let output = script("kubectl", &self.name).args(args).output().expect("kubectl can be run");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn settings(&self) -> PathBuf {
        self.dir.path().join("settings.yaml")
    }

    fn on_node(&self, args: &[&str]) -> Command {
        let mut command = script("enter", &self.name);
        command.args(args);
        command
    }

    /// An empty folder of the node.
    fn folder(&self, name: &str) -> String {
        let path = format!("/var/lib/epiniod-{name}");
        let made = self.on_node(&["sh", "-c", &format!("rm -rf {path} && mkdir -p {path}")]).status();
        assert!(made.expect("the node is there").success());
        path
    }

    /// Brings the tested program onto the node.
    fn import_image(&self) {
        let archive = self.dir.path().join("epiniod.tar");
        fs::write(&archive, self.epiniod(&["image"]).stdout).expect("an archive");
        let archive = fs::File::open(archive).expect("an archive");
        let imported = self.on_node(&["ctr", "-n", "k8s.io", "images", "import", "-"]).stdin(archive).output();
        assert!(imported.expect("ctr can be run").status.success());
    }

    /// Everything in the cluster that an installation could have made.
    fn everything(&self) -> BTreeSet<String> {
        let kinds =
            "namespaces,clusterroles,clusterrolebindings,ingressclasses,persistentvolumes,customresourcedefinitions";
        self.kubectl(&["get", kinds, "-o", "name"]).lines().map(str::to_owned).collect()
    }

    /// What this URL of an application answers, by the address in its domain.
    fn page(&self, url: &str) -> String {
        let host = url.trim().trim_start_matches("http://").to_owned();
        let address = host.split_once('.').expect("an address below a name").1.trim_end_matches(".sslip.io").to_owned();
        let answer = request(&["--max-time", "5", "-H", &format!("Host: {host}"), &format!("http://{address}/")]);
        answer.map(|answer| answer.body).unwrap_or_default()
    }

    fn wait_until_answers(&self, url: &str, wanted: &str) {
        let mut last = String::new();
        let within = Duration::from_secs(60);
        wait_until(&format!("{} answers with '{wanted}'", url.trim()), within, || {
            last = self.page(url);
            last.contains(wanted)
        });
    }
}

/// Where this machine has its packages from: a pod has no sources of its own.
fn mirrors() -> Vec<String> {
    let files = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let files = files.chain([PathBuf::from("/etc/apt/sources.list")]);
    let text: String = files.filter_map(|file| fs::read_to_string(file).ok()).collect();
    let url = |end: &str| {
        let mut words = text.split_whitespace().map(|word| word.trim_end_matches('/'));
        words.find(|word| word.starts_with("http") && word.ends_with(end)).map(str::to_owned)
    };
    let flag = |flag: &str, end| Some(format!("{flag}={}", url(end)?));
    [flag("--debian-mirror", "/debian"), flag("--debian-security-mirror", "/debian-security")]
        .into_iter()
        .flatten()
        .collect()
}
