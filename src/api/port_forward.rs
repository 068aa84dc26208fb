//! A connection to a port of an instance.
//!
//! It begins as a websocket does, and is none: after the answer the bytes of the connection follow as they are, both
//! ways, which is Epinio's way. What cannot be connected is an answer with an error instead.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{Path, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;

use super::{ApiError, ApiState, applications::find};
use crate::runtime::Connection;

/// What is read at once, in bytes.
const CHUNK_BYTES: usize = 32 << 10;
/// Where one side has said everything, the other may pause so long.
const REST: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
pub(super) struct Wanted {
    instance: Option<String>,
    /// Ours: Epinio knows only one port of an application.
    port: Option<String>,
}

pub(super) async fn port_forward(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
    Query(wanted): Query<Wanted>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let wrong = || ApiError::bad_request("bad value of query parameter 'port': it is a number from 1 to 65535");
    let port = wanted.port.filter(|port| !port.is_empty()).map(|port| port.parse().ok().filter(|port| *port > 0));
    let port = port.map(|port| port.ok_or_else(wrong)).transpose()?;
    let accept = accept(request.headers())?;
    let upgrade = request.extensions_mut().remove::<OnUpgrade>().ok_or_else(no_upgrade)?;
    let app = find(&state, &path).await?;
    let instance = wanted.instance.as_deref().filter(|instance| !instance.is_empty());
    let connection = state.apps.forward(&app, instance, port).await?;
    tokio::spawn(async move {
        // A client that did not wait for the answer wants nothing any more.
        if let Ok(client) = upgrade.await {
            join(TokioIo::new(client), connection).await;
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept)
        .body(Body::empty())
        .map_err(|error| ApiError::internal(&error))
}

/// The answer to the key of a client that wants to go on in another protocol.
fn accept(headers: &HeaderMap) -> Result<String, ApiError> {
    let says = |name, wanted: &str| {
        let value = headers.get(name).and_then(|value: &header::HeaderValue| value.to_str().ok()).unwrap_or_default();
        value.split(',').any(|part| part.trim().eq_ignore_ascii_case(wanted))
    };
    let key = headers.get(header::SEC_WEBSOCKET_KEY);
    match key {
        Some(key) if says(header::CONNECTION, "upgrade") && says(header::UPGRADE, "websocket") => {
            Ok(derive_accept_key(key.as_bytes()))
        }
        _ => Err(no_upgrade()),
    }
}

fn no_upgrade() -> ApiError {
    ApiError::new(StatusCode::UPGRADE_REQUIRED, "a connection to a port begins as a websocket, on HTTP/1.1")
}

/// Carries bytes both ways until both have ended, or one has and the other says nothing any more.
async fn join(client: impl AsyncRead + AsyncWrite, instance: Connection) {
    let (client_says, client_hears) = tokio::io::split(client);
    let (instance_says, instance_hears) = tokio::io::split(instance);
    let (client_done, instance_done) = (CancellationToken::new(), CancellationToken::new());
    tokio::join!(
        carry(client_says, instance_hears, &client_done, &instance_done),
        carry(instance_says, client_hears, &instance_done, &client_done),
    );
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    done: &CancellationToken,
    other_done: &CancellationToken,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let rest = async {
            other_done.cancelled().await;
            tokio::time::sleep(REST).await;
        };
        let read = tokio::select! {
            read = from.read(&mut buffer) => read.unwrap_or(0),
            () = rest => 0,
        };
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() || to.flush().await.is_err() {
            break;
        }
    }
    // Who is gone does not have to be told.
    let _ = to.shutdown().await;
    done.cancel();
}
