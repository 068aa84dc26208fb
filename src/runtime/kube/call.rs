//! One request to the API server, as the store makes them: with a deadline, and again while the server is away.
//!
//! Whatever is sent here may be sent twice: what is applied, patched or deleted is so afterwards, however often. Who
//! creates looks at [`is_taken`].

use std::future::Future;

use crate::{
    runtime::Error,
    store::kube::{Failure, call as request_until_answered},
};

/// Sends a request until it is answered, or for as long as a server may be away.
pub(super) async fn call<T, F>(doing: &str, request: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = kube::Result<T>>,
{
    request_until_answered(request).await.map_err(|failure| because(doing.to_owned(), failure))
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
    move |error| because(doing, Failure::of(&error))
}

/// Somebody created it before, perhaps this request when it was first sent.
pub(super) fn is_taken(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_already_exists())
}

fn because(doing: String, failure: Failure) -> Error {
    Error::Failed { doing, cause: failure.explain() }
}

fn ignore_missing<T>(result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}
