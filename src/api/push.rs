//! Uploads: Epinio's, and the one that does everything.

use std::{
    io,
    time::{Duration, Instant},
};

use axum::{
    Json,
    body::Body,
    extract::{FromRequest as _, Multipart, Path, RawQuery, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{ApiError, ApiState, applications::find, credential::Caller, models};
use crate::{
    apps::{self, AppChange, Deployment, NewApp, Restart},
    model::{App, AppName, Environment, Namespace, Origin, Phase, Staging, StagingState},
};

/// How many lines of a log may wait for a slow client.
const QUEUE: usize = 256;

/// How long the last line has until the connection is cut.
const FLUSH: Duration = Duration::from_millis(200);

/// Multipart form, part `file`.
pub(super) async fn store(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let app = find(&state, &path).await?;
    let unreadable = |details: String| ApiError::bad_request("can't read multipart file input").with_details(details);
    let mut form = Multipart::from_request(request, &()).await.map_err(|error| unreadable(error.body_text()))?;
    while let Some(field) = form.next_field().await.map_err(|error| unreadable(error.body_text()))? {
        if field.name() == Some("file") {
            // The part ends with an error when the client goes away.
            let body = field.map_err(io::Error::other);
            let source = state.sources.receive(&app.namespace, &app.name, body).await?;
            return Ok(Json(json!({ "blobuid": source.uid })));
        }
    }
    Err(unreadable("there is no part named 'file'".to_owned()))
}

/// What `?instances=2&env=A=b&route=x.example.com&path=/home/me/app` asks for.
#[derive(Debug, Default)]
struct Wishes {
    change: AppChange,
    origin: Option<Origin>,
}

/// Stores, stages, deploys; the answer is the log as text, and ends with the URL. A failure is its last line, and
/// its body ends without an end, so that clients know: curl exits with 18. A client that goes away after the upload does not
/// stop what has begun.
pub(super) async fn push(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
    RawQuery(query): RawQuery,
    caller: Caller,
    request: Request,
) -> Response {
    let (namespace, name) = path;
    match begin(&state, &namespace, &name, query.as_deref(), caller, request.into_body()).await {
        Ok((app, staging, upload, origin)) => {
            let (sink, lines) = mpsc::channel::<Result<Bytes, io::Error>>(QUEUE);
            tokio::spawn(async move { go_on(&state, app, staging, upload, origin, &sink).await });
            let body =
                futures::stream::unfold(lines, |mut lines| async move { lines.recv().await.map(|line| (line, lines)) });
            ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(body)).into_response()
        }
        Err(error) => {
            let mut response = (error.status, format!("error: {}\n", error.title)).into_response();
            if error.status == StatusCode::UNAUTHORIZED {
                response
                    .headers_mut()
                    .insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Basic realm=\"epiniod\""));
            }
            response
        }
    }
}

/// What can still be refused with a status: names, wishes, the archive.
async fn begin(
    state: &ApiState,
    namespace: &str,
    name: &str,
    query: Option<&str>,
    caller: Caller,
    body: Body,
) -> Result<(App, Staging, u64, Option<Origin>), ApiError> {
    let namespace: Namespace = namespace.parse()?;
    let name: AppName = name.parse()?;
    let Wishes { change, origin } = wishes(query.unwrap_or_default())?;
    state.apps.namespace(&namespace).await?;
    let started = Instant::now();
    let body = body.into_data_stream().map_err(io::Error::other);
    let source = state.sources.receive(&namespace, &name, body).await?;
    let upload = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let app = match state.apps.get(&namespace, &name).await {
        Ok(_) => state.apps.update(&namespace, &name, change).await?,
        Err(apps::Error::NoSuchApp { .. }) => {
            let new = NewApp { namespace, name, username: caller.0.to_string(), config: change };
            state.apps.create(new).await?
        }
        Err(error) => return Err(error.into()),
    };
    let staging = state.stagings.start(&app, &source.uid).await?;
    Ok((app, staging, upload, origin))
}

/// Follows the staging, deploys, and says how it ended.
async fn go_on(
    state: &ApiState,
    app: App,
    staging: Staging,
    upload: u64,
    origin: Option<Origin>,
    sink: &mpsc::Sender<Result<Bytes, io::Error>>,
) {
    match staged_and_deployed(state, &app, &staging, upload, origin, sink).await {
        Ok(url) => say(sink, &url).await,
        Err(cause) => {
            say(sink, &format!("error: {cause}")).await;
            // The server writes what it has when it waits for more: the cause must be out before the end.
            tokio::time::sleep(FLUSH).await;
            // Nobody hears it when the client is gone.
            let _ = sink.send(Err(io::Error::other("the push failed"))).await;
        }
    }
}

async fn staged_and_deployed(
    state: &ApiState,
    app: &App,
    staging: &Staging,
    upload: u64,
    origin: Option<Origin>,
    sink: &mpsc::Sender<Result<Bytes, io::Error>>,
) -> Result<String, String> {
    let (namespace, id) = (&staging.namespace, &staging.id);
    say(sink, &format!("staging {id} of application {} in namespace {namespace}", app.name)).await;
    let mut log = state.stagings.log(namespace, id, true).await.map_err(|error| error.to_string())?;
    while let Some(line) = log.next().await {
        say(sink, &line.text).await;
    }
    let staging = state.stagings.wait(namespace, id).await.map_err(|error| error.to_string())?;
    let image = match (staging.state, staging.image) {
        (StagingState::Done, Some(image)) => image,
        (StagingState::Failed { cause }, _) => return Err(cause),
        _ => return Err("the staging was interrupted; push again".to_owned()),
    };
    say(sink, "===> DEPLOYING").await;
    let started = Instant::now();
    let deployment = Deployment { image, stage_id: Some(id.clone()), origin };
    let deployed = match state.apps.deploy(namespace, &app.name, deployment).await {
        Ok(deployed) => deployed,
        Err(apps::Error::NotHealthy { cause, last_words, .. }) => {
            for line in last_words {
                say(sink, &format!("| {line}")).await;
            }
            return Err(format!("the new version did not come up: {cause}; what ran before still does"));
        }
        Err(error) => return Err(error.to_string()),
    };
    let deploy = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut timings = vec![(Phase::Upload, upload)];
    timings.extend(staging.timings);
    timings.push((Phase::Deploy, deploy));
    say(sink, &summary(&timings)).await;
    let route = deployed.routes.first().ok_or("the application has no route")?;
    Ok(state.urls.of(route))
}

fn summary(timings: &[(Phase, u64)]) -> String {
    let seconds = |millis: u64| format!("{:.2} s", millis as f64 / 1000.0);
    let each: Vec<String> =
        timings.iter().map(|(phase, millis)| format!("{} {}", phase.as_str(), seconds(*millis))).collect();
    let total: u64 = timings.iter().map(|(_, millis)| millis).sum();
    format!("phases: {}, total {}", each.join(", "), seconds(total))
}

async fn say(sink: &mpsc::Sender<Result<Bytes, io::Error>>, line: &str) {
    // A client that is gone does not stop a push.
    let _ = sink.send(Ok(Bytes::from(format!("{line}\n")))).await;
}

fn wishes(query: &str) -> Result<Wishes, ApiError> {
    // The new environment comes with the new version: no restart for it alone.
    let mut wishes =
        Wishes { change: AppChange { restart: Restart::Later, ..AppChange::default() }, ..Wishes::default() };
    let mut environment = Environment::new();
    let mut routes = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value =
            decode(value).ok_or_else(|| ApiError::bad_request(format!("query parameter '{name}' is not valid")))?;
        match name {
            "instances" => {
                let number = value
                    .parse()
                    .map_err(|_| ApiError::bad_request(format!("'{value}' is not a number of instances")))?;
                wishes.change.instances = Some(number);
            }
            "env" => {
                let wrong = || ApiError::bad_request(format!("'{value}' is not NAME=VALUE"));
                let (name, value) = value.split_once('=').ok_or_else(wrong)?;
                environment.insert(name.parse()?, value.to_owned());
            }
            "route" => routes.push(models::parse_route(&value)?),
            "path" => wishes.origin = Some(Origin::Path { path: value, archive: false }),
            other => {
                let title = format!("query parameter '{other}' is not known; there are instances, env, route and path");
                return Err(ApiError::bad_request(title));
            }
        }
    }
    wishes.change.environment = (!environment.is_empty()).then_some(environment);
    wishes.change.routes = (!routes.is_empty()).then_some(routes);
    Ok(wishes)
}

/// Percent and plus, as forms have them.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_read_from_the_query() {
        let wishes = wishes("instances=2&env=A=b%20c&env=B=&route=x.example.com&path=%2Fhome").unwrap();
        let change = wishes.change;
        let environment = change.environment.unwrap();
        assert_eq!(environment[&"A".parse().unwrap()], "b c");
        assert_eq!(environment[&"B".parse().unwrap()], "");
        assert_eq!((change.instances, change.routes.unwrap().len()), (Some(2), 1));
        assert_eq!(wishes.origin, Some(Origin::Path { path: "/home".to_owned(), archive: false }));
        for wrong in ["instances=x", "env=A", "env=1=x", "nonsense=1", "route=%zz"] {
            assert!(super::wishes(wrong).is_err(), "{wrong}");
        }
    }
}
