//! One request to the API server: with a deadline, and again while the server is away.
//!
//! A server that restarts, or whose storage elects a leader, is away for up to a minute; who waits for an answer then
//! waits a little longer. A repeated request may have been carried out before: [`Failure::may_be_done`] says so.

use std::{
    error::Error as StdError,
    future::Future,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use kube::{
    Api,
    api::{DynamicObject, ListParams},
    core::Status,
};
use tokio::time::{Instant, sleep, timeout};

use crate::store::Error;

/// Why a request has no good answer.
#[derive(Debug)]
pub struct Failure {
    cause: Cause,
    repeated: bool,
}

#[derive(Debug)]
enum Cause {
    Refused(Box<Status>),
    /// What was received last instead of an answer.
    Unanswered(String),
}

/// From now on nobody in this process waits long for a server that is away: it ends, and the next one finds what there is.
pub fn hurry() {
    IS_ENDING.store(true, Ordering::Relaxed);
}

/// Sends a request until it is answered, or for as long as a server may be away.
pub async fn call<T, F>(mut request: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = kube::Result<T>>,
{
    let begun = Instant::now();
    let mut pauses = Pauses::default();
    let mut repeated = false;
    loop {
        let is_ending = IS_ENDING.load(Ordering::Relaxed);
        let answer = if is_ending { LAST } else { ANSWER };
        let (cause, asked) = match timeout(answer, request()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => match Failure::of(&error) {
                Failure { cause: Cause::Refused(status), .. } if !is_passing(status.code) => {
                    return Err(Failure { cause: Cause::Refused(status), repeated });
                }
                failure => (failure.cause, retry_after(&error)),
            },
            Err(_) => (Failure::unanswered(answer).cause, Duration::ZERO),
        };
        let pause = pauses.next().unwrap_or_default().max(asked);
        let patience = if is_ending { LAST } else { GIVE_UP };
        if begun.elapsed() + pause > patience {
            return Err(Failure { cause, repeated: true });
        }
        tracing::debug!(?cause, "the API server did not answer; the request is sent again");
        repeated = true;
        sleep(pause).await;
    }
}

/// What is read of all objects with these labels, page by page; from the first again when the list became too old meanwhile.
pub(super) async fn list<T>(
    api: &Api<DynamicObject>,
    labels: &str,
    doing: &str,
    read: impl Fn(DynamicObject) -> Result<Option<T>, Error>,
) -> Result<Vec<T>, Error> {
    let mut params = ListParams::default().labels(labels).limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = match call(|| api.list(&params)).await {
            Ok(page) => page,
            Err(failure) if failure.is_expired() && params.continue_token.is_some() => {
                params.continue_token = None;
                all.clear();
                continue;
            }
            Err(failure) => return Err(failure.into_error(doing)),
        };
        for found in page.items {
            all.extend(read(found)?);
        }
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            return Ok(all);
        }
    }
}

impl Failure {
    pub fn of(error: &kube::Error) -> Self {
        let cause = match error {
            kube::Error::Api(status) => Cause::Refused(status.clone()),
            other => Cause::Unanswered(innermost(other)),
        };
        Self { cause, repeated: false }
    }

    pub fn unanswered(within: Duration) -> Self {
        Self { cause: Cause::Unanswered(format!("no answer within {} s", within.as_secs())), repeated: false }
    }

    pub fn code(&self) -> Option<u16> {
        self.status().map(|status| status.code)
    }

    /// The object itself is not there; not its namespace, nor its whole kind.
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(|status| status.code == 404 && !is_unknown_kind(status))
            && !self.is_namespace_missing()
    }

    pub fn is_taken(&self) -> bool {
        self.status().is_some_and(Status::is_already_exists)
    }

    /// Somebody was faster.
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(|status| status.code == 409 && !status.is_already_exists())
    }

    /// The page of a list is no more to be had.
    pub fn is_expired(&self) -> bool {
        self.code() == Some(410)
    }

    /// An earlier attempt may have been carried out without its answer having come.
    pub fn may_be_done(&self) -> bool {
        self.repeated
    }

    pub fn into_error(self, doing: impl Into<String>) -> Error {
        Error::Backend { doing: doing.into(), cause: self.explain() }
    }

    fn status(&self) -> Option<&Status> {
        match &self.cause {
            Cause::Refused(status) => Some(status),
            Cause::Unanswered(_) => None,
        }
    }

    fn is_namespace_missing(&self) -> bool {
        let kind = |status: &Status| status.details.as_ref().is_some_and(|details| details.kind == "namespaces");
        self.status().is_some_and(|status| status.code == 404 && kind(status))
    }

    /// In plain words, with what to do.
    pub fn explain(&self) -> String {
        let Some(status) = self.status() else {
            return match &self.cause {
                Cause::Unanswered(last) => format!("the API server of the cluster does not answer: {last}"),
                Cause::Refused(_) => String::new(),
            };
        };
        if self.is_namespace_missing() {
            let name = status.details.as_ref().map_or("", |details| &details.name);
            return format!(
                "the cluster has no namespace '{name}'; `epiniod install` makes the daemon's, `epiniod namespace create` others"
            );
        }
        match status.code {
            401 => "the API server does not accept the credential of this daemon; restart it, or renew its kubeconfig"
                .to_owned(),
            403 if status.message.contains(" cannot ") => {
                format!("{}; `epiniod install` grants what the daemon needs", status.message)
            }
            404 if is_unknown_kind(status) => {
                "the cluster does not know applications (apps.epiniod.dev); run `epiniod install` to define them"
                    .to_owned()
            }
            code if status.message.is_empty() => format!("the API server answers {code}"),
            _ => status.message.clone(),
        }
    }
}

/// What an error is about, without the wrappings that repeat it.
pub(super) fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Pauses that double, each a little random so that many do not come at once.
#[derive(Debug)]
pub(super) struct Pauses {
    next: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { next: FIRST_PAUSE }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        use std::hash::{BuildHasher as _, RandomState};
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST_PAUSE);
        let share = (RandomState::new().hash_one(0) % 100) as u32;
        Some(pause + pause * share / 200)
    }
}

impl kube::runtime::utils::Backoff for Pauses {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

/// 401 as well: the server says so, too, when it cannot look a credential up just now, and a credential that is renewed is read
/// again. And the one of a pod ends when the pod is deleted by force, which is a moment before its process does: that is no
/// verdict about anything, and who listens is not to be told of one.
fn is_passing(code: u16) -> bool {
    matches!(code, 401 | 408 | 429 | 500 | 502 | 503 | 504)
}

/// Paths that the API server does not know are answered in plain text, not with a `Status`.
fn is_unknown_kind(status: &Status) -> bool {
    status.reason != "NotFound"
}

fn retry_after(error: &kube::Error) -> Duration {
    let seconds = match error {
        kube::Error::Api(status) => status.details.as_ref().map_or(0, |details| details.retry_after_seconds),
        _ => 0,
    };
    Duration::from_secs(seconds.into()).min(LONGEST_PAUSE)
}

/// Objects that are asked for at once.
pub(super) const PAGE: u32 = 500;
const ANSWER: Duration = Duration::from_secs(30);
const GIVE_UP: Duration = Duration::from_secs(90);
/// For each request of one that ends, all in all.
const LAST: Duration = Duration::from_secs(10);
static IS_ENDING: AtomicBool = AtomicBool::new(false);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use kube::core::response::StatusDetails;
    use serde_json::json;

    use super::*;

    fn status(code: u16, reason: &str, message: &str) -> Status {
        Status::failure(message, reason).with_code(code)
    }

    fn refused<T>(status: Status) -> kube::Result<T> {
        Err(kube::Error::Api(status.boxed()))
    }

    #[tokio::test]
    async fn only_what_passes_is_asked_again_and_who_asked_knows() {
        let asked = Cell::new(0);
        let answer = call(|| {
            asked.set(asked.get() + 1);
            let next = asked.get();
            async move {
                match next {
                    1 => refused(status(503, "ServiceUnavailable", "starting")),
                    2 => refused(status(401, "Unauthorized", "Unauthorized")),
                    _ => Ok("done"),
                }
            }
        });
        assert_eq!((answer.await.unwrap(), asked.get()), ("done", 3));
        let forbidden = call::<(), _>(|| async { refused(status(403, "Forbidden", "")) }).await.unwrap_err();
        assert!(forbidden.code() == Some(403) && !forbidden.may_be_done(), "{forbidden:?}");
        let asked = Cell::new(0);
        let answer = call::<(), _>(|| {
            asked.set(asked.get() + 1);
            let is_first = asked.get() == 1;
            async move {
                refused(if is_first {
                    status(500, "InternalError", "leader changed")
                } else {
                    status(409, "Conflict", "")
                })
            }
        });
        let failure = answer.await.unwrap_err();
        assert!(failure.is_conflict() && failure.may_be_done() && asked.get() == 2, "{failure:?}");
        let failure = call::<(), _>(|| async { refused(status(409, "AlreadyExists", "")) }).await.unwrap_err();
        assert!(failure.is_taken() && !failure.is_conflict() && !failure.may_be_done(), "{failure:?}");
    }

    #[test]
    fn what_is_missing_is_named_with_the_next_step() {
        let of = |status: Status| Failure::of(&kube::Error::Api(status.boxed()));
        let undefined = of(status(404, "Failed to parse error data", "404 page not found"));
        assert!(!undefined.is_not_found(), "a kind that is not defined is no object that is not there");
        let text = undefined.into_error("reading app a/b").to_string();
        assert!(text.contains("reading app a/b") && text.contains("epiniod install"), "{text}");
        let details: StatusDetails =
            serde_json::from_value(json!({ "kind": "namespaces", "name": "web" })).expect("details of a status");
        let homeless = of(status(404, "NotFound", "").with_details(details));
        assert!(!homeless.is_not_found());
        let text = homeless.into_error("writing").to_string();
        assert!(text.contains("no namespace 'web'") && text.contains("namespace create"), "{text}");
        assert!(of(status(404, "NotFound", "apps \"b\" not found")).is_not_found());
        let text =
            of(status(403, "Forbidden", "User \"u\" cannot get resource \"secrets\"")).into_error("x").to_string();
        assert!(text.contains("cannot get") && text.contains("grants"), "{text}");
    }
}
