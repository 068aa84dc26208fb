//! Clients that others wrote: curl, openssl, nghttp and h2load.

use std::{process::Command, sync::Arc};

use axum::{Router, routing::get};
use epiniod::edge::{Compression, Settings, Tls, Transport};
use rustls::{
    pki_types::PrivateKeyDer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::net::TcpListener;

use super::front::Front;
use crate::support::not_run;

#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        assert!(hello.server_name().is_none_or(|name| name == "app.localhost"), "{hello:?}");
        Some(Arc::clone(&self.0))
    }
}

fn tls() -> Tls {
    let made = rcgen::generate_simple_self_signed(["app.localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    Tls::new(Arc::new(Always(Arc::new(CertifiedKey::new(vec![made.cert.der().clone()], key)))), Arc::default())
}

async fn front(settings: Settings) -> Front {
    // Those that start daemons do this.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let front = Front::speaking(Transport::Tls(tls()), settings).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    front.leads_to("app.localhost", listener.local_addr().unwrap());
    let app =
        Router::new().route("/", get(|| async { "hello" })).route("/page", get(|| async { "word ".repeat(1000) }));
    tokio::spawn(async move { axum::serve(listener, app).await });
    front
}

/// What a program says on both streams, with `PORT` in its arguments filled in; none where it is not there.
async fn said(front: &Front, program: &'static str, arguments: &str) -> Option<String> {
    let mut command = Command::new(program);
    command
        .args(arguments.replace("PORT", &front.address.port().to_string()).split(' '))
        .stdin(std::process::Stdio::null());
    match tokio::task::spawn_blocking(move || command.output()).await.unwrap() {
        Ok(output) => {
            Some(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
        }
        Err(error) => {
            assert!(std::env::var_os("EPINIOD_TEST_TOOLS").is_none(), "{program} is not installed: {error}");
            not_run(&format!("the edge as {program} sees it: it is not installed"));
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_gets_both_versions_of_tls_and_the_protocol_it_asks_for() {
    let front = front(Settings::default()).await;
    for (arguments, expected) in [
        ("-tls1_3 -alpn h2,http/1.1", &["TLSv1.3", "ALPN protocol: h2"][..]),
        ("-tls1_2 -alpn http/1.1", &["TLSv1.2", "ALPN protocol: http/1.1"]),
        ("-tls1_2", &["TLSv1.2", "No ALPN negotiated"]),
        ("-tls1_1", &["no peer certificate available"]),
    ] {
        let arguments = format!("s_client -connect 127.0.0.1:PORT -servername app.localhost {arguments}");
        let Some(text) = said(&front, "openssl", &arguments).await else { break };
        assert!(expected.iter().all(|part| text.contains(part)), "{arguments}: {text}");
    }
    front.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nghttp_and_h2load_are_answered_whatever_they_ask_at_once() {
    let front = front(Settings::default()).await;
    let asks = "-v -n -H:authority:app.localhost https://127.0.0.1:PORT/";
    if let Some(text) = said(&front, "nghttp", asks).await {
        assert!(text.contains(":status: 200") && text.contains("SETTINGS_ENABLE_CONNECT_PROTOCOL"), "{text}");
    }
    for version in ["", "--h1 "] {
        let arguments = format!("{version}-n 2000 -c 8 -m 32 --connect-to=127.0.0.1:PORT https://app.localhost:PORT/");
        let Some(text) = said(&front, "h2load", &arguments).await else { break };
        assert!(text.contains("2000 succeeded, 0 failed") && text.contains("2000 2xx"), "{text}");
    }
    front.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_gets_a_page_that_is_compressed_where_that_was_chosen() {
    let front = front(Settings { compression: Compression::On, ..Settings::default() }).await;
    let curl = "-skv --connect-to app.localhost:443:127.0.0.1:PORT https://app.localhost/page";
    for (arguments, encoding) in [
        ("--http2 --compressed", Some("zstd")),
        ("--http1.1 -H Accept-Encoding:gzip --compressed", Some("gzip")),
        ("--http1.1", None),
    ] {
        let Some(text) = said(&front, "curl", &format!("{arguments} {curl}")).await else { break };
        let text = text.to_ascii_lowercase();
        assert!(
            text.starts_with(&"word ".repeat(1000)) && text.contains("vary: accept-encoding"),
            "{arguments}: {text}"
        );
        let found = text.lines().find_map(|line| line.strip_prefix("< content-encoding: "));
        assert_eq!(found, encoding, "{arguments}: {text}");
    }
    let counts = front.counts();
    assert_eq!((counts.answers[1], counts.sent_bytes), (3, 3 * 5000), "as the application sent them");
    front.close().await;
}
