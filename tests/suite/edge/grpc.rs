//! gRPC through the edge, with a server and a client of its own project (`grpc_calls.py`).

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use epiniod::apps::{Backend, Target};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::front::Front;
use crate::support;

/// A Python that has gRPC, as `packaging/toolchain` installs it.
const PYTHON: &str = "grpc-python";

fn python(arguments: &[&str]) -> Command {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/suite/edge/grpc_calls.py");
    let mut command = Command::new(PYTHON);
    command.arg(script).args(arguments);
    command
}

fn has_grpc() -> bool {
    let there = Command::new(PYTHON).args(["-c", "import grpc"]).output().is_ok_and(|output| output.status.success());
    if !there {
        assert!(std::env::var_os("EPINIOD_TEST_TOOLS").is_none(), "{PYTHON} is not installed");
        support::not_run("gRPC through the edge: there is no Python with grpcio");
    }
    there
}

struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start() -> Self {
        let mut process = python(&["serve"]).stdout(Stdio::piped()).spawn().expect("a server");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("a pipe")).read_line(&mut line).expect("its port");
        Self { process, address: ([127, 0, 0, 1], line.trim().parse().expect("a port")).into() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn said(arguments: Vec<String>) -> String {
    let run = move || python(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).output().expect("a client");
    let output = tokio::task::spawn_blocking(run).await.expect("it does not panic");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_all_kinds_are_carried_with_their_trailers() {
    if !has_grpc() {
        return;
    }
    let server = Server::start();
    let front = Front::open().await;
    let backend = Arc::new(Backend::new("grpc-1-0".to_owned(), server.address, Arc::default()));
    front.route("grpc.localhost", front.target(vec![Arc::clone(&backend)], None));
    let text = said(vec!["call".to_owned(), front.address.port().to_string()]).await;
    assert_eq!(text, "all calls were answered\n");
    tokio::time::timeout(crate::sandbox::house::PATIENCE, backend.drained())
        .await
        .expect("nothing is in flight any more");
    front.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_answers_clients_of_grpc_are_told_why() {
    if !has_grpc() {
        return;
    }
    let front = Front::open().await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // What speaks HTTP/1.1 only.
    let older = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let older_address = older.local_addr().unwrap();
    let older = tokio::spawn(async move {
        loop {
            let (mut stream, _) = older.accept().await.unwrap();
            let _ = stream.read(&mut [0; 100]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    let target = |address| vec![Arc::new(Backend::new("grpc-1-0".to_owned(), address, Arc::default()))];
    let idle: Arc<Target> = front.target(Vec::new(), Some("it is scaled to 0 instances"));
    front.routes([
        ("gone.localhost", front.target(target(gone), None)),
        ("older.localhost", front.target(target(older_address), None)),
        ("idle.localhost", idle),
    ]);
    for (host, expected) in [
        ("nobody.localhost", "UNIMPLEMENTED No application has the route nobody.localhost/test.Test/Unary."),
        ("idle.localhost", "UNAVAILABLE Application app cannot answer now: it is scaled to 0 instances."),
        ("gone.localhost", "UNAVAILABLE Instance grpc-1-0 did not answer the request: it does not accept connections."),
        (
            "older.localhost",
            "UNAVAILABLE Instance grpc-1-0 did not answer the request: it closed the connection, or does not speak HTTP/2.",
        ),
    ] {
        let text = said(vec!["refused".to_owned(), front.address.port().to_string(), host.to_owned()]).await;
        assert!(text.starts_with(expected), "{host}: {text}");
    }
    older.abort();
    front.close().await;
}
