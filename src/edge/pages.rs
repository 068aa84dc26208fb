//! What a visitor sees where no application answers: a plain page that says what is wrong.

use std::time::Duration;

use axum::body::Body;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};

use crate::apps::Target;

/// 404: nobody has this route.
pub(super) fn unknown(request: &Request<Body>, host: &str) -> Response<Body> {
    let what = format!("No application has the route {host}{}.", request.uri().path());
    page(request, StatusCode::NOT_FOUND, &what, "Check the address, or look at the routes with: epiniod apps list")
}

/// 308: the same, with TLS.
pub(super) fn elsewhere(request: &Request<Body>, host: &str, port: u16) -> Response<Body> {
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let url = format!("https://{host}{port}{path}");
    let mut response =
        page(request, StatusCode::PERMANENT_REDIRECT, &format!("This is at {url}."), "Go there instead.");
    if let Ok(url) = HeaderValue::from_str(&url) {
        response.headers_mut().insert(header::LOCATION, url);
    }
    response
}

/// 503: the application is there, and nothing of it runs.
pub(super) fn unavailable(request: &Request<Body>, target: &Target) -> Response<Body> {
    let app = &target.release.app;
    let why = target.reason.as_deref().unwrap_or("it is starting");
    let what = format!("Application {app} cannot answer now: {why}.");
    let mut response = page(
        request,
        StatusCode::SERVICE_UNAVAILABLE,
        &what,
        &format!("Look at its log with: epiniod apps logs {app}"),
    );
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    response
}

/// 413: more than an application gets.
pub(super) fn too_large(accept: &Accept, most: u64) -> Response<Body> {
    let what = format!("The body of this request is larger than {most} bytes.");
    write(accept, StatusCode::PAYLOAD_TOO_LARGE, &what, "Send less, or ask who runs this to allow more.")
}

/// 431: more than a server has a place for.
pub(super) fn head_too_large(request: &Request<Body>, most: usize) -> Response<Body> {
    let what = format!("The head of this request is larger than {} KiB.", most >> 10);
    page(request, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &what, "Send less; cookies of this site may have grown.")
}

/// 408: nothing more of a body came.
pub(super) fn too_slow(accept: &Accept, silence: Duration) -> Response<Body> {
    let what = format!("Nothing of the body of this request arrived for {} s.", silence.as_secs());
    write(accept, StatusCode::REQUEST_TIMEOUT, &what, "Send it again.")
}

/// 503: the application has as much to do as it may.
pub(super) fn too_busy(accept: &Accept, most: usize) -> Response<Body> {
    let what = format!("There are {most} requests under way to this application, and no more are allowed at once.");
    let mut response = write(accept, StatusCode::SERVICE_UNAVAILABLE, &what, "Try again.");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// 504: an application took too long.
pub(super) fn too_late(accept: &Accept, most: Duration) -> Response<Body> {
    let what = format!("The application did not answer within {} s, which is all it has.", most.as_secs());
    write(accept, StatusCode::GATEWAY_TIMEOUT, &what, "The cause may be in the log of the application.")
}

/// 501: a tunnel that is no websocket.
pub(super) fn no_proxy(accept: &Accept) -> Response<Body> {
    let what = "CONNECT is answered here for websockets over HTTP/2 only: this is no proxy.";
    write(accept, StatusCode::NOT_IMPLEMENTED, what, "Ask for the address itself.")
}

/// 502: a websocket was asked for, and something else answered.
pub(super) fn no_websocket(accept: &Accept) -> Response<Body> {
    let what = "What was asked for as a websocket is none.";
    write(accept, StatusCode::BAD_GATEWAY, what, "Check the address, or look at it without a websocket.")
}

/// 502: an instance took the request and did not answer it.
pub(super) fn bad_gateway(accept: &Accept, instance: &str, why: &str) -> Response<Body> {
    let what = format!("Instance {instance} did not answer the request: {why}.");
    write(accept, StatusCode::BAD_GATEWAY, &what, "The cause is in the log of the application.")
}

/// What the client would like to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accept {
    Text,
    Html,
    /// It reads no pages, and takes any status but 200 for a broken server.
    Grpc,
}

impl Accept {
    pub fn of(request: &Request<Body>) -> Self {
        if request.version() == Version::HTTP_2 && is_grpc(request) {
            return Self::Grpc;
        }
        let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
        if accept.is_some_and(|accept| accept.contains("text/html")) { Self::Html } else { Self::Text }
    }
}

/// `application/grpc`, with what is in its messages or parameters; `application/grpc-web` is for HTTP/1.1.
fn is_grpc(request: &Request<Body>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    kind.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

fn page(request: &Request<Body>, status: StatusCode, what: &str, next: &str) -> Response<Body> {
    write(&Accept::of(request), status, what, next)
}

fn write(accept: &Accept, status: StatusCode, what: &str, next: &str) -> Response<Body> {
    let (kind, text) = match accept {
        Accept::Html => {
            let text = format!(
                "<!doctype html><meta charset=utf-8><title>{status}</title>\
                 <body style=\"font:16px/1.5 system-ui;max-width:40em;margin:15vh auto;padding:0 1em\">\
                 <h1>{status}</h1><p>{}</p><p>{}</p></body>\n",
                escape(what),
                escape(next)
            );
            ("text/html; charset=utf-8", text)
        }
        Accept::Text => ("text/plain; charset=utf-8", format!("{status}\n{what}\n{next}\n")),
        Accept::Grpc => return grpc_error(status, &format!("{what} {next}")),
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// An answer that is its trailers only ("Responses" of gRPC over HTTP/2), with the code that gRPC has for a status
/// (`doc/http-grpc-status-mapping.md` there).
fn grpc_error(status: StatusCode, message: &str) -> Response<Body> {
    let code = match status {
        StatusCode::NOT_FOUND | StatusCode::NOT_IMPLEMENTED => "12",
        StatusCode::PAYLOAD_TOO_LARGE => "8",
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => "4",
        _ => "14",
    };
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(code));
    if let Ok(message) = HeaderValue::from_str(&percent_encode(message)) {
        headers.insert("grpc-message", message);
    }
    response
}

fn percent_encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'%' => "%25".to_owned(),
        b' '..=b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_of_grpc_are_told_in_their_own_words() {
        let request = |version, kind: &str| {
            Request::builder().version(version).header(header::CONTENT_TYPE, kind).body(Body::empty()).unwrap()
        };
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc;x=y"] {
            assert_eq!(Accept::of(&request(Version::HTTP_2, kind)), Accept::Grpc, "{kind}");
            assert_eq!(Accept::of(&request(Version::HTTP_11, kind)), Accept::Text, "{kind}");
        }
        for kind in ["application/grpc-web", "application/grpcs", "text/plain"] {
            assert_eq!(Accept::of(&request(Version::HTTP_2, kind)), Accept::Text, "{kind}");
        }
        for (status, code) in [(404, "12"), (413, "8"), (502, "14"), (503, "14"), (504, "4"), (308, "14")] {
            let said = write(&Accept::Grpc, StatusCode::from_u16(status).unwrap(), "It is 100 % über.", "Wait.");
            assert_eq!(
                (said.status(), &said.headers()["grpc-status"]),
                (StatusCode::OK, &HeaderValue::from_static(code))
            );
            assert_eq!(said.headers()["grpc-message"], "It is 100 %25 %C3%BCber. Wait.");
        }
    }
}
