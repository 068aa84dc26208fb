//! The last word on every answer: Epinio's header, and its form of errors also where the framework or a panic speaks.

use std::panic::AssertUnwindSafe;

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use futures::FutureExt as _;

use super::ApiError;

/// The longest text of the framework that is passed on, in bytes.
const MAX_TEXT_BYTES: usize = 4096;

pub(super) async fn shape(request: Request, next: Next) -> Response {
    let is_push = request.uri().path().starts_with("/push/");
    let mut response = match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) if is_push || is_good(&response) => response,
        Ok(response) => reword(response).await.into_response(),
        Err(_) => ApiError::panicked().into_response(),
    };
    // Epinio's clients look at this header.
    let name = HeaderName::from_static("epinio-version");
    response.headers_mut().insert(name, HeaderValue::from_static(super::EPINIO_VERSION));
    response
}

/// No error, or one in the form that clients read.
fn is_good(response: &Response) -> bool {
    let is_error = response.status().is_client_error() || response.status().is_server_error();
    let kind = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    !is_error || kind.is_some_and(|kind| kind.starts_with(b"application/json"))
}

async fn reword(response: Response) -> ApiError {
    let status = response.status();
    if status == StatusCode::METHOD_NOT_ALLOWED {
        return ApiError::new(status, "Method not allowed");
    }
    let text = axum::body::to_bytes(response.into_body(), MAX_TEXT_BYTES).await.unwrap_or_default();
    match String::from_utf8_lossy(&text).trim() {
        "" => ApiError::new(status, status.canonical_reason().unwrap_or("the request is not understood")),
        text => ApiError::new(status, text),
    }
}
