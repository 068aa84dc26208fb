//! From source to image: the queue and the journalled state machine of a staging, its tokens, its log.

use futures::stream::BoxStream;

use crate::{
    model::{App, Namespace, StageId, Staging},
    runtime::LogLine,
    store,
};

/// All stagings of this daemon.
pub struct Stagings {}

impl Stagings {
    /// Queues a staging of an uploaded source and returns at once. A staging of the same
    /// application that is not finished is superseded.
    pub async fn start(&self, _app: &App, _blob_uid: &str) -> Result<Staging, Error> {
        todo!()
    }

    pub async fn get(&self, _namespace: &Namespace, _id: &StageId) -> Result<Staging, Error> {
        todo!()
    }

    /// Ends when the staging does; the result has a final state.
    pub async fn wait(&self, _namespace: &Namespace, _id: &StageId) -> Result<Staging, Error> {
        todo!()
    }

    /// The log from its first line; with `follow` until the staging ends.
    pub async fn log(
        &self,
        _namespace: &Namespace,
        _id: &StageId,
        _follow: bool,
    ) -> Result<BoxStream<'static, LogLine>, Error> {
        todo!()
    }
}

/// What can go wrong with a staging, apart from the build itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no staging '{0}'")]
    NoSuchStaging(String),
    #[error("there is no upload '{0}'; upload the source first")]
    NoSuchSource(String),
    #[error("the store failed")]
    Store(#[from] store::Error),
    #[error("the blob store failed")]
    Blob(#[from] crate::blob::Error),
}
