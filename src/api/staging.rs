//! Staging and deployment, step by step, as the `epinio` CLI asks for them.

use std::time::Duration;

use axum::{
    Json,
    extract::{
        Path, State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::StatusCode,
    response::Response,
};
use serde_json::{Value, json};

use super::{
    ApiError, ApiState,
    applications::{find, names},
    history,
    json::Body,
    models::{self, DeployRequest, StageRequest},
    namespaces::parse,
    websocket,
};
use crate::{
    apps::Deployment,
    model::{AfterStaging, AppChange, ImageName, Namespace, REGISTRY_NAME, Route, StageId, Staging, StagingState},
};

/// How often a websocket that waits says so.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What is not ended goes on with the next daemon.
const STOPPING: &str = "the daemon is stopping; ask again when it runs";

pub(super) async fn stage(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
    Body(request): Body<StageRequest>,
) -> Result<Json<Value>, ApiError> {
    let mut app = find(&state, &path).await?;
    same(&request.app, &path)?;
    // An empty one is the application's own, as Epinio has it.
    if let Some(builder) = request.builderimage.filter(|builder| !builder.is_empty()) {
        app.builder = builder.parse()?;
    }
    let nothing = || ApiError::bad_request("request didn't provide a blobUID and a previous one doesn't exist");
    let blob = request.blobuid.filter(|uid| !uid.is_empty()).or_else(|| app.blob_uid.clone()).ok_or_else(nothing)?;
    let staging = state.stagings.start(&app, &blob, AfterStaging::Nothing).await?;
    let repository = ImageName::app_repository(&app.namespace, &app.name);
    let image = format!("{REGISTRY_NAME}/{repository}:{}", staging.id);
    Ok(Json(json!({ "stage": { "id": staging.id }, "image": image })))
}

pub(super) async fn deploy(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
    Body(request): Body<DeployRequest>,
) -> Result<Json<Value>, ApiError> {
    let app = find(&state, &path).await?;
    same(&request.app, &path)?;
    let id = request.stage.id.as_deref().unwrap_or_default();
    let mismatch = || ApiError::bad_request("stage id mismatch");
    let id = app.stage_id.clone().filter(|latest| latest.as_str() == id).ok_or_else(mismatch)?;
    let staging = state.stagings.get(&app.namespace, &id).await?;
    let unfinished = || ApiError::bad_request("the staging has made no image yet");
    let image = staging.image.filter(|_| staging.state == StagingState::Done).ok_or_else(unfinished)?;
    let deployment =
        Deployment { image, stage_id: Some(id), origin: models::origin(&request.origin), change: AppChange::default() };
    let deployed = state.apps.deploy(&app.namespace, &app.name, deployment).await?;
    let routes: Vec<String> = deployed.routes.iter().map(Route::to_string).collect();
    Ok(Json(json!({ "routes": routes })))
}

/// Ours: a staging with its state, the time that each phase took, in milliseconds, and whether nothing is to come of it
/// any more.
pub(super) async fn show(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let (namespace, id) = stage_of(&path)?;
    let staging = state.stagings.get(&namespace, &id).await?;
    let timings = history::timings(&staging.timings);
    Ok(Json(
        json!({ "id": staging.id, "app": staging.app, "state": staging.state, "image": staging.image, "timings": timings,
            "settled": staging.state.is_final() && staging.then == AfterStaging::Nothing }),
    ))
}

/// Answers when the staging has ended.
pub(super) async fn complete(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let (namespace, id) = stage_of(&path)?;
    let staging = state.stagings.wait(&namespace, &id).await?;
    match staging.state {
        StagingState::Failed { cause } => {
            let error = ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("Failed to stage: {cause}"));
            Err(error.with_details(format!("stage-id = {id}")))
        }
        StagingState::Done => Ok(models::ok()),
        _ => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, STOPPING)),
    }
}

pub(super) async fn complete_websocket(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let (namespace, id) = stage_of(&path)?;
    state.stagings.get(&namespace, &id).await?;
    Ok(upgrade.on_upgrade(move |socket| tell_completion(state, namespace, id, socket)))
}

async fn tell_completion(state: ApiState, namespace: Namespace, id: StageId, mut socket: WebSocket) {
    let event = |status: &str, message: &str, completed: bool| {
        let text = json!({ "stage_id": id, "namespace": namespace, "status": status, "message": message, "completed": completed });
        Message::Text(text.to_string().into())
    };
    let done = state.stagings.wait(&namespace, &id);
    tokio::pin!(done);
    let staging = loop {
        if socket.send(event("waiting", "", false)).await.is_err() {
            return;
        }
        tokio::select! {
            staging = &mut done => break staging,
            () = tokio::time::sleep(HEARTBEAT) => {}
        }
    };
    let last = match staging {
        Ok(Staging { state: StagingState::Failed { cause }, .. }) => event("failed", &cause, true),
        Ok(Staging { state: StagingState::Done, .. }) => event("succeeded", "", true),
        Ok(_) => event("error", STOPPING, true),
        Err(error) => event("error", &error.to_string(), true),
    };
    // The client may be gone by now.
    let _ = socket.send(last).await;
    websocket::close(socket, None).await;
}

pub(super) fn stage_of((namespace, id): &(String, String)) -> Result<(Namespace, StageId), ApiError> {
    let unknown = || ApiError::not_found(format!("staging '{}'", id.escape_debug()));
    Ok((parse(namespace)?, id.parse().map_err(|_| unknown())?))
}

/// The body says the application again.
fn same(body: &models::AppRef, path: &(String, String)) -> Result<(), ApiError> {
    let (namespace, name) = names(path)?;
    if body.name != name.as_str() {
        return Err(ApiError::bad_request("name parameter from URL does not match name param in body"));
    }
    if !body.namespace.is_empty() && body.namespace != namespace.as_str() {
        return Err(ApiError::bad_request("namespace parameter from URL does not match namespace param in body"));
    }
    Ok(())
}
