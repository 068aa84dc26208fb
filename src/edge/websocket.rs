//! Websockets over HTTP/2: a CONNECT whose protocol is `websocket` (RFC 8441).
//!
//! Instances and the API know those of HTTP/1.1, so the request becomes an upgrade, and what is answered to that an answer to the
//! CONNECT. Everything between sees one kind of websocket. Any other CONNECT is refused: this is no proxy.

use axum::body::Body;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::ext::Protocol;

use super::pages::{self, Accept};
use crate::model::random_hex;

/// What a request is, as far as tunnels are concerned.
pub(super) enum Asked {
    /// No CONNECT.
    Usual,
    /// A websocket over HTTP/2, now in the words of HTTP/1.1.
    Websocket(Accept),
    /// A tunnel to somewhere else, or of another protocol.
    Refused(Response<Body>),
}

/// Rewrites a request where that is needed.
pub(super) fn asked(request: &mut Request<Body>) -> Asked {
    if *request.method() != Method::CONNECT {
        return Asked::Usual;
    }
    let accept = Accept::of(request);
    match request.extensions_mut().remove::<Protocol>() {
        Some(protocol) if protocol.as_str().eq_ignore_ascii_case("websocket") => {
            *request.method_mut() = Method::GET;
            *request.version_mut() = Version::HTTP_11;
            as_upgrade(request.headers_mut());
            Asked::Websocket(accept)
        }
        _ => Asked::Refused(pages::no_proxy(&accept)),
    }
}

fn as_upgrade(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    // It says nothing about the client (RFC 6455, section 11.3.1), who has none of its own: 16 bytes.
    if let Ok(key) = HeaderValue::from_str(&STANDARD.encode(random_hex::<8>())) {
        headers.insert(header::SEC_WEBSOCKET_KEY, key);
    }
}

/// The answer to the upgrade as one to the CONNECT. Whoever answers something good and does not upgrade would make the client
/// take its page for a tunnel.
pub(super) fn answered(mut response: Response<Body>, accept: &Accept) -> Response<Body> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        *response.status_mut() = StatusCode::OK;
        for name in [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_ACCEPT] {
            response.headers_mut().remove(name);
        }
        return response;
    }
    if response.status().is_success() { pages::no_websocket(accept) } else { response }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(protocol: Option<&'static str>) -> Request<Body> {
        let mut request = Request::connect("https://chat.localhost/talk").version(Version::HTTP_2);
        if let Some(protocol) = protocol {
            request = request.extension(Protocol::from_static(protocol));
        }
        request.header("sec-websocket-version", "13").body(Body::empty()).unwrap()
    }

    #[test]
    fn a_websocket_becomes_an_upgrade_and_its_answer_one_to_a_connect() {
        let mut request = connect(Some("websocket"));
        let Asked::Websocket(accept) = asked(&mut request) else { panic!("it is one") };
        assert_eq!((request.method(), request.uri().path()), (&Method::GET, "/talk"));
        let key = STANDARD.decode(&request.headers()[header::SEC_WEBSOCKET_KEY]).unwrap();
        assert_eq!((key.len(), &request.headers()[header::UPGRADE]), (16, &HeaderValue::from_static("websocket")));
        for (status, expected) in [(101, 200), (200, 502), (204, 502), (302, 302), (403, 403), (503, 503)] {
            let response = Response::builder().status(status).header("upgrade", "websocket").body(Body::empty());
            let response = answered(response.unwrap(), &accept);
            assert_eq!(response.status(), expected, "{status}");
            assert!(status != 101 || response.headers().is_empty(), "{response:?}");
        }
    }

    #[test]
    fn no_other_connect_is_answered() {
        for protocol in [None, Some("connect-udp")] {
            let Asked::Refused(page) = asked(&mut connect(protocol)) else { panic!("{protocol:?} is a tunnel") };
            assert_eq!(page.status(), StatusCode::NOT_IMPLEMENTED);
        }
        assert!(matches!(asked(&mut Request::new(Body::empty())), Asked::Usual));
    }
}
