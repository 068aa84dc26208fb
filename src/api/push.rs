//! Uploads: Epinio's, and the one that does everything.

mod answer;
mod wishes;

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
use futures::TryStreamExt as _;
use serde_json::{Value, json};

use self::wishes::wishes;
use super::{ApiError, ApiState, applications::find, credential::Caller, staging::stage_of};
use crate::{
    apps::{self, Deployment, NewApp},
    model::{AfterStaging, App, AppChange, AppName, ImageName, Namespace, Phase, ReleaseState, Staging, StagingState},
    telemetry,
};

/// The cause of a push that is not over: whoever listens can do so again.
pub const STOPPED: &str = "the daemon was stopped; it goes on when it is started again";
/// How often is looked for the end of a deployment that somebody else began.
const LOOK: Duration = Duration::from_millis(300);

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
            let (sink, body) = answer::body();
            let ended = state.pushes.spawn(carry_out(state.clone(), staging.clone()));
            tokio::spawn(async move { answer::tell(&state, &staging, upload, ended, &sink).await });
            ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
        }
        Err(error) => refused(&error),
    }
}

/// The answer to a push once more, from its first line, whoever took it: for a client whose connection has ended.
pub(super) async fn rejoin(
    State(state): State<ApiState>,
    Path((namespace, name, id)): Path<(String, String, String)>,
) -> Response {
    let find = async {
        let (namespace, id) = stage_of(&(namespace, id))?;
        let staging = state.stagings.get(&namespace, &id).await?;
        let is_its = staging.app.as_str() == name;
        is_its.then_some(staging).ok_or_else(|| ApiError::not_found(format!("staging '{id}' of this application")))
    };
    match find.await {
        Ok(staging) => {
            let (sink, body) = answer::body();
            tokio::spawn(async move { answer::tell_again(&state, &staging, &sink).await });
            ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
        }
        Err(error) => refused(&error),
    }
}

fn refused(error: &ApiError) -> Response {
    let mut response = (error.status, format!("error: {}\n", error.title)).into_response();
    if error.status == StatusCode::UNAUTHORIZED {
        let challenge = header::HeaderValue::from_static("Basic realm=\"epiniod\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
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
        state.pushes.clone().spawn(async move {
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
    // Before anything is sent, and nothing of it is left.
    state.apps.can_be(&namespace, &name, &wishes.change).await?;
    let started = Instant::now();
    let body = body.into_data_stream().map_err(io::Error::other);
    let source = state.sources.receive(&namespace, &name, body).await?;
    let upload = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    // A task of its own: what has arrived is staged, also when the client goes away just now.
    let new = NewApp { namespace, name, username: caller.0.to_string(), config: wishes.change };
    let state = state.clone();
    let staging = tokio::spawn(async move {
        let (app, change) = wanted(&state, new).await?;
        let then = AfterStaging::Deploy { origin: wishes.origin, change };
        Ok::<_, ApiError>(state.stagings.start(&app, &source.uid, then).await?)
    });
    Ok((staging.await.map_err(|error| ApiError::internal(&error))??, upload))
}

/// The application as the push wants it, made where there is none. One that is there becomes so only when what is
/// built of it serves.
async fn wanted(state: &ApiState, new: NewApp) -> Result<(App, AppChange), ApiError> {
    let (namespace, name, change) = (new.namespace.clone(), new.name.clone(), new.config.clone());
    let mut app = match state.apps.get(&namespace, &name).await {
        Err(apps::Error::NoSuchApp { .. }) => match state.apps.create(new).await {
            // Somebody else was faster.
            Err(apps::Error::AppExists { .. }) => state.apps.get(&namespace, &name).await?,
            created => return Ok((created?, AppChange::default())),
        },
        app => app?,
    };
    change.apply(&mut app);
    Ok((app, change))
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
        return Err(failed(STOPPED));
    }
    let result = match (&staging.state, &staging.image) {
        (StagingState::Failed { cause }, _) => Err(failed(cause)),
        (_, None) => Err(failed("the staging left no image; push again")),
        (_, Some(image)) => deploy(&state, &staging, image.clone()).await,
    };
    state.stagings.settle(&staging).await?;
    result
}

/// How a push ends that was begun before, perhaps with another daemon: as the store has it.
async fn outcome(state: &ApiState, staging: &Staging) -> Result<Pushed, Failure> {
    let failed = |cause: &str| Failure { last_words: Vec::new(), cause: cause.to_owned() };
    loop {
        let staging = state.stagings.wait(&staging.namespace, &staging.id).await?;
        if let StagingState::Failed { cause } = &staging.state {
            return Err(failed(cause));
        }
        if !staging.state.is_final() || state.pushes.is_closed() {
            return Err(failed(STOPPED));
        }
        let release = state.apps.release_of(&staging.namespace, &staging.app, &staging.id).await?;
        match release.map(|release| (release.state, release.routes)) {
            Some((ReleaseState::Active | ReleaseState::Retired, routes)) => {
                let url = routes.first().map(|route| state.urls.of(route));
                let url = url.ok_or_else(|| failed("the application has no route"))?;
                return Ok(Pushed { timings: staging.timings, url });
            }
            Some((ReleaseState::Failed { cause }, _)) => return Err(failed(&not_up(&cause))),
            None if staging.then == AfterStaging::Nothing => {
                return Err(failed(
                    "the image was made, and not deployed: a newer push took its place, or the daemon's log says why",
                ));
            }
            Some((ReleaseState::Starting, _)) | None => tokio::time::sleep(LOOK).await,
        }
    }
}

fn not_up(cause: &str) -> String {
    format!("the new version did not come up: {cause}; what ran before still does")
}

async fn deploy(state: &ApiState, staging: &Staging, image: ImageName) -> Result<Pushed, Failure> {
    let failed = |cause: &str| Failure { last_words: Vec::new(), cause: cause.to_owned() };
    let AfterStaging::Deploy { origin, change } = staging.then.clone() else {
        return Err(failed("somebody else deploys this staging"));
    };
    let app = state.apps.get(&staging.namespace, &staging.app).await?;
    if app.stage_id.as_ref() != Some(&staging.id) {
        return Err(failed("superseded by a newer push"));
    }
    let started = Instant::now();
    let deployment = Deployment { image, stage_id: Some(staging.id.clone()), origin, change };
    let deployed = match state.apps.deploy(&staging.namespace, &staging.app, deployment).await {
        Ok(deployed) => deployed,
        Err(apps::Error::NotHealthy { cause, last_words, .. }) => {
            return Err(Failure { last_words, cause: not_up(&cause) });
        }
        Err(error) => return Err(error.into()),
    };
    let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let timings = staging.timings.iter().copied().chain([(Phase::Deploy, took)]).collect();
    let no_route = || failed("the application has no route");
    Ok(Pushed { timings, url: state.urls.of(deployed.routes.first().ok_or_else(no_route)?) })
}
