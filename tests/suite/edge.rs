//! What a visitor sees: routes, streams and pages, in front of instances that come and go.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's own exception is for functions marked as tests, not for what they call"
)]

mod abuse;
mod client;
mod frames;
mod front;
mod grpc;
pub mod http2;
mod limits;
mod load;
mod metrics;
mod options;
mod replacing;
mod site;
mod tools;

use epiniod::{
    apps::{Error, Settings},
    model::AppChange,
};

use self::site::Site;
use crate::sandbox::house::as_root;

fn routes<const N: usize>(routes: [&str; N]) -> AppChange {
    AppChange { routes: Some(routes.map(|route| route.parse().unwrap()).to_vec()), ..AppChange::default() }
}

#[test]
fn requests_go_by_host_and_by_the_longest_path() {
    as_root(async {
        let site = Site::open().await;
        site.serve("shop", AppChange::default()).await;
        site.serve("pages", routes(["www.example.com", "shop.localhost/help"])).await;
        site.ask(|mut client| {
            for (host, path, app) in [
                ("shop.localhost", "/", "shop"),
                ("SHOP.localhost:8080", "/helpful", "shop"),
                ("shop.localhost", "/help", "pages"),
                ("shop.localhost", "/help/me?please", "pages"),
                ("www.example.com.", "/", "pages"),
            ] {
                let answer = client.get(host, path).unwrap();
                assert!(answer.body.starts_with(&format!("version {app}\nGET {path}\n")), "{host}{path}: {answer:?}");
            }
            let answer = client.get("pages.localhost", "/").unwrap();
            assert_eq!(answer.status, 404, "who has routes of its own has no other: {answer:?}");
        })
        .await;
        site.close().await;
    });
}

#[test]
fn ready_is_never_in_front_of_an_application() {
    as_root(async {
        let site = Site::open().await;
        site.serve("shop", AppChange::default()).await;
        site.ask(|mut client| {
            assert!(client.get("shop.localhost", "/ready").unwrap().body.starts_with("version shop\nGET /ready"));
            for host in ["epinio.localhost", "localhost", "127.0.0.1", "[::1]:8080"] {
                assert_eq!(client.get(host, "/ready").unwrap().body, "the API is ready", "{host}");
            }
            assert_eq!(client.get("unknown.example.com", "/ready").unwrap().body, "ok\n");
        })
        .await;
        site.close().await;
    });
}

#[test]
fn an_application_is_told_who_asked_for_what() {
    as_root(async {
        let site = Site::open().await;
        site.serve("shop", AppChange::default()).await;
        site.ask(|mut client| {
            client
                .send(
                    "GET http://shop.localhost:8080/x HTTP/1.1\r\nHost: other\r\nX-Forwarded-For: 192.0.2.1\r\n\
                     X-Forwarded-For: 192.0.2.2\r\nX-Request-Id: mine\r\nConnection: X-Private\r\nX-Private: yes\r\n\r\n",
                )
                .unwrap();
            let body = client.answer().unwrap().body;
            for line in [
                "GET /x",
                "host: shop.localhost:8080",
                "x-forwarded-for: 192.0.2.1, 192.0.2.2, 127.0.0.1",
                "x-forwarded-host: shop.localhost:8080",
                "x-forwarded-proto: http",
                "x-request-id: mine",
            ] {
                assert!(body.lines().any(|found| found == line), "{line} is not in:\n{body}");
            }
            assert!(!body.contains("x-private") && !body.contains("connection:"), "{body}");
            assert!(client.get("shop.localhost", "/").unwrap().body.contains("x-request-id: "));
        })
        .await;
        site.close().await;
    });
}

#[test]
fn bytes_stream_both_ways_as_they_come() {
    as_root(async {
        let site = Site::open().await;
        site.serve("shop", AppChange::default()).await;
        let mut other = site.client();
        site.ask(move |mut client| {
            client.send("POST /stream HTTP/1.1\r\nHost: shop.localhost\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
            client.send("3\r\none\r\n").unwrap();
            assert_eq!(client.head().unwrap().0, 200);
            assert_eq!(client.chunk().unwrap().unwrap(), b"one", "before the rest of the request was sent");
            client.send("3\r\ntwo\r\n0\r\n\r\n").unwrap();
            assert_eq!(client.chunk().unwrap().unwrap(), b"two");
            assert_eq!(client.chunk().unwrap(), None);

            client.send("GET /events HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").unwrap();
            assert!(client.head().unwrap().1.contains("content-type: text/event-stream"));
            assert_eq!(client.chunk().unwrap().unwrap(), b"data: first\n\n", "before there is a second");
            assert_eq!(other.post("shop.localhost", "/go", "").unwrap().status, 200);
            assert_eq!(client.chunk().unwrap().unwrap(), b"data: second\n\n");
            assert_eq!(client.chunk().unwrap(), None);
        })
        .await;
        site.close().await;
    });
}

#[test]
fn a_websocket_is_a_tunnel() {
    as_root(async {
        let site = Site::open().await;
        site.serve("chat", AppChange::default()).await;
        site.ask(|mut client| {
            client
                .send("GET / HTTP/1.1\r\nHost: chat.localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n")
                .unwrap();
            let (status, head) = client.head().unwrap();
            assert!(status == 101 && head.contains("upgrade: websocket"), "{head}");
            for text in ["hello", "and again"] {
                client.send(text).unwrap();
                assert_eq!(client.bytes(text.len()).unwrap(), text);
            }
        })
        .await;
        site.close().await;
    });
}

#[test]
fn where_nothing_answers_a_page_says_why() {
    as_root(async {
        let site = Site::open().await;
        site.serve("shop", AppChange::default()).await;
        site.create("empty", AppChange::default()).await;
        site.create("idle", AppChange { instances: Some(0), ..AppChange::default() }).await;
        site.deploy("idle", "http idle").await.unwrap();
        site.ask(|mut client| {
            for (host, path, status, text) in [
                ("nobody.localhost", "/x", 404, "No application has the route nobody.localhost/x."),
                ("empty.localhost", "/", 503, "Application empty cannot answer now: it has not been deployed yet."),
                ("idle.localhost", "/", 503, "Application idle cannot answer now: it is scaled to 0 instances."),
                ("shop.localhost", "/hang-up", 502, "did not answer the request: it closed the connection."),
            ] {
                let answer = client.get(host, path).unwrap();
                assert!(answer.status == status && answer.body.contains(text), "{host}{path}: {answer:?}");
            }
            client.send("GET / HTTP/1.1\r\nHost: <b>.localhost\r\nAccept: text/html\r\n\r\n").unwrap();
            let answer = client.answer().unwrap();
            assert!(answer.head.contains("text/html") && answer.body.contains("&lt;b&gt;.localhost"), "{answer:?}");
        })
        .await;
        site.close().await;
    });
}

#[test]
fn a_crashed_instance_gets_no_requests_while_another_runs() {
    as_root(async {
        let site = Site::open().await;
        site.serve("pair", AppChange { instances: Some(2), ..AppChange::default() }).await;
        site.ask(|mut client| {
            assert_eq!(client.post("pair.localhost", "/crash", "").unwrap().status, 502);
            for _ in 0..50 {
                assert_eq!(client.get("pair.localhost", "/").unwrap().status, 200);
                assert_eq!(client.post("pair.localhost", "/", "x").unwrap().status, 200);
            }
        })
        .await;
        site.close().await;
    });
}

#[test]
fn what_is_not_for_applications_is_no_route_of_one() {
    as_root(async {
        let site = Site::open().await;
        site.create("greedy", AppChange::default()).await;
        for route in ["epinio.localhost", "localhost", "localhost/path", "10.1.2.3", "127.0.0.1"] {
            let (namespace, name) = (Default::default(), site::app("greedy"));
            let refused = site.apps.update(&namespace, &name, routes([route])).await;
            assert!(matches!(refused, Err(Error::RouteReserved(_))), "{route}: {refused:?}");
        }
        site.close().await;
    });
}

#[test]
fn the_last_words_of_a_release_are_its_own() {
    as_root(async {
        let settings = Settings { health_deadline: std::time::Duration::from_secs(3), ..Settings::default() };
        let site = Site::with(settings).await;
        site.serve("shop", AppChange::default()).await;
        let Err(Error::NotHealthy { number, last_words, .. }) = site.deploy("shop", "serve 127.0.0.1 8080").await
        else {
            panic!("nobody can reach it");
        };
        let words = last_words.join("\n");
        assert_eq!(number, 2);
        assert!(words.contains("127.0.0.1 only") && !words.contains("version shop"), "{words}");
        site.ask(|mut client| assert_eq!(client.get("shop.localhost", "/").unwrap().status, 200)).await;
        site.close().await;
    });
}
