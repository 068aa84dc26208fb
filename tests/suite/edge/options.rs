//! What whoever runs the daemon may choose about its listeners.

use std::io::ErrorKind;

use epiniod::{edge::Settings, model::AppChange};

use super::{
    client::{Answer, Client},
    site::Site,
};
use crate::sandbox::house::as_root;

#[test]
fn bodies_that_are_too_large_are_refused_whether_or_not_they_say_how_large_they_are() {
    as_root(async {
        let site = Site::guarded(Settings { max_body_bytes: Some(10), ..Settings::default() }).await;
        site.serve("shop", AppChange::default()).await;
        site.ask(|mut client| {
            assert_eq!(client.post("shop.localhost", "/", "0123456789").unwrap().status, 200);
            let refused = client.post("shop.localhost", "/", "0123456789a").unwrap();
            assert!(refused.status == 413 && refused.body.contains("larger than 10 bytes"), "{refused:?}");
        })
        .await;
        site.ask(|mut client| {
            let head = "POST / HTTP/1.1\r\nHost: shop.localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
            client.send(&format!("{head}8\r\n01234567\r\n8\r\n01234567\r\n0\r\n\r\n")).unwrap();
            assert_eq!(client.answer().unwrap().status, 413);
        })
        .await;
        site.close().await;
    });
}

#[test]
fn a_load_balancer_says_whom_it_speaks_for() {
    as_root(async {
        let settings = Settings { load_balancers: vec!["127.0.0.0/8".parse().unwrap()], ..Settings::default() };
        let site = Site::guarded(settings).await;
        site.serve("shop", AppChange::default()).await;
        site.ask(|mut client| {
            client.send("PROXY TCP4 192.0.2.7 127.0.0.1 5000 80\r\n").unwrap();
            let answer = client.get("shop.localhost", "/").unwrap();
            assert!(answer.body.to_lowercase().contains("x-forwarded-for: 192.0.2.7\n"), "{answer:?}");
        })
        .await;
        let silent = site.ask(|mut client| client.get("shop.localhost", "/")).await;
        assert!(silent.is_err(), "one that does not is not listened to: {silent:?}");
        site.close().await;
    });
}

#[test]
fn an_address_has_so_many_connections_and_no_more() {
    as_root(async {
        let site = Site::guarded(Settings { connections_per_address: Some(2), ..Settings::default() }).await;
        let address = site.address;
        site.ask(move |mut first| {
            let mut second = Client::connect(address);
            for client in [&mut first, &mut second] {
                assert_eq!(client.get("localhost", "/ready").unwrap().status, 200);
            }
            let third = Client::connect(address).get("localhost", "/ready");
            assert!(third.is_err(), "{third:?}");
            drop(first);
            let again = || -> std::io::Result<Answer> { Client::connect(address).get("localhost", "/ready") };
            crate::support::wait_until(
                "the place of who left is free",
                crate::sandbox::house::PATIENCE,
                || match again() {
                    Ok(answer) => answer.status == 200,
                    Err(error) => {
                        assert_ne!(error.kind(), ErrorKind::WouldBlock, "it is closed, and not left alone");
                        false
                    }
                },
            );
        })
        .await;
        site.close().await;
    });
}
