//! Uploads: Epinio's, and the one that does everything.

mod again;
mod answer;
mod wishes;

pub(super) use self::again::follow;
pub use self::answer::STOPPED;

use std::{io, time::Instant};

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
use super::{ApiError, ApiState, applications::find, credential::Caller};
use crate::{
    apps::{self, Deployment, NewApp},
    model::{AfterStaging, App, AppChange, AppName, ImageName, Namespace, Phase, Route, Staging, StagingState},
    telemetry,
};

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
            let (sink, answer) = answer::begin();
            let ended = state.pushes.spawn(carry_out(state.clone(), staging.clone()));
            tokio::spawn(async move { answer::tell(&state, &staging, upload, ended, &sink).await });
            answer
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
        if state.apps.release_of(&staging.namespace, &staging.app, &staging.id).await?.is_some() {
            // The release is there, and goes on by itself.
            state.stagings.settle(&staging).await?;
            continue;
        }
        let state = state.clone();
        state.pushes.clone().spawn(async move {
            let id = staging.id.clone();
            match carry_out(state, staging).await {
                Ok(_) => tracing::info!(staging = %id, "a push that was interrupted is deployed"),
                Err(Failure::Failed { cause, .. }) => {
                    tracing::warn!(staging = %id, cause, "a push that was interrupted failed")
                }
                Err(Failure::Stopped) => {}
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
    let new = NewApp { namespace, name, username: caller.0.name.to_string(), config: wishes.change };
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

/// Why a push did not end well.
enum Failure {
    Failed {
        /// What the application said last.
        last_words: Vec<String>,
        cause: String,
    },
    /// It did not end here: the next daemon goes on with it.
    Stopped,
}

impl Failure {
    fn because(cause: &str) -> Self {
        Self::Failed { last_words: Vec::new(), cause: cause.to_owned() }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::because(&telemetry::chain(&error))
    }
}

/// Waits for a staging and deploys its image, whoever listens.
async fn carry_out(state: ApiState, staging: Staging) -> Result<Pushed, Failure> {
    let staging = state.stagings.wait(&staging.namespace, &staging.id).await?;
    if !staging.state.is_final() {
        return Err(Failure::Stopped);
    }
    let result = match (&staging.state, &staging.image) {
        (StagingState::Failed { cause }, _) => Err(Failure::because(cause)),
        (_, None) => Err(Failure::because("the staging left no image; push again")),
        (_, Some(image)) => deploy(&state, &staging, image.clone()).await,
    };
    state.stagings.settle(&staging).await?;
    result
}

async fn deploy(state: &ApiState, staging: &Staging, image: ImageName) -> Result<Pushed, Failure> {
    let AfterStaging::Deploy { origin, change } = staging.then.clone() else {
        return Err(Failure::because("somebody else deploys this staging"));
    };
    let app = state.apps.get(&staging.namespace, &staging.app).await?;
    if app.stage_id.as_ref() != Some(&staging.id) {
        return Err(Failure::because(SUPERSEDED));
    }
    let started = Instant::now();
    let deployment = Deployment { image, stage_id: Some(staging.id.clone()), origin, change };
    let deployed = match state.apps.deploy(&staging.namespace, &staging.app, deployment).await {
        Ok(deployed) => deployed,
        Err(apps::Error::NotHealthy { cause, last_words, .. }) => {
            return Err(Failure::Failed { last_words, cause: not_up(&cause) });
        }
        Err(error) => return Err(error.into()),
    };
    let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let timings = staging.timings.iter().copied().chain([(Phase::Deploy, took)]).collect();
    Ok(Pushed { timings, url: url(state, &deployed.routes)? })
}

/// Where what was pushed is: by its first route.
fn url(state: &ApiState, routes: &[Route]) -> Result<String, Failure> {
    let no_route = || Failure::because("the application has no route");
    Ok(state.urls.of(routes.first().ok_or_else(no_route)?))
}

const SUPERSEDED: &str = "superseded by a newer push";

fn not_up(cause: &str) -> String {
    format!("the new version did not come up: {cause}; what ran before still does")
}
