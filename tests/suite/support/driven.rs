//! A daemon that drives the tests' cluster from outside. The port of its registry is one for each cluster, so all tests
//! use one daemon, one after the other; what it made in the cluster goes with this process.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    ops::{Deref, DerefMut},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    Daemon, Packages, RunBy, Surroundings,
    cluster::{Cluster, address_towards, cluster},
    daemon::free_port,
    not_run, wait_until,
};

/// How long a push may take on a machine that has much else to do.
const PUSH_DEADLINE: Duration = Duration::from_secs(180);
/// The pod that asks applications.
const ASKER: &str = "asker";

/// The daemon and its cluster.
pub struct Driven {
    pub daemon: Daemon,
    pub cluster: &'static Cluster,
    /// Where the daemon's own objects are.
    pub system: String,
    /// Address and port of its registry, as nodes reach it.
    pub registry: String,
    files: TempDir,
    /// Its stdin ends with this process: then it cleans up.
    _cleaner: Child,
}

/// The daemon, for one test at a time.
pub struct Turn(MutexGuard<'static, Option<Driven>>);

impl Deref for Turn {
    type Target = Driven;

    fn deref(&self) -> &Driven {
        self.0.as_ref().expect("it was started")
    }
}

impl DerefMut for Turn {
    fn deref_mut(&mut self) -> &mut Driven {
        self.0.as_mut().expect("it was started")
    }
}

/// The daemon of this process with its usual settings; where there is no cluster, `what` is said not to have been tested.
pub fn driven(what: &str) -> Option<Turn> {
    static DRIVEN: Mutex<Option<Driven>> = Mutex::new(None);
    let cluster = cluster(what)?;
    // A test that failed leaves what it leaves; the next one begins with a daemon that runs.
    let mut turn = DRIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    match turn.as_mut() {
        Some(driven) => driven.make_usual(),
        None => *turn = Some(Driven::start(cluster, what)?),
    }
    Some(Turn(turn))
}

impl Driven {
    fn start(cluster: &'static Cluster, what: &str) -> Option<Self> {
        let taken = kubectl(cluster, &["get", "services", "-A", "-o", "jsonpath={.items[*].spec.ports[*].nodePort}"]);
        if text(&taken.stdout).split_whitespace().any(|port| port == "30500") {
            not_run(&format!("{what}: port 30500 of the cluster's nodes is in use, by another epiniod perhaps"));
            return None;
        }
        let files = tempfile::tempdir().expect("a temporary folder");
        fs::copy(&cluster.kubeconfig, files.path().join("kubeconfig")).expect("a readable kubeconfig");
        fs::write(files.path().join("config.toml"), "").expect("a file");
        let system = format!("test-{}-system", std::process::id());
        let address = address_towards(&cluster.kubeconfig);
        let registry = format!("{address}:{}", free_port());
        let file = |name: &str| files.path().join(name).to_str().expect("a path in UTF-8").to_owned();
        let environment = vec![
            ("EPINIOD_KUBECONFIG", file("kubeconfig")),
            ("EPINIOD_CONFIG", file("config.toml")),
            ("EPINIOD_ADVERTISE", address),
            ("EPINIOD_REGISTRY_LISTEN", registry.clone()),
            ("EPINIOD_SYSTEM_NAMESPACE", system.clone()),
            ("EPINIOD_LOG", "info,kube_client=warn".to_owned()),
        ];
        let cleaner = start_cleaner(cluster, &system);
        let surroundings = Surroundings { environment, ..Surroundings::default() };
        let daemon = Daemon::start_in(surroundings, Packages::Shared, RunBy::Caller);
        let driven = Self { daemon, cluster, system, registry, files, _cleaner: cleaner };
        let image = format!("--image={}", cluster.image);
        let pod = ["run", ASKER, "-n", &driven.system, &image, "--restart=Never", "--command", "--", "sleep", "100000"];
        driven.kubectl(&pod);
        driven.kubectl(&["wait", "-n", &driven.system, "--for=condition=Ready", "pod/asker", "--timeout=60s"]);
        Some(driven)
    }

    fn make_usual(&mut self) {
        let kubeconfig = fs::read_to_string(&self.cluster.kubeconfig).expect("a readable kubeconfig");
        if self.is_killed() || !self.read("config.toml").is_empty() || self.read("kubeconfig") != kubeconfig {
            self.restart_with("", &kubeconfig);
        }
    }

    /// Ends the daemon, and starts it with another settings file.
    pub fn configure(&mut self, settings: &str) {
        let kubeconfig = self.read("kubeconfig");
        self.restart_with(settings, &kubeconfig);
    }

    /// Ends the daemon, and starts it with another way to the cluster.
    pub fn connect_by(&mut self, kubeconfig: &str) {
        self.restart_with("", kubeconfig);
    }

    fn restart_with(&mut self, settings: &str, kubeconfig: &str) {
        if !self.is_killed() {
            self.daemon.kill();
        }
        fs::write(self.files.path().join("config.toml"), settings).expect("a file");
        fs::write(self.files.path().join("kubeconfig"), kubeconfig).expect("a file");
        self.daemon.resume();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.files.path().join(name)).expect("a file of ours")
    }

    fn is_killed(&self) -> bool {
        !self.daemon.is_started()
    }

    /// Where jobs run.
    pub fn builds(&self) -> String {
        format!("{}-builds", self.system)
    }

    /// Runs kubectl, which has to succeed; returns what it says.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let output = kubectl(self.cluster, arguments);
        assert!(output.status.success(), "kubectl {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    pub fn apply(&self, object: &Value) {
        let path = self.files.path().join("object.json");
        fs::write(&path, object.to_string()).expect("a file");
        self.kubectl(&["apply", "-f", path.to_str().expect("a path in UTF-8")]);
    }

    /// The way to the cluster, changed.
    pub fn kubeconfig(&self, change: impl FnOnce(&mut Value)) -> String {
        let text = fs::read_to_string(&self.cluster.kubeconfig).expect("a readable kubeconfig");
        let mut kubeconfig: Value = serde_yaml_ng::from_str(&text).expect("YAML");
        change(&mut kubeconfig);
        kubeconfig.to_string()
    }

    /// The objects that `kubectl get` finds.
    pub fn objects(&self, arguments: &[&str]) -> Vec<Value> {
        let found = self.kubectl(&[&["get", "-o", "json"], arguments].concat());
        let found: Value = serde_json::from_str(&found).expect("JSON");
        found["items"].as_array().cloned().unwrap_or_else(|| vec![found])
    }

    /// What is left of builds: jobs, pods and secrets.
    pub fn left_of_builds(&self) -> Vec<String> {
        let names = self.kubectl(&[
            "get",
            "jobs,pods,secrets",
            "-n",
            &self.builds(),
            "-l",
            "epiniod.dev/staging",
            "-o",
            "name",
        ]);
        names.lines().map(str::to_owned).collect()
    }

    pub fn wait_until_builds_are_gone(&self) {
        wait_until("nothing is left of builds", Duration::from_secs(60), || self.left_of_builds().is_empty());
    }

    /// The page of an application, as another pod of the cluster gets it.
    pub fn ask(&self, app: &str) -> String {
        let url = format!("http://{app}.workspace");
        let asking = ["exec", "-n", &self.system, ASKER, "--", "timeout", "10", "wget", "-q", "-O", "-", &url];
        let output = kubectl(self.cluster, &asking);
        text(&[output.stdout, output.stderr].concat())
    }

    /// Waits until another pod of the cluster sees this in the application's page.
    pub fn wait_until_answers(&self, app: &str, wanted: &str) {
        let mut last = String::new();
        let what = format!("{app} answers with '{wanted}'");
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until(&what, Duration::from_secs(60), || {
                last = self.ask(app);
                last.contains(wanted)
            });
        }));
        assert!(waited.is_ok(), "waited until {what}; the last answer: {last}\n{}", self.daemon.log_tail());
    }

    /// Pushes a folder, which has to succeed; what was said.
    pub fn push(&self, name: &str, path: &Path, more: &[&str]) -> String {
        let (succeeded, said) = self.begin_push(name, path, more).end();
        assert!(succeeded, "pushing {name} failed:\n{said}\n--- daemon\n{}", self.daemon.log_tail());
        said
    }

    /// Pushes a folder, which has to fail; what was said.
    pub fn push_fails(&self, name: &str, path: &Path, more: &[&str]) -> String {
        let (succeeded, said) = self.begin_push(name, path, more).end();
        assert!(!succeeded, "pushing {name} succeeded:\n{said}");
        said
    }

    pub fn begin_push(&self, name: &str, path: &Path, more: &[&str]) -> Pushing {
        let mut command = self.daemon.command(["push", "--name", name, "--path", path.to_str().expect("a path")]);
        command.args(more);
        Pushing::begin(name, command)
    }
}

/// A push that goes on.
pub struct Pushing {
    name: String,
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Pushing {
    pub fn begin(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a push");
        let (said, stderr) = (Arc::new(Mutex::new(Vec::new())), child.stderr.take().expect("a pipe"));
        let lines = Arc::clone(&said);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().expect("lines").push(line);
            }
        });
        Self { name: name.to_owned(), child, said, reader: Some(reader) }
    }

    pub fn said(&self) -> String {
        self.said.lock().expect("lines").join("\n")
    }

    /// Waits until a line has this in it; that line.
    pub fn until(&mut self, wanted: &str, within: Duration) -> String {
        let deadline = std::time::Instant::now() + within;
        loop {
            let ended = self.child.try_wait().expect("its status").is_some();
            if ended && let Some(reader) = self.reader.take() {
                reader.join().expect("a reader");
            }
            let found = self.said.lock().expect("lines").iter().find(|line| line.contains(wanted)).cloned();
            if let Some(line) = found {
                return line;
            }
            let late = std::time::Instant::now() >= deadline;
            assert!(
                !ended && !late,
                "pushing {} did not say '{wanted}' within {within:?}:\n{}",
                self.name,
                self.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The staging, once it is acknowledged.
    pub fn staging(&mut self) -> String {
        let line = self.until("staging ", PUSH_DEADLINE);
        line.split(' ').nth(1).expect("its id").to_owned()
    }

    /// Waits for the end: whether it succeeded, and what was said.
    pub fn end(mut self) -> (bool, String) {
        let mut status = None;
        let deadline = std::time::Instant::now() + PUSH_DEADLINE;
        while status.is_none() {
            status = self.child.try_wait().expect("its status");
            let late = std::time::Instant::now() >= deadline;
            assert!(!late, "pushing {} did not end within {PUSH_DEADLINE:?}:\n{}", self.name, self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(reader) = self.reader.take() {
            reader.join().expect("a reader");
        }
        let mut url = String::new();
        self.child.stdout.take().expect("a pipe").read_to_string(&mut url).expect("text");
        (status.expect("it ended").success(), format!("{}\n{url}", self.said()))
    }
}

impl Drop for Pushing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Output {
    cluster.kubectl().args(arguments).output().expect("kubectl runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A cluster that is lent goes as a whole; one that others named keeps nothing of ours.
fn start_cleaner(cluster: &Cluster, system: &str) -> Child {
    let script = r#"cat >/dev/null
        "$@" delete service -n "$SYSTEM" epiniod-registry --ignore-not-found >/dev/null 2>&1
        exec "$@" delete namespace --wait=false --ignore-not-found workspace "$SYSTEM" "$SYSTEM-builds" >/dev/null 2>&1"#;
    let kubectl = cluster.kubectl();
    // Not in this process's group: a signal to all of that is not for who cleans up.
    let mut shell = Command::new("/bin/sh");
    shell
        .process_group(0)
        .args(["-c", script, "cleaner"])
        .arg(kubectl.get_program())
        .args(kubectl.get_args())
        .env("SYSTEM", system);
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a shell")
}

/// A place for the sources of a test.
pub fn sources(driven: &Driven, name: &str) -> PathBuf {
    let path = driven.daemon.dir().join("sources").join(name);
    fs::create_dir_all(&path).expect("a folder");
    path
}
