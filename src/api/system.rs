//! What is about the daemon itself.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, Uri},
};
use serde_json::{Value, json};

use super::{ApiError, ApiState, credential::Caller};

pub(super) async fn ready() -> Json<Value> {
    Json(json!({}))
}

pub(super) async fn info(State(state): State<ApiState>) -> Json<Value> {
    Json(json!({
        "version": super::EPINIO_VERSION,
        "kube_version": "",
        "platform": "epiniod",
        "default_builder_image": "embedded",
        "oidc_enabled": false,
        "epiniod": {
            "version": env!("CARGO_PKG_VERSION"),
            "runtime": state.runtime.properties(),
            "applications": { "scheme": state.urls.scheme, "port": state.urls.port },
        },
    }))
}

pub(super) async fn me(caller: Caller) -> Json<Value> {
    // Ours: the name of the token that was shown in place of a password.
    let token = caller.0.token.as_ref().map(|token| &token.name);
    let admin = json!({ "id": "admin", "name": "Admin Role", "namespace": "", "default": false });
    Json(json!({ "user": caller.0.name, "roles": [admin], "namespaces": [], "gitconfigs": [], "token": token }))
}

pub(super) async fn token(State(state): State<ApiState>, caller: Caller) -> Json<Value> {
    Json(json!({ "token": state.auth.websocket_token(&caller.0) }))
}

pub(super) async fn not_found(uri: Uri) -> ApiError {
    let title = format!("route '{}' does not exist", uri.path().escape_debug());
    ApiError::new(StatusCode::NOT_FOUND, title).with_details("the API is below /api/v1")
}
