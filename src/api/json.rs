//! JSON bodies as Epinio's clients send them: without a content type.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::StatusCode,
};
use serde::de::DeserializeOwned;

use super::ApiError;

/// A body that is JSON, whatever its headers say.
pub(super) struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|error| ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, error.body_text()))?;
        if bytes.is_empty() {
            return Err(ApiError::bad_request("EOF"));
        }
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| ApiError::bad_request(format!("the body is not the JSON that is expected: {error}")))
    }
}
