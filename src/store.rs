//! Durable state behind one trait.
//!
//! State is a set of small typed objects, each with a uid, a version for compare-and-swap and the
//! number of the schema it was written in. There is no transaction over several objects, so that
//! the Kubernetes API can be a backend. An object holds at most [`MAX_OBJECT_BYTES`].
//!
//! [`Store`] is what a backend implements; the rest of the product uses [`Objects`], which knows
//! types. One machine has a [`DiskStore`], a cluster a [`kube::KubeStore`].

mod disk;
mod index;
mod journal;
pub mod kube;
mod object;
mod resource;

use std::sync::Arc;

use async_trait::async_trait;

pub use disk::DiskStore;
pub use object::{Event, Key, Kind, Object, Page, Slice};
pub use resource::{Objects, Resource, Stored};

/// The largest JSON text of one object, in bytes.
pub const MAX_OBJECT_BYTES: usize = 256 * 1024;

/// A backend of durable state.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    async fn get(&self, key: &Key) -> Result<Option<Object>, Error>;

    /// Objects of one kind in order of namespace and name, `page.limit` at a time.
    async fn list(&self, kind: Kind, page: &Page) -> Result<Slice, Error>;

    /// Compare-and-swap: `object.version` 0 creates and fails with [`Error::Conflict`] when the key is
    /// taken; any other version has to be the current one. Returns the object with its new version (and, when it was created, its uid).
    /// When this returns, the write is durable.
    async fn put(&self, object: Object) -> Result<Object, Error>;

    /// Deletes an object; with a version only that version. Deleting what is not there is
    /// [`Error::NotFound`].
    async fn delete(&self, key: &Key, version: Option<u64>) -> Result<(), Error>;

    /// Every change of objects of this kind that what is read from now on does not have yet. A slow reader gets `Lagged` and has to list again.
    fn watch(&self, kind: Kind) -> tokio::sync::broadcast::Receiver<Event>;
}

/// A shared backend.
pub type SharedStore = Arc<dyn Store>;

/// What can go wrong with durable state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} does not exist")]
    NotFound(Key),
    #[error("{0} was changed by somebody else")]
    Conflict(Key),
    #[error("{key} takes {size} bytes; at most {MAX_OBJECT_BYTES} fit")]
    TooLarge { key: Key, size: usize },
    #[error("{key} was written by a newer epiniod (schema {found}, this one knows {known})")]
    NewerSchema { key: Key, found: u32, known: u32 },
    #[error("reading {key}")]
    Malformed { key: Key, source: serde_json::Error },
    #[error("{doing}")]
    Io { doing: String, source: std::io::Error },
    #[error("{doing}: {cause}")]
    Backend { doing: String, cause: String },
}
