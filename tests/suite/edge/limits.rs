//! What whoever runs the daemon allows the routes of a host, and what is counted of them.

use std::time::Duration;

use axum::{
    Router,
    body::Bytes,
    routing::{get, post},
};
use epiniod::edge::{RouteSettings, Settings};
use tokio::net::TcpListener;

use super::{client::Client, front::Front};
use crate::{sandbox::house::PATIENCE, support::wait_until};

async fn front(route: RouteSettings) -> Front {
    let routes = [("app.localhost".to_owned(), route)].into();
    let front = Front::with(Settings { routes, max_body_bytes: Some(10), ..Settings::default() }).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new()
        .route("/", get(|| async { "hello" }).post(|body: Bytes| async move { body.len().to_string() }))
        .route("/never", post(async |_: Bytes| std::future::pending::<()>().await));
    tokio::spawn(async move { axum::serve(listener, app).await });
    let target = front.target_at(address);
    front.routes([("app.localhost", target.clone()), ("other.localhost", target)]);
    front
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_may_have_a_limit_of_its_own_for_bodies() {
    let front = front(RouteSettings { max_body_bytes: Some(20), ..RouteSettings::default() }).await;
    front
        .ask(|mut client| {
            for (host, length, status, said) in [
                ("app.localhost", 20, 200, "20"),
                ("app.localhost", 21, 413, "larger than 20 bytes"),
                ("other.localhost", 11, 413, "larger than 10 bytes"),
            ] {
                let answer = client.post(host, "/", &"x".repeat(length));
                // One that is refused ends the connection.
                let answer = answer.or_else(|_| {
                    client = Client::connect(client.peer());
                    client.post(host, "/", &"x".repeat(length))
                });
                let answer = answer.unwrap();
                assert!(answer.status == status && answer.body.contains(said), "{host} {length}: {answer:?}");
            }
        })
        .await;
    let counts = front.counts();
    assert_eq!((counts.answers, counts.received_bytes), ([0, 1, 0, 2, 0], 20), "{counts:?}");
    front.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_too_long_to_answer_is_answered_for() {
    let front = front(RouteSettings { response: Some(Duration::from_secs(1)), ..RouteSettings::default() }).await;
    front
        .ask(|mut client| {
            let late = client.post("app.localhost", "/never", "").unwrap();
            assert!(late.status == 504 && late.body.contains("within 1 s"), "{late:?}");
            assert_eq!(client.get("app.localhost", "/").unwrap().status, 200);
        })
        .await;
    let counts = front.counts();
    assert_eq!((counts.answers, counts.sent_bytes), ([0, 1, 0, 0, 1], 5), "{counts:?}");
    assert!(counts.total >= Duration::from_secs(1) && counts.total < PATIENCE, "{counts:?}");
    front.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_given_so_many_requests_at_once_and_no_more() {
    let front = front(RouteSettings { requests_in_flight: Some(2), ..RouteSettings::default() }).await;
    let address = front.address;
    let mut busy: Vec<Client> = front
        .ask(move |_| {
            let busy = (0..2).map(|_| {
                let mut client = Client::connect(address);
                client.send("POST /never HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 0\r\n\r\n").unwrap();
                client
            });
            busy.collect()
        })
        .await;
    wait_until("both are in flight", PATIENCE, || front.in_flight("app.localhost") == 2);
    front
        .ask(|mut client| {
            let refused = client.get("app.localhost", "/").unwrap();
            assert!(refused.status == 503 && refused.body.contains("There are 2 requests under way"), "{refused:?}");
        })
        .await;
    busy.pop();
    wait_until("one has left", PATIENCE, || front.in_flight("app.localhost") == 1);
    front.ask(|mut client| assert_eq!(client.get("app.localhost", "/").unwrap().status, 200)).await;
    drop(busy);
    front.close().await;
}
