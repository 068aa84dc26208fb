//! `GET /push/NAMESPACE/APP/STAGING?heard=LINES`: the answer to a push, for a client whose connection ended before it did.
//!
//! It has no end of its own to wait for: who carries the push out may be another daemon than the one that was asked to. What
//! became of it stands in the staging and in its release.

use std::time::Duration;

use axum::{
    extract::{Path, Query, State},
    response::Response,
};
use serde::Deserialize;
use tokio::time::timeout;

use super::{
    Failure, Pushed, SUPERSEDED,
    answer::{self, Sink},
    not_up, url,
};
use crate::{
    api::{ApiError, ApiState},
    model::{AfterStaging, AppName, Namespace, ReleaseState, StageId, Staging, StagingState},
    staging,
};

/// How often is looked at a release of which nothing else tells.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize)]
pub(in crate::api) struct Heard {
    /// Lines of the first answer that arrived, but for its first one.
    #[serde(default)]
    heard: usize,
}

pub(in crate::api) async fn follow(
    State(state): State<ApiState>,
    Path((namespace, app, id)): Path<(String, String, String)>,
    Query(Heard { heard }): Query<Heard>,
) -> Result<Response, ApiError> {
    let (namespace, app, id): (Namespace, AppName, StageId) = (namespace.parse()?, app.parse()?, id.parse()?);
    let staging = state.stagings.get(&namespace, &id).await?;
    if staging.app != app {
        return Err(staging::Error::NoSuchStaging(id.to_string()).into());
    }
    let (sink, answer) = answer::begin();
    tokio::spawn(async move {
        tokio::select! {
            () = tell(&state, &staging, heard, &sink) => {}
            // Nobody listens any more.
            () = sink.closed() => {}
        }
    });
    Ok(answer)
}

async fn tell(state: &ApiState, staging: &Staging, heard: usize, sink: &Sink) {
    let outcome = async {
        let staging = answer::tell_staging(state, staging, heard, sink).await?;
        outcome(state, &staging).await
    };
    let result = answer::before_the_end(state, outcome).await;
    answer::tell_end(state, result, sink).await;
}

/// Waits for what becomes of a staging that has ended.
async fn outcome(state: &ApiState, staging: &Staging) -> Result<Pushed, Failure> {
    if let StagingState::Failed { cause } = &staging.state {
        return Err(Failure::because(cause));
    }
    let mut changes = state.apps.changes();
    loop {
        // First: the release is made before the staging is settled.
        let settled = state.stagings.get(&staging.namespace, &staging.id).await?.then == AfterStaging::Nothing;
        let release = state.apps.release_of(&staging.namespace, &staging.app, &staging.id).await?;
        match release.map(|release| (release.state, release.routes)) {
            Some((ReleaseState::Active | ReleaseState::Retired, routes)) => {
                return Ok(Pushed { timings: staging.timings.clone(), url: url(state, &routes)? });
            }
            Some((ReleaseState::Failed { cause }, _)) => return Err(Failure::because(&not_up(&cause))),
            None if settled => return Err(undeployed(state, staging).await),
            Some((ReleaseState::Starting, _)) | None => {}
        }
        if !staging.state.is_final() || state.pushes.is_closed() {
            return Err(Failure::Stopped);
        }
        let _ = timeout(LOOK, changes.changed()).await;
    }
}

/// Why there is no release of it.
async fn undeployed(state: &ApiState, staging: &Staging) -> Failure {
    match state.apps.get(&staging.namespace, &staging.app).await {
        Ok(app) if app.stage_id.as_ref() != Some(&staging.id) => Failure::because(SUPERSEDED),
        Ok(app) => Failure::because(&app.failure.unwrap_or_else(|| UNDEPLOYED.to_owned())),
        Err(error) => error.into(),
    }
}

const UNDEPLOYED: &str = "the image was not deployed; the daemon's log says why";
