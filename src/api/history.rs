//! What an application was: its releases and its stagings, the newest first. Ours, as Epinio tells of the last ones only.

use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::{Value, json};

use super::{ApiError, ApiState, applications::find};
use crate::model::{App, Phase, Release, Staging};

pub(super) async fn releases(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let app = find(&state, &path).await?;
    let releases = state.apps.releases(&app.namespace, &app.name).await?;
    Ok(Json(releases.iter().map(|one| release(one, &app)).collect()))
}

pub(super) async fn stagings(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let app = find(&state, &path).await?;
    let stagings = state.stagings.of_app(&app).await?;
    Ok(Json(stagings.iter().map(staging).collect()))
}

/// Of variables the names only: whoever may see their values finds those of today with the application.
fn release(release: &Release, app: &App) -> Value {
    let mut body = json!({
        "number": release.id.number,
        "createdAt": release.created_at,
        "serves": app.release == Some(release.id.number),
        "image": release.image,
        "stage_id": release.stage_id,
        "instances": release.instances,
        "routes": release.routes,
        "environment": release.environment.keys().collect::<Vec<_>>(),
    });
    merge(&mut body, json!(release.state));
    body
}

fn staging(staging: &Staging) -> Value {
    let mut body = json!({
        "id": staging.id,
        "createdAt": staging.created_at,
        "image": staging.image,
        "builder": staging.builder.to_string(),
        "timings": timings(&staging.timings),
    });
    merge(&mut body, json!(staging.state));
    body
}

pub(super) fn timings(timings: &[(Phase, u64)]) -> Vec<Value> {
    timings.iter().map(|(phase, millis)| json!({ "phase": phase, "duration_ms": millis })).collect()
}

/// States have a name and perhaps a cause.
fn merge(body: &mut Value, state: Value) {
    if let (Some(body), Value::Object(state)) = (body.as_object_mut(), state) {
        body.extend(state);
    }
}
