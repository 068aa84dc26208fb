//! Connections of HTTP/2 to instances, without TLS and with prior knowledge: for gRPC, which has nothing else.
//!
//! A connection takes as many requests at once as the instance allows, and where that is not enough there is another. One that
//! nobody uses is closed. It is never asked whether an instance is still there: servers of gRPC end connections that ask often.

use std::{
    collections::HashMap,
    future::{Future as _, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, Connection, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::{pool, upstream::Failure};

/// Connections that nobody uses are closed after this long, or twice that.
const IDLE: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Multiplexed {
    pool: Arc<Mutex<Pool>>,
}

type Pool = HashMap<SocketAddr, Vec<Open>>;

struct Open {
    sender: SendRequest<Body>,
    load: Arc<Load>,
}

/// How much a connection has to do, and how much it may have.
struct Load {
    streams: AtomicUsize,
    most: AtomicUsize,
    begun: AtomicUsize,
}

/// A request that is not over.
#[derive(Clone)]
pub(super) struct Stream {
    _ends: Arc<Ends>,
}

struct Ends(Arc<Load>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Load {
    fn begin(self: &Arc<Self>) -> Stream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        Stream { _ends: Arc::new(Ends(Arc::clone(self))) }
    }

    fn is_unused_since(&self, begun: usize) -> bool {
        self.streams.load(Ordering::Relaxed) == 0 && self.begun.load(Ordering::Relaxed) == begun
    }
}

impl Multiplexed {
    /// The response has its [`Stream`] as an extension, to be kept until its body has ended.
    ///
    /// # Errors
    /// As those of [`Upstream`](super::upstream::Upstream).
    pub async fn send(&self, address: SocketAddr, request: Request<Body>) -> Result<Response<Incoming>, Failure> {
        let mut request = request;
        loop {
            let (mut sender, stream, reused) = match self.with_room(address) {
                Some((sender, stream)) => (sender, stream, true),
                None => match self.open(address).await {
                    Ok((sender, stream)) => (sender, stream, false),
                    Err(cause) => return Err(Failure::Refused { request: Box::new(request), cause }),
                },
            };
            let mut error = match sender.try_send_request(request).await {
                Ok(mut response) => {
                    response.extensions_mut().insert(stream);
                    return Ok(response);
                }
                Err(error) => error,
            };
            let unsent = error.take_message();
            let cause = error.into_error();
            match unsent {
                Some(unsent) if reused => request = unsent,
                // It accepted the connection, and then had something against it.
                _ => return Err(Failure::Lost { reused, cause }),
            }
        }
    }

    fn with_room(&self, address: SocketAddr) -> Option<(SendRequest<Body>, Stream)> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let open = pool.get_mut(&address)?;
        open.retain(|open| !open.sender.is_closed());
        let has_room = |open: &&Open| {
            let most = open.load.most.load(Ordering::Relaxed);
            open.load.streams.load(Ordering::Relaxed) < most
        };
        let open = open.iter().find(has_room)?;
        Some((open.sender.clone(), open.load.begin()))
    }

    async fn open(&self, address: SocketAddr) -> io::Result<(SendRequest<Body>, Stream)> {
        let stream = pool::connect(address).await?;
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(io::Error::other)?;
        let (streams, begun) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let load = Arc::new(Load { streams, begun, most: AtomicUsize::new(connection.current_max_send_streams()) });
        let first = load.begin();
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.entry(address).or_default().push(Open { sender: sender.clone(), load: Arc::clone(&load) });
        drop(pool);
        tokio::spawn(serve(connection, Arc::clone(&self.pool), address, load));
        Ok((sender, first))
    }
}

/// Until the instance ends the connection, or nobody has used it for long: it ends when nobody can send by it any more.
async fn serve(
    connection: Connection<TokioIo<TcpStream>, Body, TokioExecutor>,
    pool: Arc<Mutex<Pool>>,
    address: SocketAddr,
    load: Arc<Load>,
) {
    let forget = || {
        let mut pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = pool.get_mut(&address) {
            open.retain(|open| !Arc::ptr_eq(&open.load, &load));
            if open.is_empty() {
                pool.remove(&address);
            }
        }
    };
    let mut connection = pin!(connection);
    loop {
        let begun = load.begun.load(Ordering::Relaxed);
        let ended = poll_fn(|context| {
            let polled = connection.as_mut().poll(context);
            // The instance may say so any time; it is seen with the next request. Most allow the 100 that is assumed before.
            load.most.store(connection.current_max_send_streams(), Ordering::Relaxed);
            polled
        });
        tokio::select! {
            // Whoever waits for a response is told why there is none.
            _ = ended => return forget(),
            () = tokio::time::sleep(IDLE) => if load.is_unused_since(begun) {
                forget();
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::service::service_fn;
    use tokio::{net::TcpListener, sync::Semaphore};

    use super::*;

    fn request() -> Request<Body> {
        Request::post("http://app/").body(Body::empty()).unwrap()
    }

    /// An instance that takes two requests at once in each connection, and answers none before it may.
    async fn instance(may: Arc<Semaphore>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let may = Arc::clone(&may);
                let service = service_fn(move |_| {
                    let may = Arc::clone(&may);
                    async move {
                        may.acquire().await.unwrap().forget();
                        Ok::<_, io::Error>(Response::new(Body::from("done")))
                    }
                });
                let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                server.max_concurrent_streams(2);
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        address
    }

    #[tokio::test]
    async fn where_a_connection_is_full_there_is_another() {
        let may = Arc::new(Semaphore::new(2));
        let address = instance(Arc::clone(&may)).await;
        let multiplexed = Arc::new(Multiplexed::default());
        // With the first answer the instance has said how many it takes.
        for _ in 0..2 {
            drop(multiplexed.send(address, request()).await.unwrap());
        }
        let send = || {
            let multiplexed = Arc::clone(&multiplexed);
            tokio::spawn(async move { multiplexed.send(address, request()).await.unwrap().status() })
        };
        let sent = [send(), send(), send(), send()];
        let open = || multiplexed.pool.lock().unwrap()[&address].len();
        let all = async {
            while multiplexed.pool.lock().unwrap()[&address].iter().map(streams).sum::<usize>() < 4 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(IDLE, all).await.expect("all are sent");
        assert!(open() >= 2, "{}", open());
        may.add_permits(4);
        for sent in sent {
            assert_eq!(sent.await.unwrap(), 200);
        }
        assert_eq!(multiplexed.pool.lock().unwrap()[&address].iter().map(streams).sum::<usize>(), 0);
    }

    fn streams(open: &Open) -> usize {
        open.load.streams.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_connection_that_the_instance_ended_is_forgotten() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { drop(listener.accept().await) });
        let multiplexed = Multiplexed::default();
        let failure = multiplexed.send(address, request()).await.unwrap_err();
        assert!(matches!(failure, Failure::Lost { reused: false, .. }), "{failure:?}");
        let gone = async {
            while !multiplexed.pool.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(IDLE, gone).await.expect("nothing is kept");
    }
}
