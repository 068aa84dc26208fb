//! One connection of a client: whom it is of, TLS, the version of HTTP, and when it has been silent for too long.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use http::Request;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use super::{Client, Edge, Scheme, Transport, balancer, direct, settings::Patience, stream::Stream, tls::Version};

/// A connection that was accepted.
pub(super) struct Connection {
    pub edge: Arc<Edge>,
    pub server: Arc<auto::Builder<TokioExecutor>>,
    pub stop: CancellationToken,
    pub peer: SocketAddr,
}

impl Connection {
    pub async fn serve(mut self, mut stream: TcpStream, transport: Transport) {
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
                self.begin(stream, Scheme::Http).await;
            }
            Transport::Tls(tls) => {
                let head = self.edge.settings.patience.head;
                let accepted = tokio::select! {
                    () = self.stop.cancelled() => return,
                    // What a handshake takes, a connection has no place for afterwards.
                    accepted = tokio::time::timeout(head, Box::pin(tls.accept(stream))) => accepted,
                };
                let Ok(Ok(Some((stream, version)))) = accepted else { return };
                // It is large, and would have its place in each step of this.
                let stream = Box::new(stream);
                match version {
                    Version::Http1 => self.begin(stream, Scheme::Https).await,
                    Version::Http2 => {
                        let stream = Stream::new(stream, self.edge.settings.patience.idle);
                        Box::pin(self.speak(stream, Some(Version::Http2), Scheme::Https)).await;
                    }
                }
            }
        }
    }

    /// What is nothing but the head of a request is handed on as it is, as long as nothing else comes.
    async fn begin<S>(self, stream: S, scheme: Scheme)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let client = Client { address: self.peer, scheme };
        let mut stream = Stream::new(stream, self.edge.settings.patience.idle);
        if let Some(read) = direct::serve(&self.edge, &mut stream, client, &self.stop).await {
            // A client of TLS has chosen by then.
            let version = (scheme == Scheme::Https).then_some(Version::Http1);
            Box::pin(self.speak(stream.rewound(read), version, scheme)).await;
        }
    }

    /// Without a version that one is spoken which the client begins with.
    async fn speak<S>(self, stream: S, version: Option<Version>, scheme: Scheme)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let server = auto::Builder::clone(&self.server);
        let server = match version {
            Some(Version::Http1) => server.http1_only(),
            Some(Version::Http2) => server.http2_only(),
            None => server,
        };
        let patience = self.edge.settings.patience;
        let (edge, client) = (self.edge, Client { address: self.peer, scheme });
        let talk = Arc::new(Talk::default());
        let asked = Arc::clone(&talk);
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let turn = Talk::turn(&asked);
            let edge = Arc::clone(&edge);
            // A connection has a place for this as long as it is open, also while it is idle: that is to be a small one.
            Box::pin(async move {
                let response = edge.answer(request.map(Body::new), client).await;
                turn.answered();
                Ok::<_, std::convert::Infallible>(response)
            })
        });
        let mut connection = Box::pin(server.serve_connection_with_upgrades(TokioIo::new(stream), service));
        let over = tokio::select! {
            // A client that goes away is no event.
            _ = connection.as_mut() => return,
            () = self.stop.cancelled() => if talk.has_begun() { Over::Enough } else { Over::Silent },
            over = talk.over(patience) => over,
        };
        if over == Over::Enough {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// Why a connection is ended from here.
#[derive(Debug, PartialEq, Eq)]
enum Over {
    /// Nothing was ever asked.
    Silent,
    /// What was asked is answered, and no more.
    Enough,
}

/// What is asked on a connection.
#[derive(Default)]
struct Talk {
    asked: AtomicUsize,
    /// How many requests were taken back before they had an answer.
    abandoned: AtomicUsize,
    begun: Notify,
    abused: Notify,
}

/// One request of a [`Talk`], until it has an answer.
struct Turn {
    talk: Arc<Talk>,
    is_answered: bool,
}

impl Talk {
    fn turn(talk: &Arc<Self>) -> Turn {
        if talk.asked.fetch_add(1, Ordering::Relaxed) == 0 {
            talk.begun.notify_one();
        }
        Turn { talk: Arc::clone(talk), is_answered: false }
    }

    fn has_begun(&self) -> bool {
        self.asked.load(Ordering::Relaxed) > 0
    }

    async fn over(&self, patience: Patience) -> Over {
        // The server has a deadline for the head of a request, and none for what comes before the first one.
        if tokio::time::timeout(patience.head, self.begun.notified()).await.is_err() {
            return Over::Silent;
        }
        loop {
            let asked = self.asked.load(Ordering::Relaxed);
            tokio::select! {
                () = self.abused.notified() => return Over::Enough,
                () = tokio::time::sleep(patience.idle) => if self.asked.load(Ordering::Relaxed) == asked {
                    return Over::Enough;
                },
            }
        }
    }
}

impl Turn {
    fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        let abandoned = self.talk.abandoned.fetch_add(1, Ordering::Relaxed) + 1;
        if abandoned >= MOST_ABANDONED && abandoned * 2 > self.talk.asked.load(Ordering::Relaxed) {
            self.talk.abused.notify_one();
        }
    }
}

/// What both versions of HTTP are served with.
pub(super) fn server(patience: Patience) -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    let mut http_1 = server.http1();
    http_1.timer(TokioTimer::new()).header_read_timeout(patience.head).keep_alive(true);
    // It has no other limit for the size of a head, and reads as much again at once; that of their number is 100.
    http_1.max_buf_size(HEAD_BYTES);
    let mut http_2 = server.http2();
    http_2.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PING).enable_connect_protocol();
    http_2.max_concurrent_streams(STREAMS).max_header_list_size(HEAD_BYTES as u32);
    http_2.max_pending_accept_reset_streams(RESETS_AHEAD).max_local_error_reset_streams(ERRORS);
    server
}

/// The head of a request, in bytes: what is larger is answered 431. The frames of HTTP/2 that it may come in are limited by this.
pub(super) const HEAD_BYTES: usize = 64 << 10;
/// Requests at once on a connection of HTTP/2.
const STREAMS: u32 = 128;
/// Requests of HTTP/2 that are taken back before anybody has looked at them, at once.
const RESETS_AHEAD: usize = 20;
/// Frames of HTTP/2 that are wrong, on one connection.
const ERRORS: usize = 100;
/// Requests that are taken back before they have an answer, when they are more than half of all (CVE-2023-44487): each costs
/// the connection to an instance. Then no more are taken on this connection.
const MOST_ABANDONED: usize = 100;
/// How often it is looked whether a client of HTTP/2 is still there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// A client whose connection an edge with this API serves, and how that ends.
    fn connected(api: Router, stop: &CancellationToken) -> (DuplexStream, tokio::task::JoinHandle<()>) {
        let connection = Connection {
            edge: Arc::new(Edge::new(Arc::default(), api, "localhost".to_owned(), None, Arc::default())),
            server: Arc::new(server(Patience::default())),
            stop: stop.clone(),
            peer: ([127, 0, 0, 1], 7).into(),
        };
        let (client, server) = duplex(1024);
        (client, tokio::spawn(connection.begin(server, Scheme::Http)))
    }

    #[tokio::test]
    async fn a_stop_ends_who_has_asked_nothing_yet_and_who_has_asked_is_answered() {
        for said in ["", "PRI * HTTP", "PRO", "GET / HTTP/1.1\r\n"] {
            let stop = CancellationToken::new();
            let (mut client, served) = connected(Router::new(), &stop);
            client.write_all(said.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
            assert!(!served.is_finished(), "{said:?} is waited for");
            stop.cancel();
            tokio::time::timeout(PING, served).await.expect("it ends").unwrap();
        }
        let (stop, asked, go) = (CancellationToken::new(), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (entered, going) = (Arc::clone(&asked), Arc::clone(&go));
        let answer = async move || {
            entered.notify_one();
            going.notified().await;
            "answered"
        };
        let (mut client, _served) = connected(Router::new().route("/", get(answer)), &stop);
        client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
        tokio::time::timeout(PING, asked.notified()).await.expect("a request that arrives");
        stop.cancel();
        go.notify_one();
        let mut text = String::new();
        tokio::time::timeout(PING, client.read_to_string(&mut text)).await.expect("an answer").unwrap();
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("answered"), "{text}");
    }
}
