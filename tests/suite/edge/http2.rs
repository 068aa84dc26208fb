//! What clients of HTTP/2 get: websockets by an extended CONNECT.

use std::net::SocketAddr;

use axum::body::Body;
use epiniod::model::AppChange;
use futures::{SinkExt as _, StreamExt as _};
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http2::SendRequest, ext::Protocol, upgrade::Upgraded};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use super::site::Site;
use crate::sandbox::house::{PATIENCE, as_root};

/// A connection with prior knowledge.
pub async fn connect(address: SocketAddr) -> SendRequest<Body> {
    let stream = TcpStream::connect(address).await.expect("the edge accepts connections");
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("it speaks HTTP/2");
    tokio::spawn(connection);
    // The server has said by then what it can do.
    let ready = sender.send_request(Request::get("http://localhost/ready").body(Body::empty()).unwrap());
    assert_eq!(ready.await.unwrap().status(), 200);
    sender
}

pub async fn tunnel(sender: &mut SendRequest<Body>, url: &str, protocol: &'static str) -> Response<Incoming> {
    let request = Request::connect(url).header("sec-websocket-version", "13");
    let request = request.extension(Protocol::from_static(protocol)).body(Body::empty()).unwrap();
    tokio::time::timeout(PATIENCE, sender.send_request(request)).await.expect("an answer").unwrap()
}

pub async fn upgraded(response: Response<Incoming>) -> TokioIo<Upgraded> {
    assert_eq!(response.status(), 200, "{response:?}");
    assert!(!response.headers().contains_key("upgrade"), "{response:?}");
    TokioIo::new(hyper::upgrade::on(response).await.expect("a tunnel"))
}

#[test]
fn websockets_share_a_connection_of_http_2_with_other_requests() {
    as_root(async {
        let site = Site::open().await;
        site.serve("chat", AppChange::default()).await;
        let mut sender = connect(site.address).await;
        let mut first = upgraded(tunnel(&mut sender, "http://chat.localhost/a", "websocket").await).await;
        let mut second = upgraded(tunnel(&mut sender, "http://chat.localhost/b", "websocket").await).await;
        for text in ["hello", "and again"] {
            for tunnel in [&mut first, &mut second] {
                let mut heard = vec![0; text.len()];
                tunnel.write_all(text.as_bytes()).await.unwrap();
                tokio::time::timeout(PATIENCE, tunnel.read_exact(&mut heard)).await.expect("an echo").unwrap();
                assert_eq!(heard, text.as_bytes());
            }
            let other = Request::get("http://chat.localhost/").body(Body::empty()).unwrap();
            assert_eq!(sender.send_request(other).await.unwrap().status(), 200, "beside the tunnels");
        }
        // They are in flight: the instance that they lead to stays for them.
        site.deploy("chat", "http chat2").await.unwrap();
        for mut tunnel in [first, second] {
            tunnel.write_all(b"still").await.unwrap();
            let mut heard = [0; 5];
            tokio::time::timeout(PATIENCE, tunnel.read_exact(&mut heard)).await.expect("an echo").unwrap();
            tunnel.shutdown().await.unwrap();
            let end = tokio::time::timeout(PATIENCE, tunnel.read(&mut heard)).await.expect("an end");
            assert_eq!(end.unwrap(), 0, "the other side ends as well");
        }
        site.close().await;
    });
}

#[test]
fn the_websockets_of_the_api_are_there_over_http_2_too() {
    as_root(async {
        let site = Site::open().await;
        let mut sender = connect(site.address).await;
        let stream = upgraded(tunnel(&mut sender, "http://localhost/echo", "websocket").await).await;
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
        socket.send(Message::text("hello")).await.unwrap();
        let heard = tokio::time::timeout(PATIENCE, socket.next()).await.expect("an echo");
        assert_eq!(heard.unwrap().unwrap(), Message::text("hello"));
        site.close().await;
    });
}

#[test]
fn what_is_no_websocket_is_no_tunnel() {
    as_root(async {
        let site = Site::open().await;
        let mut sender = connect(site.address).await;
        for (url, protocol, status, said) in [
            ("http://localhost/ready", "websocket", 502, "as a websocket is none"),
            ("http://localhost/ready", "connect-udp", 501, "this is no proxy"),
            ("http://nobody.localhost/", "websocket", 404, "No application has the route"),
        ] {
            let response = tunnel(&mut sender, url, protocol).await;
            assert_eq!(response.status(), status, "{url} {protocol}");
            let body = axum::body::to_bytes(Body::new(response.into_body()), 4096).await.unwrap();
            assert!(String::from_utf8_lossy(&body).contains(said), "{body:?}");
        }
        site.ask(|mut client| {
            client.send("CONNECT shop.localhost:443 HTTP/1.1\r\nHost: shop.localhost:443\r\n\r\n").unwrap();
            assert_eq!(client.answer().unwrap().status, 501);
        })
        .await;
        site.close().await;
    });
}
