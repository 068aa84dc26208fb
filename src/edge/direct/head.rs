//! Heads of HTTP/1.1, read and written as bytes: of requests as an instance is to see them, and of its responses as the client is.
//!
//! Only what is plain is taken: whatever could be understood in two ways is left to hyper, or is no response at all.

use std::{mem::MaybeUninit, net::IpAddr};

use http::StatusCode;

use super::{
    super::{Scheme, plain_host},
    framing::Framing,
};

/// As hyper has it.
const LINES: usize = 100;

/// A request for which there is nothing to read but its head.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// In bytes, with the empty line.
    pub length: usize,
    pub is_head: bool,
    pub host: String,
    pub path: String,
    /// As the instance is to see it.
    pub text: Vec<u8>,
}

/// What was read of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Partial,
    Plain(Asked),
    /// Others read it: a body, an upgrade, something wrong.
    Other,
}

/// How a client came here.
#[derive(Clone, Copy)]
pub(super) struct From {
    pub address: IpAddr,
    pub scheme: Scheme,
}

impl Request {
    /// Of what was read the first `seen` bytes were no whole head. `id` is that of the request, where it has none.
    pub fn read(read: &[u8], seen: usize, from: From, id: impl FnOnce() -> u64) -> Self {
        if !may_be_whole(read, seen) {
            return Self::Partial;
        }
        let mut lines = [const { MaybeUninit::uninit() }; LINES];
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(read, &mut lines) {
            Ok(httparse::Status::Complete(length)) => {
                Self::of(&request, length, from, id).map_or(Self::Other, Self::Plain)
            }
            Ok(httparse::Status::Partial) => Self::Partial,
            Err(_) => Self::Other,
        }
    }

    fn of(request: &httparse::Request<'_, '_>, length: usize, from: From, id: impl FnOnce() -> u64) -> Option<Asked> {
        let (method, target) = (request.method?, request.path?);
        let is_plain = target.starts_with('/') && target.is_ascii() && !target.contains('#');
        if !is_plain || request.version != Some(1) || !matches!(method, "GET" | "HEAD") {
            return None;
        }
        let mut text = Vec::with_capacity(length + 256);
        for part in [method, " ", target, " HTTP/1.1\r\n"] {
            text.extend_from_slice(part.as_bytes());
        }
        let (mut host, mut forwarded, mut has_id, mut has_cookie) = (None, Vec::new(), false, false);
        for line in request.headers.iter() {
            match Name::of(line.name) {
                Name::Connection if line.value.eq_ignore_ascii_case(b"keep-alive") => continue,
                Name::Connection | Name::Framing | Name::Length | Name::Upgrade | Name::Expect => return None,
                Name::Neighbour | Name::Forwarded => continue,
                Name::ForwardedFor => {
                    forwarded.push(line.value);
                    continue;
                }
                Name::Host if host.is_some() => return None,
                Name::Host => host = Some(line.value),
                Name::Cookie if has_cookie => return None,
                Name::Cookie => has_cookie = true,
                Name::RequestId => has_id = true,
                Name::Date | Name::Hsts | Name::Other => {}
            }
            put(&mut text, line.name, &[line.value]);
        }
        let host = host?;
        let mut chain = Vec::new();
        for value in forwarded {
            chain.extend_from_slice(value);
            chain.extend_from_slice(b", ");
        }
        put(&mut text, "x-forwarded-for", &[&chain, from.address.to_string().as_bytes()]);
        put(&mut text, "x-forwarded-host", &[host]);
        put(&mut text, "x-forwarded-proto", &[from.scheme.as_str().as_bytes()]);
        if !has_id {
            put(&mut text, "x-request-id", &[format!("{:016x}", id()).as_bytes()]);
        }
        text.extend_from_slice(b"\r\n");
        let path = target.split('?').next().unwrap_or_default().to_owned();
        let host = plain_host(std::str::from_utf8(host).ok()?);
        Some(Asked { length, is_head: method == "HEAD", host, path, text })
    }
}

/// A response, as far as its head.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Response {
    Partial,
    /// Nothing final (RFC 9110, section 15.2): its length in bytes.
    Informational(usize),
    Final(Answered),
    /// Nothing that can be handed on.
    Wrong,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answered {
    /// In bytes, with the empty line.
    pub length: usize,
    pub status: StatusCode,
    pub framing: Framing,
    /// Whether the instance takes another request on this connection.
    pub is_kept: bool,
    /// As the client is to see it, without what is said of the connection and the empty line.
    pub text: Vec<u8>,
    pub has_date: bool,
    pub has_hsts: bool,
}

impl Response {
    /// As with a [`Request`].
    pub fn read(read: &[u8], seen: usize, is_head: bool) -> Self {
        if !may_be_whole(read, seen) {
            return Self::Partial;
        }
        let mut lines = [const { MaybeUninit::uninit() }; LINES];
        let mut response = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        match config.parse_response_with_uninit_headers(&mut response, read, &mut lines) {
            Ok(httparse::Status::Complete(length)) => Self::of(&response, length, is_head).unwrap_or(Self::Wrong),
            Ok(httparse::Status::Partial) => Self::Partial,
            Err(_) => Self::Wrong,
        }
    }

    fn of(response: &httparse::Response<'_, '_>, length: usize, is_head: bool) -> Option<Self> {
        let code = response.code?;
        let status = StatusCode::from_u16(code).ok()?;
        if status.is_informational() {
            // Nobody asked for another protocol.
            return (status != StatusCode::SWITCHING_PROTOCOLS).then_some(Self::Informational(length));
        }
        let mut is_kept = response.version == Some(1);
        let (mut size, mut is_chunked) = (None, false);
        let (mut has_date, mut has_hsts) = (false, false);
        let mut text = Vec::with_capacity(length + 128);
        text.extend_from_slice(b"HTTP/1.1 ");
        text.extend_from_slice(code.to_string().as_bytes());
        text.push(b' ');
        text.extend_from_slice(response.reason.unwrap_or_default().as_bytes());
        text.extend_from_slice(b"\r\n");
        for line in response.headers.iter() {
            match Name::of(line.name) {
                Name::Connection if line.value.eq_ignore_ascii_case(b"keep-alive") => continue,
                Name::Connection if line.value.eq_ignore_ascii_case(b"close") => {
                    is_kept = false;
                    continue;
                }
                // It names others that are not to be handed on.
                Name::Connection => return None,
                Name::Framing if line.value.eq_ignore_ascii_case(b"chunked") && !is_chunked => is_chunked = true,
                Name::Framing => return None,
                Name::Length => {
                    let said = number(line.value)?;
                    if size.replace(said).is_some_and(|before| before != said) {
                        return None;
                    }
                    continue;
                }
                Name::Neighbour | Name::Upgrade => continue,
                Name::Date => has_date = true,
                Name::Hsts => has_hsts = true,
                Name::Expect
                | Name::Forwarded
                | Name::ForwardedFor
                | Name::Host
                | Name::Cookie
                | Name::RequestId
                | Name::Other => {}
            }
            put(&mut text, line.name, &[line.value]);
        }
        // RFC 9112, section 6.3. Who says both is not believed any more afterwards.
        if is_chunked && (size.take().is_some() || response.version == Some(0)) {
            return None;
        }
        if let Some(size) = size {
            put(&mut text, "content-length", &[size.to_string().as_bytes()]);
        }
        let has_none = is_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
        let framing = match (has_none, is_chunked, size) {
            (true, ..) => Framing::length(0),
            (false, true, _) => Framing::chunked(),
            (false, false, Some(size)) => Framing::length(size),
            (false, false, None) => Framing::until_end(),
        };
        let is_kept = is_kept && framing != Framing::until_end();
        Some(Self::Final(Answered { length, status, framing, is_kept, text, has_date, has_hsts }))
    }
}

/// Names that mean something on the way.
enum Name {
    Connection,
    Framing,
    Length,
    Upgrade,
    Expect,
    /// For neighbours only (RFC 9110, section 7.6.1).
    Neighbour,
    /// What is said here anew.
    Forwarded,
    ForwardedFor,
    Host,
    Cookie,
    RequestId,
    Date,
    Hsts,
    Other,
}

impl Name {
    fn of(name: &str) -> Self {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        // By length, as most are none of them.
        match name.len() {
            2 if is("te") => Self::Neighbour,
            4 if is("host") => Self::Host,
            4 if is("date") => Self::Date,
            6 if is("cookie") => Self::Cookie,
            6 if is("expect") => Self::Expect,
            7 if is("upgrade") => Self::Upgrade,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::Neighbour,
            12 if is("x-request-id") => Self::RequestId,
            14 if is("content-length") => Self::Length,
            15 if is("x-forwarded-for") => Self::ForwardedFor,
            16 if is("proxy-connection") => Self::Neighbour,
            16 if is("x-forwarded-host") => Self::Forwarded,
            17 if is("transfer-encoding") => Self::Framing,
            17 if is("x-forwarded-proto") => Self::Forwarded,
            18 if is("proxy-authenticate") => Self::Neighbour,
            25 if is("strict-transport-security") => Self::Hsts,
            _ => Self::Other,
        }
    }
}

/// Whether a head that was not whole before may be so now: who sends single bytes does not have all of it read for each.
fn may_be_whole(read: &[u8], seen: usize) -> bool {
    let new = &read[seen.saturating_sub(2)..];
    seen == 0 || new.windows(2).any(|end| end == b"\n\n") || new.windows(3).any(|end| end == b"\n\r\n")
}

pub(super) fn put(text: &mut Vec<u8>, name: &str, value: &[&[u8]]) {
    text.extend_from_slice(name.as_bytes());
    text.extend_from_slice(b": ");
    value.iter().for_each(|part| text.extend_from_slice(part));
    text.extend_from_slice(b"\r\n");
}

/// Digits and nothing else.
fn number(text: &[u8]) -> Option<u64> {
    let is_one = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_one)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Request {
        Request::read(text.as_bytes(), 0, From { address: [192, 0, 2, 1].into(), scheme: Scheme::Https }, || 7)
    }

    fn plain(text: &str) -> (Asked, String) {
        let Request::Plain(asked) = asked(text) else { panic!("{text:?} is not plain") };
        let said = String::from_utf8(asked.text.clone()).unwrap();
        (asked, said)
    }

    #[test]
    fn an_instance_is_told_who_asks_and_nothing_that_is_for_neighbours() {
        let (asked, said) = plain(
            "GET /a?b=c HTTP/1.1\r\nHost: Shop.Test:443\r\nConnection: keep-alive\r\nTE: trailers\r\nKeep-Alive: 5\r\n\
             X-Forwarded-For: a\r\nx-forwarded-for: b, c\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: evil\r\n\
             Cookie: one=1; two=2\r\n\r\nGET /next",
        );
        assert_eq!((asked.host.as_str(), asked.path.as_str(), asked.is_head), ("shop.test", "/a", false));
        assert_eq!(
            said,
            "GET /a?b=c HTTP/1.1\r\nHost: Shop.Test:443\r\nCookie: one=1; two=2\r\nx-forwarded-for: a, b, c, 192.0.2.1\r\n\
             x-forwarded-host: Shop.Test:443\r\nx-forwarded-proto: https\r\nx-request-id: 0000000000000007\r\n\r\n"
        );
        let (_, said) = plain("HEAD / HTTP/1.1\nhost: a\nx-request-id: mine\n\n");
        assert!(said.starts_with("HEAD / HTTP/1.1\r\nhost: a\r\nx-request-id: mine\r\nx-forwarded-for: 192.0.2.1\r\n"));
        assert_eq!(said.matches("x-request-id").count(), 1);
    }

    #[test]
    fn what_is_more_than_a_head_or_could_be_is_left_to_others() {
        for text in [
            "POST / HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.0\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: x-secret\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\ncookie: a\r\ncookie: b\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nhost: b\r\n\r\n",
            "GET /#x HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nname : value\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n folded\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "\u{16}\u{3}\u{1}",
        ] {
            assert_eq!(asked(text), Request::Other, "{text:?}");
        }
        assert_eq!(asked("GET / HTTP/1.1\r\nhost: a\r\n"), Request::Partial);
        let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(LINES));
        assert_eq!(asked(&many), Request::Other);
    }

    #[test]
    fn a_head_that_comes_in_pieces_is_read_when_its_end_is_there() {
        for text in ["GET / HTTP/1.1\r\nhost: a\r\n\r\nGET", "GET / HTTP/1.1\nhost: a\n\nGET"] {
            let from = From { address: [192, 0, 2, 1].into(), scheme: Scheme::Http };
            let whole = |end: usize, seen| match Request::read(&text.as_bytes()[..end], seen, from, || 7) {
                Request::Plain(asked) => Some(asked.length),
                _ => None,
            };
            let length = text.len() - 3;
            for piece in 1..=text.len() {
                let ends = (0..text.len()).step_by(piece).skip(1).chain([text.len()]);
                let mut seen = 0;
                let found = ends.into_iter().find_map(|end| {
                    let found = whole(end, seen);
                    seen = end;
                    Some((end, found?))
                });
                let (end, found) = found.expect("it is whole");
                assert!(found == length && end - length < piece, "{piece} at a time: {found} with {end}");
            }
        }
    }

    fn answered(text: &str) -> (Answered, String) {
        let Response::Final(answered) = Response::read(text.as_bytes(), 0, false) else { panic!("{text:?} is none") };
        let said = String::from_utf8(answered.text.clone()).unwrap();
        (answered, said)
    }

    #[test]
    fn a_response_says_where_it_ends_and_whether_its_connection_goes_on() {
        let (sized, said) = answered(
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 5\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\n\
             Date: now\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nhello",
        );
        assert_eq!(said, "HTTP/1.1 200 OK\r\nDate: now\r\nSet-Cookie: a\r\nSet-Cookie: b\r\ncontent-length: 5\r\n");
        assert!(sized.is_kept && sized.has_date && sized.framing == Framing::length(5));
        let (chunked, said) =
            answered("HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n");
        assert!(
            !chunked.is_kept && chunked.framing == Framing::chunked() && said.contains("Transfer-Encoding: chunked")
        );
        assert_eq!(chunked.status, StatusCode::NOT_FOUND);
        let (endless, _) = answered("HTTP/1.1 200 OK\r\n\r\n");
        assert!(!endless.is_kept && endless.framing == Framing::until_end());
        assert!(!answered("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n").0.is_kept);
        assert_eq!(answered("HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n").0.framing, Framing::length(0));
        let of_head = Response::read(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", 0, true);
        assert!(matches!(of_head, Response::Final(Answered { framing: Framing::Length(0), .. })), "{of_head:?}");
        assert_eq!(Response::read(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP", 0, false), Response::Informational(28));
    }

    #[test]
    fn a_response_that_could_be_read_in_two_ways_is_none() {
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nconnection: x-secret\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
            "SSH-2.0-x\r\n\r\n",
        ] {
            assert_eq!(Response::read(text.as_bytes(), 0, false), Response::Wrong, "{text:?}");
        }
    }
}
