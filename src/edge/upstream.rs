//! Connections to instances: each takes one request after the other, and is kept for the next.
//!
//! A connection is made before a request is given away, so a request that nobody took (no connection, or one that its server
//! had closed meanwhile) comes back whole, and can go to another instance whatever its method.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::body::Body;
use http::{Request, Response, StatusCode, Version};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::h2c::Multiplexed;

pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// Connections that nobody uses are closed after this long: sooner than servers usually do (gunicorn waits 2 s, node 5 s).
const IDLE: Duration = Duration::from_millis(1500);

#[derive(Default)]
pub(super) struct Upstream {
    pool: Arc<Mutex<Pool>>,
    multiplexed: Multiplexed,
}

#[derive(Default)]
struct Pool {
    idle: HashMap<SocketAddr, Vec<Idle>>,
    /// Somebody closes what is idle for too long.
    swept: bool,
}

struct Idle {
    sender: SendRequest<Body>,
    since: Instant,
}

/// Why a request has no response.
#[derive(Debug)]
pub(super) enum Failure {
    /// The instance does not accept connections; the request is as it was.
    Refused { request: Box<Request<Body>>, cause: io::Error },
    /// The instance may have seen the request, or a part of it. A connection that had been used before may have been closed by a
    /// server that saw nothing.
    Lost { reused: bool, cause: hyper::Error },
}

impl Upstream {
    /// The URI of the request has a path only, and its headers are those that the instance is to see. One of HTTP/2 has the
    /// whole URI, and goes by that.
    ///
    /// # Errors
    /// Tells apart whether the instance can have seen anything of the request.
    pub async fn send(&self, address: SocketAddr, request: Request<Body>) -> Result<Response<Incoming>, Failure> {
        if request.version() == Version::HTTP_2 {
            return self.multiplexed.send(address, request).await;
        }
        let mut request = request;
        loop {
            let (mut sender, reused) = match self.idle(address) {
                Some(sender) => (sender, true),
                None => match connect(address).await {
                    Ok(sender) => (sender, false),
                    Err(cause) => return Err(Failure::Refused { request: Box::new(request), cause }),
                },
            };
            let mut error = match sender.try_send_request(request).await {
                Ok(response) => return Ok(self.answered(address, sender, response)),
                Err(error) => error,
            };
            let unsent = error.take_message();
            let cause = error.into_error();
            match unsent {
                Some(unsent) if reused => request = unsent,
                Some(unsent) => {
                    return Err(Failure::Refused { request: Box::new(unsent), cause: io::Error::other(cause) });
                }
                None => return Err(Failure::Lost { reused, cause }),
            }
        }
    }

    /// The connection that was used last: most likely it still is one.
    fn idle(&self, address: SocketAddr) -> Option<SendRequest<Body>> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = pool.idle.get_mut(&address)?;
        while let Some(Idle { sender, since }) = idle.pop() {
            if since.elapsed() < IDLE && sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    /// Keeps a connection for when its response has ended. A tunnel is not for anybody else.
    fn answered(
        &self,
        address: SocketAddr,
        mut sender: SendRequest<Body>,
        response: Response<Incoming>,
    ) -> Response<Incoming> {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let pool = Arc::clone(&self.pool);
            tokio::spawn(async move {
                if sender.ready().await.is_ok() {
                    keep(&pool, address, sender);
                }
            });
        }
        response
    }
}

async fn connect(address: SocketAddr) -> io::Result<SendRequest<Body>> {
    let stream = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        // Whoever waits for a response is told why there is none.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

fn keep(pool: &Arc<Mutex<Pool>>, address: SocketAddr, sender: SendRequest<Body>) {
    let mut kept = pool.lock().unwrap_or_else(PoisonError::into_inner);
    kept.idle.entry(address).or_default().push(Idle { sender, since: Instant::now() });
    if !kept.swept {
        kept.swept = true;
        tokio::spawn(sweep(Arc::clone(pool)));
    }
}

/// Closes what nobody has used for too long, until nothing is left.
async fn sweep(pool: Arc<Mutex<Pool>>) {
    loop {
        tokio::time::sleep(IDLE / 2).await;
        let mut pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.idle.retain(|_, idle| {
            idle.retain(|idle| idle.since.elapsed() < IDLE && !idle.sender.is_closed());
            !idle.is_empty()
        });
        if pool.idle.is_empty() {
            pool.swept = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    fn request(body: &'static str) -> Request<Body> {
        Request::post("/").header("host", "app").body(Body::from(body)).unwrap()
    }

    async fn instance() -> (TcpListener, SocketAddr, Upstream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address, Upstream::default())
    }

    /// Reads a head with a body of one byte, and answers.
    async fn answer(stream: &mut TcpStream) {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\nx") {
            text.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    }

    async fn kept(upstream: &Upstream, number: usize) {
        let waits = async {
            while upstream.pool.lock().unwrap().idle.values().map(Vec::len).sum::<usize>() != number {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(IDLE * 4, waits).await.expect("so many connections are kept");
    }

    #[tokio::test]
    async fn a_connection_takes_one_request_after_the_other_and_is_closed_when_there_are_none() {
        let (listener, address, upstream) = instance().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            answer(&mut stream).await;
            answer(&mut stream).await;
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "it is closed");
        });
        for _ in 0..2 {
            let response = upstream.send(address, request("x")).await.unwrap();
            assert_eq!(response.status(), 200);
            kept(&upstream, 1).await;
        }
        server.await.unwrap();
        kept(&upstream, 0).await;
    }

    #[tokio::test]
    async fn a_request_that_nobody_took_comes_back_whole() {
        let (listener, address, upstream) = instance().await;
        let server = tokio::spawn(async move {
            // The first connection ends while it is idle; then nobody listens any more.
            let (mut stream, _) = listener.accept().await.unwrap();
            answer(&mut stream).await;
        });
        upstream.send(address, request("x")).await.unwrap();
        server.await.unwrap();
        let failure = upstream.send(address, request("words")).await.unwrap_err();
        let Failure::Refused { request, .. } = failure else { panic!("{failure:?}") };
        assert_eq!(axum::body::to_bytes(request.into_body(), 10).await.unwrap(), "words");
    }

    #[tokio::test]
    async fn a_request_that_was_taken_and_not_answered_is_lost() {
        let (listener, address, upstream) = instance().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
        });
        let failure = upstream.send(address, request("x")).await.unwrap_err();
        assert!(matches!(failure, Failure::Lost { reused: false, .. }), "{failure:?}");
        server.await.unwrap();
    }
}
