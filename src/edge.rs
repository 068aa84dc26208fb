//! The listener: takes requests for everything, and gives each to the API or to an instance of an application.
//!
//! HTTP/1.1 and HTTP/2, by TLS or with prior knowledge. Bodies stream both ways; websockets of both versions and other
//! upgrades become tunnels. A request is counted at its backend until its last byte is out, so that an old release is stopped only when
//! nothing of it is in flight. Where nothing serves, a plain page says why.

mod access;
mod balancer;
mod body;
mod compress;
mod connection;
mod deliver;
mod direct;
mod ending;
mod h2c;
mod pages;
mod pool;
mod proxy;
mod settings;
mod stream;
mod tls;
mod upstream;
mod websocket;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, body::Body};
use http::{HeaderValue, Request, Response, StatusCode, header};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use self::{
    connection::{Connection, HEAD_BYTES},
    pages::Accept,
    pool::Pool,
    proxy::Proxy,
    websocket::Asked,
};
pub use self::{
    settings::{AccessLog, Compression, Patience, RouteSettings, Settings},
    tls::Tls,
};
use crate::{
    acme::Challenges,
    apps::{Lookup, RouteTable},
    auth::ClientAddress,
};

/// How many connections may be open, where the limit of open files allows it.
const MAX_CONNECTIONS: u64 = 10_000;
/// Files that are open for other reasons.
const OTHER_FILES: u64 = 256;
/// How long requests may go on after a stop.
const DRAIN: Duration = Duration::from_secs(10);

/// The listener's mind.
pub struct Edge {
    routes: Arc<RouteTable>,
    api: Router,
    system_domain: String,
    proxy: Proxy,
    /// For what is handed on as bytes.
    links: Pool<TcpStream>,
    /// Where the same is served with TLS; there requests without it are sent.
    tls_port: Option<u16>,
    challenges: Arc<Challenges>,
    in_front: InFront,
    settings: Settings,
    /// How many connections are open, by who has them, where that is limited.
    open: Mutex<HashMap<IpAddr, usize>>,
    /// What the API is about to answer.
    asked: TaskTracker,
}

/// What is spoken on a listener.
#[derive(Clone)]
pub enum Transport {
    Plain,
    Tls(Tls),
}

/// Who is between clients and the listener, as far as the API's clients are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InFront {
    /// Nobody: what `X-Forwarded-For` says is made up.
    Nobody,
    /// An ingress controller, which adds the address of its client.
    Ingress,
}

/// Who sent a request, and how it came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client {
    pub address: SocketAddr,
    pub scheme: Scheme,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl Edge {
    pub fn new(
        routes: Arc<RouteTable>,
        api: Router,
        system_domain: String,
        tls_port: Option<u16>,
        challenges: Arc<Challenges>,
    ) -> Self {
        let (proxy, asked, in_front) = (Proxy::default(), TaskTracker::new(), InFront::Nobody);
        let (settings, open, links) = (Settings::default(), Mutex::default(), Pool::default());
        Self { routes, api, system_domain, proxy, links, tls_port, challenges, in_front, settings, open, asked }
    }

    /// The same, as somebody chose.
    pub fn with(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    /// The same, behind somebody.
    pub fn behind(self, in_front: InFront) -> Self {
        Self { in_front, ..self }
    }

    /// Ends when the API has answered what it was asked; bodies and applications may take longer.
    pub async fn api_is_idle(&self) {
        self.asked.close();
        self.asked.wait().await;
    }

    /// Serves connections until the token is cancelled, then lets requests end.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, transport: Transport, stop: CancellationToken) {
        let server = Arc::new(connection::server(self.settings.patience));
        let places = Arc::new(Semaphore::new(max_connections()));
        let open = TaskTracker::new();
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
            let connection =
                Connection { edge: Arc::clone(&self), server: Arc::clone(&server), stop: stop.clone(), peer };
            let transport = transport.clone();
            open.spawn(async move {
                let _place = place;
                connection.serve(stream, transport).await;
            });
        }
        drop(listener);
        open.close();
        let _ = tokio::time::timeout(DRAIN, open.wait()).await;
    }

    async fn answer(&self, mut request: Request<Body>, client: Client) -> Response<Body> {
        let host = host_of(&request);
        let is_logged = self.settings.access_log == AccessLog::On;
        let line = is_logged.then(|| access::Line::begin(&mut request, client, &host));
        let mut response = match websocket::asked(&mut request) {
            Asked::Usual => self.respond(request, client, host).await,
            Asked::Websocket(accept) => websocket::answered(self.respond(request, client, host).await, &accept),
            Asked::Refused(page) => page,
        };
        if let Some(Ok(value)) = self.settings.strict_transport(client.scheme).map(HeaderValue::try_from) {
            response.headers_mut().entry(header::STRICT_TRANSPORT_SECURITY).or_insert(value);
        }
        match line {
            Some(line) => line.end(response),
            None => response,
        }
    }

    async fn respond(&self, request: Request<Body>, client: Client, host: String) -> Response<Body> {
        if size_of_head(&request) > HEAD_BYTES {
            return pages::head_too_large(&request, HEAD_BYTES);
        }
        if let Some(text) = self.challenges.text(request.uri().path()) {
            return Response::new(Body::from(text));
        }
        if let Some(port) = self.secure_port(client.scheme, &host) {
            return pages::elsewhere(&request, &host, port);
        }
        if self.is_api(&host) {
            return self.ask_api(request, client).await;
        }
        let path = request.uri().path().to_owned();
        match self.routes.find(&host, &path) {
            Lookup::Backend(backend) => self.deliver(request, backend, &host, &path, client).await,
            Lookup::Unavailable(target) => {
                self.routes.traffic(&target.release).answered(StatusCode::SERVICE_UNAVAILABLE, Duration::ZERO);
                pages::unavailable(&request, &target)
            }
            Lookup::Unknown if request.uri().path() == "/ready" => Response::new(Body::from("ok\n")),
            Lookup::Unknown => pages::unknown(&request, &host),
        }
    }

    /// Uploads may take as long as they move.
    async fn ask_api(&self, request: Request<Body>, client: Client) -> Response<Body> {
        let _asked = self.asked.token();
        let (accept, address) = (Accept::of(&request), self.address_of(&request, client));
        let limits = body::Limits { most_bytes: None, silence: Some(self.settings.patience.body) };
        let (mut request, verdict) = match limits.check(request, &accept, None) {
            Ok(checked) => checked,
            Err(page) => return *page,
        };
        request.extensions_mut().insert(address);
        let response = match self.api.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if response.status().is_success() { response } else { limits.answer(&verdict, response, &accept) }
    }

    /// A place for one more connection of an address.
    fn place_of(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let Some(most) = self.settings.connections_per_address else { return Some(Place(None)) };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place(Some((Arc::clone(self), address))))
    }

    /// Whom the API takes a client for.
    fn address_of(&self, request: &Request<Body>, client: Client) -> ClientAddress {
        let peer = client.address.ip();
        // Several lines are one list.
        let last = request.headers().get_all(proxy::FORWARDED_FOR).iter().next_back();
        match last.filter(|_| self.in_front == InFront::Ingress) {
            Some(said) => ClientAddress::behind(peer, said.to_str().unwrap_or_default()),
            None => ClientAddress::direct(peer),
        }
    }

    /// Where a request that came without TLS is sent. Not one to an address: whoever speaks to that has no name to check a
    /// certificate by, and is mostly on this machine.
    fn secure_port(&self, scheme: Scheme, host: &str) -> Option<u16> {
        let is_named = || host != "localhost" && host.parse::<IpAddr>().is_err();
        self.tls_port.filter(|_| scheme == Scheme::Http && is_named())
    }

    /// The API's own hosts: `epinio.DOMAIN`, bare `localhost`, and addresses.
    fn is_api(&self, host: &str) -> bool {
        host == "localhost"
            || host.parse::<IpAddr>().is_ok()
            || host.strip_prefix("epinio.") == Some(self.system_domain.as_str())
    }
}

/// Of one connection, where those of an address are counted.
struct Place(Option<(Arc<Edge>, IpAddr)>);

impl Drop for Place {
    fn drop(&mut self) {
        let Some((edge, address)) = &self.0 else { return };
        let mut open = edge.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                open.remove(address);
            }
        }
    }
}

/// A request that is handed on has two connections.
fn max_connections() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(MAX_CONNECTIONS, |(soft, _)| soft);
    let most = (files.saturating_sub(OTHER_FILES) / 2).clamp(16, MAX_CONNECTIONS);
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// As it would be written in HTTP/1.1, but for what may be left out.
fn size_of_head(request: &Request<Body>) -> usize {
    let target = request.uri().path_and_query().map_or(1, |target| target.as_str().len());
    let lines = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    request.method().as_str().len() + target + " HTTP/1.1\r\n".len() + lines.sum::<usize>() + "\r\n".len()
}

/// The host that a request is for.
fn host_of(request: &Request<Body>) -> String {
    let authority = request.uri().authority().map(|authority| authority.as_str());
    let header = || request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    plain_host(authority.or_else(header).unwrap_or_default())
}

/// Lower case, without port, brackets and the last dot.
fn plain_host(text: &str) -> String {
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

    #[test]
    fn what_clients_say_of_their_address_is_believed_of_an_ingress_only() {
        let said =
            Request::builder().header("x-forwarded-for", "1.1.1.1").header("x-forwarded-for", "2.2.2.2, 192.0.2.9");
        let request = said.body(Body::empty()).unwrap();
        let client = Client { address: ([10, 0, 0, 7], 7).into(), scheme: Scheme::Http };
        let edge = || Edge::new(Arc::default(), Router::new(), "localhost".to_owned(), None, Arc::default());
        assert_eq!(edge().address_of(&request, client), ClientAddress::direct([10, 0, 0, 7].into()));
        let behind = edge().behind(InFront::Ingress).address_of(&request, client);
        assert_eq!(behind, ClientAddress { address: [192, 0, 2, 9].into(), via: Some([10, 0, 0, 7].into()) });
    }
}
