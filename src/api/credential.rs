//! Who is calling.

use std::collections::HashMap;

use axum::{
    extract::{FromRequestParts, Query, Request, State},
    http::{StatusCode, header, request::Parts},
    middleware::Next,
    response::Response,
};

use super::{ApiError, ApiState};
use crate::model::UserName;

/// The user of a request that has passed.
#[derive(Debug, Clone)]
pub(super) struct Caller(pub UserName);

/// Basic credentials on everything but what says otherwise.
pub(super) async fn require(
    State(state): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let unauthorized = |title: &str| ApiError::new(StatusCode::UNAUTHORIZED, title);
    let header = request.headers().get(header::AUTHORIZATION).ok_or_else(|| unauthorized("missing credentials"))?;
    let header = header.to_str().unwrap_or_default();
    if !header.to_ascii_lowercase().starts_with("basic ") {
        return Err(unauthorized("not supported Authorization Header"));
    }
    let principal = state.auth.check_basic(header).await?;
    let principal = principal.ok_or_else(|| unauthorized("wrong user or password"))?;
    request.extensions_mut().insert(Caller(principal.name));
    Ok(next.run(request).await)
}

/// The token of a websocket, as a parameter: browsers cannot send a header with them.
pub(super) async fn require_token(
    State(state): State<ApiState>,
    Query(parameters): Query<HashMap<String, String>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let token = parameters.get("authtoken").map_or("", String::as_str);
    let expired = || ApiError::new(StatusCode::UNAUTHORIZED, "token expired");
    let user = state.auth.verify_websocket(token).ok_or_else(expired)?;
    request.extensions_mut().insert(Caller(user));
    Ok(next.run(request).await)
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| ApiError::new(StatusCode::UNAUTHORIZED, "missing credentials"))
    }
}
