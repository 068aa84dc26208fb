//! Requests of HTTP/1.1 that are nothing but a head, as most are, to applications: handed on by ourselves, as bytes.
//!
//! What is to be understood of such a request is little, and its response goes through as it is. A connection begins here, and
//! stays as long as only that is asked. Anything else (a body, an upgrade, the API, a page of ours, what has limits of its own,
//! whatever could be read in two ways) goes to hyper with all that was read of it, and the connection stays there. So does a
//! request whose instance fails before the client has got anything: it is a safe one, and there it is tried again, or told.
//!
//! Nothing is kept for a connection that is idle: what arrives is read into a buffer that a thread has once.

mod framing;
mod head;

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use self::head::{Answered, Asked};
use super::{AccessLog, Client, Compression, Edge, connection::HEAD_BYTES, pool, proxy};
use crate::apps::{InFlight, Lookup};

/// What is read at once, and what is kept at most of what a client has sent, in bytes: all of a head.
const BUFFER: usize = HEAD_BYTES;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into());
}

/// Serves what can be served here. What was read of something else; none when the connection is over.
pub(super) async fn serve<S>(edge: &Edge, stream: &mut S, client: Client, stop: &CancellationToken) -> Option<Vec<u8>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let from = head::From { address: client.address.ip(), scheme: client.scheme };
    let patience = edge.settings.patience.head;
    let (mut read, mut seen) = (Vec::new(), 0);
    // Once for a connection, and not for each request: what tells of time and of stops is shared by all of them.
    let mut stopped = pin!(stop.cancelled());
    let mut alarm = pin!(sleep(patience));
    let mut since = Instant::now();
    loop {
        let asked = match head::Request::read(&read, seen, from, proxy::id) {
            head::Request::Plain(asked) => asked,
            head::Request::Partial if read.len() < BUFFER => {
                seen = read.len();
                let arriving = poll_fn(|context| read_on(stream, context, &mut read));
                tokio::select! {
                    biased;
                    received = arriving => if !matches!(received, Ok(1..)) { return None },
                    () = &mut stopped => return (!read.is_empty()).then_some(read),
                    () = &mut alarm => match patience.checked_sub(since.elapsed()) {
                        None | Some(Duration::ZERO) => return None,
                        Some(left) => alarm.as_mut().reset(tokio::time::Instant::now() + left),
                    },
                }
                continue;
            }
            head::Request::Partial | head::Request::Other => return Some(read),
        };
        let Some(backend) = edge.direct(&asked, client) else { return Some(read) };
        match (Exchange { edge, stream, read: &mut read, client, is_last: stop.is_cancelled() })
            .run(asked, backend)
            .await
        {
            Outcome::Answered => (since, seen) = (Instant::now(), 0),
            Outcome::Over => return None,
            Outcome::Untouched => return Some(read),
        }
    }
}

impl Edge {
    /// The backend of a request that nothing else is to be done with.
    fn direct(&self, asked: &Asked, client: Client) -> Option<InFlight> {
        let (host, path) = (asked.host.as_str(), asked.path.as_str());
        let is_moved = self.secure_port(client.scheme, host).is_some();
        if self.settings.access_log == AccessLog::On || is_moved || self.is_api(host) {
            return None;
        }
        let own = self.settings.of_host(host);
        let is_free = own.requests_in_flight.is_none() && own.response.is_none();
        if !is_free || own.compression == Some(Compression::On) || self.challenges.text(path).is_some() {
            return None;
        }
        match self.routes.find(host, path) {
            Lookup::Backend(backend) => Some(backend),
            Lookup::Unavailable(_) | Lookup::Unknown => None,
        }
    }
}

/// How one request ended.
enum Outcome {
    Answered,
    /// The connection is over with it.
    Over,
    /// The client has got nothing, and all of the request is there.
    Untouched,
}

struct Exchange<'a, S> {
    edge: &'a Edge,
    stream: &'a mut S,
    /// What the client has sent: first of all this request.
    read: &'a mut Vec<u8>,
    client: Client,
    is_last: bool,
}

/// The counters of an application, told when the answer is over, however it ends.
struct Counted {
    backend: InFlight,
    status: StatusCode,
    begun: Instant,
    sent: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.backend.traffic().answered(self.status, self.begun.elapsed());
        self.backend.traffic().sent(self.sent);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Exchange<'_, S> {
    async fn run(mut self, asked: Asked, backend: InFlight) -> Outcome {
        let begun = Instant::now();
        let mut kept = self.edge.links.take(backend.address());
        let (answered, arrived, link) = loop {
            let is_kept = kept.is_some();
            let mut link = match kept.take() {
                Some(link) => link,
                None => match Box::pin(pool::connect(backend.address())).await {
                    Ok(link) => link,
                    Err(_) => return Outcome::Untouched,
                },
            };
            match self.ask(&asked, &mut link).await {
                Heard::Answer(answered, arrived) => break (answered, arrived, link),
                // It was closed just now.
                Heard::Nothing if is_kept => {}
                Heard::Nothing | Heard::Wrong => return Outcome::Untouched,
                Heard::ClientLeft => return Outcome::Over,
            }
        };
        self.read.drain(..asked.length);
        if self.read.is_empty() {
            *self.read = Vec::new();
        }
        let counted = Counted { backend, status: answered.status, begun, sent: 0 };
        self.hand_on(answered, arrived, link, counted).await
    }

    async fn ask(&mut self, asked: &Asked, link: &mut TcpStream) -> Heard {
        if link.write_all(&asked.text).await.is_err() {
            return Heard::Nothing;
        }
        let (mut arrived, mut seen) = (Vec::new(), 0);
        loop {
            match head::Response::read(&arrived, seen, asked.is_head) {
                head::Response::Final(answered) => return Heard::Answer(answered, arrived),
                head::Response::Informational(length) => {
                    drop(arrived.drain(..length));
                    seen = 0;
                    continue;
                }
                head::Response::Partial if arrived.len() < BUFFER => seen = arrived.len(),
                head::Response::Partial | head::Response::Wrong => return Heard::Wrong,
            }
            match self.hear(link, &mut arrived).await {
                Received::Some => {}
                Received::End if arrived.is_empty() => return Heard::Nothing,
                Received::End => return Heard::Wrong,
                Received::ClientLeft => return Heard::ClientLeft,
            }
        }
    }

    async fn hand_on(
        mut self,
        answered: Answered,
        arrived: Vec<u8>,
        mut link: TcpStream,
        mut counted: Counted,
    ) -> Outcome {
        let mut framing = answered.framing;
        let is_end_by_close = framing == framing::Framing::until_end();
        let is_over = self.is_last || is_end_by_close;
        let (length, is_kept) = (answered.length, answered.is_kept);
        let head = self.head_of(answered, is_over);
        let Ok(mut taken) = framing.take(&arrived[length..]) else { return Outcome::Over };
        let mut rest = arrived.len() - length - taken;
        if send(self.stream, &head, &arrived[length..length + taken]).await.is_err() {
            return Outcome::Over;
        }
        counted.sent += taken as u64;
        drop(arrived);
        while !framing.is_over() {
            match self.pass(&mut link, &mut framing).await {
                Ok(Passed::Some { bytes, left }) => (taken, rest) = (bytes, left),
                Ok(Passed::End) if is_end_by_close => break,
                // What is missing is missed only where the connection ends with it.
                Ok(Passed::End) | Err(_) => return Outcome::Over,
            }
            counted.sent += taken as u64;
        }
        if self.stream.flush().await.is_err() {
            return Outcome::Over;
        }
        if is_kept && rest == 0 {
            self.edge.links.give(counted.backend.address(), link);
        }
        if is_over {
            let _ = self.stream.shutdown().await;
            return Outcome::Over;
        }
        Outcome::Answered
    }

    /// The rest of the head.
    fn head_of(&self, answered: Answered, is_over: bool) -> Vec<u8> {
        let mut text = answered.text;
        if !answered.has_date {
            head::put(&mut text, "date", &[httpdate::fmt_http_date(std::time::SystemTime::now()).as_bytes()]);
        }
        if let Some(value) = self.edge.settings.strict_transport(self.client.scheme).filter(|_| !answered.has_hsts) {
            head::put(&mut text, "strict-transport-security", &[value.as_bytes()]);
        }
        if is_over {
            head::put(&mut text, "connection", &[b"close"]);
        }
        text.extend_from_slice(b"\r\n");
        text
    }

    /// More of what the instance says, while the client is there.
    async fn hear(&mut self, link: &mut TcpStream, arrived: &mut Vec<u8>) -> Received {
        poll_fn(|context| {
            let received = scratch(|buffer| {
                let count = ready!(fill(link, context, buffer)).unwrap_or(0);
                arrived.extend_from_slice(&buffer[..count]);
                Poll::Ready(count)
            });
            match received {
                Poll::Ready(0) => Poll::Ready(Received::End),
                Poll::Ready(_) => Poll::Ready(Received::Some),
                Poll::Pending if self.has_left(context) => Poll::Ready(Received::ClientLeft),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Reads from the instance, and writes to the client what belongs to the body.
    async fn pass(&mut self, link: &mut TcpStream, framing: &mut framing::Framing) -> io::Result<Passed> {
        let mut unsent = Vec::new();
        let passed = poll_fn(|context| {
            let polled = scratch(|buffer| {
                let count = ready!(fill(link, context, buffer))?;
                let bytes = framing.take(&buffer[..count]).map_err(|_| io::ErrorKind::InvalidData)?;
                let mut at = 0;
                while at < bytes {
                    match Pin::new(&mut *self.stream).poll_write(context, &buffer[at..bytes]) {
                        Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                        Poll::Ready(Ok(written)) => at += written,
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => {
                            unsent.extend_from_slice(&buffer[at..bytes]);
                            break;
                        }
                    }
                }
                Poll::Ready(Ok(if count == 0 { Passed::End } else { Passed::Some { bytes, left: count - bytes } }))
            });
            match polled {
                // Nothing more is coming for now: what TLS holds back is to be out by then.
                Poll::Pending => {
                    if let Poll::Ready(Err(error)) = Pin::new(&mut *self.stream).poll_flush(context) {
                        return Poll::Ready(Err(error));
                    }
                    if self.has_left(context) {
                        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
                    } else {
                        Poll::Pending
                    }
                }
                polled => polled,
            }
        })
        .await?;
        self.stream.write_all(&unsent).await?;
        Ok(passed)
    }

    /// Whether the client is gone. What it asks meanwhile is kept, as far as that is not much.
    fn has_left(&mut self, context: &mut Context<'_>) -> bool {
        if self.read.len() >= BUFFER {
            return false;
        }
        match read_on(&mut *self.stream, context, self.read) {
            Poll::Pending => false,
            Poll::Ready(Ok(1..)) => {
                // It is asked again when there is more.
                context.waker().wake_by_ref();
                false
            }
            Poll::Ready(Ok(0) | Err(_)) => true,
        }
    }
}

/// What an instance says to a request.
enum Heard {
    /// With all that has arrived so far, its head first.
    Answer(Answered, Vec<u8>),
    Nothing,
    Wrong,
    ClientLeft,
}

enum Received {
    Some,
    End,
    ClientLeft,
}

enum Passed {
    /// Bytes of the body, and of what does not belong to it.
    Some {
        bytes: usize,
        left: usize,
    },
    End,
}

fn scratch<T>(with: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|buffer| with(buffer))
}

fn fill<R: AsyncRead + Unpin>(from: &mut R, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    let mut filled = ReadBuf::new(buffer);
    ready!(Pin::new(from).poll_read(context, &mut filled))?;
    Poll::Ready(Ok(filled.filled().len()))
}

/// How many bytes came, up to all that is kept; none at the end.
fn read_on<R: AsyncRead + Unpin>(
    from: &mut R,
    context: &mut Context<'_>,
    into: &mut Vec<u8>,
) -> Poll<io::Result<usize>> {
    scratch(|buffer| {
        let count = ready!(fill(from, context, &mut buffer[..BUFFER - into.len()]))?;
        into.extend_from_slice(&buffer[..count]);
        Poll::Ready(Ok(count))
    })
}

/// Head and body by one write, where there is room.
async fn send<W: AsyncWrite + Unpin>(to: &mut W, head: &[u8], body: &[u8]) -> io::Result<()> {
    let written = to.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]).await?;
    if written < head.len() {
        to.write_all(&head[written..]).await?;
    }
    to.write_all(&body[written.saturating_sub(head.len())..]).await
}
