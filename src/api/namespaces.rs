//! Namespaces.

use axum::{
    Json,
    extract::{Path, RawQuery, State},
    http::StatusCode,
};
use serde_json::{Value, json};

use super::{
    ApiError, ApiState,
    credential::{Caller, Named},
    json::Body,
    models::{NamesResponse, NamespaceCreate, ok},
};
use crate::{apps::NamespaceRecord, model::Namespace};

pub(super) async fn list(State(state): State<ApiState>, caller: Caller) -> Result<Json<Value>, ApiError> {
    let mut all = Vec::new();
    for record in state.apps.namespaces().await?.iter().filter(|record| caller.0.sees(&record.name)) {
        all.push(describe(&state, record).await?);
    }
    Ok(Json(Value::Array(all)))
}

pub(super) async fn create(
    State(state): State<ApiState>,
    Body(request): Body<NamespaceCreate>,
) -> Result<(StatusCode, Named, Json<Value>), ApiError> {
    let name: Namespace = request.name.parse()?;
    state.apps.create_namespace(&name).await?;
    Ok((StatusCode::CREATED, Named(name.to_string()), ok()))
}

pub(super) async fn show(State(state): State<ApiState>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    let record = state.apps.namespace(&parse(&name)?).await?;
    Ok(Json(describe(&state, &record).await?))
}

pub(super) async fn delete(State(state): State<ApiState>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    forget(&state, &parse(&name)?).await?;
    Ok(ok())
}

pub(super) async fn delete_many(
    State(state): State<ApiState>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    for name in listed(query.as_deref(), "namespaces") {
        forget(&state, &parse(&name)?).await?;
    }
    Ok(ok())
}

/// Deletes a namespace with its applications, and ends what is being built for them.
async fn forget(state: &ApiState, namespace: &Namespace) -> Result<(), ApiError> {
    let apps = state.apps.list(Some(namespace)).await?;
    apps.iter().for_each(|app| state.stagings.give_up(namespace, &app.name));
    Ok(state.apps.delete_namespace(namespace).await?)
}

pub(super) async fn matches(
    State(state): State<ApiState>,
    caller: Caller,
    pattern: Option<Path<String>>,
) -> Result<Json<NamesResponse>, ApiError> {
    let prefix = pattern.map(|Path(pattern)| pattern).unwrap_or_default();
    let records = state.apps.namespaces().await?;
    let seen = records.iter().filter(|record| caller.0.sees(&record.name));
    let names = seen.map(|record| record.name.to_string()).filter(|name| name.starts_with(&prefix)).collect();
    Ok(Json(NamesResponse { names }))
}

async fn describe(state: &ApiState, record: &NamespaceRecord) -> Result<Value, ApiError> {
    let apps = state.apps.list(Some(&record.name)).await?;
    let names: Vec<&str> = apps.iter().map(|app| app.name.as_str()).collect();
    Ok(json!({ "meta": { "name": record.name, "createdAt": record.created_at }, "apps": names, "configurations": [] }))
}

/// A name that cannot be is one that does not exist.
pub(super) fn parse(name: &str) -> Result<Namespace, ApiError> {
    name.parse().map_err(|_| ApiError::not_found(format!("namespace '{}'", name.escape_debug())))
}

/// The values of `NAME[]=…` in a query.
pub(super) fn listed(query: Option<&str>, name: &str) -> Vec<String> {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let wanted = [format!("{name}[]"), format!("{name}%5B%5D"), format!("{name}%5b%5d")];
    pairs.filter(|(key, _)| wanted.iter().any(|wanted| wanted == key)).map(|(_, value)| value.to_owned()).collect()
}
