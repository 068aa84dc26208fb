//! The cache: an image of its own with the layers that the next build gets back.

use std::collections::BTreeMap;

use super::{
    Context as _, Dirs, Result, escape,
    export::{folder_at, inside, likely},
    image::{Image, Lost},
    layers::{self, Layer},
    metadata::{BuildpackLayers, CACHE, CacheMetadata, LayerMetadata, LifecycleMetadata, Sha, find, json},
    patience::patiently,
    phase::Export,
    writer::{Content, Expect, Layers, write_documents},
};
use crate::{
    model::{Digest, ImageName},
    oci::{CREATED, Client, ConfigFile, Descriptor, ExecutionConfig, RootFs},
    telemetry,
};

const TAG: &str = "latest";

/// Writes the cached layers. What the application image has as well (`record`, `pushed`) is only mounted.
pub(super) async fn save_cache(
    dirs: &Dirs,
    input: &Export,
    client: &Client,
    record: &LifecycleMetadata,
    pushed: &BTreeMap<Digest, Descriptor>,
    architecture: &str,
    warnings: &mut Vec<String>,
) -> Result<Option<ImageName>> {
    let last = match patiently(async || client.manifest(&input.cache_repository, TAG).await).await {
        Ok(found) => found.map(|(digest, _)| ImageName::new(&input.cache_repository, digest)),
        Err(error) => {
            warnings.push(format!("the last build cache cannot be read: {}", telemetry::chain(&error)));
            None
        }
    };
    let last = Image::find(client, last.as_ref(), warnings).await.map(|image| image.without(&Lost::read(dirs)));
    let known: CacheMetadata = last.as_ref().map(|image| image.label(CACHE, warnings)).unwrap_or_default();
    let layers = Layers::new(client, &input.cache_repository, input);
    let mut writer =
        CacheWriter { input, layers, last: last.as_ref(), pushed, blobs: Vec::new(), diff_ids: Vec::new() };
    let mut written = CacheMetadata::default();
    for buildpack in &record.buildpacks {
        let (key, version) = (buildpack.key.clone(), buildpack.version.clone());
        let mut of_buildpack = BuildpackLayers { key, version, ..BuildpackLayers::default() };
        let all = layers::read(&dirs.layers.join(escape(&buildpack.key)), 1)?;
        for layer in all.into_iter().filter(|layer| layer.types.cache) {
            if !layer.has_contents(1)? {
                warnings.push(format!("cached layer '{}' of {} has no contents", layer.name, buildpack.key));
                continue;
            }
            let data = layer.metadata.as_ref().map(json);
            let sha = match buildpack.layers.get(&layer.name) {
                Some(exported) => writer.add_known(&layer, &buildpack.key, exported.sha).await?,
                None => {
                    let expect = likely(find(&known.buildpacks, &buildpack.key, &layer.name), data.as_ref());
                    writer.add(folder_at(&layer.place, &inside(&buildpack.key, &layer.name)), expect).await?
                }
            };
            of_buildpack.layers.insert(layer.name, LayerMetadata { sha, data, types: layer.types });
        }
        written.buildpacks.push(of_buildpack);
    }
    let sbom = dirs.layers.join("sbom/cache");
    if sbom.is_dir() {
        let sha = writer.add(folder_at(&sbom, "/layers/sbom/cache"), Expect::New).await?;
        written.sbom = Some(Sha { sha });
    }
    // An empty one takes the place of the last one, or what nobody caches any more would be restored for ever.
    if writer.blobs.is_empty() && last.as_ref().is_none_or(|image| image.manifest.layers.is_empty()) {
        return Ok(None);
    }
    writer.finish(&written, architecture).await.map(Some)
}

struct CacheWriter<'a> {
    input: &'a Export,
    layers: Layers<'a>,
    last: Option<&'a Image>,
    pushed: &'a BTreeMap<Digest, Descriptor>,
    blobs: Vec<Descriptor>,
    diff_ids: Vec<Digest>,
}

impl CacheWriter<'_> {
    /// A layer that the application image has: its diffID is known, and its blob is in the registry.
    async fn add_known(&mut self, layer: &Layer, id: &str, diff_id: Digest) -> Result<Digest> {
        if let Some(blob) = self.last.and_then(|image| image.layer(&diff_id)).cloned() {
            self.push(blob, diff_id);
            return Ok(diff_id);
        }
        if let Some(blob) = self.pushed.get(&diff_id).cloned() {
            let (to, from) = (&self.input.cache_repository, &self.input.repository);
            let mounted = patiently(async || self.layers.client.mount(to, from, &blob.digest).await).await;
            if mounted.context(1, doing)? {
                self.push(blob, diff_id);
                return Ok(diff_id);
            }
        }
        self.add(folder_at(&layer.place, &inside(id, &layer.name)), Expect::New).await
    }

    /// A layer that only the cache has.
    async fn add(&mut self, content: Content, expect: Expect) -> Result<Digest> {
        if let Expect::Same(diff_id) = expect
            && let Some(blob) = self.last.and_then(|image| image.layer(&diff_id)).cloned()
            && self.layers.is_same(&content, expect).await.context(1, doing)?
        {
            self.push(blob, diff_id);
            return Ok(diff_id);
        }
        let layer = self.layers.write(content).await.context(1, doing)?;
        self.push(layer.blob, layer.diff_id);
        Ok(layer.diff_id)
    }

    fn push(&mut self, blob: Descriptor, diff_id: Digest) {
        self.blobs.push(blob);
        self.diff_ids.push(diff_id);
    }

    async fn finish(self, written: &CacheMetadata, architecture: &str) -> Result<ImageName> {
        let label = serde_json::to_string(written).context(1, doing)?;
        let config = ConfigFile {
            created: Some(CREATED.to_owned()),
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            config: ExecutionConfig { labels: Some(BTreeMap::from([(CACHE.to_owned(), label)])), ..Default::default() },
            rootfs: RootFs { diff_ids: self.diff_ids, ..RootFs::default() },
            ..Default::default()
        };
        let repository = &self.input.cache_repository;
        let digest =
            write_documents(self.layers.client, repository, TAG, &config, self.blobs).await.context(1, doing)?;
        Ok(ImageName::new(repository, digest))
    }
}

fn doing() -> String {
    "writing the cache".to_owned()
}
