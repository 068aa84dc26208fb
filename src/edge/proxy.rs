//! One request on its way to an instance, and its response on the way back.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use axum::body::Body;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
    uri::{self, Authority, PathAndQuery},
};
use hyper_util::rt::TokioIo;

use super::{
    Client, body,
    deliver::{self, Failed},
    pages::{self, Accept},
    upstream::{Arriving, Failure, Upstream},
};
use crate::apps::InFlight;

/// How often a request that no instance has seen is tried elsewhere.
const ATTEMPTS: usize = 3;
/// RFC 9110, section 7.6.1: what is between two neighbours only.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
];
pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[derive(Default)]
pub(super) struct Proxy {
    upstream: Upstream,
}

impl Proxy {
    /// Gives a request to a backend; when that one is gone before it saw anything of it, to another.
    pub async fn forward(
        &self,
        mut request: Request<Body>,
        mut backend: InFlight,
        another: impl Fn(&[SocketAddr]) -> Option<InFlight>,
        client: Client,
        begun: Instant,
    ) -> Result<Response<Body>, Box<Failed>> {
        let accept = Accept::of(&request);
        let is_http_1 = request.version() == Version::HTTP_11;
        let upgrade = wanted_upgrade(request.headers());
        let client_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        prepare(&mut request, client, upgrade.as_ref());
        if accept == Accept::Grpc {
            to_http_2(&mut request);
        } else if is_http_1 {
            request = body::hold(request);
        }
        let spare = spare(&request);
        let mut tried = Vec::new();
        for attempt in 1.. {
            let (next, why) = match self.upstream.send(backend.address(), request).await {
                Ok(response) => return Ok(finish(response, backend, client_side, begun)),
                Err(Failure::Refused { request, cause }) => {
                    tracing::info!(instance = backend.instance(), %cause, "an instance does not accept connections");
                    backend.is_down();
                    tried.push(backend.address());
                    (Some(*request), "it does not accept connections")
                }
                Err(Failure::Lost { reused, cause }) => {
                    tracing::info!(instance = backend.instance(), %cause, "a request was not answered");
                    if !reused {
                        tried.push(backend.address());
                    }
                    let why = match accept {
                        Accept::Grpc => "it closed the connection, or does not speak HTTP/2",
                        Accept::Text | Accept::Html => "it closed the connection",
                    };
                    (spare.as_ref().map(same), why)
                }
            };
            let next = next.filter(|_| attempt < ATTEMPTS);
            match next.and_then(|request| Some((request, another(&tried)?))) {
                Some(next) => (request, backend) = next,
                None => {
                    let page = pages::bad_gateway(&accept, backend.instance(), why);
                    return Err(Box::new(Failed { page, backend }));
                }
            }
        }
        unreachable!("the loop ends by a return")
    }
}

/// The same request once more, where it may be sent twice: when it is a safe one (RFC 9110, section 9.2.2) without a body.
fn spare(request: &Request<Body>) -> Option<Request<()>> {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    (safe && hyper::body::Body::is_end_stream(request.body())).then(|| same(request).map(|_| ()))
}

fn same<T>(request: &Request<T>) -> Request<Body> {
    let mut same = Request::new(Body::empty());
    *same.method_mut() = request.method().clone();
    *same.headers_mut() = request.headers().clone();
    *same.uri_mut() = request.uri().clone();
    same
}

/// The response as the client gets it. The backend is busy until its body, or the tunnel, has ended.
fn finish(
    mut response: Response<Arriving>,
    backend: InFlight,
    client_side: Option<hyper::upgrade::OnUpgrade>,
    begun: Instant,
) -> Response<Body> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client_side) = client_side
    {
        let server_side = hyper::upgrade::on(&mut response);
        deliver::tunnel_is_open(&backend, begun.elapsed());
        tokio::spawn(async move {
            if let Ok((client, server)) = futures::future::try_join(client_side, server_side).await {
                let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
                // Either side may end the tunnel whenever it likes; then it is not told how much there was.
                if let Ok((received, sent)) = tokio::io::copy_bidirectional(&mut client, &mut server).await {
                    backend.traffic().received(received);
                    backend.traffic().sent(sent);
                }
            }
        });
        return response.map(|_| Body::empty());
    }
    strip(response.headers_mut(), None);
    deliver::answer(response, backend, begun)
}

fn prepare(request: &mut Request<Body>, client: Client, upgrade: Option<&HeaderValue>) {
    // HTTP/2 has no Host; in HTTP/1.1 a URI with one counts more (RFC 9112, section 3.2.2).
    if let Some(authority) = request.uri().authority().cloned()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(header::HOST, host);
    }
    let headers = request.headers_mut();
    strip(headers, upgrade);
    // HTTP/2 may send cookies one by one (RFC 9113, section 8.2.3).
    join(headers, &header::COOKIE, "; ", None);
    join(headers, &FORWARDED_FOR, ", ", Some(client.address.ip().to_string()));
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.insert(FORWARDED_HOST, host);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(client.scheme.as_str()));
    if !headers.contains_key(&REQUEST_ID)
        && let Ok(value) = HeaderValue::from_str(&format!("{:016x}", id()))
    {
        headers.insert(REQUEST_ID, value);
    }
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    *request.version_mut() = Version::HTTP_11;
}

/// What gRPC wants of a request that is otherwise prepared.
fn to_http_2(request: &mut Request<Body>) {
    let host = request.headers_mut().remove(header::HOST);
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut uri = std::mem::take(request.uri_mut()).into_parts();
    (uri.scheme, uri.authority) = (Some(uri::Scheme::HTTP), authority);
    // Without a host it is not one; then it stays as it was, and is refused.
    if let Ok(uri) = Uri::from_parts(uri) {
        *request.uri_mut() = uri;
    }
    request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    *request.version_mut() = Version::HTTP_2;
}

/// No other request has it, and it tells nothing: a number of its own for each, hashed with a secret of this process. What a
/// kernel has of chance would cost a call of it for each request.
pub(super) fn id() -> u64 {
    static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    SECRET.hash_one(COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Makes one line of several, with one more value at the end.
fn join(headers: &mut HeaderMap, name: &HeaderName, separator: &str, last: Option<String>) {
    if !headers.contains_key(name) {
        if let Some(Ok(value)) = last.map(HeaderValue::try_from) {
            headers.insert(name, value);
        }
        return;
    }
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned);
    let values: Vec<String> = values.chain(last).collect();
    if let (false, Ok(value)) = (values.is_empty(), HeaderValue::from_str(&values.join(separator))) {
        headers.insert(name, value);
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

/// The protocol that a client wants to change to. HTTP/2 is none: it would be one with us, and not with the instance.
fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let connection = headers.get(header::CONNECTION)?.to_str().ok()?;
    let wanted = connection.split(',').any(|part| part.trim().eq_ignore_ascii_case("upgrade"));
    let protocol = headers.get(header::UPGRADE).filter(|_| wanted)?;
    (!protocol.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| protocol.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::Scheme;

    fn prepared(version: Version, uri: &str, headers: &[(&str, &str)]) -> HeaderMap {
        let mut request = Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::empty()).unwrap();
        let upgrade = wanted_upgrade(request.headers());
        let client = Client { address: ([192, 0, 2, 1], 7).into(), scheme: Scheme::Https };
        prepare(&mut request, client, upgrade.as_ref());
        request.headers().clone()
    }

    #[test]
    fn what_is_said_in_several_lines_becomes_one() {
        let given = [("x-forwarded-for", "a"), ("x-forwarded-for", "b"), ("cookie", "one=1"), ("cookie", "two=2")];
        let headers = prepared(Version::HTTP_2, "http://app.localhost/", &given);
        assert_eq!(headers[FORWARDED_FOR], "a, b, 192.0.2.1");
        assert_eq!(headers[header::COOKIE], "one=1; two=2");
        assert_eq!(headers[header::HOST], "app.localhost");
        assert_eq!(headers[FORWARDED_PROTO], "https");
    }

    #[test]
    fn the_host_of_a_uri_counts_more_than_that_of_a_header() {
        let headers = prepared(Version::HTTP_11, "http://app.localhost:8080/", &[("host", "other")]);
        for name in [header::HOST, FORWARDED_HOST] {
            assert_eq!(headers[name], "app.localhost:8080");
        }
    }

    #[test]
    fn websockets_are_handed_on_and_other_versions_of_http_are_not() {
        let upgrade = |protocol| prepared(Version::HTTP_11, "/", &[("connection", "Upgrade"), ("upgrade", protocol)]);
        assert_eq!(upgrade("websocket")[header::UPGRADE], "websocket");
        let headers = upgrade("h2c");
        assert!(!headers.contains_key(header::UPGRADE) && !headers.contains_key(header::CONNECTION));
    }
}
