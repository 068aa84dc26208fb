//! Errors as Epinio words them: `{"errors":[{"status","title","details"}]}`.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{
    apps, auth, blob, model, runtime, source, staging, store,
    telemetry::{chain, request_id},
};

/// What a caller is told.
#[derive(Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub title: String,
    pub details: String,
    /// After how many seconds it is worth another try, where that is known.
    pub retry_after: Option<u64>,
}

impl ApiError {
    pub fn new(status: StatusCode, title: impl Into<String>) -> Self {
        Self { status, title: title.into(), details: String::new(), retry_after: None }
    }

    pub fn bad_request(title: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, title)
    }

    pub fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("{what} does not exist"))
    }

    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Our own failure: the cause goes to the log, the caller gets the id to find it by.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        let id = request_id();
        tracing::error!(request.id = %id, error = %chain(error), "a request failed");
        if is_full(error) {
            let title = "the disk with the data of epiniod is full, and this was not done, or is done when there is room: \
                         make room on it, and look whether it has to be repeated";
            return Self::new(StatusCode::INSUFFICIENT_STORAGE, title);
        }
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("{error}; the daemon's log has the cause under request {id}"),
        )
    }

    /// What the blob store says. It may answer in a moment, which a client can wait for.
    fn of_blobs(error: &(dyn std::error::Error + 'static), inner: &blob::Error) -> Self {
        if !inner.is_temporary() {
            return Self::internal(error);
        }
        tracing::error!(error = %inner, "a request failed");
        let title =
            "the object storage does not answer; nothing was changed, and what is there is kept: repeat it in a moment";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, title)
    }

    /// The panic itself is in the log already, just above.
    pub fn panicked() -> Self {
        let id = request_id();
        tracing::error!(request.id = %id, "a request panicked");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("something bad happened [request ID: {id}]"))
    }

    /// What was asked for is more than one object holds.
    fn too_large(error: &store::Error) -> Option<Self> {
        let is_too_large = matches!(error, store::Error::TooLarge { .. });
        is_too_large.then(|| Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("{error}; make the environment smaller")))
    }
}

/// Whether the cause of all is a disk without room.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::{Error, ErrorKind};
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<Error>())
        .any(|error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut error = json!({ "status": self.status.as_u16(), "title": self.title });
        if !self.details.is_empty() {
            error["details"] = json!(self.details);
        }
        let mut response = (self.status, Json(json!({ "errors": [error] }))).into_response();
        let headers = response.headers_mut();
        headers.insert("X-Content-Type-Options", header::HeaderValue::from_static("nosniff"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Basic realm=\"epiniod\""));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<apps::Error> for ApiError {
    fn from(error: apps::Error) -> Self {
        use apps::Error;
        let status = match &error {
            Error::NoSuchApp { name, .. } => return Self::not_found(format!("application '{name}'")),
            Error::NoSuchNamespace(name) => return Self::not_found(format!("namespace '{name}'")),
            Error::AppExists { name, .. } => {
                return Self::new(StatusCode::CONFLICT, format!("application '{name}' already exists"));
            }
            Error::NamespaceExists(name) => {
                return Self::new(StatusCode::CONFLICT, format!("namespace '{name}' already exists"));
            }
            Error::RouteTaken { .. }
            | Error::RouteReserved(_)
            | Error::NeverDeployed(_)
            | Error::NotRunning(_)
            | Error::NoSuchInstance { .. }
            | Error::NotReady(_)
            | Error::TooManyInstances { .. } => StatusCode::BAD_REQUEST,
            Error::NotHealthy { last_words, .. } => {
                return Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
                    .with_details(last_words.join("\n"));
            }
            Error::Store(inner) => return Self::too_large(inner).unwrap_or_else(|| Self::internal(&error)),
            Error::Runtime(inner @ runtime::Error::NotRunning(_)) => return Self::bad_request(inner.to_string()),
            Error::Runtime(inner @ runtime::Error::Refused { .. }) => {
                return Self::new(StatusCode::BAD_GATEWAY, inner.to_string());
            }
            Error::Interrupted(_) | Error::Runtime(_) => return Self::internal(&error),
        };
        Self::new(status, error.to_string())
    }
}

impl From<staging::Error> for ApiError {
    fn from(error: staging::Error) -> Self {
        match &error {
            staging::Error::NoSuchStaging(_) => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            staging::Error::NoSuchSource(_) => Self::bad_request(error.to_string()),
            staging::Error::Store(inner) => Self::too_large(inner).unwrap_or_else(|| Self::internal(&error)),
            staging::Error::Blob(inner) => Self::of_blobs(&error, inner),
            staging::Error::Runtime(_) => Self::internal(&error),
        }
    }
}

impl From<source::Error> for ApiError {
    fn from(error: source::Error) -> Self {
        use source::Error;
        if let Error::Blob(inner) = &error {
            return Self::of_blobs(&error, inner);
        }
        if !error.is_users() {
            return Self::internal(&error);
        }
        let status = match &error {
            Error::ArchiveTooLarge(_) | Error::TooLarge(_) | Error::TooManyEntries(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Error::UnknownFormat => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Error::TooManyUploads => StatusCode::SERVICE_UNAVAILABLE,
            Error::ClientGone(_) => StatusCode::BAD_REQUEST,
            // The request is well-formed, and what it brings is not: clients tell this from a wrong request.
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, error.to_string())
    }
}

impl From<auth::Error> for ApiError {
    fn from(error: auth::Error) -> Self {
        use auth::Error;
        let status = match &error {
            Error::Missing
            | Error::Unsupported
            | Error::Wrong
            | Error::TokenDamaged
            | Error::TokenUnknown
            | Error::TokenExpired { .. }
            | Error::WebsocketToken => StatusCode::UNAUTHORIZED,
            Error::Wait { .. } | Error::Busy => StatusCode::TOO_MANY_REQUESTS,
            Error::TokenExists(_) | Error::TooManyTokens(_) => StatusCode::CONFLICT,
            Error::NoSuchToken(_) => StatusCode::NOT_FOUND,
            Error::Hash(_) | Error::Interrupted(_) | Error::Store(_) => return Self::internal(&error),
        };
        Self { retry_after: error.retry_after(), ..Self::new(status, error.to_string()) }
    }
}

impl From<model::InvalidName> for ApiError {
    fn from(error: model::InvalidName) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<model::InvalidBuilder> for ApiError {
    fn from(error: model::InvalidBuilder) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<model::InvalidRoute> for ApiError {
    fn from(error: model::InvalidRoute) -> Self {
        Self::bad_request(error.to_string())
    }
}
