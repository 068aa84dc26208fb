//! Somebody between a daemon and its authority, who lets through what a test says.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::support::Internet;

/// What happens to a request.
pub enum Verdict {
    Pass,
    /// The authority gets it; its answer is lost.
    PassUnheard,
    /// As one that has had too many.
    Limit {
        seconds: u32,
    },
    /// The authority gets it; its answer takes longer than anybody waits.
    Hang,
    /// The authority has looked at a challenge, in vain, before it answers that it will.
    Judged,
    /// It has an error of its own where an order is to replace a certificate.
    ForgotIssued,
    /// It does what is asked, but for orders, and its clock is ahead by so many hours.
    Later {
        hours: i64,
    },
}

pub struct Proxy {
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

type Judge = dyn Fn(&str) -> Verdict + Send + Sync;

struct Shared {
    judge: Mutex<Arc<Judge>>,
    asked: Mutex<HashMap<String, usize>>,
    http: reqwest::Client,
}

/// Paths of Pebble.
pub const ORDER: &str = "/order-plz";
pub const CHALLENGE: &str = "/chalZ/";
pub const FINALIZE: &str = "/finalize-order/";
pub const CERTIFICATE: &str = "/certZ/";

const ADDRESS: &str = "127.0.0.1:14443";
const AUTHORITY: &str = "https://127.0.0.1:14000";
/// The longest that an answer hangs, in seconds: the daemon is killed before.
const HANG: u64 = 120;
/// For an authority that does not sleep to look at a challenge.
const LOOK: Duration = Duration::from_secs(1);

impl Proxy {
    /// In the internet of this thread.
    pub fn start(internet: &Internet) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let read = |name: &str| std::fs::read(internet.dir().join(name)).expect("a file");
        let roots = reqwest::Certificate::from_pem_bundle(&read("server-ca.pem")).expect("certificates");
        let http = reqwest::Client::builder().no_proxy().http1_only().tls_certs_only(roots).build().expect("a client");
        let chain = CertificateDer::from_pem_slice(&read("server.pem")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(&read("server.key")).expect("a key");
        let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![chain], key);
        let acceptor = TlsAcceptor::from(Arc::new(config.expect("a server")));
        let shared = Arc::new(Shared { judge: Mutex::new(Arc::new(|_| Verdict::Pass)), asked: Mutex::default(), http });
        // Threads that a thread starts are on its internet.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind(ADDRESS)).expect("a free port");
        let router = Router::new().fallback(forward).with_state(Arc::clone(&shared));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, router) = (acceptor.clone(), router.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                        router.clone().oneshot(request.map(Body::new))
                    });
                    let stream = hyper_util::rt::TokioIo::new(stream);
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await;
                });
            }
        });
        Self { shared, _runtime: runtime }
    }

    pub fn directory(&self) -> String {
        format!("https://{ADDRESS}/dir")
    }

    pub fn behave(&self, judge: impl Fn(&str) -> Verdict + Send + Sync + 'static) {
        *self.shared.judge.lock().expect("no panic") = Arc::new(judge);
    }

    /// How often something was asked for whose path begins so.
    pub fn asked(&self, start: &str) -> usize {
        let asked = self.shared.asked.lock().expect("no panic");
        asked.iter().filter(|(path, _)| path.starts_with(start)).map(|(_, times)| times).sum()
    }
}

async fn forward(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let verdict = {
        let judge = Arc::clone(&shared.judge.lock().expect("no panic"));
        judge(&path)
    };
    *shared.asked.lock().expect("no panic").entry(path).or_default() += 1;
    let problem = |kind: &str, detail: &str, header: (header::HeaderName, String)| {
        let problem = serde_json::json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail});
        let status = match kind {
            "serverInternal" => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::TOO_MANY_REQUESTS,
        };
        (status, [(header::CONTENT_TYPE, "application/problem+json".to_owned()), header], problem.to_string())
            .into_response()
    };
    match verdict {
        Verdict::Limit { seconds } => {
            return problem("rateLimited", "too many of them", (header::RETRY_AFTER, seconds.to_string()));
        }
        Verdict::Later { hours } if request.uri().path() == ORDER => {
            let then = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
            let date = then.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            return problem("malformed", "this was asked long ago", (header::DATE, date));
        }
        _ => {}
    }
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("a small request");
    if matches!(verdict, Verdict::ForgotIssued) && replaces(&body) {
        let cause = "could not find an order for the given certificate";
        return problem("serverInternal", cause, (header::CACHE_CONTROL, "no-store".to_owned()));
    }
    let answer = pass(&shared, head, body).await;
    match verdict {
        Verdict::PassUnheard => (StatusCode::BAD_GATEWAY, "it is gone").into_response(),
        Verdict::Hang => {
            tokio::time::sleep(Duration::from_secs(HANG)).await;
            answer
        }
        Verdict::Judged => {
            tokio::time::sleep(LOOK).await;
            judged(answer).await
        }
        _ => answer,
    }
}

/// A challenge with what Pebble says of one whose client was refused.
async fn judged(answer: Response) -> Response {
    let (mut head, body) = answer.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("a small answer");
    let mut challenge: serde_json::Value = serde_json::from_slice(&body).expect("a challenge");
    let kind = "urn:ietf:params:acme:error:unauthorized";
    challenge["status"] = "invalid".into();
    challenge["error"] = serde_json::json!({"type": kind, "detail": "connection refused", "status": 403});
    head.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(head, challenge.to_string().into())
}

/// Whether what is signed names a certificate that it is for (RFC 9773, section 5).
fn replaces(body: &[u8]) -> bool {
    let signed: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let payload = BASE64_URL_SAFE_NO_PAD.decode(signed["payload"].as_str().unwrap_or_default()).unwrap_or_default();
    serde_json::from_slice::<serde_json::Value>(&payload).is_ok_and(|payload| !payload["replaces"].is_null())
}

/// Under the name that the daemon knows: the authority says its addresses by it.
async fn pass(shared: &Shared, head: Parts, body: Bytes) -> Response {
    let url = format!("{AUTHORITY}{}", head.uri);
    let sent = shared.http.request(head.method, url).headers(head.headers).body(body).send().await;
    let Ok(answer) = sent else { return StatusCode::BAD_GATEWAY.into_response() };
    let (status, headers) = (answer.status(), answer.headers().clone());
    let mut response = (status, answer.bytes().await.unwrap_or_default()).into_response();
    headers.iter().filter(|(name, _)| *name != header::TRANSFER_ENCODING && *name != header::CONTENT_LENGTH).for_each(
        |(name, value)| {
            response.headers_mut().append(name, value.clone());
        },
    );
    response
}
