//! A Kubernetes for tests: the one that `EPINIOD_TEST_KUBECONFIG` names, or one that `tests/cluster` makes for this
//! process and takes away after it, however it ends.

use std::{
    io::{BufRead as _, BufReader},
    net::UdpSocket,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use epiniod::model::Digest;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, LogParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{conditions, wait::await_condition},
};
use serde_json::json;

/// What the scripts of `tests/cluster` end with where the machine is not able to run a cluster.
pub(super) const CANNOT_RUN: i32 = 3;
const POD_DEADLINE: Duration = Duration::from_secs(90);

/// Who made a cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The scripts of `tests/cluster`.
    Ours,
    /// Somebody else, who named it.
    Named,
}

/// What the pods of a namespace may do, by the Pod Security Standards.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Privileged,
    Restricted,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Restricted => "restricted",
        }
    }
}

pub struct Cluster {
    pub kubeconfig: PathBuf,
    pub origin: Origin,
    /// Has a shell and the usual commands.
    pub image: String,
    /// Its stdin ends with this process, and with it the cluster.
    _lender: Option<Child>,
}

/// The cluster of this process; where there is none, `what` is said not to have been tested.
pub fn cluster(what: &str) -> Option<&'static Cluster> {
    static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
    match CLUSTER.get_or_init(Cluster::find) {
        Ok(cluster) => Some(cluster),
        Err(reason) => {
            super::not_run(&format!("{what}: {reason}"));
            None
        }
    }
}

impl Cluster {
    fn find() -> Result<Self, String> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let image = std::env::var("EPINIOD_TEST_IMAGE").unwrap_or_else(|_| "localhost/busybox:test".to_owned());
        if let Some(kubeconfig) = std::env::var_os("EPINIOD_TEST_KUBECONFIG") {
            return Ok(Self { kubeconfig: kubeconfig.into(), origin: Origin::Named, image, _lender: None });
        }
        let (lender, kubeconfig) = borrow(&name("suite"))?;
        Ok(Self { kubeconfig, origin: Origin::Ours, image, _lender: Some(lender) })
    }

    /// A client of the administrator; each test has its own, as connections do not outlive its runtime.
    pub async fn client(&self) -> Client {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig).expect("a readable kubeconfig");
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a valid kubeconfig");
        Client::try_from(config).expect("a client")
    }

    /// kubectl: the cluster's own where the scripts made it, else the machine's.
    pub fn kubectl(&self) -> Command {
        let own = self.kubeconfig.with_file_name("kubernetes");
        let mut command = if own.is_file() {
            let mut command = Command::new(own);
            command.arg("kubectl");
            command
        } else {
            Command::new("kubectl")
        };
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command
    }

    /// The beginning of a command on the node of a cluster that the scripts made.
    pub fn on_node(&self) -> Option<Command> {
        let folder = self.kubeconfig.parent().filter(|folder| folder.join("kubernetes").is_file())?;
        Some(script("enter", folder.file_name()?.to_str()?))
    }

    /// Host and port of the API server.
    pub fn server(&self) -> (String, u16) {
        server_of(&self.kubeconfig)
    }

    /// A namespace of the test's own, which goes with the test. Its level is there from the beginning: the API server
    /// learns of a later one in its own time.
    pub async fn namespace(&'static self, level: Level) -> Place {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let client = self.client().await;
        let labels = json!({ "pod-security.kubernetes.io/enforce": level.name() });
        let namespace = json!({ "metadata": { "name": name, "labels": labels } });
        let namespace = serde_json::from_value(namespace).expect("a namespace");
        Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .expect("a new namespace");
        let place = Place { cluster: self, client, name };
        place.until_pods_are_allowed().await;
        place
    }
}

/// Host and port of the API server that a kubeconfig names.
pub fn server_of(kubeconfig: &Path) -> (String, u16) {
    let text = std::fs::read_to_string(kubeconfig).expect("a readable kubeconfig");
    let kubeconfig: serde_json::Value = serde_yaml_ng::from_str(&text).expect("YAML");
    let server = kubeconfig["clusters"][0]["cluster"]["server"].as_str().expect("a server").to_owned();
    let (host, port) = server.trim_start_matches("https://").rsplit_once(':').expect("a port");
    (host.to_owned(), port.trim_end_matches('/').parse().expect("a port"))
}

/// The address of this machine where the nodes and pods of a cluster reach it.
pub fn address_towards(kubeconfig: &Path) -> String {
    let (host, port) = server_of(kubeconfig);
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect((host.as_str(), port)).expect("a way to the API server");
    socket.local_addr().expect("an address").ip().to_string()
}

/// Borrows a cluster of this name until the lender's stdin is closed; its kubeconfig, or why there is none.
pub fn borrow(name: &str) -> Result<(Child, PathBuf), String> {
    borrow_with(name, &[])
}

/// The same, made with settings: variables that `tests/cluster/up` explains.
pub fn borrow_with(name: &str, settings: &[(&str, &str)]) -> Result<(Child, PathBuf), String> {
    // Not in this process's group: a signal to all of that is not for who cleans up.
    let mut lender = script("lend", name)
        .envs(settings.iter().copied())
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("tests/cluster/lend cannot be run: {error}"))?;
    let mut kubeconfig = String::new();
    let stdout = lender.stdout.take().expect("a pipe");
    BufReader::new(stdout).read_line(&mut kubeconfig).expect("text or its end");
    if let Some(kubeconfig) = kubeconfig.strip_suffix('\n') {
        return Ok((lender, kubeconfig.into()));
    }
    let status = lender.wait().expect("it ends with its output");
    assert_eq!(status.code(), Some(CANNOT_RUN), "tests/cluster/lend failed; what it said stands above");
    Err("this machine cannot run a cluster; why, tests/cluster/up says".to_owned())
}

/// A name of a cluster: for each folder that is tested from there is another.
pub fn name(purpose: &str) -> String {
    let folder = Digest::of(env!("CARGO_MANIFEST_DIR").as_bytes()).to_string();
    format!("epiniod-{purpose}-{}", &folder["sha256:".len()..][..8])
}

/// A script of `tests/cluster`, told which cluster.
pub fn script(script: &str, name: &str) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster").join(script);
    let mut command = Command::new(path);
    command.env("EPINIOD_CLUSTER", name);
    command
}

/// A namespace of a test.
pub struct Place {
    pub cluster: &'static Cluster,
    pub client: Client,
    pub name: String,
}

impl Place {
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Makes an object from what a manifest has below `metadata.name`.
    pub async fn create<K>(&self, name: &str, rest: serde_json::Value) -> K
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>
            + serde::de::DeserializeOwned
            + serde::Serialize
            + Clone
            + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let mut object = json!({ "metadata": { "name": name, "labels": { "test": name } } });
        object.as_object_mut().expect("an object").extend(rest.as_object().expect("an object").clone());
        let object = serde_json::from_value(object).expect("a valid object");
        self.api().create(&PostParams::default(), &object).await.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Runs a shell script in a pod; what it printed. `more` of the pod's specification is merged in.
    pub async fn run(&self, name: &str, script: &str, more: serde_json::Value) -> String {
        let mut spec = json!({
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "main", "image": self.cluster.image, "command": ["sh", "-c", script] }],
        });
        spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        self.create::<Pod>(name, json!({ "spec": spec })).await;
        let ended = await_condition(self.api::<Pod>(), name, |pod: Option<&Pod>| {
            matches!(phase(pod), Some("Succeeded" | "Failed"))
        });
        let pod = self.within(name, ended).await;
        let log = self.api::<Pod>().logs(name, &LogParams::default()).await.expect("a log");
        assert_eq!(phase(pod.as_ref()), Some("Succeeded"), "pod {name} failed; it printed:\n{log}");
        log
    }

    /// Starts a pod that stays, and waits until it runs.
    pub async fn start(&self, name: &str, script: &str) {
        let container = json!({ "name": "main", "image": self.cluster.image, "command": ["sh", "-c", script] });
        let spec = json!({ "terminationGracePeriodSeconds": 0, "containers": [container] });
        self.create::<Pod>(name, json!({ "spec": spec })).await;
        self.within(name, await_condition(self.api::<Pod>(), name, conditions::is_pod_running())).await;
    }

    async fn within<T, E: std::fmt::Debug>(&self, pod: &str, condition: impl Future<Output = Result<T, E>>) -> T {
        match tokio::time::timeout(POD_DEADLINE, condition).await {
            Ok(result) => result.expect("a watch that is answered"),
            Err(_) => {
                let pod = self.api::<Pod>().get(pod).await.expect("the pod");
                panic!("waited {POD_DEADLINE:?} for a pod: {:#?}", pod.status)
            }
        }
    }

    /// A pod needs the namespace's service account, which a controller makes.
    async fn until_pods_are_allowed(&self) {
        let there = await_condition(self.api::<ServiceAccount>(), "default", conditions::is_created());
        tokio::time::timeout(POD_DEADLINE, there).await.expect("the default service account").expect("a watch");
    }
}

impl Drop for Place {
    /// From a thread, as the test's own runtime may be at its end.
    fn drop(&mut self) {
        let (cluster, name) = (self.cluster, self.name.clone());
        let deleted = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let namespaces: Api<Namespace> = Api::all(cluster.client().await);
                namespaces.delete(&name, &DeleteParams::background()).await.map(drop)
            })
        });
        match deleted.join() {
            Ok(Ok(())) => {}
            other => eprintln!("namespace {} stays in the cluster: {other:?}", self.name),
        }
    }
}

fn phase(pod: Option<&Pod>) -> Option<&str> {
    pod?.status.as_ref()?.phase.as_deref()
}

/// Waits for a lender whose stdin was closed: it ends after its cluster.
pub fn give_back(mut lender: Child) -> ExitStatus {
    drop(lender.stdin.take());
    lender.wait().expect("the lender ends")
}
