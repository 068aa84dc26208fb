//! One connection of a client: whom it is of, TLS, the version of HTTP, and when it has been silent for too long.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::body::Body;
use http::Request;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::Watcher},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use super::{Client, Edge, Scheme, Transport, balancer, tls::Version};

/// A connection that was accepted.
pub(super) struct Connection {
    pub edge: Arc<Edge>,
    pub server: auto::Builder<TokioExecutor>,
    pub watcher: Watcher,
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
                let server = self.server.clone();
                self.speak(stream, server, Scheme::Http).await;
            }
            Transport::Tls(tls) => {
                let accepted = tokio::select! {
                    () = self.stop.cancelled() => return,
                    accepted = tokio::time::timeout(HEAD, tls.accept(stream)) => accepted,
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
            async move { Ok::<_, std::convert::Infallible>(edge.answer(request.map(Body::new), client).await) }
        });
        let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service);
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
            _ = self.watcher.watch(connection.into_owned()) => {}
            () = silent => {}
        }
    }
}

/// What both versions of HTTP are served with.
pub(super) fn server() -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(true);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(30)).enable_connect_protocol();
    server
}

/// How long the first request, and the head of each, may take to arrive.
const HEAD: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use hyper_util::server::graceful::GracefulShutdown;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

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
