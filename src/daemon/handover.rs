//! `GET /blobs/DIGEST` beside the registry: the source of a staging, for whoever has the token of that staging.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::{
    auth::Auth,
    blob::SharedBlobs,
    model::{Digest, Staging},
    store::{Key, Objects},
    telemetry::chain,
};

#[derive(Clone)]
struct Handover {
    objects: Objects,
    blobs: SharedBlobs,
    auth: Arc<Auth>,
}

pub(super) fn router(objects: Objects, blobs: SharedBlobs, auth: Arc<Auth>) -> Router {
    Router::new().route("/blobs/{digest}", get(blob)).with_state(Handover { objects, blobs, auth })
}

async fn blob(State(handover): State<Handover>, Path(digest): Path<Digest>, headers: HeaderMap) -> Response {
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(token) = header.strip_prefix("Bearer ") else { return StatusCode::UNAUTHORIZED.into_response() };
    match handover.read(token, digest).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!(%digest, error = %chain(error.as_ref()), "a source cannot be handed to its build");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

impl Handover {
    async fn read(&self, token: &str, digest: Digest) -> Result<Response, Box<dyn std::error::Error + Send + Sync>> {
        let Some(claims) = self.auth.verify(token).await? else {
            return Ok(StatusCode::UNAUTHORIZED.into_response());
        };
        let staging = self.objects.get::<Staging>(&Key::staging(&claims.namespace, &claims.staging)).await?;
        if staging.is_none_or(|staging| staging.value.source != digest) {
            return Ok(StatusCode::FORBIDDEN.into_response());
        }
        let Some(reader) = self.blobs.open(&digest, None).await? else {
            return Ok(StatusCode::NOT_FOUND.into_response());
        };
        let length = (header::CONTENT_LENGTH, reader.size);
        Ok(([length], Body::from_stream(reader.stream)).into_response())
    }
}
