//! One request on its way to an instance, and its response on the way back.

use std::{net::SocketAddr, time::Duration};

use axum::body::Body;
use futures::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, uri};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};

use super::pages::{self, Accept};
use crate::apps::InFlight;

const CONNECT: Duration = Duration::from_secs(5);
/// Connections that nobody uses are closed after this long: sooner than servers usually do.
const IDLE: Duration = Duration::from_secs(4);
/// How often a request that no instance has seen is tried elsewhere.
const ATTEMPTS: usize = 3;
/// RFC 9110, section 7.6.1: what is between two neighbours only.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "proxy-authenticate",
];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

pub(super) struct Proxy {
    client: Client<HttpConnector, Body>,
}

impl Proxy {
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .retry_canceled_requests(true)
            .build(connector);
        Self { client }
    }

    /// Gives a request to a backend; when that one is gone before it saw anything of it, to another.
    pub async fn forward(
        &self,
        mut request: Request<Body>,
        backend: InFlight,
        another: impl Fn() -> Option<InFlight>,
        peer: SocketAddr,
    ) -> Response<Body> {
        let accept = Accept::of(&request);
        let upgrade = wanted_upgrade(request.headers());
        let client_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        prepare(&mut request, peer, upgrade.as_ref());
        // A safe request may be sent twice (RFC 9110, section 9.2.2). Any other is sent to a backend that was seen to
        // accept a connection a moment ago.
        let repeatable =
            matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) && is_empty(&request);
        let backend = if repeatable { backend } else { reachable(backend, &another).await };
        let (head, body) = request.into_parts();
        let (mut body, mut backend) = (Some(body), backend);
        for attempt in 1.. {
            let mut again = Request::new(body.take().unwrap_or_else(Body::empty));
            *again.method_mut() = head.method.clone();
            *again.headers_mut() = head.headers.clone();
            *again.uri_mut() = address(&backend, &head.uri);
            *again.version_mut() = Version::HTTP_11;
            match self.client.request(again).await {
                Ok(response) => return finish(response, backend, client_side),
                Err(error) => {
                    let next = (repeatable && attempt < ATTEMPTS).then(&another).flatten();
                    match next {
                        Some(next) => backend = next,
                        None => return failed(&accept, &backend, &error),
                    }
                }
            }
        }
        unreachable!("the loop ends by a return")
    }
}

/// The backend, or another one when it does not accept connections any more.
async fn reachable(mut backend: InFlight, another: impl Fn() -> Option<InFlight>) -> InFlight {
    for _ in 1..ATTEMPTS {
        let connect = tokio::net::TcpStream::connect(backend.address());
        if matches!(tokio::time::timeout(CONNECT, connect).await, Ok(Ok(_))) {
            break;
        }
        match another() {
            Some(next) => backend = next,
            None => break,
        }
    }
    backend
}

/// The response as the client gets it. The backend is busy until its body, or the tunnel, has ended.
fn finish(
    mut response: Response<hyper::body::Incoming>,
    backend: InFlight,
    client_side: Option<hyper::upgrade::OnUpgrade>,
) -> Response<Body> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client_side) = client_side
    {
        let server_side = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            let _busy = backend;
            if let Ok((client, server)) = futures::future::try_join(client_side, server_side).await {
                // Either side may end the tunnel whenever it likes.
                let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server)).await;
            }
        });
        return response.map(|_| Body::empty());
    }
    strip(response.headers_mut(), None);
    response.map(|body| {
        let busy = backend;
        Body::from_stream(Body::new(body).into_data_stream().inspect(move |_| {
            let _ = &busy;
        }))
    })
}

fn failed(accept: &Accept, backend: &InFlight, error: &hyper_util::client::legacy::Error) -> Response<Body> {
    let why = if error.is_connect() { "it does not accept connections" } else { "it closed the connection" };
    tracing::info!(instance = backend.instance(), %error, "a request was not answered");
    pages::bad_gateway(accept, backend.instance(), why)
}

fn prepare(request: &mut Request<Body>, peer: SocketAddr, upgrade: Option<&HeaderValue>) {
    if let (Some(authority), false) = (request.uri().authority().cloned(), request.headers().contains_key(header::HOST))
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        // HTTP/2 has no Host.
        request.headers_mut().insert(header::HOST, host);
    }
    let headers = request.headers_mut();
    strip(headers, upgrade);
    let before = headers.get(&FORWARDED_FOR).and_then(|value| value.to_str().ok());
    let from = before.map_or_else(|| peer.ip().to_string(), |before| format!("{before}, {}", peer.ip()));
    if let Ok(value) = HeaderValue::from_str(&from) {
        headers.insert(FORWARDED_FOR, value);
    }
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.insert(FORWARDED_HOST, host);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    if !headers.contains_key(&REQUEST_ID)
        && let Ok(value) = HeaderValue::from_str(&request_id())
    {
        headers.insert(REQUEST_ID, value);
    }
}

/// Takes away what is for neighbours only, also what `Connection` names.
fn strip(headers: &mut HeaderMap, upgrade: Option<&HeaderValue>) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
}

fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let connection = headers.get(header::CONNECTION)?.to_str().ok()?;
    let wanted = connection.split(',').any(|part| part.trim().eq_ignore_ascii_case("upgrade"));
    wanted.then(|| headers.get(header::UPGRADE).cloned())?
}

fn is_empty(request: &Request<Body>) -> bool {
    hyper::body::Body::is_end_stream(request.body())
}

fn address(backend: &InFlight, uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
    let parts = Uri::builder().scheme("http").authority(backend.address().to_string()).path_and_query(path);
    parts.build().expect("an address and a path are a URI")
}

fn request_id() -> String {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; 8];
    ring::rand::SystemRandom::new().fill(&mut bytes).expect("the kernel has random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
