//! The listener: takes requests for everything, and gives each to the API or to an instance of an application.
//!
//! HTTP/1.1 and, with prior knowledge, HTTP/2. Bodies stream both ways; websockets and other upgrades become
//! tunnels. A request is counted at its backend until its last byte is out, so that an old release is stopped only when
//! nothing of it is in flight. Where nothing serves, a plain page says why.

mod pages;
mod proxy;
mod upstream;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::{Request, Response, header};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use self::proxy::Proxy;
use crate::apps::{Lookup, RouteTable};

/// How many connections may be open, where the limit of open files allows it.
const MAX_CONNECTIONS: u64 = 10_000;
/// Files that are open for other reasons.
const OTHER_FILES: u64 = 256;
/// How long the first bytes, and the head of a request, may take.
const HEAD: Duration = Duration::from_secs(30);
/// What HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How often is looked for the rest of it.
const PREFACE_INTERVAL: Duration = Duration::from_millis(50);
/// How long requests may go on after a stop.
const DRAIN: Duration = Duration::from_secs(10);

/// The listener's mind.
pub struct Edge {
    routes: Arc<RouteTable>,
    api: Router,
    system_domain: String,
    proxy: Proxy,
    /// What the API is about to answer.
    asked: TaskTracker,
}

impl Edge {
    pub fn new(routes: Arc<RouteTable>, api: Router, system_domain: String) -> Self {
        Self { routes, api, system_domain, proxy: Proxy::default(), asked: TaskTracker::new() }
    }

    /// Ends when the API has answered what it was asked; bodies and applications may take longer.
    pub async fn api_is_idle(&self) {
        self.asked.close();
        self.asked.wait().await;
    }

    /// Serves connections until the token is cancelled, then lets requests end.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let mut server = auto::Builder::new(TokioExecutor::new());
        server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(true);
        server.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(30));
        let places = Arc::new(Semaphore::new(max_connections()));
        let graceful = GracefulShutdown::new();
        loop {
            let place = tokio::select! {
                () = stop.cancelled() => break,
                place = Arc::clone(&places).acquire_owned() => place,
            };
            let (stream, peer) = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection failed");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            // What is written goes out at once.
            let _ = stream.set_nodelay(true);
            let edge = Arc::clone(&self);
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let edge = Arc::clone(&edge);
                async move { Ok::<_, std::convert::Infallible>(edge.answer(request.map(Body::new), peer).await) }
            });
            let (server, watcher, stop) = (server.clone(), graceful.watcher(), stop.clone());
            tokio::spawn(async move {
                let _place = place;
                tokio::select! {
                    () = stop.cancelled() => return,
                    began = tokio::time::timeout(HEAD, begins(&stream)) => {
                        if !matches!(began, Ok(Ok(()))) {
                            return;
                        }
                    }
                }
                let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service);
                // A client that goes away is no event.
                let _ = watcher.watch(connection.into_owned()).await;
            });
        }
        drop(listener);
        let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
    }

    async fn answer(&self, request: Request<Body>, peer: SocketAddr) -> Response<Body> {
        let host = host_of(&request);
        if self.is_api(&host) {
            let _asked = self.asked.token();
            return match self.api.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
        }
        let path = request.uri().path().to_owned();
        match self.routes.find(&host, &path) {
            Lookup::Backend(backend) => {
                let another = |tried: &[SocketAddr]| self.routes.another(&host, &path, tried);
                self.proxy.forward(request, backend, another, peer).await
            }
            Lookup::Unavailable(target) => pages::unavailable(&request, &target),
            Lookup::Unknown if request.uri().path() == "/ready" => Response::new(Body::from("ok\n")),
            Lookup::Unknown => pages::unknown(&request, &host),
        }
    }

    /// The API's own hosts: `epinio.DOMAIN`, bare `localhost`, and addresses.
    fn is_api(&self, host: &str) -> bool {
        host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok()
            || host.strip_prefix("epinio.") == Some(self.system_domain.as_str())
    }
}

/// Ends when a client has begun to say something. What comes after has a deadline of the server's; which protocol it is, the server
/// would wait for without one.
async fn begins(stream: &TcpStream) -> std::io::Result<()> {
    let mut bytes = [0; PREFACE.len()];
    loop {
        let length = stream.peek(&mut bytes).await?;
        if length == 0 || length == PREFACE.len() || bytes[..length] != PREFACE[..length] {
            return Ok(());
        }
        tokio::time::sleep(PREFACE_INTERVAL).await;
    }
}

/// A request that is handed on has two connections.
fn max_connections() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(MAX_CONNECTIONS, |(soft, _)| soft);
    let most = (files.saturating_sub(OTHER_FILES) / 2).clamp(16, MAX_CONNECTIONS);
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// The host that a request is for: lower case, without port, brackets and the last dot.
fn host_of(request: &Request<Body>) -> String {
    let authority = request.uri().authority().map(|authority| authority.as_str());
    let header = || request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let text = authority.or_else(header).unwrap_or_default();
    let host = match text.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => text.rsplit_once(':').map_or(text, |(host, _)| host),
    };
    host.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[test]
    fn hosts_are_compared_without_port_and_case() {
        for (given, expected) in
            [("App.Localhost:8080", "app.localhost"), ("[::1]:80", "::1"), ("a.b.", "a.b"), ("10.0.0.1", "10.0.0.1")]
        {
            let request = Request::builder().header(header::HOST, given).body(Body::empty()).unwrap();
            assert_eq!(host_of(&request), expected);
        }
    }
    #[tokio::test]
    async fn a_client_begins_when_it_is_clear_what_it_speaks() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (said, expected) in [("", false), ("PRI * HTTP", false), ("G", true), ("PRO", true)] {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            client.write_all(said.as_bytes()).await.unwrap();
            let began = tokio::time::timeout(PREFACE_INTERVAL * 4, begins(&stream)).await;
            assert_eq!(began.is_ok(), expected, "{said:?}");
            if said.starts_with("PRI") {
                client.write_all(&PREFACE[said.len()..]).await.unwrap();
                begins(&stream).await.unwrap();
            }
        }
    }
}
