//! Logs by websocket: one JSON text for each line.

use std::collections::HashMap;

use axum::{
    extract::{
        Path, Query, State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    response::Response,
};
use futures::{StreamExt as _, stream::BoxStream};
use serde_json::json;

use super::{ApiError, ApiState, applications::find, staging::stage_of};
use crate::runtime::{LogLine, LogQuery};

type Parameters = HashMap<String, String>;

/// The most lines that may be asked for.
const MAX_TAIL: usize = 100_000;

pub(super) async fn of_app(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
    Query(parameters): Query<Parameters>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let query = query(&parameters)?;
    let app = find(&state, &path).await?;
    if app.release.is_none() && app.failure.is_none() {
        return Err(ApiError::bad_request("No logs available for application without workload"));
    }
    let lines = state.apps.logs(&app.namespace, &app.name, query).await?;
    let namespace = app.namespace.to_string();
    Ok(upgrade.on_upgrade(move |socket| send(socket, lines, namespace)))
}

pub(super) async fn of_staging(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
    Query(parameters): Query<Parameters>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let query = query(&parameters)?;
    let (namespace, id) = stage_of(&path)?;
    let lines = state.stagings.log(&namespace, &id, query.follow).await?;
    Ok(upgrade.on_upgrade(move |socket| send(socket, lines, namespace.to_string())))
}

fn query(parameters: &Parameters) -> Result<LogQuery, ApiError> {
    let wrong = |name: &str| ApiError::bad_request(format!("bad value of query parameter '{name}'"));
    let follow = match parameters.get("follow").map(String::as_str) {
        None | Some("" | "false") => false,
        Some("true") => true,
        Some(_) => return Err(wrong("follow")),
    };
    let tail = parameters.get("tail").filter(|tail| !tail.is_empty()).map(|tail| tail.parse::<usize>());
    let tail =
        tail.transpose().ok().and_then(|tail| tail.map_or(Some(None), |tail| (tail <= MAX_TAIL).then_some(Some(tail))));
    Ok(LogQuery { follow, tail: tail.ok_or_else(|| wrong("tail"))? })
}

/// Until the log or the client has ended.
async fn send(mut socket: WebSocket, mut lines: BoxStream<'static, LogLine>, namespace: String) {
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            message = socket.recv() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
        };
        let Some(line) = line else { break };
        let text = json!({
            "Message": line.text,
            "ContainerName": line.origin,
            "PodName": line.origin,
            "Namespace": namespace,
            "Timestamp": line.at,
        });
        if socket.send(Message::Text(text.to_string().into())).await.is_err() {
            return;
        }
    }
    let end = CloseFrame { code: close_code::NORMAL, reason: "".into() };
    // The client may be gone by now.
    let _ = socket.send(Message::Close(Some(end))).await;
}
