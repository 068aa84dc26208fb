//! The JSON of Epinio's API (v1), made from our own types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{ApiError, ApiState};
use crate::{
    apps::AppStatus,
    model::{App, AppChange, Builder, EnvName, Environment, Origin, Restart, Route, StagingState},
    runtime::{Instance, InstanceState},
};

/// Epinio's one application chart.
const STANDARD: &str = "standard";

#[derive(Debug, Deserialize)]
pub(super) struct AppCreateRequest {
    pub name: String,
    #[serde(default)]
    pub configuration: AppUpdateRequest,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AppUpdateRequest {
    pub restart: Option<bool>,
    pub instances: Option<i64>,
    pub environment: Option<BTreeMap<String, String>>,
    pub replace_env: Option<bool>,
    pub routes: Option<Vec<String>>,
    pub appchart: Option<String>,
    pub configurations: Option<Vec<String>>,
    pub settings: Option<BTreeMap<String, Value>>,
    /// Ours: Epinio takes it with a staging only.
    pub builderimage: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct AppRef {
    pub name: String,
    #[serde(default)]
    pub namespace: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct StageRequest {
    pub app: AppRef,
    #[serde(default)]
    pub blobuid: Option<String>,
    #[serde(default)]
    pub builderimage: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct DeployRequest {
    pub app: AppRef,
    #[serde(default)]
    pub stage: StageRef,
    #[serde(default)]
    pub origin: Value,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct StageRef {
    #[serde(default)]
    pub id: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct NamespaceCreate {
    #[serde(default)]
    pub name: String,
}

#[derive(Debug, Serialize)]
pub(super) struct NamesResponse {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

impl AppUpdateRequest {
    pub fn change(self) -> Result<AppChange, ApiError> {
        let negative = || ApiError::bad_request("instances param should be integer equal or greater than zero");
        let instances = self.instances.map(u32::try_from).transpose().map_err(|_| negative())?;
        // What we do not have is not silently left out.
        if let Some(name) = self.configurations.iter().flatten().next() {
            return Err(ApiError::not_found(format!("configuration '{}'", name.escape_debug())));
        }
        let appchart = self.appchart.filter(|chart| !chart.is_empty());
        if let Some(chart) = appchart.as_deref().filter(|chart| *chart != STANDARD) {
            return Err(ApiError::not_found(format!("application chart '{}'", chart.escape_debug())));
        }
        if let Some(name) = self.settings.iter().flat_map(BTreeMap::keys).next() {
            let title = format!("the application chart '{STANDARD}' has no setting '{}'", name.escape_debug());
            return Err(ApiError::bad_request(title));
        }
        Ok(AppChange {
            instances,
            environment: self.environment.map(environment).transpose()?,
            replace_environment: self.replace_env.unwrap_or(false),
            unset_environment: Vec::new(),
            routes: self.routes.map(|routes| routes.iter().map(|route| parse_route(route)).collect()).transpose()?,
            appchart,
            builder: self.builderimage.as_deref().map(str::parse).transpose()?,
            restart: if self.restart.unwrap_or(true) { Restart::Now } else { Restart::Later },
        })
    }
}

pub(super) fn environment(variables: BTreeMap<String, String>) -> Result<Environment, ApiError> {
    variables.iter().map(|(name, value)| variable(name, value)).collect()
}

/// One variable: what no process can have in its environment is refused.
pub(super) fn variable(name: &str, value: &str) -> Result<(EnvName, String), ApiError> {
    let name: EnvName = name.parse()?;
    if value.contains('\0') {
        return Err(ApiError::bad_request(format!("the value of variable '{name}' has a NUL character in it")));
    }
    Ok((name, value.to_owned()))
}

/// A scheme in front is dropped, as Epinio does.
pub(super) fn parse_route(text: &str) -> Result<Route, ApiError> {
    Ok(text.split_once("://").map_or(text, |(_, rest)| rest).parse()?)
}

/// The origin that a client says, as far as it is one of ours.
pub(super) fn origin(value: &Value) -> Option<Origin> {
    let path = value.get("path").and_then(Value::as_str).filter(|path| !path.is_empty())?;
    let archive = value.get("archive").and_then(Value::as_bool).unwrap_or(false);
    Some(Origin::Path { path: path.to_owned(), archive })
}

/// An application with all that is known of it.
pub(super) async fn app(state: &ApiState, app: &App) -> Result<Value, ApiError> {
    let status = state.apps.status(app).await?;
    let staging = match &app.stage_id {
        Some(id) => state.stagings.get(&app.namespace, id).await.ok(),
        None => None,
    };
    let staging = staging.map(|staging| staging.state);
    let staging_status = match &staging {
        None => "",
        Some(StagingState::Done) => "done",
        Some(StagingState::Failed { .. }) => "failed",
        Some(_) => "active",
    };
    let running = status.release.is_some() && app.instances > 0;
    let shown = match (staging_status, running) {
        ("active", _) => "staging",
        (_, true) => "running",
        (_, false) => "created",
    };
    let failed = match &staging {
        Some(StagingState::Failed { cause }) => Some(cause.clone()),
        _ => status.failure.clone(),
    };
    let routes: Vec<String> = state.apps.routes(app).iter().map(Route::to_string).collect();
    let mut body = json!({
        "meta": { "name": app.name, "namespace": app.namespace, "createdAt": app.created_at },
        "configuration": {
            "instances": app.instances,
            "configurations": [],
            "environment": app.environment,
            "routes": routes,
            "appchart": app.appchart.as_deref().unwrap_or(STANDARD),
        },
        "origin": origin_json(&app.origin),
        "staging": staging_json(&app.builder),
        "stagingstatus": staging_status,
        "status": shown,
        "statusmessage": failed.unwrap_or_default(),
        "stage_id": app.stage_id,
        "image_url": app.image.as_ref().map(ToString::to_string).unwrap_or_default(),
    });
    if running {
        body["deployment"] = deployment(app, &status, &routes);
    }
    Ok(body)
}

fn deployment(app: &App, status: &AppStatus, routes: &[String]) -> Value {
    let is_ready = |instance: &Instance| matches!(instance.state, InstanceState::Ready { .. });
    let ready = status.instances.iter().filter(|instance| is_ready(instance)).count();
    let release = status.release.as_ref();
    let replicas: BTreeMap<&str, Value> = status
        .instances
        .iter()
        .map(|instance| {
            let replica = json!({
                "name": instance.name,
                "metricsOk": instance.memory_bytes.is_some(),
                "memoryBytes": instance.memory_bytes.unwrap_or(0),
                "millicpus": instance.millicpus.unwrap_or(0),
                "createdAt": instance.started_at,
                "restarts": instance.restarts,
                "ready": is_ready(instance),
            });
            (instance.name.as_str(), replica)
        })
        .collect();
    json!({
        "name": format!("r{}", app.name),
        "active": true,
        "createdAt": release.map(|release| release.created_at),
        "desiredreplicas": app.instances,
        "readyreplicas": ready,
        "replicas": replicas,
        "username": app.username,
        "stage_id": release.and_then(|release| release.stage_id.clone()),
        "status": format!("{ready}/{}", app.instances),
        "routes": routes,
    })
}

/// Where nothing is said of it the embedded builder is meant.
fn staging_json(builder: &Builder) -> Value {
    match builder {
        Builder::Embedded => json!({}),
        Builder::Image(name) => json!({ "builder": name.to_string() }),
    }
}

fn origin_json(origin: &Origin) -> Value {
    match origin {
        Origin::None => json!({ "Kind": 0 }),
        Origin::Path { path, archive } => json!({ "Kind": 1, "path": path, "archive": archive }),
    }
}

/// `{"status":"ok"}`
pub(super) fn ok() -> axum::Json<Value> {
    axum::Json(json!({ "status": "ok" }))
}
