//! Errors as the distribution-spec words them.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{blob, model::Digest, store};

/// What can go wrong in the registry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("authentication is required")]
    Unauthorized,
    #[error("this credential does not reach this far")]
    Denied,
    #[error("too many wrong credentials from this address; try again in {0} s")]
    Wait(u64),
    #[error("tag '{tag}' of {repository} already names {existing}; tags of application images cannot be moved")]
    TagTaken { repository: String, tag: String, existing: Digest },
    #[error("'{0}' is not the name of a repository")]
    NameInvalid(String),
    #[error("there is no repository '{0}'")]
    NameUnknown(String),
    #[error("no blob {0} here")]
    BlobUnknown(String),
    #[error("no manifest {0} here")]
    ManifestUnknown(String),
    #[error("the manifest names blob {0}, which this repository does not have; upload it first")]
    ManifestBlobUnknown(Digest),
    #[error("the manifest cannot be read")]
    ManifestInvalid(#[source] serde_json::Error),
    #[error("manifests of type '{0}' are not known here; push an OCI or a Docker (v2) image")]
    ManifestKind(String),
    #[error("a manifest may have 4 MiB at most")]
    TooLarge,
    #[error("'{0}' is not a SHA-256 digest, the only kind that is taken here")]
    DigestInvalid(String),
    #[error("the content has digest {actual}, not {expected}")]
    DigestMismatch { expected: Digest, actual: Digest },
    #[error("no such upload; it has ended, or was given up after an hour")]
    UploadUnknown,
    #[error("the upload goes on at byte {0}")]
    RangeInvalid(u64),
    #[error("too many uploads at once; try again later")]
    TooManyUploads,
    #[error("the page size is not a number")]
    PageInvalid,
    #[error("this cannot be done here")]
    Unsupported,
    #[error("the content ended early")]
    Interrupted(#[source] std::io::Error),
    #[error("this credential cannot be checked just now; repeat it in a moment")]
    Unchecked,
    #[error("the store failed")]
    Store(#[from] store::Error),
    #[error("the object storage does not answer; repeat it in a moment")]
    Unavailable(#[source] blob::Error),
    #[error("the blob store failed")]
    Blob(#[source] blob::Error),
}

impl From<blob::Error> for Error {
    fn from(error: blob::Error) -> Self {
        match error {
            blob::Error::Mismatch { expected, actual } => Self::DigestMismatch { expected, actual },
            error if error.is_temporary() => Self::Unavailable(error),
            error => Self::Blob(error),
        }
    }
}

impl Error {
    pub(super) fn code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            Self::Denied => (StatusCode::FORBIDDEN, "DENIED"),
            Self::TagTaken { .. } => (StatusCode::CONFLICT, "DENIED"),
            Self::NameInvalid(_) => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
            Self::NameUnknown(_) => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Self::BlobUnknown(_) => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Self::ManifestUnknown(_) => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Self::ManifestBlobUnknown(_) => (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
            Self::ManifestInvalid(_) | Self::ManifestKind(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Self::DigestInvalid(_) | Self::DigestMismatch { .. } => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            Self::UploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Self::RangeInvalid(_) => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            Self::Wait(_) | Self::TooManyUploads => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Self::PageInvalid => (StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID"),
            Self::Unsupported => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Self::Interrupted(_) => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            // A cluster's API server is away, or does not know the credential of a daemon that ends: another one takes over.
            Self::Unavailable(_) | Self::Unchecked | Self::Store(store::Error::Backend { .. }) => {
                (StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN")
            }
            Self::Store(_) | Self::Blob(_) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, code) = self.code();
        if status.is_server_error() {
            let cause = std::error::Error::source(&self).map(ToString::to_string).unwrap_or_default();
            tracing::error!(error = %self, cause, "a request to the registry failed");
        }
        let body = Json(json!({ "errors": [{ "code": code, "message": self.to_string() }] }));
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"epiniod registry\"")];
        match self {
            Self::Unauthorized => (status, challenge, body).into_response(),
            Self::Wait(seconds) => (status, [(header::RETRY_AFTER, seconds.to_string())], body).into_response(),
            Self::RangeInvalid(size) => (status, [(header::RANGE, blob_range(size))], body).into_response(),
            _ => (status, body).into_response(),
        }
    }
}

/// `0-N` as the `Range` header of uploads has it: inclusive, and `0-0` for nothing as well.
pub(super) fn blob_range(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}
