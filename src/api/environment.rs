//! The environment of an application.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, Query, State},
};
use serde_json::{Value, json};

use super::{
    ApiError, ApiState,
    applications::{find, names},
    json::Body,
    models::{self, ok},
};
use crate::model::AppChange;

pub(super) async fn list(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<Json<Value>, ApiError> {
    let environment = find(&state, &path).await?.environment;
    let grouped = query.get("grouped").is_some_and(|grouped| grouped == "true");
    Ok(Json(if grouped { json!({ "user": environment, "service": {} }) } else { json!(environment) }))
}

pub(super) async fn set(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
    Body(variables): Body<BTreeMap<String, String>>,
) -> Result<Json<Value>, ApiError> {
    let environment = Some(models::environment(variables)?);
    change(&state, &path, AppChange { environment, ..AppChange::default() }).await
}

pub(super) async fn show(
    State(state): State<ApiState>,
    Path((namespace, app, name)): Path<(String, String, String)>,
) -> Result<Json<Value>, ApiError> {
    let environment = find(&state, &(namespace, app)).await?.environment;
    let found = environment.iter().find(|(known, _)| known.as_str() == name);
    Ok(Json(match found {
        Some((name, value)) => json!({ "name": name, "value": value, "origin": "user" }),
        None => json!({ "name": "", "value": "" }),
    }))
}

pub(super) async fn unset(
    State(state): State<ApiState>,
    Path((namespace, app, name)): Path<(String, String, String)>,
) -> Result<Json<Value>, ApiError> {
    let unset_environment = vec![name.parse()?];
    change(&state, &(namespace, app), AppChange { unset_environment, ..AppChange::default() }).await
}

async fn change(state: &ApiState, path: &(String, String), change: AppChange) -> Result<Json<Value>, ApiError> {
    let (namespace, name) = names(path)?;
    state.apps.update(&namespace, &name, change).await?;
    Ok(ok())
}
