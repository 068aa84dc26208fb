//! `epiniod install` and `uninstall`, against a cluster of their own: ports of its nodes are part of what is tested.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use crate::support::{not_run, request, sample, wait_until};

const CLUSTER: &str = "epiniod-install-test";
/// What the scripts of `tests/cluster` end with where the machine is not able to run a cluster.
const CANNOT_RUN: i32 = 3;

/// On the node.
const DATA: &str = "/var/lib/epiniod-data";

struct Place {
    dir: tempfile::TempDir,
    kubeconfig: PathBuf,
    /// The cluster goes when its stdin is closed.
    lender: Child,
}

impl Place {
    fn make(what: &str) -> Option<Self> {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster");
        if !scripts.join("lend").exists() {
            not_run(&format!("{what}: there is no tests/cluster/lend"));
            return None;
        }
        let mut lender = script("lend")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/cluster/lend can be run");
        let mut line = String::new();
        BufReader::new(lender.stdout.take().expect("a pipe")).read_line(&mut line).expect("text or its end");
        if line.is_empty() {
            let status = lender.wait().expect("it ends with its output");
            assert_eq!(status.code(), Some(CANNOT_RUN), "tests/cluster/lend failed; what it said stands above");
            not_run(&format!("{what}: this machine cannot run a cluster"));
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        Some(Self { dir, kubeconfig: line.trim_end().into(), lender })
    }

    fn epiniod(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_epiniod"))
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("EPINIO_SETTINGS", self.settings())
            .env("HOME", self.dir.path())
            .env("NO_COLOR", "1")
            .output()
            .expect("epiniod can be run")
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

    fn kubectl(&self, args: &[&str]) -> String {
        let output = script("kubectl").args(args).output().expect("kubectl can be run");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn settings(&self) -> PathBuf {
        self.dir.path().join("settings.yaml")
    }

    fn import_image(&self) {
        let archive = self.dir.path().join("epiniod.tar");
        fs::write(&archive, self.epiniod(&["image"]).stdout).expect("an archive");
        let archive = fs::File::open(archive).expect("an archive");
        let imported = script("enter").args(["ctr", "-n", "k8s.io", "images", "import", "-"]).stdin(archive).output();
        assert!(imported.expect("ctr can be run").status.success());
    }

    /// Everything in the cluster that an installation could have made.
    fn everything(&self) -> BTreeSet<String> {
        let kinds =
            "namespaces,clusterroles,clusterrolebindings,ingressclasses,persistentvolumes,customresourcedefinitions";
        self.kubectl(&["get", kinds, "-o", "name"]).lines().map(str::to_owned).collect()
    }

    fn is_served(&self, host: &str) -> bool {
        let address = host.split_once('.').expect("an address below a name").1.trim_end_matches(".sslip.io").to_owned();
        let answer = request(&["--max-time", "5", "-H", &format!("Host: {host}"), &format!("http://{address}/")]);
        answer.is_ok_and(|answer| answer.status == 200 && answer.body.contains("Static sample"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.lender.stdin.take());
        let _ = self.lender.wait();
    }
}

fn script(name: &str) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster").join(name));
    command.env("EPINIOD_CLUSTER", CLUSTER);
    command
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

#[test]
fn into_a_bare_cluster_and_out_of_it_again() {
    let Some(place) = Place::make("install into a cluster") else { return };
    let before = place.everything();

    let said = place.fails(2, &["install"]);
    assert!(said.contains("no storage class") && said.contains("--storage-path"), "{said}");
    assert_eq!(place.everything(), before, "what cannot be decided changes nothing");

    place.run(&["install", "--ephemeral-storage", "--dry-run"]);
    assert_eq!(place.everything(), before, "a dry run changes nothing");

    let made = script("enter").args(["mkdir", "-p", DATA]).status();
    assert!(made.expect("the node is there").success());
    let mirrors = mirrors();
    let mut install = vec!["install", "--storage-path", DATA];
    install.extend(mirrors.iter().map(String::as_str));
    let said = place.fails(3, &install);
    assert!(said.contains("does not have the image") && said.contains("ctr -n k8s.io images import"), "{said}");

    place.import_image();
    let printed = place.run(&install);
    let field = |name: &str| {
        let line =
            printed.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}: {printed}"));
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let (url, user) = (field("url"), field("user"));
    assert_eq!(user, "admin");
    let settings = fs::read_to_string(place.settings()).expect("the settings were written");
    assert!(settings.contains(&url), "{settings}");

    let app = place.run(&["push", "--name", "site", "--path", sample("static").to_str().unwrap()]);
    let host = app.trim().trim_start_matches("http://").to_owned();
    wait_until("the application answers on the node's address", Duration::from_secs(30), || place.is_served(&host));

    let pods = || place.kubectl(&["get", "pods", "-n", "epiniod", "-o", "name"]);
    let pod = pods();
    let again = place.run(&["install"]);
    assert!(again.contains("as before") && again.contains(&url), "{again}");
    assert_eq!(pods(), pod, "an install that changes nothing replaces nothing");

    place.run(&["install", "--env", "COLOUR=blue"]);
    assert_ne!(pods(), pod);
    wait_until("the application answers by the next daemon", Duration::from_secs(30), || place.is_served(&host));

    let said = place.fails(2, &["uninstall"]);
    assert!(said.contains("--yes"), "{said}");
    place.run(&["uninstall", "--yes"]);
    let kept = place.kubectl(&["get", "deployments", "-n", "workspace", "-o", "name"]);
    assert_eq!(kept.trim(), "deployment.apps/site", "applications are kept unless told otherwise");
    place.run(&["uninstall", "--apps", "--yes"]);
    assert_eq!(place.everything(), before, "nothing is left");
}
