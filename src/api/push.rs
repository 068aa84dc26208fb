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
use tokio::{sync::mpsc, task::JoinHandle};

use super::{ApiError, ApiState, applications::find, credential::Caller, models};
use crate::{
    apps::{self, AppChange, Deployment, NewApp, Restart},
    model::{AfterStaging, App, AppName, Environment, ImageName, Namespace, Origin, Phase, Staging, StagingState},
    telemetry,
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
/// its body ends without an end, so that clients know: curl exits with 18. A client that goes away, or is slow to read, after
/// the upload does not hold up what has begun.
pub(super) async fn push(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
    RawQuery(query): RawQuery,
    caller: Caller,
    request: Request,
) -> Response {
    let (namespace, name) = path;
    match begin(&state, &namespace, &name, query.as_deref(), caller, request.into_body()).await {
        Ok((staging, upload)) => {
            let (sink, lines) = mpsc::channel::<Result<Bytes, io::Error>>(QUEUE);
            let ended = tokio::spawn(carry_out(state.clone(), staging.clone()));
            tokio::spawn(async move { tell(&state, &staging, upload, ended, &sink).await });
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

/// Goes on with the pushes that a daemon before did not finish.
pub async fn resume_pushes(state: &ApiState) -> Result<(), ApiError> {
    for staging in state.stagings.to_be_deployed().await? {
        if state.apps.was_deployed(&staging.namespace, &staging.app, &staging.id).await? {
            // The release is there, and goes on by itself.
            state.stagings.settle(&staging).await?;
            continue;
        }
        let state = state.clone();
        tokio::spawn(async move {
            let id = staging.id.clone();
            match carry_out(state, staging).await {
                Ok(_) => tracing::info!(staging = %id, "a push that was interrupted is deployed"),
                Err(failure) => {
                    tracing::warn!(staging = %id, cause = failure.cause, "a push that was interrupted failed")
                }
            }
        });
    }
    Ok(())
}

/// What can still be refused with a status: names, wishes, the archive.
async fn begin(
    state: &ApiState,
    namespace: &str,
    name: &str,
    query: Option<&str>,
    caller: Caller,
    body: Body,
) -> Result<(Staging, u64), ApiError> {
    let namespace: Namespace = namespace.parse()?;
    let name: AppName = name.parse()?;
    let wishes = wishes(query.unwrap_or_default())?;
    state.apps.namespace(&namespace).await?;
    let started = Instant::now();
    let body = body.into_data_stream().map_err(io::Error::other);
    let source = state.sources.receive(&namespace, &name, body).await?;
    let upload = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    // A task of its own: what has arrived is staged, also when the client goes away just now.
    let (state, new) =
        (state.clone(), NewApp { namespace, name, username: caller.0.to_string(), config: wishes.change });
    let staging = tokio::spawn(async move {
        let app = prepared(&state, new).await?;
        let then = AfterStaging::Deploy { origin: wishes.origin };
        Ok::<_, ApiError>(state.stagings.start(&app, &source.uid, then).await?)
    });
    Ok((staging.await.map_err(|error| ApiError::internal(&error))??, upload))
}

/// The application as the push wants it, made where there is none.
async fn prepared(state: &ApiState, new: NewApp) -> Result<App, ApiError> {
    Ok(match state.apps.get(&new.namespace, &new.name).await {
        Ok(_) => state.apps.update(&new.namespace, &new.name, new.config).await?,
        Err(apps::Error::NoSuchApp { .. }) => state.apps.create(new).await?,
        Err(error) => return Err(error.into()),
    })
}

/// How a push ended well.
struct Pushed {
    timings: Vec<(Phase, u64)>,
    url: String,
}

/// Why a push failed.
struct Failure {
    /// What the application said last.
    last_words: Vec<String>,
    cause: String,
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { last_words: Vec::new(), cause: telemetry::chain(&error) }
    }
}

/// Waits for a staging and deploys its image, whoever listens.
async fn carry_out(state: ApiState, staging: Staging) -> Result<Pushed, Failure> {
    let failed = |cause: &str| Failure { last_words: Vec::new(), cause: cause.to_owned() };
    let staging = state.stagings.wait(&staging.namespace, &staging.id).await?;
    if !staging.state.is_final() {
        return Err(failed("the daemon was stopped; it goes on when it is started again"));
    }
    let result = match (&staging.state, &staging.image) {
        (StagingState::Failed { cause }, _) => Err(failed(cause)),
        (_, None) => Err(failed("the staging left no image; push again")),
        (_, Some(image)) => deploy(&state, &staging, image.clone()).await,
    };
    state.stagings.settle(&staging).await?;
    result
}

async fn deploy(state: &ApiState, staging: &Staging, image: ImageName) -> Result<Pushed, Failure> {
    let AfterStaging::Deploy { origin } = staging.then.clone() else {
        return Err(Failure { last_words: Vec::new(), cause: "somebody else deploys this staging".to_owned() });
    };
    let started = Instant::now();
    let deployment = Deployment { image, stage_id: Some(staging.id.clone()), origin };
    let deployed = match state.apps.deploy(&staging.namespace, &staging.app, deployment).await {
        Ok(deployed) => deployed,
        Err(apps::Error::NotHealthy { cause, last_words, .. }) => {
            let cause = format!("the new version did not come up: {cause}; what ran before still does");
            return Err(Failure { last_words, cause });
        }
        Err(error) => return Err(error.into()),
    };
    let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let timings = staging.timings.iter().copied().chain([(Phase::Deploy, took)]).collect();
    let no_route = || Failure { last_words: Vec::new(), cause: "the application has no route".to_owned() };
    Ok(Pushed { timings, url: state.urls.of(deployed.routes.first().ok_or_else(no_route)?) })
}

/// Everything about a push, at the pace of the client.
async fn tell(
    state: &ApiState,
    staging: &Staging,
    upload: u64,
    ended: JoinHandle<Result<Pushed, Failure>>,
    sink: &mpsc::Sender<Result<Bytes, io::Error>>,
) {
    let result = match tell_staging(state, staging, sink).await {
        Ok(()) => ended.await.map_err(Failure::from).and_then(|result| result),
        Err(failure) => Err(failure),
    };
    match result {
        Ok(pushed) => {
            say(sink, &summary(&[&[(Phase::Upload, upload)], pushed.timings.as_slice()].concat())).await;
            say(sink, &pushed.url).await;
        }
        Err(Failure { last_words, cause }) => {
            for line in last_words {
                say(sink, &format!("| {line}")).await;
            }
            say(sink, &format!("error: {cause}")).await;
            // The server writes what it has when it waits for more: the cause must be out before the end.
            tokio::time::sleep(FLUSH).await;
            // Nobody hears it when the client is gone.
            let _ = sink.send(Err(io::Error::other("the push failed"))).await;
        }
    }
}

async fn tell_staging(
    state: &ApiState,
    staging: &Staging,
    sink: &mpsc::Sender<Result<Bytes, io::Error>>,
) -> Result<(), Failure> {
    let (namespace, id) = (&staging.namespace, &staging.id);
    say(sink, &format!("staging {id} of application {} in namespace {namespace}", staging.app)).await;
    let mut log = state.stagings.log(namespace, id, true).await?;
    while let Some(line) = log.next().await {
        say(sink, &line.text).await;
    }
    if state.stagings.wait(namespace, id).await?.state == StagingState::Done {
        say(sink, "===> DEPLOYING").await;
    }
    Ok(())
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
