//! The id of a request: what is logged of it, what is told of it, and what its client reads have the same.

use std::future::Future;

tokio::task_local! {
    static CURRENT: String;
}

/// A new id.
pub fn new_request_id() -> String {
    crate::model::random_hex::<8>()
}

/// Everything that happens in this future is of this request.
pub fn in_request<F: Future>(id: String, future: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(id, future)
}

/// The id of the request that this is done for; a new one where it is done for none.
pub fn request_id() -> String {
    CURRENT.try_with(Clone::clone).unwrap_or_else(|_| new_request_id())
}
