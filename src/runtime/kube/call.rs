//! One request to the API server: with a deadline, and again while the server is away.
//!
//! A server that restarts is away for up to a minute. Whatever is sent here may be sent twice: what is applied, patched or
//! deleted is so afterwards, however often. Who creates looks at [`is_taken`].

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use crate::runtime::Error;

/// So long one answer may take.
const ANSWER: Duration = Duration::from_secs(30);
/// So long a server that does not answer is asked again.
const GIVE_UP: Duration = Duration::from_secs(90);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Sends a request until it is answered, or for [`GIVE_UP`].
pub(super) async fn call<T, F>(doing: &str, mut request: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = kube::Result<T>>,
{
    let give_up = Instant::now() + GIVE_UP;
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match timeout(ANSWER, request()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) if passes(&error) => failed(doing)(error),
            Ok(Err(error)) => return Err(failed(doing)(error)),
            Err(_) => {
                let cause = format!("the API server does not answer within {} s", ANSWER.as_secs());
                Error::Failed { doing: doing.to_owned(), cause }
            }
        };
        if Instant::now() + pause > give_up {
            return Err(error);
        }
        tracing::debug!(%error, "the API server did not answer; the request is sent again");
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The same for a request whose object may be gone.
pub(super) async fn call_unless_missing<T, F>(doing: &str, mut request: impl FnMut() -> F) -> Result<(), Error>
where
    F: Future<Output = kube::Result<T>>,
{
    let request = || {
        let answer = request();
        async { ignore_missing(answer.await) }
    };
    call(doing, request).await
}

/// What the API server refused or did not answer, in plain words.
pub(super) fn failed(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    let doing = doing.into();
    move |error| {
        let cause = match &error {
            kube::Error::Api(status) if status.code == 403 && status.message.contains(" cannot ") => {
                format!(
                    "the daemon may not do that in this cluster: {}; 'epiniod install' sets its permissions",
                    status.message
                )
            }
            kube::Error::Api(status) if status.code == 401 => {
                format!("the API server does not know the daemon's credential: {}", status.message)
            }
            kube::Error::Api(status) => status.message.clone(),
            other => format!("the API server does not answer: {}", crate::telemetry::chain(other)),
        };
        Error::Failed { doing, cause }
    }
}

/// Somebody created it before, perhaps this request when it was first sent.
pub(super) fn is_taken(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_already_exists())
}

fn ignore_missing<T>(result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether the same request may have a better answer soon.
fn passes(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => matches!(status.code, 408 | 429 | 500 | 502 | 503 | 504),
        kube::Error::Service(_) | kube::Error::HyperError(_) | kube::Error::ReadEvents(_) => true,
        _ => false,
    }
}
