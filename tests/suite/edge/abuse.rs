//! Clients that mean no good, and what they cost: little, and not for long.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::ws::WebSocketUpgrade,
    routing::{get, post},
};
use epiniod::edge::{Patience, Settings, Tls, Transport};
use futures::{SinkExt as _, StreamExt as _};
use tokio::net::TcpListener;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use super::{client::Client, front::Front, http2};
use crate::sandbox::house::PATIENCE;

const SHORT: Duration = Duration::from_secs(1);

fn impatient() -> Settings {
    Settings { patience: Patience { head: SHORT, body: SHORT, idle: SHORT }, ..Settings::default() }
}

/// An application that says how much it got.
async fn application() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new()
        .route("/", get(|| async { "hello" }))
        .route("/count", post(|body: Bytes| async move { body.len().to_string() }))
        .route("/never", get(std::future::pending::<()>));
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

async fn front(settings: Settings) -> Front {
    let front = Front::with(settings).await;
    front.leads_to("app.localhost", application().await);
    front
}

/// When the edge ends a connection, and what it said until then.
fn ended(stream: &mut TcpStream) -> (Duration, Vec<u8>) {
    let begun = Instant::now();
    let mut said = Vec::new();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "it is ended: {error}"),
    }
    (begun.elapsed(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_are_limited_in_size_and_number() {
    let front = front(Settings::default()).await;
    front
        .ask(|mut client| {
            let many = |number: usize, length: usize| {
                let lines: String = (0..number).map(|line| format!("X-{line}: {}\r\n", "x".repeat(length))).collect();
                format!("GET / HTTP/1.1\r\nHost: app.localhost\r\n{lines}\r\n")
            };
            client.send(&many(90, 500)).unwrap();
            assert_eq!(client.answer().unwrap().status, 200, "as much as anybody needs");
            let address = client.peer();
            for (number, length) in [(101, 1), (50, 2000), (1, 70_000)] {
                let mut client = Client::connect(address);
                // The end of it may find nobody who reads any more.
                let _ = client.send(&many(number, length));
                let (status, _) = client.head().unwrap();
                assert_eq!(status, 431, "{number} of {length} bytes");
            }
            // However it arrives, and whatever was asked before.
            for is_first in [true, false] {
                let mut client = Client::connect(address);
                if !is_first {
                    assert_eq!(client.post("app.localhost", "/count", "12345").unwrap().body, "5");
                }
                let text = many(50, 2000);
                let (most, rest) = text.split_at(60_000);
                client.send(most).unwrap();
                std::thread::sleep(Duration::from_millis(100));
                let _ = client.send(rest);
                assert_eq!(client.head().unwrap().0, 431, "the first request: {is_first}");
            }
        })
        .await;
    front.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_silent_is_let_go() {
    let front = front(impatient()).await;
    let address = front.address;
    let waits = move || {
        let head = "POST /count HTTP/1.1\r\nHost: app.localhost\r\n";
        for (said, status) in [
            (String::new(), None),
            ("GET / HTTP/1.1\r\nHost: app".to_owned(), None),
            // The preface of HTTP/2, and nothing more.
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), None),
            (format!("{head}Content-Length: 10\r\n\r\n12345"), Some("408")),
            (format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n"), Some("408")),
            // Between requests.
            ("GET / HTTP/1.1\r\nHost: app.localhost\r\n\r\n".to_owned(), Some("200")),
        ] {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(said.as_bytes()).unwrap();
            let (took, answer) = ended(&mut stream);
            assert!(took >= SHORT / 2 && took < PATIENCE / 2, "{said:?} took {took:?}");
            let answer = String::from_utf8_lossy(&answer).into_owned();
            match status {
                Some(status) => assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{said:?}: {answer}"),
                None => assert!(!answer.contains("HTTP/1.1"), "{said:?}: {answer}"),
            }
        }
    };
    tokio::task::spawn_blocking(waits).await.unwrap();
    front.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_may_take_long_as_long_as_it_moves() {
    let front = front(impatient()).await;
    front
        .ask(|mut client| {
            client.send("POST /count HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 6\r\n\r\n").unwrap();
            let begun = Instant::now();
            for byte in ["1", "2", "3", "4", "5", "6"] {
                // Not for anything to happen: it is a slow client.
                std::thread::sleep(SHORT / 3);
                client.send(byte).unwrap();
            }
            let answer = client.answer().unwrap();
            assert!(begun.elapsed() > SHORT, "{:?}", begun.elapsed());
            assert_eq!((answer.status, answer.body.as_str()), (200, "6"));
        })
        .await;
    front.close().await;
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::server::ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_silent_before_http_begins_is_let_go() {
    // Those that start daemons do this.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let tls = Tls::new(Arc::new(NoCertificate), Arc::default());
    let front = Front::speaking(Transport::Tls(tls), impatient()).await;
    // The first bytes of a handshake, and no more.
    for said in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(front.address).unwrap();
        stream.write_all(said).unwrap();
        let (took, answer) = tokio::task::spawn_blocking(move || ended(&mut stream)).await.unwrap();
        assert!(took < PATIENCE / 2 && answer.is_empty(), "{said:?}: {took:?} {answer:?}");
    }
    front.close().await;
    let settings = Settings { load_balancers: vec!["127.0.0.0/8".parse().unwrap()], ..impatient() };
    let front = Front::with(settings).await;
    let mut stream = TcpStream::connect(front.address).unwrap();
    stream.write_all(b"PROXY TCP4 ").unwrap();
    let (took, answer) = tokio::task::spawn_blocking(move || ended(&mut stream)).await.unwrap();
    assert!(took < PATIENCE / 2 && answer.is_empty(), "{took:?} {answer:?}");
    front.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_says_itself_whether_it_wants_a_body() {
    let front = Front::open().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    front.leads_to("app.localhost", listener.local_addr().unwrap());
    let head = "POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    let instance = std::thread::spawn(move || {
        // It wants the first, and not the second.
        for answer in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"] {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut text = Vec::new();
            while !text.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                text.push(byte[0]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            let mut body = [0; 4];
            if stream.read_exact(&mut body).is_ok() {
                assert!(answer.contains("100"), "a body that is not wanted: {body:?}");
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n").unwrap();
                stream.write_all(&body).unwrap();
            }
        }
    });
    let address = front.address;
    let asks = move || {
        let mut wanted = Client::connect(address);
        wanted.send(head).unwrap();
        assert_eq!(wanted.head().unwrap().0, 100);
        wanted.send("body").unwrap();
        let answer = wanted.answer().unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "body"), "once, and not a second time");
        let mut refused = Client::connect(address);
        refused.send(head).unwrap();
        assert_eq!(refused.head().unwrap().0, 403, "before anything was sent");
    };
    tokio::task::spawn_blocking(asks).await.unwrap();
    tokio::task::spawn_blocking(move || instance.join().expect("the instance saw what it should")).await.unwrap();
    front.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_may_be_silent_as_long_as_they_like() {
    let front = Front::with(impatient()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    front.leads_to("app.localhost", listener.local_addr().unwrap());
    let echo = get(|upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(async |mut socket| {
            while let Some(Ok(message)) = socket.recv().await {
                let _ = socket.send(message).await;
            }
        })
    });
    let app = Router::new().route("/", echo);
    tokio::spawn(async move { axum::serve(listener, app).await });
    let older = TcpStream::connect(front.address).unwrap();
    let (mut older, _) = tokio_tungstenite::tungstenite::client("ws://app.localhost/", older).unwrap();
    let mut sender = http2::connect(front.address).await;
    let newer = http2::tunnel(&mut sender, "http://app.localhost/", "websocket").await;
    let mut newer = WebSocketStream::from_raw_socket(http2::upgraded(newer).await, Role::Client, None).await;
    // Longer than anything else may be silent.
    tokio::time::sleep(SHORT * 3).await;
    older.send(Message::text("still")).unwrap();
    assert_eq!(older.read().unwrap(), Message::text("still"));
    newer.send(Message::text("here")).await.unwrap();
    let heard = tokio::time::timeout(PATIENCE, newer.next()).await.expect("an echo");
    assert_eq!(heard.unwrap().unwrap(), Message::text("here"));
    let more = sender.send_request(http::Request::get("http://localhost/ready").body(Body::empty()).unwrap()).await;
    assert!(more.is_err(), "new requests go to another connection: {more:?}");
    drop((older, newer));
    front.close().await;
}
