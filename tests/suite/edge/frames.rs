//! HTTP/2 frame by frame, as those write it who mean no good.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, routing::get};
use epiniod::edge::{Patience, Settings};
use tokio::net::TcpListener;

use super::front::Front;
use crate::sandbox::house::PATIENCE;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ENHANCE_YOUR_CALM: u32 = 11;

/// `GET http://app.localhost/never`, without compression (RFC 7541, section 6.2.2).
fn head(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86];
    for (index, value) in [(4, path), (1, "app.localhost")] {
        block.extend([index, u8::try_from(value.len()).unwrap()]);
        block.extend(value.as_bytes());
    }
    block
}

/// One more line of a head.
fn line(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0, u8::try_from(name.len()).unwrap()];
    block.extend(name.as_bytes());
    // A length of more than seven bits (RFC 7541, section 5.1).
    let rest = value.len() - 127;
    block.extend([127, u8::try_from(rest % 128).unwrap() | 128, u8::try_from(rest / 128).unwrap()]);
    block.extend(value.as_bytes());
    block
}

struct Frames(TcpStream);

#[derive(Debug)]
struct Frame {
    kind: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frames {
    fn open(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        let mut frames = Self(stream);
        frames.send(SETTINGS, 0, 0, &[]).unwrap();
        frames
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> std::io::Result<()> {
        self.0.write_all(&frame(kind, flags, stream, payload))
    }

    /// None where the connection has ended.
    fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).ok()?;
        Some(Frame { kind: head[3], stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload })
    }

    /// The error of the connection's end.
    fn goaway(&mut self) -> Option<u32> {
        loop {
            let frame = self.read()?;
            if frame.kind == GOAWAY {
                return Some(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()));
            }
        }
    }

    fn answer(&mut self, stream: u32) -> Frame {
        loop {
            let frame = self.read().expect("an answer");
            if frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM) {
                return frame;
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

async fn front(settings: Settings) -> Front {
    let front = Front::with(settings).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    front.leads_to("app.localhost", listener.local_addr().unwrap());
    let app = Router::new()
        .route("/", get(|| async { "hello" }).post(|body: Bytes| async move { body }))
        .route("/never", get(std::future::pending::<()>));
    tokio::spawn(async move { axum::serve(listener, app).await });
    front
}

async fn frames<T: Send + 'static>(front: &Front, with: impl FnOnce(Frames) -> T + Send + 'static) -> T {
    let address = front.address;
    tokio::task::spawn_blocking(move || with(Frames::open(address))).await.expect("it does not panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_taken_back_at_once_end_the_connection() {
    let front = front(Settings::default()).await;
    // All in one: before anybody has looked at the first.
    let error = frames(&front, |mut frames| {
        let mut all = Vec::new();
        for stream in (1..2000).step_by(2) {
            all.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, &head("/never")));
            all.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        }
        let _ = frames.0.write_all(&all);
        frames.goaway()
    })
    .await;
    assert_eq!(error, Some(ENHANCE_YOUR_CALM));
    // One after the other: each has reached the application by then.
    let (sent, error) = frames(&front, |mut frames| {
        let other = frames.0.try_clone().unwrap();
        let reader = std::thread::spawn(move || Frames(other).goaway());
        let mut sent = 0;
        for stream in (1..20_000).step_by(2) {
            let head = frames.send(HEADERS, END_STREAM | END_HEADERS, stream, &head("/never"));
            // So that it is looked at; there is nothing to wait for.
            std::thread::sleep(Duration::from_millis(2));
            let reset = frames.send(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
            if head.is_err() || reset.is_err() || reader.is_finished() {
                break;
            }
            sent += 1;
        }
        (sent, reader.join().unwrap())
    })
    .await;
    // On a busy machine some wait to be looked at, of which there may be 20.
    assert!((20..1000).contains(&sent), "after {sent}");
    assert!(error.is_some(), "no more are taken");
    front.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_do_not_end_are_not_read() {
    let front = front(Settings::default()).await;
    let error = frames(&front, |mut frames| {
        frames.send(HEADERS, END_STREAM, 1, &head("/")).unwrap();
        for _ in 0..100_000 {
            if frames.send(CONTINUATION, 0, 1, &line("x", &"x".repeat(1000))).is_err() {
                break;
            }
        }
        frames.goaway()
    })
    .await;
    // What was still on its way can make of the end a reset.
    assert!(matches!(error, Some(ENHANCE_YOUR_CALM) | None), "{error:?}");
    let status = frames(&front, |mut frames| {
        let block: Vec<u8> = (0..70).flat_map(|_| line("x", &"x".repeat(1000))).collect();
        let mut parts = block.chunks(16_000).peekable();
        frames.send(HEADERS, END_STREAM, 1, &head("/")).unwrap();
        while let Some(part) = parts.next() {
            let flags = if parts.peek().is_none() { END_HEADERS } else { 0 };
            frames.send(CONTINUATION, flags, 1, part).unwrap();
        }
        frames.answer(1)
    })
    .await;
    // The status is not one of those with a number of their own (RFC 7541, appendix A).
    assert!(
        status.kind == HEADERS && status.payload.windows(3).any(|part| part == b"431") || is_431(&status),
        "{status:?}"
    );
    front.close().await;
}

/// 431 by the code of Huffman: 011010 011001 00001.
fn is_431(frame: &Frame) -> bool {
    frame.payload.windows(3).any(|part| part == [0b0110_1001, 0b1001_0000, 0b1111_1111])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_so_many_requests_at_once_and_no_more() {
    let front = front(Settings::default()).await;
    let (allowed, refused) = frames(&front, |mut frames| {
        let mut settings = Vec::new();
        while settings.is_empty() {
            let frame = frames.read().expect("settings");
            if frame.kind == SETTINGS {
                settings = frame.payload;
            }
        }
        let value = |id: u8| {
            let found = settings.chunks(6).find(|setting| setting[..2] == [0, id]).expect("it is said");
            u32::from_be_bytes(found[2..].try_into().unwrap())
        };
        assert_eq!(value(8), 1, "websockets may be opened");
        let allowed = value(3);
        for number in 0..=allowed {
            frames.send(HEADERS, END_STREAM | END_HEADERS, number * 2 + 1, &head("/never")).unwrap();
        }
        (allowed, frames.answer(allowed * 2 + 1))
    })
    .await;
    assert_eq!((allowed, refused.kind, refused.payload.as_slice()), (128, RST_STREAM, &7_u32.to_be_bytes()[..]));
    front.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_asks_nothing_more_ends() {
    let short = Duration::from_secs(1);
    let patience = Patience { head: short, body: short, idle: short };
    let front = front(Settings { patience, ..Settings::default() }).await;
    let error = frames(&front, |mut frames| {
        frames.send(HEADERS, END_STREAM | END_HEADERS, 1, &head("/")).unwrap();
        assert_eq!(frames.answer(1).kind, HEADERS);
        frames.goaway()
    })
    .await;
    assert_eq!(error, Some(0), "without an error");
    // A body that does not come.
    let (answer, took) = frames(&front, |mut frames| {
        let mut block = head("/");
        block[0] = 0x83;
        frames.send(HEADERS, END_HEADERS, 1, &block).unwrap();
        frames.send(DATA, 0, 1, b"some").unwrap();
        let begun = Instant::now();
        (frames.answer(1), begun.elapsed())
    })
    .await;
    assert!(answer.kind == HEADERS && took >= short / 2, "an answer after {took:?}: {answer:?}");
    front.close().await;
}
