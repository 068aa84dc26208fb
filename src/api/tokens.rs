//! API tokens, and the audit log: ours, not Epinio's.

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    ApiError, ApiState,
    credential::{Caller, Named},
    json::Body,
    models::ok,
};
use crate::{
    auth::{ApiToken, Scope, Wanted},
    model::{Namespace, Timestamp, TokenName},
};

/// The longest life of a token that has an end, in seconds.
const LONGEST: u64 = 10 * 366 * 24 * 3600;
/// Lines of the audit log, where nobody says how many, and at most.
const LINES: usize = 100;
const MOST_LINES: usize = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenRequest {
    name: String,
    scopes: Vec<Scope>,
    #[serde(default)]
    namespaces: Vec<String>,
    /// None is for ever.
    #[serde(default)]
    expires_in_seconds: Option<u64>,
}

pub(super) async fn list(State(state): State<ApiState>) -> Json<Value> {
    Json(state.auth.tokens().iter().map(describe).collect())
}

pub(super) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(request): Body<TokenRequest>,
) -> Result<Response, ApiError> {
    let (token, secret) = state.auth.create_token(request.wanted()?, &caller.0).await?;
    let mut described = describe(&token);
    described["token"] = json!(secret);
    Ok((StatusCode::CREATED, Named(token.name.to_string()), Json(described)).into_response())
}

pub(super) async fn delete(State(state): State<ApiState>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    let unknown = || ApiError::not_found(format!("token '{}'", name.escape_debug()));
    state.auth.delete_token(&name.parse().map_err(|_| unknown())?).await?;
    Ok(ok())
}

#[derive(Debug, Deserialize)]
pub(super) struct Lines {
    lines: Option<usize>,
}

/// One JSON object in each line, the newest last.
pub(super) async fn audit(
    State(state): State<ApiState>,
    Query(Lines { lines }): Query<Lines>,
) -> Result<String, ApiError> {
    let wanted = lines.unwrap_or(LINES).min(MOST_LINES);
    let read = tokio::task::spawn_blocking(move || state.auth.audit().last(wanted)).await;
    let lines = read.map_err(|error| ApiError::internal(&error))?.map_err(|error| ApiError::internal(&error))?;
    let elsewhere = || {
        let title = "the audit log of a daemon in a cluster is in the log of its pod, with the target epiniod::audit";
        ApiError::new(StatusCode::NOT_FOUND, title)
    };
    Ok(lines.ok_or_else(elsewhere)?.iter().map(|line| format!("{line}\n")).collect())
}

impl TokenRequest {
    fn wanted(self) -> Result<Wanted, ApiError> {
        if self.scopes.is_empty() {
            return Err(ApiError::bad_request("a token without a scope is good for nothing; name read, push or admin"));
        }
        let wrong =
            || ApiError::bad_request("expires_in_seconds is from 1 to ten years; without it a token has no end");
        let expires_at = match self.expires_in_seconds {
            Some(seconds) if (1..=LONGEST).contains(&seconds) => {
                let seconds = i64::try_from(seconds).map_err(|_| wrong())?;
                Some(Timestamp::from_second(Timestamp::now().as_second() + seconds))
            }
            Some(_) => return Err(wrong()),
            None => None,
        };
        let name: TokenName = self.name.parse()?;
        let namespaces = self.namespaces.iter().map(|name| name.parse()).collect::<Result<Vec<Namespace>, _>>()?;
        let mut scopes = self.scopes;
        scopes.sort();
        scopes.dedup();
        Ok(Wanted { name, scopes, namespaces, expires_at })
    }
}

fn describe(token: &ApiToken) -> Value {
    json!({
        "name": token.name,
        "user": token.user,
        "scopes": token.scopes,
        "namespaces": token.namespaces,
        "createdAt": token.created_at,
        "expiresAt": token.expires_at,
        "expired": token.expires_at.is_some_and(|at| at <= Timestamp::now()),
        "lastUsedAt": token.last_used_at,
    })
}
