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
    if is_of_another_site(&request) {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "requests from the pages of other sites are refused"));
    }
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

/// Browsers send the credential of a user also where another page asks; applications here are such pages.
fn is_of_another_site(request: &Request) -> bool {
    let text = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    if text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return true;
    }
    let host = request.uri().authority().map(|authority| authority.as_str()).or_else(|| text("host"));
    text("origin").is_some_and(|origin| origin.split_once("://").map(|(_, origin)| origin) != host)
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

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn pages_of_other_sites_are_told_apart() {
        for (headers, foreign) in [
            (&[][..], false),
            (&[("sec-fetch-site", "same-origin"), ("origin", "http://epinio.localhost:8080")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("sec-fetch-site", "cross-site")], true),
            (&[("sec-fetch-site", "same-site")], true),
            (&[("origin", "http://shop.localhost:8080")], true),
            (&[("origin", "null")], true),
        ] {
            let mut request = Request::builder().header("host", "epinio.localhost:8080");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            assert_eq!(is_of_another_site(&request.body(Body::empty()).unwrap()), foreign, "{headers:?}");
        }
    }
}
