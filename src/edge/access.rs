//! A line in the log for each request, when its answer has ended.
//!
//! A request that is of no trace yet begins one (W3C Trace Context): the application sees it as `traceparent`, and its own
//! log can be joined with this one. Queries are left out, as they may have secrets in them.

use std::time::Instant;

use axum::body::Body;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};

use super::{Client, ending::Ending};
use crate::model::random_hex;

/// What is known when a request has come.
pub(super) struct Line {
    begun: Instant,
    client: Client,
    method: Method,
    host: String,
    path: String,
    trace: String,
    agent: String,
}

const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
/// What strangers may write into a log, in characters.
const LONGEST: usize = 500;

impl Line {
    pub fn begin(request: &mut Request<Body>, client: Client, host: &str) -> Self {
        let cut = |text: &str| text.chars().take(LONGEST).collect::<String>();
        let agent = request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        Self {
            begun: Instant::now(),
            client,
            method: request.method().clone(),
            host: cut(host),
            path: cut(request.uri().path()),
            agent: cut(agent.unwrap_or_default()),
            trace: trace(request),
        }
    }

    /// The answer, whose end is the line's.
    pub fn end(self, response: Response<Body>) -> Response<Body> {
        let status = response.status();
        response.map(|body| Body::new(Ending::new(body, move |sent| self.write(status, sent))))
    }

    fn write(self, status: StatusCode, sent: u64) {
        let Self { begun, client, method, host, path, trace, agent } = self;
        tracing::info!(
            target: "epiniod::access",
            client = %client.address.ip(),
            scheme = client.scheme.as_str(),
            %method,
            host,
            path,
            status = status.as_u16(),
            sent_bytes = sent,
            duration_ms = begun.elapsed().as_secs_f64() * 1000.0,
            trace,
            agent,
            "request",
        );
    }
}

/// The trace that a request is of.
fn trace(request: &mut Request<Body>) -> String {
    let known = request.headers().get(TRACE_PARENT).and_then(|parent| parent.to_str().ok());
    if let Some(id) = known.and_then(id_of) {
        return id.to_owned();
    }
    let random = random_hex::<24>();
    let (id, parent) = random.split_at(32);
    if let Ok(value) = HeaderValue::from_str(&format!("00-{id}-{parent}-00")) {
        request.headers_mut().insert(TRACE_PARENT, value);
    }
    id.to_owned()
}

/// `00-TRACE-PARENT-FLAGS`; what is no such thing begins a new trace.
fn id_of(parent: &str) -> Option<&str> {
    let mut parts = parent.split('-');
    let is_hex = |text: &&str| text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    let _version = parts.next().filter(|part| part.len() == 2).filter(is_hex)?;
    let id = parts.next().filter(|part| part.len() == 32).filter(is_hex)?;
    let _parent = parts.next().filter(|part| part.len() == 16).filter(is_hex)?;
    id.bytes().any(|c| c != b'0').then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traced(parent: Option<&str>) -> (String, String) {
        let mut request = Request::builder();
        if let Some(parent) = parent {
            request = request.header(TRACE_PARENT, parent);
        }
        let mut request = request.body(Body::empty()).unwrap();
        let id = trace(&mut request);
        (id, request.headers()[TRACE_PARENT].to_str().unwrap().to_owned())
    }

    #[test]
    fn a_request_is_of_the_trace_that_it_names_or_of_a_new_one() {
        let known = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traced(Some(known)), ("4bf92f3577b34da6a3ce929d0e0e4736".to_owned(), known.to_owned()));
        for bad in [None, Some("nonsense"), Some("00-00000000000000000000000000000000-00f067aa0ba902b7-01")] {
            let (id, parent) = traced(bad);
            assert_eq!(id_of(&parent), Some(id.as_str()), "{bad:?}");
            assert_ne!(Some(parent.as_str()), bad);
        }
    }
}
