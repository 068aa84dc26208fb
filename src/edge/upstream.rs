//! Connections to instances: each takes one request after the other, and is kept for the next.
//!
//! A connection is made before a request is given away, so a request that nobody took (no connection, or one that its server
//! had closed meanwhile) comes back whole, and can go to another instance whatever its method.
//!
//! Whoever waits for a response moves the bytes of its connection meanwhile. A task for each connection would have to be woken
//! for each request and response, often on another processor. Only a request that goes on while its response does, and
//! a tunnel, have one.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use super::{
    ending::Ending,
    h2c::Multiplexed,
    pool::{self, Pool},
};
use axum::body::{Body, Bytes};
use http::{Request, Response, StatusCode, Version};
use http_body::{Body as _, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{self, SendRequest},
    },
};
use hyper_util::rt::TokioIo;

/// What is read or waits to be written, at most, on either side; so long may a head be. The allocator keeps blocks of this
/// size, and asks the kernel for each that is much larger.
pub(super) const BUFFER: usize = 64 << 10;

#[derive(Default)]
pub(super) struct Upstream {
    pool: Pool<Link>,
    multiplexed: Multiplexed,
}

/// A connection to an instance.
struct Link {
    sender: SendRequest<Body>,
    /// What moves its bytes; none where a task of its own does.
    driver: Option<Driver>,
}

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// The body of a response, and what it comes by.
pub(super) struct Arriving {
    body: Incoming,
    link: Option<Link>,
    home: Option<(Pool<Link>, SocketAddr)>,
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
    pub async fn send(&self, address: SocketAddr, request: Request<Body>) -> Result<Response<Arriving>, Failure> {
        if request.version() == Version::HTTP_2 {
            return Ok(self.multiplexed.send(address, request).await?.map(Arriving::by_itself));
        }
        let (mut request, sent) = watched(request);
        loop {
            let (mut link, reused) = match self.pool.take(address) {
                Some(link) => (link, true),
                None => match Link::open(address).await {
                    Ok(link) => (link, false),
                    Err(cause) => return Err(Failure::Refused { request: Box::new(request), cause }),
                },
            };
            let mut error = match link.exchange(request).await {
                Ok(response) => return Ok(self.answered(address, link, response, sent.as_deref())),
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

    /// The connection stays with the response until that has ended. A tunnel is not for anybody else.
    fn answered(
        &self,
        address: SocketAddr,
        mut link: Link,
        response: Response<Incoming>,
        sent: Option<&AtomicBool>,
    ) -> Response<Arriving> {
        let is_tunnel = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if is_tunnel || sent.is_some_and(|is_over| !is_over.load(Ordering::Acquire)) {
            // Whoever waits for the rest is told why there is none.
            link.driver.take().map(tokio::spawn);
        }
        let home = Some((self.pool.clone(), address)).filter(|_| !is_tunnel);
        response.map(|body| {
            let mut arriving = Arriving { body, link: Some(link), home };
            arriving.check_end();
            arriving
        })
    }
}

impl Link {
    async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = pool::connect(address).await?;
        let handshake = http1::Builder::new().max_buf_size(BUFFER).handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(io::Error::other)?;
        Ok(Self { sender, driver: Some(Box::pin(connection.with_upgrades())) })
    }

    async fn exchange(&mut self, request: Request<Body>) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        let mut response = pin!(self.sender.try_send_request(request));
        let driver = &mut self.driver;
        poll_fn(|context| {
            drive(driver, context);
            response.as_mut().poll(context)
        })
        .await
    }
}

impl pool::Link for Link {
    fn is_ready(&mut self) -> bool {
        drive(&mut self.driver, &mut Context::from_waker(Waker::noop()));
        self.sender.is_ready()
    }
}

/// Moves what can be moved. Of a connection that is over whoever waits has heard.
fn drive(driver: &mut Option<Driver>, context: &mut Context<'_>) {
    if let Some(running) = driver
        && running.as_mut().poll(context).is_ready()
    {
        *driver = None;
    }
}

impl Arriving {
    /// The connection has a task of its own, and others use it as well.
    fn by_itself(body: Incoming) -> Self {
        Self { body, link: None, home: None }
    }

    /// Gives the connection back when nothing of the response is left.
    fn check_end(&mut self) {
        if self.body.is_end_stream() {
            self.end();
        }
    }

    fn end(&mut self) {
        // One that has a task of its own may still be sending.
        if let (Some(link), Some((pool, address))) = (self.link.take(), self.home.take())
            && link.driver.is_some()
        {
            pool.give(address, link);
        }
    }
}

impl std::fmt::Debug for Arriving {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Arriving").field("body", &self.body).finish_non_exhaustive()
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        if let Some(link) = &mut self.link {
            drive(&mut link.driver, context);
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(None) => self.end(),
            Poll::Ready(Some(_)) => self.check_end(),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request, and whether its body is sent, where it has one.
fn watched(request: Request<Body>) -> (Request<Body>, Option<Arc<AtomicBool>>) {
    if request.body().is_end_stream() {
        return (request, None);
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&is_over);
    let ended = move |_| tell.store(true, Ordering::Release);
    (request.map(|body| Body::new(Ending::new(body, ended))), Some(is_over))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

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
            while upstream.pool.len() != number {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waits).await.expect("so many connections are kept");
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
    async fn a_connection_takes_the_next_request_when_the_response_was_read() {
        let (listener, address, upstream) = instance().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            answer(&mut stream).await;
            answer(&mut stream).await;
        });
        for _ in 0..2 {
            let response = upstream.send(address, request("x")).await.unwrap();
            axum::body::to_bytes(Body::new(response.into_body()), 10).await.unwrap();
        }
        server.await.expect("both came by one connection");
    }

    #[tokio::test]
    async fn what_is_left_of_a_request_is_sent_also_while_nobody_reads_the_response() {
        let (listener, address, upstream) = instance().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut text = Vec::new();
            while !text.ends_with(b"\r\n\r\n") {
                text.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n").await.unwrap();
            let mut body = vec![0; 3 * BUFFER];
            stream.read_exact(&mut body).await.unwrap();
        });
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, io::Error>>(1);
        let body = futures::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
        let length = 3 * BUFFER;
        let request = Request::post("/").header("host", "app").header("content-length", length);
        let request = request.body(Body::from_stream(body)).unwrap();
        let _response = upstream.send(address, request).await.unwrap();
        for _ in 0..3 {
            sender.send(Ok(vec![0; BUFFER].into())).await.unwrap();
        }
        tokio::time::timeout(PATIENCE, server).await.expect("all of it arrives").unwrap();
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
