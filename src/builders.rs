//! Third-party builders: images of others that applications are built with, and the run images that go with them.
//!
//! A builder is named by the user and is anywhere: in a registry, or in an OCI layout on this machine. It is used from
//! the bundled registry, so that every build finds it where our own images are, with the credential of its staging and none
//! of the upstream registry. So builder and run image are copied first, under reserved repositories; blobs that are here
//! already are not fetched again.
//!
//! - **A name is resolved once for each staging**: a tag that moves is seen by the next one. When the registry of a tag cannot be
//!   reached, the copy that was used last is used again, and the log says so.
//! - **What is read of a builder** is its labels and environment: who the CNB user is, the order, the run image, what
//!   it is made for. Its own lifecycle and launcher are not used; ours are.
//! - **Refused**: images for other machines, images that are no builders, users with the rights of root, in builders and in
//!   run images. Image
//!   extensions (Dockerfiles) are left out, with a note.

mod copy;
mod credentials;
mod error;
mod facts;
mod files;
mod layout;
mod remote;
mod upstream;
mod user;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

pub use error::Error;

use self::{copy::Copied, facts::Facts, upstream::Upstream};
use crate::{
    blob::SharedBlobs,
    lifecycle::phase::{CnbUser, Target},
    model::{BuilderName, Digest, ImageName, ImagePlace, Timestamp},
    oci::registry::Registry,
};

/// The repository of the copies of builders.
pub const BUILDERS: &str = "epiniod/builders";
/// The repository of the copies of their run images.
pub const RUN_IMAGES: &str = "epiniod/run-images";

/// A builder that is here, with its run image.
#[derive(Debug, Clone)]
pub struct Builder {
    pub name: BuilderName,
    pub image: ImageName,
    pub run_image: ImageName,
    /// What the builder calls its run image.
    pub run_image_name: String,
    /// Whom applications run as on it: `UID:GID`.
    pub run_user: String,
    pub user: CnbUser,
    pub target: Target,
    /// The order of its labels.
    pub order: Option<serde_json::Value>,
}

/// Hears what is done, for the log.
pub type Note<'a> = &'a (dyn Fn(String) + Send + Sync);

/// What a staging needs of third-party builders.
pub struct Builders {
    registry: Registry,
    blobs: SharedBlobs,
    /// A file in the format of `~/.docker/config.json`.
    credentials: PathBuf,
    /// One copies an image at a time.
    busy: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// What was read of run images before, by their digests.
    users: Mutex<HashMap<Digest, String>>,
}

impl Builders {
    /// `credentials` is read whenever a registry is asked; it need not be there.
    pub fn new(registry: Registry, blobs: SharedBlobs, credentials: PathBuf) -> Self {
        Self { registry, blobs, credentials, busy: Mutex::default(), users: Mutex::default() }
    }

    /// Looks up what the name means now, and copies what is not here. Dropping the future stops the copying and
    /// leaves nothing but whole blobs.
    pub async fn ensure(&self, name: &BuilderName, note: Note<'_>) -> Result<Builder, Error> {
        let upstream = self.upstream(name.place(), &name.to_string()).await?;
        let builder = self.copy(&upstream, BUILDERS, note).await?;
        let facts = Facts::read(&builder)?;
        if facts.has_extensions {
            note(format!("builder {name} has image extensions, which are not supported here; they are left out"));
        }
        let named = match &facts.run_image {
            Some(run_image) => run_image.clone(),
            None => self.run_image_in(&builder).await?,
        };
        let (run_image_name, run_image) = self
            .run_image(name, &named, note)
            .await
            .map_err(|source| Error::RunImage { builder: name.to_string(), source: Box::new(source) })?;
        let target = facts.target(&run_image.config);
        let run_user = self.run_user(&run_image).await?;
        Ok(Builder {
            name: name.clone(),
            image: builder.image,
            run_image: run_image.image,
            run_image_name,
            run_user,
            user: facts.user,
            target,
            order: facts.order,
        })
    }

    /// Forgets copies that are not among these, and that nobody asked for since.
    pub async fn expire(&self, in_use: &HashSet<Digest>, before: Timestamp) -> Result<(), Error> {
        for repository in [BUILDERS, RUN_IMAGES] {
            for (tag, digest, used) in self.registry.tagged(repository).await? {
                if used < before && !in_use.contains(&digest) {
                    self.registry.delete_tag(repository, &tag).await?;
                }
            }
        }
        Ok(())
    }

    /// The first of the run image and its mirrors that can be had; what is on the builder's own registry comes first.
    async fn run_image(
        &self,
        builder: &BuilderName,
        named: &facts::RunImage,
        note: Note<'_>,
    ) -> Result<(String, Copied), Error> {
        let mut failure: Option<Error> = None;
        for place in candidates(builder, named)? {
            let copied = async {
                let upstream = self.upstream(&place, &named.image).await?;
                self.copy(&upstream, RUN_IMAGES, note).await
            };
            match copied.await {
                Ok(copied) => return Ok((named.image.clone(), copied)),
                // That it is not beside its builder is no reason that anybody looks for.
                Err(error) if failure.is_none() || matches!(failure, Some(Error::NotInLayout { .. })) => {
                    failure = Some(error);
                }
                Err(_) => {}
            }
        }
        Err(failure.unwrap_or_else(|| Error::malformed(&named.image, "it names no run image")))
    }

    async fn upstream(&self, place: &ImagePlace, name: &str) -> Result<Upstream, Error> {
        Upstream::open(place, name, &self.credentials).await
    }

    fn turn_for(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(busy.entry(key.to_owned()).or_default())
    }
}

/// Where a run image may be, best first. A layout that has the builder often has its run image as well.
fn candidates(builder: &BuilderName, named: &facts::RunImage) -> Result<Vec<ImagePlace>, Error> {
    let mut places = Vec::new();
    for name in std::iter::once(&named.image).chain(&named.mirrors) {
        let place = name.parse::<ImagePlace>();
        places
            .push(place.map_err(|rule| Error::malformed(name, format!("it is not the name of a run image: {rule}")))?);
    }
    match builder.place() {
        ImagePlace::Layout { folder, .. } => {
            let beside = |name: &String| ImagePlace::Layout { folder: folder.clone(), tag: Some(name.clone()) };
            places.insert(0, beside(&named.image));
        }
        ImagePlace::Registry(builder) => {
            let is_elsewhere = |place: &ImagePlace| match place {
                ImagePlace::Registry(reference) => reference.registry() != builder.registry(),
                ImagePlace::Layout { .. } => true,
            };
            places.sort_by_key(is_elsewhere);
        }
    }
    Ok(places)
}
