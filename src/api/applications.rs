//! Applications.

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
    models::{self, AppCreateRequest, AppUpdateRequest, NamesResponse, ok},
    namespaces::{listed, parse},
};
use crate::{
    apps::NewApp,
    model::{App, AppName, Namespace},
};

pub(super) async fn list_all(State(state): State<ApiState>, caller: Caller) -> Result<Json<Value>, ApiError> {
    let mut apps = state.apps.list(None).await?;
    apps.retain(|app| caller.0.sees(&app.namespace));
    describe(&state, apps).await
}

pub(super) async fn list(
    State(state): State<ApiState>,
    Path(namespace): Path<String>,
) -> Result<Json<Value>, ApiError> {
    describe(&state, state.apps.list(Some(&parse(&namespace)?)).await?).await
}

pub(super) async fn create(
    State(state): State<ApiState>,
    Path(namespace): Path<String>,
    caller: Caller,
    Body(request): Body<AppCreateRequest>,
) -> Result<(StatusCode, Named, Json<Value>), ApiError> {
    let namespace = parse(&namespace)?;
    let name: AppName = request.name.parse()?;
    let named = Named(name.to_string());
    let config = request.configuration.change()?;
    state.apps.create(NewApp { namespace, name, username: caller.0.name.to_string(), config }).await?;
    Ok((StatusCode::CREATED, named, ok()))
}

pub(super) async fn show(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let app = find(&state, &path).await?;
    Ok(Json(models::app(&state, &app).await?))
}

pub(super) async fn update(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
    Body(request): Body<AppUpdateRequest>,
) -> Result<Json<Value>, ApiError> {
    let (namespace, name) = names(&path)?;
    state.apps.update(&namespace, &name, request.change()?).await?;
    Ok(ok())
}

pub(super) async fn delete(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let (namespace, name) = names(&path)?;
    forget(&state, &namespace, &name).await?;
    Ok(Json(json!({ "unboundconfigurations": [] })))
}

pub(super) async fn delete_many(
    State(state): State<ApiState>,
    Path(namespace): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    for name in listed(query.as_deref(), "applications") {
        let (namespace, name) = names(&(namespace.clone(), name))?;
        forget(&state, &namespace, &name).await?;
    }
    Ok(Json(json!({ "unboundconfigurations": [] })))
}

/// Deletes an application, and ends what is being built for it.
pub(super) async fn forget(state: &ApiState, namespace: &Namespace, name: &AppName) -> Result<(), ApiError> {
    state.apps.get(namespace, name).await?;
    // First, as instances may take their time to stop.
    state.stagings.give_up(namespace, name);
    Ok(state.apps.delete(namespace, name).await?)
}

pub(super) async fn restart(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let app = find(&state, &path).await?;
    if app.instances == 0 {
        return Err(ApiError::bad_request("No restart possible for an application with no instances"));
    }
    state.apps.restart(&app.namespace, &app.name).await?;
    Ok(ok())
}

/// There are no charts with settings here: every application is valid.
pub(super) async fn validate(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    find(&state, &path).await?;
    Ok(ok())
}

pub(super) async fn matches(
    State(state): State<ApiState>,
    Path(path): Path<Vec<String>>,
) -> Result<Json<NamesResponse>, ApiError> {
    let namespace = parse(path.first().map_or("", String::as_str))?;
    let prefix = path.get(1).cloned().unwrap_or_default();
    let apps = state.apps.list(Some(&namespace)).await?;
    let names = apps.iter().map(|app| app.name.to_string()).filter(|name| name.starts_with(&prefix)).collect();
    Ok(Json(NamesResponse { names }))
}

/// The application that a path names.
pub(super) async fn find(state: &ApiState, path: &(String, String)) -> Result<App, ApiError> {
    let (namespace, name) = names(path)?;
    Ok(state.apps.get(&namespace, &name).await?)
}

/// A name that cannot be is one that does not exist.
pub(super) fn names((namespace, name): &(String, String)) -> Result<(Namespace, AppName), ApiError> {
    let namespace = parse(namespace)?;
    let name = name.parse().map_err(|_| ApiError::not_found(format!("application '{}'", name.escape_debug())))?;
    Ok((namespace, name))
}

async fn describe(state: &ApiState, apps: Vec<App>) -> Result<Json<Value>, ApiError> {
    let mut all = Vec::with_capacity(apps.len());
    for app in apps {
        all.push(models::app(state, &app).await?);
    }
    Ok(Json(Value::Array(all)))
}
