//! The listener: takes requests for everything, and gives each to the API or to an instance of an application.
//!
//! HTTP/1.1 and, with prior knowledge, HTTP/2. Bodies stream both ways; websockets and other upgrades become
//! tunnels. A request is counted at its backend until its last byte is out, so that an old release is stopped only when
//! nothing of it is in flight. Where nothing serves, a plain page says why.

mod access;
mod balancer;
mod pages;
mod proxy;
mod settings;
mod tls;
mod upstream;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use self::{proxy::Proxy, tls::Version};
pub use self::{
    settings::{AccessLog, Settings},
    tls::Tls,
};
use crate::{
    acme::Challenges,
    apps::{InFlight, Lookup, RouteTable},
    auth::ClientAddress,
};

/// How many connections may be open, where the limit of open files allows it.
const MAX_CONNECTIONS: u64 = 10_000;
/// Files that are open for other reasons.
const OTHER_FILES: u64 = 256;
/// How long the first request, and the head of each, may take to arrive.
const HEAD: Duration = Duration::from_secs(30);
/// How long requests may go on after a stop.
const DRAIN: Duration = Duration::from_secs(10);

/// The listener's mind.
pub struct Edge {
    routes: Arc<RouteTable>,
    api: Router,
    system_domain: String,
    proxy: Proxy,
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
        let (settings, open) = (Settings::default(), Mutex::default());
        Self { routes, api, system_domain, proxy, tls_port, challenges, in_front, settings, open, asked }
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
        let server = server();
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
            let connection = Connection {
                edge: Arc::clone(&self),
                server: server.clone(),
                watcher: graceful.watcher(),
                stop: stop.clone(),
                peer,
            };
            let transport = transport.clone();
            tokio::spawn(async move {
                let _place = place;
                connection.serve(stream, transport).await;
            });
        }
        drop(listener);
        let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
    }

    async fn answer(&self, mut request: Request<Body>, client: Client) -> Response<Body> {
        let host = host_of(&request);
        let is_logged = self.settings.access_log == AccessLog::On;
        let line = is_logged.then(|| access::Line::begin(&mut request, client, &host));
        let mut response = self.respond(request, client, host).await;
        if let Some(time) = self.settings.strict_transport.filter(|_| client.scheme == Scheme::Https)
            && let Ok(value) = HeaderValue::from_str(&format!("max-age={}", time.as_secs()))
        {
            // What an application says itself holds.
            response.headers_mut().entry(header::STRICT_TRANSPORT_SECURITY).or_insert(value);
        }
        match line {
            Some(line) => line.end(response),
            None => response,
        }
    }

    async fn respond(&self, mut request: Request<Body>, client: Client, host: String) -> Response<Body> {
        if let Some(text) = self.challenges.text(request.uri().path()) {
            return Response::new(Body::from(text));
        }
        if let Some(port) = self.tls_port.filter(|_| client.scheme == Scheme::Http && self.is_to_be_secure(&host)) {
            return pages::elsewhere(&request, &host, port);
        }
        if self.is_api(&host) {
            let _asked = self.asked.token();
            let address = self.address_of(&request, client);
            request.extensions_mut().insert(address);
            return match self.api.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
        }
        let path = request.uri().path().to_owned();
        match self.routes.find(&host, &path) {
            Lookup::Backend(backend) => {
                let another = |tried: &[SocketAddr]| self.routes.another(&host, &path, tried);
                match self.settings.max_body_bytes {
                    None => self.proxy.forward(request, backend, another, client).await,
                    Some(most) => self.forward_up_to(most, request, backend, another, client).await,
                }
            }
            Lookup::Unavailable(target) => pages::unavailable(&request, &target),
            Lookup::Unknown if request.uri().path() == "/ready" => Response::new(Body::from("ok\n")),
            Lookup::Unknown => pages::unknown(&request, &host),
        }
    }

    /// Gives a request to a backend where its body is not too long: it may say how long it is, or be cut off.
    async fn forward_up_to(
        &self,
        most: u64,
        request: Request<Body>,
        backend: InFlight,
        another: impl Fn(&[SocketAddr]) -> Option<InFlight>,
        client: Client,
    ) -> Response<Body> {
        let accept = pages::Accept::of(&request);
        if hyper::body::Body::size_hint(request.body()).lower() > most {
            return pages::too_large(&accept, most);
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&is_over);
        let request = request.map(|body| {
            let limited = Limited::new(body, usize::try_from(most).unwrap_or(usize::MAX));
            Body::new(limited.map_err(move |error| {
                tell.fetch_or(error.is::<LengthLimitError>(), Ordering::Relaxed);
                error
            }))
        });
        let response = self.proxy.forward(request, backend, another, client).await;
        if is_over.load(Ordering::Relaxed) { pages::too_large(&accept, most) } else { response }
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

    /// Whoever speaks to an address has no name to check a certificate by, and is mostly on this machine.
    fn is_to_be_secure(&self, host: &str) -> bool {
        host != "localhost" && host.parse::<IpAddr>().is_err()
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

/// What both versions of HTTP are served with.
fn server() -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(true).max_buf_size(upstream::BUFFER);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(30));
    server
}

/// A connection that was accepted.
struct Connection {
    edge: Arc<Edge>,
    server: auto::Builder<TokioExecutor>,
    watcher: Watcher,
    stop: CancellationToken,
    peer: SocketAddr,
}

impl Connection {
    async fn serve(mut self, mut stream: TcpStream, transport: Transport) {
        if self.edge.settings.is_load_balancer(self.peer.ip()) {
            match balancer::client(&mut stream).await {
                Ok(client) => self.peer = client.unwrap_or(self.peer),
                Err(error) => {
                    tracing::debug!(peer = %self.peer, %error, "a load balancer does not say whom it speaks for");
                    return;
                }
            }
        }
        let Some(_place) = self.edge.place_of(self.peer.ip()) else { return };
        match transport {
            Transport::Plain => {
                let server = self.server.clone();
                self.speak(stream, server, Scheme::Http).await;
            }
            Transport::Tls(tls) => {
                let accepted = tokio::select! {
                    () = self.stop.cancelled() => return,
                    // What a handshake takes, a connection has no place for afterwards.
                    accepted = tokio::time::timeout(HEAD, Box::pin(tls.accept(stream))) => accepted,
                };
                let Ok(Ok(Some((stream, version)))) = accepted else { return };
                let server = match version {
                    Version::Http1 => self.server.clone().http1_only(),
                    Version::Http2 => self.server.clone().http2_only(),
                };
                self.speak(stream, server, Scheme::Https).await;
            }
        }
    }

    async fn speak<S>(self, stream: S, server: auto::Builder<TokioExecutor>, scheme: Scheme)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (edge, client) = (self.edge, Client { address: self.peer, scheme });
        let begun = Arc::new(Notify::new());
        let asked = Arc::clone(&begun);
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            asked.notify_one();
            let edge = Arc::clone(&edge);
            // A connection has a place for this as long as it is open, also while it is idle: that is to be a small one.
            Box::pin(
                async move { Ok::<_, std::convert::Infallible>(edge.answer(request.map(Body::new), client).await) },
            )
        });
        let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        let connection = Box::pin(self.watcher.watch(connection));
        // The server has a deadline for the head of a request, and none for what comes before the first one.
        let silent = async {
            tokio::select! {
                () = begun.notified() => std::future::pending().await,
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(HEAD) => {}
            }
        };
        tokio::select! {
            // A client that goes away is no event.
            _ = connection => {}
            () = silent => {}
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
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

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

    /// A client whose connection an edge with this API serves, and how that ends.
    fn connected(
        api: Router,
        watched: &GracefulShutdown,
        stop: &CancellationToken,
    ) -> (DuplexStream, tokio::task::JoinHandle<()>) {
        let connection = Connection {
            edge: Arc::new(Edge::new(Arc::default(), api, "localhost".to_owned(), None, Arc::default())),
            server: server(),
            watcher: watched.watcher(),
            stop: stop.clone(),
            peer: ([127, 0, 0, 1], 7).into(),
        };
        let (client, server) = duplex(1024);
        let server_side = connection.server.clone();
        (client, tokio::spawn(connection.speak(server, server_side, Scheme::Http)))
    }

    #[tokio::test]
    async fn a_stop_ends_who_has_asked_nothing_yet_and_who_has_asked_is_answered() {
        let watched = GracefulShutdown::new();
        for said in ["", "PRI * HTTP", "PRO", "GET / HTTP/1.1\r\n"] {
            let stop = CancellationToken::new();
            let (mut client, served) = connected(Router::new(), &watched, &stop);
            client.write_all(said.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
            assert!(!served.is_finished(), "{said:?} is waited for");
            stop.cancel();
            tokio::time::timeout(HEAD / 2, served).await.expect("it ends").unwrap();
        }
        let (stop, asked, go) = (CancellationToken::new(), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (entered, going) = (Arc::clone(&asked), Arc::clone(&go));
        let answer = async move || {
            entered.notify_one();
            going.notified().await;
            "answered"
        };
        let (mut client, _served) = connected(Router::new().route("/", get(answer)), &watched, &stop);
        client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
        tokio::time::timeout(HEAD / 2, asked.notified()).await.expect("a request that arrives");
        stop.cancel();
        go.notify_one();
        let mut text = String::new();
        tokio::time::timeout(HEAD / 2, client.read_to_string(&mut text)).await.expect("an answer").unwrap();
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("answered"), "{text}");
    }
}
