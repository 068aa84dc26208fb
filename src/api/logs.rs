//! Logs by websocket: one JSON text for each line.

use std::{collections::HashMap, time::Duration};

use axum::{
    body::Bytes,
    extract::{
        Path, Query, State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    response::Response,
};
use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, pending, ready},
    stream::BoxStream,
};
use serde_json::json;

use super::{ApiError, ApiState, applications::find, staging::stage_of, websocket};
use crate::{
    apps,
    model::{App, Timestamp},
    runtime::{LogLine, LogQuery},
};

type Parameters = HashMap<String, String>;

/// The most lines that may be asked for.
const MAX_TAIL: usize = 100_000;
/// How often a connection without lines shows that it lives: proxies cut off what does not.
const PING: Duration = Duration::from_secs(30);
/// How often it is looked whether an application is still there.
const LOOK: Duration = Duration::from_secs(2);

/// What is asked of a log.
struct Wanted {
    follow: bool,
    tail: Option<usize>,
    since: Option<Timestamp>,
}

pub(super) async fn of_app(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
    Query(parameters): Query<Parameters>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let wanted = wanted(&parameters)?;
    let app = find(&state, &path).await?;
    if app.release.is_none() && app.failure.is_none() {
        return Err(ApiError::bad_request("No logs available for application without workload"));
    }
    let query = LogQuery { follow: wanted.follow, tail: wanted.tail };
    let lines = state.apps.logs(&app.namespace, &app.name, query).await?;
    let lines = wanted.cut(lines);
    let namespace = app.namespace.to_string();
    Ok(upgrade.on_upgrade(move |socket| send(socket, lines, namespace, gone(state, app))))
}

pub(super) async fn of_staging(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
    Query(parameters): Query<Parameters>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let wanted = wanted(&parameters)?;
    let (namespace, id) = stage_of(&path)?;
    let skipped = match wanted.tail {
        Some(tail) => state.stagings.log(&namespace, &id, false).await?.count().await.saturating_sub(tail),
        None => 0,
    };
    let lines = state.stagings.log(&namespace, &id, wanted.follow).await?.skip(skipped).boxed();
    let lines = wanted.cut(lines);
    // It ends with the staging.
    Ok(upgrade.on_upgrade(move |socket| send(socket, lines, namespace.to_string(), pending().boxed())))
}

impl Wanted {
    fn cut(&self, lines: BoxStream<'static, LogLine>) -> BoxStream<'static, LogLine> {
        match self.since {
            Some(since) => lines.filter(move |line| ready(line.at >= since)).boxed(),
            None => lines,
        }
    }
}

fn wanted(parameters: &Parameters) -> Result<Wanted, ApiError> {
    let wrong = |name: &str| ApiError::bad_request(format!("bad value of query parameter '{name}'"));
    let given = |name: &str| parameters.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let follow = match given("follow") {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(wrong("follow")),
    };
    let tail = given("tail").map(|tail| tail.parse().ok().filter(|tail| *tail <= MAX_TAIL).ok_or(wrong("tail")));
    let ago = given("since").map(|ago| seconds(ago).ok_or(wrong("since")));
    let ago = ago.transpose()?.map(|ago| Timestamp::from_second(Timestamp::now().as_second().saturating_sub(ago)));
    let time = given("since_time").map(|time| Timestamp::parse(time).ok_or(wrong("since_time")));
    Ok(Wanted { follow, tail: tail.transpose()?, since: ago.max(time.transpose()?) })
}

/// A duration as Go writes it, `1h30m0s`, in whole seconds.
fn seconds(text: &str) -> Option<i64> {
    let duration: jiff::SignedDuration = text.parse().ok()?;
    Some(duration.as_secs()).filter(|seconds| *seconds >= 0)
}

/// Ends when the application is not there any more.
fn gone(state: ApiState, app: App) -> BoxFuture<'static, ()> {
    async move {
        loop {
            tokio::time::sleep(LOOK).await;
            let found = state.apps.get(&app.namespace, &app.name).await;
            if matches!(found, Err(apps::Error::NoSuchApp { .. } | apps::Error::NoSuchNamespace(_))) {
                return;
            }
        }
    }
    .boxed()
}

/// Until the log or the client has ended, or what it is the log of.
async fn send(
    mut socket: WebSocket,
    mut lines: BoxStream<'static, LogLine>,
    namespace: String,
    mut gone: BoxFuture<'static, ()>,
) {
    let mut ping = tokio::time::interval(PING);
    loop {
        let message = tokio::select! {
            line = lines.next() => match line {
                Some(line) => as_json(&line, &namespace),
                None => break,
            },
            message = socket.recv() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
            _ = ping.tick() => Message::Ping(Bytes::new()),
            () = &mut gone => break,
        };
        if socket.send(message).await.is_err() {
            return;
        }
    }
    let end = CloseFrame { code: close_code::NORMAL, reason: "".into() };
    websocket::close(socket, Some(end)).await;
}

fn as_json(line: &LogLine, namespace: &str) -> Message {
    let text = json!({
        "Message": line.text,
        "ContainerName": line.origin,
        "PodName": line.origin,
        "Namespace": namespace,
        "Timestamp": line.at,
    });
    Message::Text(text.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted_of(query: &[(&str, &str)]) -> Result<Wanted, ApiError> {
        wanted(&query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn what_is_asked_is_understood_or_refused() {
        let all = wanted_of(&[("follow", ""), ("tail", ""), ("since", "")]).unwrap();
        assert_eq!((all.follow, all.tail, all.since), (false, None, None));
        let some = wanted_of(&[("follow", "true"), ("tail", "5"), ("since_time", "2026-01-02T03:04:05Z")]).unwrap();
        assert_eq!((some.follow, some.tail), (true, Some(5)));
        assert_eq!(some.since.unwrap().to_string(), "2026-01-02T03:04:05Z");
        for (name, value) in [
            ("follow", "yes"),
            ("tail", "-1"),
            ("tail", "100001"),
            ("since", "yesterday"),
            ("since", "-1h"),
            ("since_time", "12:00"),
        ] {
            assert!(wanted_of(&[(name, value)]).is_err_and(|error| error.title.contains(name)), "{name}={value}");
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, expected) in [("1h30m0s", 5400), ("90s", 90), ("1.5h", 5400), ("0s", 0), ("1500ms", 1)] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
    }
}
