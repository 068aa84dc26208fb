//! Garbage: what no object refers to any more is deleted, after a grace.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    base::{self, Bases},
    blob::SharedBlobs,
    builders::{self, Builders},
    model::{
        App, AppName, Digest, ImageName, Namespace, Release, SYSTEM_REPOSITORY, StageId, Staging, StagingState,
        Timestamp,
    },
    oci::registry::Registry,
    runtime::SharedRuntime,
    source::Sources,
    store::{self, Key, Objects, Resource},
};

const INTERVAL: Duration = Duration::from_secs(3600);
/// After a start there is other work to do first.
const FIRST: Duration = Duration::from_secs(300);
/// Blobs that were put within this time are kept: somebody may be about to refer to them. In seconds.
const GRACE: i64 = 3600;
/// Uploads that no staging was made of are kept for so long, in seconds.
const UPLOAD_LIFETIME: i64 = 24 * 3600;
/// Bases that were made or used within this time are kept, in seconds.
const BASE_LIFETIME: i64 = 7 * 24 * 3600;
/// The same for copies of builders and their run images, which are much larger than what is made of them.
const BUILDER_LIFETIME: i64 = 7 * 24 * 3600;
const PAGE: usize = 1000;

/// What a collection looks through.
pub(super) struct Garbage {
    pub objects: Objects,
    pub blobs: SharedBlobs,
    pub registry: Registry,
    pub runtime: SharedRuntime,
    pub bases: Arc<Bases>,
    pub builders: Arc<Builders>,
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
        // What is cut short is taken up by the next.
        let collected = tokio::select! {
            () = stop.cancelled() => return,
            collected = garbage.collect() => collected,
        };
        match collected {
            Ok(deleted) => tracing::info!(blobs = deleted, "collected garbage"),
            Err(error) => tracing::error!(%error, "collecting garbage failed; trying again in an hour"),
        }
    }
}

impl Garbage {
    /// Lists are old as soon as they are there: before anything is deleted, it is looked whether it is still unused.
    async fn collect(&self) -> Result<u64, Failure> {
        let now = Timestamp::now().as_second();
        self.forget_stagings().await?;
        self.forget_images().await?;
        self.forget_bases(now - BASE_LIFETIME).await?;
        self.forget_builders(now - BUILDER_LIFETIME).await?;

        let uploads = self.uploads_in_use().await?;
        let old = Timestamp::from_second(now - UPLOAD_LIFETIME);
        let sources = self.sources.expire(|source| uploads.contains(&source.uid), old).await?;
        let mut keep: HashSet<Digest> = self.registry.references().await?;
        keep.extend(self.bases.references().await?);
        keep.extend(sources.iter().map(|source| source.digest));
        let stagings = self.all::<Staging>().await?;
        keep.extend(stagings.iter().map(|staging| staging.source));
        keep.extend(stagings.iter().flat_map(|staging| staging.log.iter().copied()));

        let mut images: Vec<ImageName> =
            self.all::<Release>().await?.into_iter().map(|release| release.image).collect();
        let made = stagings.into_iter().filter(|staging| staging.state == StagingState::Done);
        // Whatever became of their repository: what runs, and what may be deployed, is there.
        for image in made.filter_map(|staging| staging.image).chain(images.iter().cloned()) {
            keep.extend(self.registry.parts(&image.digest).await?);
        }
        // A build may be standing on any of the bases and builders.
        for repository in [base::REPOSITORY, builders::BUILDERS, builders::RUN_IMAGES] {
            let tags = self.registry.tagged(repository).await?;
            images.extend(tags.into_iter().map(|(_, digest, _)| ImageName::new(repository, digest)));
        }
        self.runtime.collect(&images).await?;
        self.blobs.tidy().await?;
        self.sweep(&keep, now - GRACE).await
    }

    /// Stagings of applications that are gone.
    async fn forget_stagings(&self) -> Result<(), Failure> {
        for staging in self.all::<Staging>().await? {
            if !staging.state.is_final() || self.is_there(&staging.namespace, &staging.app).await? {
                continue;
            }
            match self.objects.delete(&Key::staging(&staging.namespace, &staging.id)).await {
                Ok(()) | Err(store::Error::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Caches of applications that are gone, and images of stagings that are gone. Images that somebody else pushed have
    /// tags that are no stage ids, and stay.
    async fn forget_images(&self) -> Result<(), Failure> {
        let caches = format!("{SYSTEM_REPOSITORY}/cache/");
        for repository in self.registry.repositories().await? {
            let cache = repository.strip_prefix(&caches);
            let Some((namespace, app)) = cache.unwrap_or(&repository).split_once('/') else { continue };
            let (Ok(namespace), Ok(app)) = (namespace.parse::<Namespace>(), app.parse::<AppName>()) else { continue };
            if cache.is_none() {
                self.forget_tags(&repository, &namespace).await?;
            } else if !self.is_there(&namespace, &app).await? {
                self.registry.delete_repository(&repository).await?;
            }
        }
        Ok(())
    }

    async fn forget_tags(&self, repository: &str, namespace: &Namespace) -> Result<(), Failure> {
        for tag in self.registry.tags(repository).await? {
            let Ok(id) = tag.parse::<StageId>() else { continue };
            if self.objects.get::<Staging>(&Key::staging(namespace, &id)).await?.is_some() {
                continue;
            }
            let releases = self.objects.list::<Release>(Some(namespace.as_str())).await?;
            if !releases.iter().any(|release| release.value.stage_id.as_ref() == Some(&id)) {
                self.registry.delete_tag(repository, &tag).await?;
            }
        }
        Ok(())
    }

    /// Bases that were superseded, and that no staging that is kept was made on.
    async fn forget_bases(&self, before: i64) -> Result<(), Failure> {
        let stagings = self.all::<Staging>().await?;
        let in_use = stagings.into_iter().filter_map(|staging| staging.basis).map(|basis| basis.lock).collect();
        let old = self.bases.expire(&in_use, Timestamp::from_second(before)).await?;
        for tag in self.registry.tags(base::REPOSITORY).await? {
            if self.registry.resolve(base::REPOSITORY, &tag).await?.is_some_and(|digest| old.contains(&digest)) {
                self.registry.delete_tag(base::REPOSITORY, &tag).await?;
            }
        }
        Ok(())
    }

    /// Copies of builders that no staging that is kept was made with.
    async fn forget_builders(&self, before: i64) -> Result<(), Failure> {
        let stagings = self.all::<Staging>().await?.into_iter();
        let images = stagings.filter_map(|staging| staging.basis?.images);
        let in_use = images.flat_map(|images| [images.build.digest, images.run.digest]).collect();
        Ok(self.builders.expire(&in_use, Timestamp::from_second(before)).await?)
    }

    /// By their uids: what applications were last made of, and what stagings are made of.
    async fn uploads_in_use(&self) -> Result<HashSet<String>, Failure> {
        let apps = self.all::<App>().await?.into_iter().filter_map(|app| app.blob_uid);
        let stagings = self.all::<Staging>().await?.into_iter().map(|staging| staging.blob_uid);
        Ok(apps.chain(stagings).collect())
    }

    async fn is_there(&self, namespace: &Namespace, app: &AppName) -> Result<bool, Failure> {
        Ok(self.objects.get::<App>(&Key::app(namespace, app)).await?.is_some())
    }

    async fn all<T: Resource>(&self) -> Result<Vec<T>, Failure> {
        Ok(self.objects.list::<T>(None).await?.into_iter().map(|stored| stored.value).collect())
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, time::SystemTime};

    use async_trait::async_trait;
    use futures::stream::BoxStream;
    use serde_json::json;

    use super::*;
    use crate::{
        blob::DiskBlobs,
        model::{ReleaseId, Route},
        oci::{Descriptor, MEDIA_TYPE_CONFIG, MEDIA_TYPE_LAYER_TAR, Manifest},
        runtime::{
            self, Instance, Job, JobId, LogLine, LogQuery, LogSink, Rollout, Runtime, StepOutcome, Volumes, Workload,
            WorkloadStatus,
        },
        store::DiskStore,
    };

    /// Runs nothing, and has nothing to collect.
    struct Idle;

    #[async_trait]
    impl Runtime for Idle {
        fn volumes(&self) -> Volumes {
            Volumes::OfTheJob
        }

        fn rollout(&self) -> Rollout {
            Rollout::SideBySide
        }

        async fn serving(&self, _id: &ReleaseId) -> Result<Vec<Instance>, runtime::Error> {
            Ok(Vec::new())
        }

        async fn expose(&self, _routes: Vec<(Namespace, AppName, Vec<Route>)>) -> Result<(), runtime::Error> {
            Ok(())
        }

        async fn run(&self, _: Job, _: LogSink, _: CancellationToken) -> Result<Vec<StepOutcome>, runtime::Error> {
            unimplemented!()
        }
        async fn discard(&self, _: &JobId) -> Result<(), runtime::Error> {
            unimplemented!()
        }
        async fn jobs(&self) -> Result<Vec<JobId>, runtime::Error> {
            unimplemented!()
        }
        async fn apply(&self, _: &Workload) -> Result<(), runtime::Error> {
            unimplemented!()
        }
        async fn status(&self, _: &ReleaseId) -> Result<Option<WorkloadStatus>, runtime::Error> {
            unimplemented!()
        }
        async fn workloads(&self) -> Result<Vec<ReleaseId>, runtime::Error> {
            unimplemented!()
        }
        fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
            unimplemented!()
        }
        async fn remove(&self, _: &ReleaseId, _: Duration) -> Result<(), runtime::Error> {
            unimplemented!()
        }
        async fn logs(
            &self,
            _: &Namespace,
            _: &AppName,
            _: LogQuery,
        ) -> Result<BoxStream<'static, LogLine>, runtime::Error> {
            unimplemented!()
        }
        async fn exec(&self, _: &ReleaseId, _: &str, _: runtime::Command) -> Result<runtime::Session, runtime::Error> {
            unimplemented!()
        }
        async fn forward(&self, _: &ReleaseId, _: &str, _: u16) -> Result<runtime::Connection, runtime::Error> {
            unimplemented!()
        }
        async fn collect(&self, _: &[ImageName]) -> Result<(), runtime::Error> {
            Ok(())
        }
        fn properties(&self) -> BTreeMap<&'static str, String> {
            BTreeMap::new()
        }
    }

    struct Nobody;

    #[async_trait]
    impl base::Publish for Nobody {
        async fn publish(&self, _: &str, _: &str, _: Digest) -> Result<(), String> {
            unimplemented!()
        }
    }

    struct Place {
        dir: tempfile::TempDir,
        garbage: Garbage,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let objects = Objects::new(DiskStore::open(&dir.path().join("store")).unwrap());
            let blobs: SharedBlobs = DiskBlobs::open(&dir.path().join("blobs")).unwrap();
            let options = base::Options::new(dir.path(), base::Mirrors::default());
            let bases = Arc::new(Bases::new(options, Arc::clone(&blobs), objects.clone(), Arc::new(Nobody)));
            let sources = Arc::new(Sources::new(objects.clone(), Arc::clone(&blobs), crate::source::Limits::default()));
            let registry = Registry::new(objects.clone(), Arc::clone(&blobs));
            let builders = Builders::new(registry.clone(), Arc::clone(&blobs), dir.path().join("registries.json"));
            let builders = Arc::new(builders);
            let garbage = Garbage { objects, blobs, registry, runtime: Arc::new(Idle), bases, builders, sources };
            Self { dir, garbage }
        }

        async fn blob(&self, content: &[u8]) -> Digest {
            let mut writer = self.garbage.blobs.writer().await.unwrap();
            writer.write(bytes::Bytes::copy_from_slice(content)).await.unwrap();
            writer.finish(None).await.unwrap().digest
        }

        /// An image of one layer under a tag; its parts.
        async fn image(&self, repository: &str, tag: &str) -> Vec<Digest> {
            let layer = self.blob(format!("layer of {repository}:{tag}").as_bytes()).await;
            let config = self.blob(format!("{{\"of\":\"{repository}:{tag}\"}}").as_bytes()).await;
            let layers = vec![Descriptor::new(MEDIA_TYPE_LAYER_TAR, layer, 1)];
            let manifest = Manifest::image(Descriptor::new(MEDIA_TYPE_CONFIG, config, 1), layers);
            let manifest = self.blob(&serde_json::to_vec(&manifest).unwrap()).await;
            self.garbage.registry.publish(repository, tag, manifest).await.unwrap();
            vec![manifest, config, layer]
        }

        async fn staging(&self, app: &str, id: &str, image: Option<Digest>) {
            let staging: Staging = serde_json::from_value(json!({
                "id": id, "namespace": "workspace", "app": app, "source": Digest::of("source"), "blob_uid": "uid",
                "environment": {}, "created_at": "2020-01-01T00:00:00Z", "state": { "state": "done" },
                "image": image.map(|image| ImageName::new(format!("workspace/{app}"), image)),
                "timings": [], "basis": null, "log": [],
            }))
            .unwrap();
            self.garbage.objects.create(&staging).await.unwrap();
        }

        async fn app(&self, name: &str) {
            let app: App = serde_json::from_value(json!({
                "namespace": "workspace", "name": name, "created_at": "2020-01-01T00:00:00Z", "username": "admin",
                "instances": 1, "environment": {}, "routes": [], "origin": "None", "stage_id": null, "blob_uid": null,
                "image": null, "release": null, "next_release": 1,
            }))
            .unwrap();
            self.garbage.objects.create(&app).await.unwrap();
        }

        /// Makes every blob old.
        fn age(&self) {
            let mut folders = vec![self.dir.path().join("blobs/sha256")];
            while let Some(folder) = folders.pop() {
                for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                    match path.is_dir() {
                        true => folders.push(path),
                        false => fs::File::open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap(),
                    }
                }
            }
        }

        async fn has(&self, digests: &[Digest]) -> bool {
            let mut all = true;
            for digest in digests {
                all &= self.garbage.blobs.size(digest).await.unwrap().is_some();
            }
            all
        }
    }

    #[tokio::test]
    async fn what_is_used_stays_and_the_rest_goes() {
        let place = Place::new();
        let (kept, pruned, gone) = ("0000000000000001", "0000000000000002", "0000000000000003");
        place.app("app").await;
        let image = place.image("workspace/app", kept).await;
        place.staging("app", kept, Some(image[0])).await;
        place.image("workspace/app", pruned).await;
        place.image("workspace/gone", gone).await;
        place.staging("gone", gone, None).await;
        place.image("epiniod/cache/workspace/gone", "latest").await;
        let foreign = place.image("library/debian", "13").await;
        let beside = place.image("workspace/gone", "by-hand").await;
        let (loose, fresh) = (place.blob(b"loose").await, b"fresh");
        place.age();
        let fresh = place.blob(fresh).await;
        place.garbage.collect().await.unwrap();

        assert!(place.has(&image).await && place.has(&foreign).await && place.has(&beside).await);
        assert!(place.has(&[fresh]).await && !place.has(&[loose]).await);
        let registry = &place.garbage.registry;
        assert_eq!(registry.tags("workspace/app").await.unwrap(), [kept]);
        assert_eq!(registry.tags("workspace/gone").await.unwrap(), ["by-hand"]);
        assert_eq!(registry.tags("library/debian").await.unwrap(), ["13"]);
        assert_eq!(registry.tags("epiniod/cache/workspace/gone").await.unwrap(), [""; 0]);
        assert!(!place.has(&[Digest::of("layer of epiniod/cache/workspace/gone:latest")]).await);
        assert_eq!(place.garbage.all::<Staging>().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_builder_is_kept_as_long_as_a_staging_that_is_kept_was_made_with_it() {
        let place = Place::new();
        let id = "0000000000000001";
        place.app("app").await;
        place.staging("app", id, None).await;
        let used = [place.image(builders::BUILDERS, "a").await, place.image(builders::RUN_IMAGES, "a").await];
        let unused = [place.image(builders::BUILDERS, "b").await, place.image(builders::RUN_IMAGES, "b").await];
        let images = crate::model::BuilderImages {
            build: ImageName::new(builders::BUILDERS, used[0][0]),
            run: ImageName::new(builders::RUN_IMAGES, used[1][0]),
        };
        let key = Key::staging(&Namespace::default(), &id.parse().unwrap());
        let set = |staging: &mut Staging| {
            let basis = json!({ "builder": "1", "build_packages": [], "run_packages": [], "lock": Digest::of("lock") });
            let basis: crate::model::Basis = serde_json::from_value(basis).unwrap();
            staging.basis = Some(crate::model::Basis { images: Some(images.clone()), ..basis });
        };
        place.garbage.objects.modify::<Staging>(&key, set).await.unwrap();
        let tags = || async { place.garbage.registry.tags(builders::BUILDERS).await.unwrap() };

        place.garbage.collect().await.unwrap();
        assert_eq!(tags().await, ["a", "b"], "what was asked for a moment ago stays");
        let later = Timestamp::now().as_second() + 1;
        place.garbage.forget_builders(later).await.unwrap();
        assert_eq!(tags().await, ["a"]);
        place.age();
        place.garbage.collect().await.unwrap();
        assert!(
            place.has(&used.concat()).await && !place.has(&unused[0][..1]).await && !place.has(&unused[1][..1]).await
        );
    }

    #[tokio::test]
    async fn an_image_that_may_run_outlives_its_repository() {
        let place = Place::new();
        let id = "0000000000000001";
        place.app("app").await;
        let image = place.image("workspace/app", id).await;
        place.staging("app", id, Some(image[0])).await;
        place.garbage.registry.delete_repository("workspace/app").await.unwrap();
        place.age();
        place.garbage.collect().await.unwrap();
        assert!(place.has(&image).await);
    }
}
