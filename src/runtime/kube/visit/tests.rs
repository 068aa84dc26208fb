use std::{collections::BTreeMap, path::Path};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{StatusCause, StatusDetails};
use kube::{
    Client,
    api::{DeleteParams, PostParams},
    runtime::wait::{await_condition, conditions::is_pod_running},
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::runtime;

/// How long the cluster may take with anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// A server that only its own pod reaches, with a page that is small and one that is not.
const SERVER: &str = "mkdir /tmp/www && cd /tmp/www && echo hello >small && head -c 5000000 /dev/urandom >large && \
                      exec httpd -f -p 127.0.0.1:8080";

#[test]
fn the_end_of_a_command_is_understood() {
    let cause =
        StatusCause { reason: Some("ExitCode".to_owned()), message: Some("7".to_owned()), ..Default::default() };
    let details = StatusDetails { causes: Some(vec![cause]), ..StatusDetails::default() };
    let failed = |message: &str| Status {
        status: Some("Failure".to_owned()),
        message: Some(message.to_owned()),
        ..Status::default()
    };
    let ended = Status { details: Some(details), ..failed("command terminated with non-zero exit code") };
    assert_eq!(exit(&ended), Exit { code: 7, message: None });
    for (message, code) in [
        ("unable to start container process: exec: \"x\": executable file not found in $PATH", NOT_FOUND),
        ("exec: \"/x\": stat /x: no such file or directory", NOT_FOUND),
        ("exec: \"/etc/passwd\": permission denied", CANNOT_RUN),
    ] {
        assert_eq!(exit(&failed(message)), Exit { code, message: Some(message.to_owned()) });
    }
    let success = Status { status: Some("Success".to_owned()), ..Status::default() };
    assert_eq!(exit(&success), Exit { code: 0, message: None });
}

/// A pod of its own in the cluster of the tests. Without one it says so.
struct House {
    pods: Api<Pod>,
    name: String,
}

impl House {
    async fn open(what: &str) -> Option<Self> {
        let Some(kubeconfig) = std::env::var_os("EPINIOD_TEST_KUBECONFIG") else {
            eprintln!("NOT RUN: this test needs a cluster, which EPINIOD_TEST_KUBECONFIG names");
            return None;
        };
        let _ = rustls::crypto::ring::default_provider().install_default();
        let file = kube::config::Kubeconfig::read_from(Path::new(&kubeconfig)).unwrap();
        let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await.unwrap();
        let pods: Api<Pod> = Api::namespaced(Client::try_from(config).unwrap(), "default");
        let name = format!("epiniod-visit-{what}-{}", std::process::id());
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name },
            "spec": {
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": CONTAINER,
                    "image": "localhost/busybox:test",
                    "imagePullPolicy": "Never",
                    "command": ["sh", "-c", SERVER],
                    "securityContext": { "runAsUser": 1000, "runAsGroup": 1000 },
                }],
            },
        });
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        let running = await_condition(pods.clone(), &name, is_pod_running());
        tokio::time::timeout(PATIENCE, running).await.expect("the pod runs in time").unwrap();
        Some(Self { pods, name })
    }

    async fn exec(&self, words: &[&str], terminal: Terminal) -> Session {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        exec_in(&self.pods, &self.name, "visited", Command { words, terminal }).await.unwrap()
    }

    /// What a command says to an input, on stdout and stderr, and how it ends.
    async fn run(&self, words: &[&str], input: &[u8]) -> (Vec<u8>, String, Exit) {
        let Session { mut stdin, mut stdout, mut stderr, ended, .. } = self.exec(words, Terminal::None).await;
        let (mut out, mut err) = (Vec::new(), String::new());
        let write = async {
            stdin.write_all(input).await.unwrap();
            stdin.shutdown().await.unwrap();
        };
        let all = async { tokio::join!(write, stdout.read_to_end(&mut out), stderr.read_to_string(&mut err), ended) };
        let (.., ended) = tokio::time::timeout(PATIENCE, all).await.expect("it ends in time");
        (out, err, ended.unwrap())
    }

    /// The body of a page, by a connection of its own.
    async fn page(&self, path: &str) -> Vec<u8> {
        let mut connection = forward_to(&self.pods, &self.name, "visited", 8080).await.unwrap();
        connection.write_all(format!("GET /{path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        // Whoever has asked everything says so, and still gets the answer.
        connection.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let read = connection.read_to_end(&mut answer);
        tokio::time::timeout(PATIENCE, read).await.expect("it answers in time").unwrap();
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        answer.split_off(head + 4)
    }

    async fn close(self) {
        self.pods.delete(&self.name, &DeleteParams::default().grace_period(0)).await.unwrap();
    }
}

#[tokio::test]
async fn a_command_runs_in_the_pod() {
    let Some(house) = House::open("exec").await else { return };
    let (out, err, ended) = house.run(&["sh", "-c", "id -u; cat; echo aside >&2; exit 7"], b"typed\n").await;
    let code = |code| Exit { code, message: None };
    assert_eq!((String::from_utf8_lossy(&out).as_ref(), err.as_str(), ended), ("1000\ntyped\n", "aside\n", code(7)));
    let large: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let (out, _, ended) = house.run(&["cat"], &large).await;
    assert!(out == large, "{} of {} bytes came back", out.len(), large.len());
    assert_eq!(ended, code(0));
    let (.., ended) = house.run(&["no-such-program"], b"").await;
    assert_eq!(ended.code, NOT_FOUND, "{ended:?}");
    assert!(ended.message.is_some_and(|message| message.contains("no-such-program")));
    house.close().await;
}

#[tokio::test]
async fn a_terminal_in_the_pod_has_the_size_of_the_window() {
    let Some(house) = House::open("terminal").await else { return };
    let mut session = house.exec(&["sh"], Terminal::Own).await;
    (session.resize)(runtime::TerminalSize { columns: 91, rows: 33 });
    // The size may come after the first words.
    let ask = "until stty size | grep '33 91'; do sleep 0.1; done; tty; exit 5\n";
    session.stdin.write_all(ask.as_bytes()).await.unwrap();
    let mut said = String::new();
    let all = async { tokio::join!(session.stdout.read_to_string(&mut said), session.ended) };
    let (_, ended) = tokio::time::timeout(PATIENCE, all).await.expect("it has the size in time");
    assert!(said.contains("/dev/pts/"), "{said}");
    assert_eq!(ended.unwrap().code, 5, "{said}");
    house.close().await;
}

#[tokio::test]
async fn ports_that_only_the_pod_reaches_are_carried() {
    let Some(house) = House::open("forward").await else { return };
    // The server may still be making its pages.
    let ready =
        house.run(&["sh", "-c", "until wget -q -O /dev/null http://127.0.0.1:8080/small; do sleep 0.1; done"], b"");
    assert_eq!(ready.await.2.code, 0);
    assert_eq!(house.page("small").await, b"hello\n");
    let many = futures::future::join_all((0..5).map(|_| house.page("large"))).await;
    let sizes: BTreeMap<usize, usize> = many.iter().map(|page| (page.len(), 1)).collect();
    assert_eq!(sizes, BTreeMap::from([(5_000_000, 1)]));
    let refused = forward_to(&house.pods, &house.name, "visited", 9999).await.err().expect("nobody listens there");
    assert_eq!(
        refused.to_string(),
        "port 9999 of instance visited cannot be reached: its program does not listen there"
    );
    house.close().await;
}
