//! Garbage: what no object refers to any more is deleted, after a grace.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    base::Bases,
    blob::SharedBlobs,
    model::{App, AppName, Digest, ImageName, Namespace, Release, SYSTEM_REPOSITORY, Staging, Timestamp},
    oci::registry::Registry,
    runtime::SharedRuntime,
    source::Sources,
    store::{Key, Objects},
};

const INTERVAL: Duration = Duration::from_secs(3600);
/// After a start there is other work to do first.
const FIRST: Duration = Duration::from_secs(300);
/// Blobs that were put within this time are kept: somebody may be about to refer to them. In seconds.
const GRACE: i64 = 3600;
/// Uploads that no staging was made of are kept for so long, in seconds.
const UPLOAD_LIFETIME: i64 = 24 * 3600;
const PAGE: usize = 1000;

/// What a collection looks through.
pub(super) struct Garbage {
    pub objects: Objects,
    pub blobs: SharedBlobs,
    pub registry: Registry,
    pub runtime: SharedRuntime,
    pub bases: Arc<Bases>,
    pub sources: Arc<Sources>,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Collects every hour until the token is cancelled.
pub(super) async fn run(garbage: Arc<Garbage>, stop: CancellationToken) {
    let mut wait = FIRST;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = INTERVAL;
        match garbage.collect().await {
            Ok(deleted) => tracing::info!(blobs = deleted, "collected garbage"),
            Err(error) => tracing::error!(%error, "collecting garbage failed; trying again in an hour"),
        }
    }
}

impl Garbage {
    async fn collect(&self) -> Result<u64, Failure> {
        let apps: Vec<App> = self.objects.list::<App>(None).await?.into_iter().map(|stored| stored.value).collect();
        let there: HashSet<(&Namespace, &AppName)> = apps.iter().map(|app| (&app.namespace, &app.name)).collect();
        let stagings = self.stagings_of(&there).await?;
        let releases: Vec<Release> =
            self.objects.list::<Release>(None).await?.into_iter().map(|stored| stored.value).collect();
        self.forget_repositories(&there, &stagings, &releases).await?;
        let now = Timestamp::now().as_second();

        let used: HashSet<&str> = apps.iter().filter_map(|app| app.blob_uid.as_deref()).collect();
        let staged: HashSet<&str> = stagings.iter().map(|staging| staging.blob_uid.as_str()).collect();
        let needed = |uid: &str| used.contains(uid) || staged.contains(uid);
        let sources =
            self.sources.expire(|source| needed(&source.uid), Timestamp::from_second(now - UPLOAD_LIFETIME)).await?;

        let mut keep: HashSet<Digest> = self.registry.references().await?;
        keep.extend(self.bases.references().await?);
        keep.extend(sources.iter().map(|source| source.digest));
        keep.extend(stagings.iter().flat_map(|staging| staging.log.iter().copied()));
        let mut images: Vec<ImageName> = releases.into_iter().map(|release| release.image).collect();
        // A build may be standing on any of the bases.
        for tag in self.registry.tags(crate::base::REPOSITORY).await? {
            let found = self.registry.resolve(crate::base::REPOSITORY, &tag).await?;
            images.extend(found.map(|digest| ImageName::new(crate::base::REPOSITORY, digest)));
        }
        self.runtime.collect(&images).await?;
        self.sweep(&keep, now - GRACE).await
    }

    /// The stagings of applications that are there; the others are deleted.
    async fn stagings_of(&self, there: &HashSet<(&Namespace, &AppName)>) -> Result<Vec<Staging>, Failure> {
        let mut kept = Vec::new();
        for stored in self.objects.list::<Staging>(None).await? {
            let staging = stored.value;
            if there.contains(&(&staging.namespace, &staging.app)) || !staging.state.is_final() {
                kept.push(staging);
            } else {
                self.objects.delete(&Key::staging(&staging.namespace, &staging.id)).await?;
            }
        }
        Ok(kept)
    }

    /// Repositories of applications that are gone, and tags that neither a staging nor a release has.
    async fn forget_repositories(
        &self,
        there: &HashSet<(&Namespace, &AppName)>,
        stagings: &[Staging],
        releases: &[Release],
    ) -> Result<(), Failure> {
        for repository in self.registry.repositories().await? {
            let cache = repository.strip_prefix(&format!("{SYSTEM_REPOSITORY}/cache/"));
            let Some((namespace, app)) = cache.unwrap_or(&repository).split_once('/') else { continue };
            let (Ok(namespace), Ok(app)) = (namespace.parse::<Namespace>(), app.parse::<AppName>()) else { continue };
            if !there.contains(&(&namespace, &app)) {
                self.registry.delete_repository(&repository).await?;
            } else if cache.is_none() {
                self.forget_tags(&repository, stagings, releases).await?;
            }
        }
        Ok(())
    }

    async fn forget_tags(&self, repository: &str, stagings: &[Staging], releases: &[Release]) -> Result<(), Failure> {
        for tag in self.registry.tags(repository).await? {
            let of_staging = stagings.iter().any(|staging| staging.id.as_str() == tag);
            let of_release =
                releases.iter().any(|release| release.stage_id.as_ref().is_some_and(|id| id.as_str() == tag));
            // Tags that somebody else pushed are no stage ids, and stay.
            if !of_staging && !of_release && tag.parse::<crate::model::StageId>().is_ok() {
                self.registry.delete_tag(repository, &tag).await?;
            }
        }
        Ok(())
    }

    async fn sweep(&self, keep: &HashSet<Digest>, before: i64) -> Result<u64, Failure> {
        let (mut after, mut deleted) = (None, 0);
        loop {
            let page = self.blobs.list(after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(deleted) };
            after = Some(last.digest);
            for blob in page.iter().filter(|blob| !keep.contains(&blob.digest) && blob.modified.as_second() < before) {
                deleted += u64::from(self.blobs.delete_older(&blob.digest, Timestamp::from_second(before)).await?);
            }
        }
    }
}
