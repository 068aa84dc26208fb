//! The listener: takes requests for everything, and gives each to the API or to an instance of an application.
//!
//! HTTP/1.1 and, with prior knowledge, HTTP/2. Bodies stream both ways; websockets and other upgrades become
//! tunnels. A request is counted at its backend until its last byte is out, so that an old release is stopped only when
//! nothing of it is in flight. Where nothing serves, a plain page says why.

mod pages;
mod proxy;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::{Request, Response, header};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use self::proxy::Proxy;
use crate::apps::{Lookup, RouteTable};

/// How many connections may be open.
const MAX_CONNECTIONS: usize = 10_000;
/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(30);
/// How long requests may go on after a stop.
const DRAIN: Duration = Duration::from_secs(10);

/// The listener's mind.
pub struct Edge {
    routes: Arc<RouteTable>,
    api: Router,
    system_domain: String,
    proxy: Proxy,
}

impl Edge {
    pub fn new(routes: Arc<RouteTable>, api: Router, system_domain: String) -> Self {
        Self { routes, api, system_domain, proxy: Proxy::new() }
    }

    /// Serves connections until the token is cancelled, then lets requests end.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let mut server = auto::Builder::new(TokioExecutor::new());
        server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(true);
        server.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(30));
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
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
            let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
            let watched = graceful.watch(connection);
            tokio::spawn(async move {
                // A client that goes away is no event.
                let _ = watched.await;
                drop(place);
            });
        }
        drop(listener);
        let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
    }

    async fn answer(&self, request: Request<Body>, peer: SocketAddr) -> Response<Body> {
        let host = host_of(&request);
        if self.is_api(&host) {
            return match self.api.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
        }
        let path = request.uri().path().to_owned();
        match self.routes.find(&host, &path) {
            Lookup::Backend(backend) => {
                let retry = || match self.routes.find(&host, &path) {
                    Lookup::Backend(backend) => Some(backend),
                    _ => None,
                };
                self.proxy.forward(request, backend, retry, peer).await
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
}
