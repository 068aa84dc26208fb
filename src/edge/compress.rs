//! Answers that are compressed on their way, where that was chosen: by zstd or gzip, as the client would have it.
//!
//! Left alone is what is compressed already, small or of a kind that does not get smaller, a part of something (ranges), or
//! not to be changed (`no-transform`); and streams of events. What has come is sent before anything is waited for, so a page
//! that arrives in pieces leaves in pieces. Each answer under way takes some 300 KiB: window and level are small.

use std::{
    io::{self, Write as _},
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Body, Bytes};
use flate2::{Compression as Level, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use zstd::stream::{raw::CParameter, write::Encoder as ZstdEncoder};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Zstd,
    Gzip,
}

/// What a client would have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    encoding: Option<Encoding>,
}

/// Less than this is not worth it, in bytes.
const SMALL: u64 = 1024;
/// What is compressed at once, in bytes: others wait meanwhile.
const PIECE: usize = 32 << 10;
const GZIP_LEVEL: u32 = 4;
const ZSTD_LEVEL: i32 = 1;
/// A window of 128 KiB.
const ZSTD_WINDOW: u32 = 17;
/// Kinds besides `text/…`, and those that end in one of [`SUFFIXES`].
const KINDS: [&str; 9] = [
    "application/json",
    "application/javascript",
    "application/xml",
    "application/wasm",
    "application/manifest+json",
    "application/x-javascript",
    "application/x-ndjson",
    "image/svg+xml",
    "font/ttf",
];
const SUFFIXES: [&str; 2] = ["+json", "+xml"];
const EVENTS: &str = "text/event-stream";

impl Wish {
    /// None where nothing of the answer may be compressed.
    pub fn of(request: &Request<Body>) -> Option<Self> {
        let headers = request.headers();
        if *request.method() == Method::HEAD || headers.contains_key(header::UPGRADE) {
            return None;
        }
        Some(Self { encoding: negotiate(headers) })
    }

    pub fn apply(self, mut response: Response<Body>) -> Response<Body> {
        if !is_worth_it(&response) {
            return response;
        }
        let headers = response.headers_mut();
        // Caches are to know also where this client gets it as it is.
        headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
        let Some(encoding) = self.encoding else { return response };
        let Ok(encoder) = Encoder::new(encoding) else { return response };
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::ACCEPT_RANGES);
        weaken(headers);
        response.map(|body| {
            Body::new(Compressed { body, encoder: Some(encoder), rest: Bytes::new(), is_dirty: false, end: None })
        })
    }
}

impl Encoding {
    fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }
}

/// The first of ours that is not refused (RFC 9110, section 12.5.3); `*` says too little.
fn negotiate(headers: &HeaderMap) -> Option<Encoding> {
    let offered: Vec<&str> = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|one| {
            let (name, parameters) = one.split_once(';').unwrap_or((one, ""));
            let quality = parameters.trim().strip_prefix("q=").map_or(Ok(1.0), str::parse::<f32>);
            quality.is_ok_and(|quality| quality > 0.0).then(|| name.trim())
        })
        .collect();
    let is_offered = |encoding: &Encoding| offered.iter().any(|name| name.eq_ignore_ascii_case(encoding.name()));
    [Encoding::Zstd, Encoding::Gzip].into_iter().find(is_offered)
}

fn is_worth_it(response: &Response<Body>) -> bool {
    let headers = response.headers();
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let kind = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_text = kind.starts_with("text/") || KINDS.contains(&kind.as_str());
    let is_of_kind = is_text || SUFFIXES.iter().any(|suffix| kind.ends_with(suffix));
    let has_body = !matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let is_whole = has_body
        && !response.status().is_informational()
        && response.status() != StatusCode::PARTIAL_CONTENT
        && !headers.contains_key(header::CONTENT_RANGE);
    let may_be_changed = !text(header::CACHE_CONTROL).to_ascii_lowercase().contains("no-transform");
    let is_large = response.body().size_hint().upper().is_none_or(|size| size >= SMALL);
    is_whole
        && is_large
        && may_be_changed
        && is_of_kind
        && kind != EVENTS
        && !headers.contains_key(header::CONTENT_ENCODING)
}

/// The same content, and not the same bytes (RFC 9110, section 8.8.1).
fn weaken(headers: &mut HeaderMap) {
    let strong = headers.get(header::ETAG).and_then(|tag| tag.to_str().ok()).filter(|tag| tag.starts_with('"'));
    if let Some(Ok(weak)) = strong.map(|tag| HeaderValue::from_str(&format!("W/{tag}"))) {
        headers.insert(header::ETAG, weak);
    }
}

enum Encoder {
    Zstd(ZstdEncoder<'static, Vec<u8>>),
    Gzip(Box<GzEncoder<Vec<u8>>>),
}

impl Encoder {
    fn new(encoding: Encoding) -> io::Result<Self> {
        Ok(match encoding {
            Encoding::Zstd => {
                let mut encoder = ZstdEncoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.set_parameter(CParameter::WindowLog(ZSTD_WINDOW))?;
                Self::Zstd(encoder)
            }
            Encoding::Gzip => Self::Gzip(Box::new(GzEncoder::new(Vec::new(), Level::new(GZIP_LEVEL)))),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<Bytes> {
        match self {
            Self::Zstd(encoder) => encoder.write_all(bytes)?,
            Self::Gzip(encoder) => encoder.write_all(bytes)?,
        }
        Ok(self.take())
    }

    fn flush(&mut self) -> io::Result<Bytes> {
        match self {
            Self::Zstd(encoder) => encoder.flush()?,
            Self::Gzip(encoder) => encoder.flush()?,
        }
        Ok(self.take())
    }

    fn finish(self) -> io::Result<Bytes> {
        match self {
            Self::Zstd(encoder) => encoder.finish(),
            Self::Gzip(encoder) => encoder.finish(),
        }
        .map(Bytes::from)
    }

    fn take(&mut self) -> Bytes {
        std::mem::take(match self {
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::Gzip(encoder) => encoder.get_mut(),
        })
        .into()
    }
}

struct Compressed {
    body: Body,
    /// None at the end.
    encoder: Option<Encoder>,
    /// What has come, and is not compressed yet.
    rest: Bytes,
    /// Something is in the encoder that was not sent.
    is_dirty: bool,
    /// Trailers.
    end: Option<Frame<Bytes>>,
}

impl Compressed {
    /// Compresses until there is something to send.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, axum::Error>> {
        loop {
            let Some(encoder) = &mut self.encoder else { return Poll::Ready(Ok(None)) };
            if !self.rest.is_empty() {
                let piece = self.rest.split_to(self.rest.len().min(PIECE));
                let bytes = encoder.write(&piece).map_err(axum::Error::new)?;
                self.is_dirty = true;
                if !bytes.is_empty() {
                    return Poll::Ready(Ok(Some(bytes)));
                }
                continue;
            }
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Pending if self.is_dirty => {
                    self.is_dirty = false;
                    return Poll::Ready(encoder.flush().map(Some).map_err(axum::Error::new));
                }
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => self.end = Some(trailers),
                },
                Poll::Ready(None) => {
                    let last = self.encoder.take().map(Encoder::finish).transpose();
                    return Poll::Ready(last.map_err(axum::Error::new));
                }
            }
        }
    }
}

impl http_body::Body for Compressed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Poll::Ready(match std::task::ready!(self.poll(context)) {
            Ok(Some(bytes)) => Some(Ok(Frame::data(bytes))),
            Ok(None) => self.end.take().map(Ok),
            Err(error) => {
                self.encoder = None;
                Some(Err(error))
            }
        })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use http_body_util::BodyExt as _;

    use super::*;

    fn wish(accepts: &str) -> Wish {
        let request = Request::builder().header(header::ACCEPT_ENCODING, accepts).body(Body::empty()).unwrap();
        Wish::of(&request).unwrap()
    }

    fn page(headers: &[(&str, &str)]) -> Response<Body> {
        let mut response = Response::builder();
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response.body(Body::from("word ".repeat(1000))).unwrap()
    }

    #[test]
    fn the_client_chooses() {
        for (accepts, expected) in [
            ("gzip, deflate, br, zstd", Some(Encoding::Zstd)),
            ("gzip, zstd;q=0", Some(Encoding::Gzip)),
            ("GZIP;q=0.5", Some(Encoding::Gzip)),
            ("br, identity", None),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(wish(accepts).encoding, expected, "{accepts}");
        }
        let head = Request::head("/").body(Body::empty()).unwrap();
        assert!(Wish::of(&head).is_none());
    }

    #[test]
    fn what_does_not_get_smaller_or_may_not_is_left_alone() {
        let html = ("content-type", "text/html; charset=utf-8");
        assert!(is_worth_it(&page(&[html])) && is_worth_it(&page(&[("content-type", "application/problem+json")])));
        for headers in [
            &[][..],
            &[("content-type", "image/png")],
            &[("content-type", "text/event-stream")],
            &[html, ("content-encoding", "br")],
            &[html, ("content-range", "bytes 0-1/2")],
            &[html, ("cache-control", "public, no-transform")],
        ] {
            assert!(!is_worth_it(&page(headers)), "{headers:?}");
        }
        let small = Response::builder().header("content-type", "text/html").body(Body::from("hello")).unwrap();
        assert!(!is_worth_it(&small));
        let as_it_is = wish("identity").apply(page(&[html]));
        assert_eq!(as_it_is.headers()[header::VARY], "accept-encoding", "caches have to know");
        assert!(!as_it_is.headers().contains_key(header::CONTENT_ENCODING));
    }

    #[tokio::test]
    async fn what_was_compressed_is_what_it_was() {
        for (accepts, unpack) in
            [("gzip", gunzip as fn(&[u8]) -> Vec<u8>), ("zstd", |bytes| zstd::decode_all(bytes).unwrap())]
        {
            let given =
                [("content-type", "text/css"), ("content-length", "5000"), ("etag", "\"x\""), ("vary", "cookie")];
            let response = wish(accepts).apply(page(&given));
            let headers = response.headers();
            assert_eq!(
                (&headers[header::CONTENT_ENCODING], &headers[header::ETAG]),
                (&HeaderValue::from_static(accepts), &HeaderValue::from_static("W/\"x\""))
            );
            assert!(!headers.contains_key(header::CONTENT_LENGTH) && headers.get_all(header::VARY).iter().count() == 2);
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            assert!(bytes.len() < 500, "{accepts}: {}", bytes.len());
            assert_eq!(unpack(&bytes), "word ".repeat(1000).into_bytes());
        }
    }

    fn gunzip(bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(bytes).read_to_end(&mut text).unwrap();
        text
    }

    #[tokio::test]
    async fn a_page_that_comes_in_pieces_leaves_in_pieces() {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
        let pieces = futures::stream::unfold(receiver, async |mut receiver| {
            receiver.recv().await.map(|piece| (Ok::<_, io::Error>(piece), receiver))
        });
        let response =
            Response::builder().header("content-type", "text/plain").body(Body::from_stream(pieces)).unwrap();
        let mut body = wish("gzip").apply(response).into_body();
        let mut decoder = flate2::write::GzDecoder::new(Vec::new());
        for (piece, so_far) in [("first", "first"), ("second", "firstsecond")] {
            sender.send(piece.into()).await.unwrap();
            while decoder.get_ref() != so_far.as_bytes() {
                // The next piece is not there yet: all of this one has to come.
                let frame = tokio::time::timeout(PATIENCE, body.frame()).await.expect("what there is");
                decoder.write_all(&frame.unwrap().unwrap().into_data().unwrap()).unwrap();
                decoder.flush().unwrap();
            }
        }
    }

    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
}
