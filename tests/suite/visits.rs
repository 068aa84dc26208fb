//! `apps exec` and `apps port-forward`, as users and their scripts have them; and the protocol of Epinio's clients.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use axum::body::Body;
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, Request, StatusCode};
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest as _, protocol::Role},
};

use crate::edge::http2::connect;
use crate::support::{Daemon, get, not_run, sample, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a command beside an application; what it said, and its exit code.
fn exec<const N: usize>(daemon: &Daemon, args: [&str; N], input: &[u8]) -> Output {
    let mut command = daemon.command(["apps", "exec"]);
    let mut child = command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command line starts");
    let (mut stdin, input) = (child.stdin.take().expect("a pipe"), input.to_vec());
    // Who does not read it may be gone.
    let written = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().expect("it ends");
    written.join().expect("it was written");
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Ends with the test.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Processes of this machine that have this in their arguments.
fn runs(argument: &str) -> bool {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut commands = all.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    commands.any(|command| command.split(|byte| *byte == 0).any(|word| word == argument.as_bytes()))
}

#[test]
fn a_command_is_as_if_it_ran_here() {
    let daemon = Daemon::start();
    daemon.push("visited", &sample("procfile"));
    daemon.run(["apps", "env", "set", "visited", "COLOUR", "blue"]);
    let output = exec(&daemon, ["visited", "--", "sh", "-c", "id -u; pwd; echo $COLOUR; cat; exit 7"], b"typed\n");
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("1000\n/workspace\nblue\ntyped\n", Some(7)));
    assert_eq!(text(&output.stderr), "", "nothing is said besides");
    let output = exec(&daemon, ["visited", "--", "no-such-program", "x"], b"");
    assert_eq!(output.status.code(), Some(127));
    assert!(text(&output.stderr).contains("no-such-program: not found"), "{}", text(&output.stderr));
    let shell = exec(&daemon, ["visited"], b"echo $((6 * 7)); exit 3\n");
    assert!(text(&shell.stdout).contains("42\n"), "{}", text(&shell.stdout));
    assert_eq!(shell.status.code(), Some(3));
    let large: Vec<u8> = (0..8_000_000_u32).map(|number| (number % 251) as u8).collect();
    let output = exec(&daemon, ["visited", "--", "cat"], &large);
    assert!(output.stdout == large, "{} of {} bytes came back", output.stdout.len(), large.len());
    let unread = exec(&daemon, ["visited", "--", "echo", "done"], &large);
    assert_eq!((text(&unread.stdout).as_str(), unread.status.code()), ("done\n", Some(0)), "what is not read is lost");
}

#[test]
fn what_cannot_be_visited_is_told() {
    let daemon = Daemon::start();
    daemon.push("visited", &sample("procfile"));
    let other = exec(&daemon, ["visited", "--instance", "other", "--", "true"], b"");
    assert!(text(&other.stderr).contains("has no instance 'other'; it has visited-1-0"), "{}", text(&other.stderr));
    assert_eq!(exec(&daemon, ["nobody", "--", "true"], b"").status.code(), Some(5));
    assert_eq!(daemon.output(["apps", "port-forward", "nobody", "8080"]).status.code(), Some(5));
    assert_eq!(daemon.output(["apps", "port-forward", "visited", "http"]).status.code(), Some(2));
    daemon.run(["apps", "scale", "visited", "0"]);
    let stopped = exec(&daemon, ["visited", "--", "true"], b"");
    assert_eq!(stopped.status.code(), Some(1));
    assert!(text(&stopped.stderr).contains("'visited' does not run; start it with"), "{}", text(&stopped.stderr));
    let plain = daemon.api("/wapi/v1/namespaces/workspace/applications/visited/exec");
    assert_eq!(get(&plain).expect("an answer").status, 401, "nobody visits without a token");
}

#[test]
fn somebody_at_a_terminal_has_one_there() {
    if Command::new("script").arg("--version").output().is_err() {
        return not_run("commands at a terminal: script is not installed");
    }
    let daemon = Daemon::start();
    daemon.push("visited", &sample("procfile"));
    let mut script = Command::new("script");
    for (name, value) in daemon.command([]).get_envs() {
        script.env(name, value.unwrap_or_default());
    }
    let program = daemon.command([]).get_program().to_string_lossy().into_owned();
    let session = format!("stty cols 91 rows 33; {program} apps exec visited -- sh -c 'stty size; tty; exit 9'");
    let output = script.args(["-qec", &session, "/dev/null"]).stdin(Stdio::null()).output().expect("script runs");
    let said = text(&output.stdout);
    assert!(said.contains("/dev/pts/"), "{said}");
    assert_eq!(output.status.code(), Some(9), "{said}");
    // The first size may come after the first question.
    let session = format!(
        "stty cols 91 rows 33; {program} apps exec visited -- sh -c 'until stty size | grep \"33 91\"; do sleep 0.1; done'"
    );
    let mut script = Command::new("timeout");
    for (name, value) in daemon.command([]).get_envs() {
        script.env(name, value.unwrap_or_default());
    }
    let script = script.args(["30", "script", "-qec", &session, "/dev/null"]).stdin(Stdio::null()).output();
    let output = script.expect("script runs");
    assert!(output.status.success(), "{}", text(&output.stdout));
}

#[test]
fn who_is_interrupted_takes_the_command_along() {
    let daemon = Daemon::start();
    daemon.push("visited", &sample("procfile"));
    let argument = format!("9{}", std::process::id());
    let mut command = daemon.command(["apps", "exec", "visited", "--", "sleep"]);
    let child = command.arg(&argument).stdin(Stdio::piped()).spawn().expect("the command line starts");
    let program = |argument: &str| {
        let there = exec(&daemon, ["visited", "--", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"], b"");
        text(&there.stdout).contains(&format!("sleep {argument}"))
    };
    wait_until("the command runs", PATIENCE, || program(&argument));
    drop(Kept(child));
    wait_until("the command has ended with its client", PATIENCE, || !program(&argument) && !runs(&argument));
}

/// A `port-forward` that runs, and the address of its first port.
fn port_forward(daemon: &Daemon, ports: &str) -> (Kept, String, BufReader<std::process::ChildStderr>) {
    let mut command = daemon.command(["apps", "port-forward", "visited", ports]);
    let mut child = Kept(command.stderr(Stdio::piped()).spawn().expect("the command line starts"));
    let mut said = BufReader::new(child.0.stderr.take().expect("a pipe"));
    let mut line = String::new();
    said.read_line(&mut line).expect("it says where it listens");
    let address = line.strip_prefix("forwarding ").and_then(|rest| rest.split(' ').next());
    let address = address.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
    (child, address, said)
}

#[test]
fn ports_of_an_application_are_here() {
    let daemon = Daemon::start();
    daemon.push("visited", &sample("procfile"));
    let (_forward, address, _) = port_forward(&daemon, ":8080");
    let url = format!("http://{address}/");
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(|| get(&url).expect("an answer"))).collect();
        for answer in all {
            let answer = answer.join().expect("no panic");
            assert!(answer.status == 200 && answer.body.contains("Hello from the Procfile"), "{answer:?}");
        }
    });
    // A server that only the instance itself reaches, and that gives everything back.
    let mut command = daemon.command(["apps", "exec", "visited", "--", "socat", "-t", "30"]);
    let server = ["TCP-LISTEN:9000,bind=127.0.0.1,fork,reuseaddr", "EXEC:cat"];
    let _server = Kept(command.args(server).stdin(Stdio::piped()).spawn().expect("the command line starts"));
    let (_forward, address, _) = port_forward(&daemon, ":9000");
    let echo = |bytes: &[u8]| -> Vec<u8> {
        let mut stream = TcpStream::connect(&address).expect("somebody listens here");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let (mut writer, bytes) = (stream.try_clone().expect("a second handle"), bytes.to_vec());
        let written = std::thread::spawn(move || {
            let _ = writer.write_all(&bytes).and_then(|()| writer.shutdown(Shutdown::Write));
        });
        let mut back = Vec::new();
        let _ = stream.read_to_end(&mut back);
        written.join().expect("it was written");
        back
    };
    wait_until("the server listens", PATIENCE, || echo(b"hello") == b"hello");
    let large: Vec<u8> = (0..20_000_000_u32).map(|number| (number % 251) as u8).collect();
    let back = echo(&large);
    assert!(back == large, "{} of {} bytes came back", back.len(), large.len());
}

#[test]
fn a_port_that_nobody_listens_on_is_told_for_each_connection() {
    let daemon = Daemon::start();
    daemon.push("visited", &sample("procfile"));
    let (_forward, address, mut said) = port_forward(&daemon, ":22");
    for _ in 0..2 {
        let mut stream = TcpStream::connect(&address).expect("somebody listens here");
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0, "and hangs up");
        let mut line = String::new();
        said.read_line(&mut line).expect("it says why");
        assert!(line.contains("port 22 of instance visited-1-0") && line.contains("but on 8080"), "{line}");
        said.read_line(&mut line).expect("a hint");
    }
}

/// One command, without the scheme of its address.
fn command(daemon: &Daemon) -> String {
    let credential = format!("admin:{}", daemon.password);
    let token = crate::support::request(&["-u", &credential, &daemon.api("/api/v1/authtoken")]).expect("an answer");
    let token: Value = serde_json::from_str(&token.body).expect("JSON");
    let path = "/wapi/v1/namespaces/workspace/applications/visited/exec?command=sh&command=-c";
    let script = "read%20line;echo%20$line;echo%20aside%20%3E%262;exit%204";
    let token = token["token"].as_str().expect("a token");
    format!("127.0.0.1:{}{path}&command={script}&authtoken={token}", daemon.port)
}

/// What a client of Epinio does, in a version of the protocol: the frames of one command, until the end.
async fn frames(daemon: &Daemon, protocol: &'static str, said: Vec<Message>) -> Vec<Message> {
    let mut request = format!("ws://{}", command(daemon)).into_client_request().expect("a request");
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().expect("a header"));
    let (socket, answer) = tokio_tungstenite::connect_async(request).await.expect("a websocket");
    assert_eq!(answer.headers()["sec-websocket-protocol"], protocol, "clients want their own version back");
    converse(socket, said).await
}

/// The same over HTTP/2.
async fn frames_over_http_2(daemon: &Daemon, protocol: &'static str, said: Vec<Message>) -> Vec<Message> {
    let mut sender = connect(([127, 0, 0, 1], daemon.port).into()).await;
    let request = Request::connect(format!("http://{}", command(daemon))).header("sec-websocket-version", "13");
    let request = request.header("sec-websocket-protocol", protocol).extension(Protocol::from_static("websocket"));
    let answer = sender.send_request(request.body(Body::empty()).expect("a request")).await.expect("an answer");
    assert_eq!(
        (answer.status(), &answer.headers()["sec-websocket-protocol"]),
        (StatusCode::OK, &HeaderValue::from_static(protocol))
    );
    let stream = TokioIo::new(hyper::upgrade::on(answer).await.expect("a tunnel"));
    converse(WebSocketStream::from_raw_socket(stream, Role::Client, None).await, said).await
}

async fn converse(
    mut socket: WebSocketStream<impl AsyncRead + AsyncWrite + Unpin>,
    said: Vec<Message>,
) -> Vec<Message> {
    for message in said {
        socket.send(message).await.expect("it listens");
    }
    let mut frames = Vec::new();
    while let Some(message) = tokio::time::timeout(PATIENCE, socket.next()).await.expect("it ends in time") {
        match message.expect("a whole frame") {
            Message::Close(end) => {
                assert_eq!(end.map(|end| u16::from(end.code)), Some(1000), "clients take any other end for a failure");
                break;
            }
            message @ (Message::Text(_) | Message::Binary(_)) => frames.push(message),
            _ => {}
        }
    }
    frames
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_epinio_speak_their_versions_of_the_protocol() {
    let daemon = tokio::task::spawn_blocking(|| {
        let daemon = Daemon::start();
        daemon.push("visited", &sample("procfile"));
        daemon
    });
    let daemon = daemon.await.expect("a daemon");
    let binary = |channel: u8, text: &str| Message::Binary([&[channel], text.as_bytes()].concat().into());
    for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io"] {
        let frames = frames(&daemon, protocol, vec![Message::Ping("".into()), binary(0, "typed\n")]).await;
        assert!(frames.contains(&binary(1, "typed\n")) && frames.contains(&binary(2, "aside\n")), "{frames:?}");
        let Some(Message::Binary(last)) = frames.last() else { panic!("{frames:?}") };
        let status: Value = serde_json::from_slice(&last[1..]).expect("a status");
        assert_eq!((last[0], &status["details"]["causes"][0]["message"]), (3, &Value::from("4")), "{status}");
    }
    // What ends, by version 5, is the input: nothing was typed then.
    let ended = frames(&daemon, "v5.channel.k8s.io", vec![Message::Binary(vec![255, 0].into())]).await;
    assert!(ended.contains(&binary(1, "\n")), "{ended:?}");
    let page = frames(&daemon, "base64.channel.k8s.io", vec![Message::Text("0dHlwZWQK".into())]).await;
    assert!(page.contains(&Message::Text("1dHlwZWQK".into())), "{page:?}");
    let newer = frames_over_http_2(&daemon, "v5.channel.k8s.io", vec![binary(0, "typed\n")]).await;
    assert!(newer.contains(&binary(1, "typed\n")) && newer.contains(&binary(2, "aside\n")), "{newer:?}");
}
