//! Export: the layers go to the registry, each in one pass, then the image, then the cache.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use super::{
    Context as _, Dirs, Error, PLATFORM_API, Result,
    build::layers,
    escape,
    image::{Image, connect},
    metadata::{
        BUILD, BuildpackLayers, CACHE, CacheMetadata, LIFECYCLE, LayerMetadata, LifecycleMetadata, PROJECT, RunImage,
        Sha, Stack, StackImage, build_label,
    },
    phase::{Export, Exported},
    read_toml, tar,
    types::{Group, GroupElement, LayerToml, Metadata, StoreToml},
};
use crate::{
    launcher,
    model::{Digest, ImageName},
    oci::{
        Client, Compression, ConfigFile, Descriptor, ExecutionConfig, History, Layer, MEDIA_TYPE_CONFIG, Manifest,
        RootFs,
    },
};

const CREATED: &str = "1980-01-01T00:00:01Z";
const LAUNCHER: &str = "/cnb/lifecycle/launcher";
const EXPORT_FAILED: i32 = 62;
const CACHE_TAG: &str = "latest";

/// What writes the bytes of a layer; it may be asked twice.
type Content = Arc<dyn Fn(&mut dyn Write) -> io::Result<()> + Send + Sync>;

/// Writes the image, then the cache.
pub(super) fn export(dirs: &Dirs, input: &Export) -> Result<Exported> {
    let (runtime, client) = connect(&input.registry.address)?;
    runtime.block_on(export_with(dirs, input, &client))
}

/// The same, to a registry that is reached by a given client.
pub(super) async fn export_with(dirs: &Dirs, input: &Export, client: &Client) -> Result<Exported> {
    println!("===> EXPORTING");
    let group: Group = read_toml(&dirs.layers.join("group.toml"))?.unwrap_or_default();
    let metadata: Metadata = read_toml(&dirs.layers.join("config/metadata.toml"))?.unwrap_or_default();
    let previous = match &input.previous {
        Some(name) => Image::read(client, name).await?,
        None => None,
    };
    let gone = || Error::new(EXPORT_FAILED, format!("run image {} is gone", input.run_image));
    let run_image = Image::read(client, &input.run_image).await?.ok_or_else(gone)?;
    let known = previous.as_ref().and_then(|image| image.label::<LifecycleMetadata>(LIFECYCLE)).unwrap_or_default();
    let mut writer = ImageWriter::new(client, input, &run_image, previous.as_ref());
    writer.take_over_base().await?;
    let mut record = LifecycleMetadata::default();
    for element in &group.group {
        record.buildpacks.push(buildpack(dirs, &mut writer, element, &known).await?);
    }
    let app = dirs.app.clone();
    let content: Content = Arc::new(move |out| tar::tree(out, &app, "/workspace"));
    record.app = vec![writer.add("Application Layer", content, known.app.first().copied()).await?];
    let content: Content = Arc::new(|out| tar::program(out, LAUNCHER, launcher::BINARY));
    record.launcher = Some(writer.add("Buildpacks Application Launcher", content, known.launcher).await?);
    let config = dirs.layers.join("config");
    let content: Content = Arc::new(move |out| tar::tree(out, &config, "/layers/config"));
    record.config = Some(writer.add("Buildpacks Launcher Config", content, known.config).await?);
    if !metadata.processes.is_empty() {
        let names: Vec<String> =
            metadata.processes.iter().map(|process| format!("/cnb/process/{}", process.r#type)).collect();
        let content: Content = Arc::new(move |out| tar::links(out, &names, LAUNCHER));
        record.process_types = Some(writer.add("Buildpacks Process Types", content, known.process_types).await?);
    }
    let top = run_image.config.rootfs.diff_ids.last().map(Digest::to_string).unwrap_or_default();
    let base = input.run_image.to_string();
    record.run_image = RunImage { top_layer: top, reference: base.clone(), image: base.clone() };
    record.stack = Stack { run_image: StackImage { image: base } };
    let (added, reused) = (writer.added, writer.reused);
    let pushed = std::mem::take(&mut writer.pushed);
    let digest = writer.finish(&record, &metadata).await?;
    let image = ImageName::new(&input.repository, digest);
    println!("image {image}: {added} layers added, {reused} reused");
    let mut exported =
        Exported { image, cache: None, layers_added: added, layers_reused: reused, warnings: Vec::new() };
    match save_cache(dirs, input, client, &group, &pushed).await {
        Ok(cache) => exported.cache = cache,
        // The image is out: a cache that is not saved only costs time.
        Err(error) => exported.warnings.push(format!("the build cache was not saved: {}", error.cause)),
    }
    exported.warnings.iter().for_each(|warning| println!("Warning: {warning}"));
    Ok(exported)
}

/// The launch layers of one buildpack.
async fn buildpack(
    dirs: &Dirs,
    writer: &mut ImageWriter<'_>,
    element: &GroupElement,
    known: &LifecycleMetadata,
) -> Result<BuildpackLayers> {
    let folder = dirs.layers.join(escape(&element.id));
    let store =
        read_toml::<StoreToml>(&folder.join("store.toml"))?.and_then(|store| store.metadata).map(|data| json(&data));
    let store = store.map(|metadata| serde_json::json!({ "metadata": metadata }));
    let mut record =
        BuildpackLayers { key: element.id.clone(), version: element.version.clone(), layers: BTreeMap::new(), store };
    for (name, layer) in layers(&folder)?.into_iter().filter(|(_, layer)| layer.types.launch) {
        let before = known.layer(&element.id, &name).map(|layer| Sha { sha: layer.sha });
        let place = folder.join(&name);
        let created_by = format!("Layer: '{name}', Created by buildpack: {}@{}", element.id, element.version);
        let sha = if is_folder(&place) {
            let inside = inside(element, &name);
            let content: Content = Arc::new(move |out| tar::tree(out, &place, &inside));
            writer.add(&created_by, content, before).await?
        } else {
            let nothing =
                |why: &str| Error::new(EXPORT_FAILED, format!("layer '{name}' of buildpack {} {why}", element.id));
            if layer.types.cache {
                return Err(nothing("is cache=true but has no contents"));
            }
            let before = before.ok_or_else(|| nothing("cannot be reused: the previous image does not have it"))?;
            writer.reuse(&created_by, before)?;
            before
        };
        record.layers.insert(name, LayerMetadata { sha: sha.sha, data: data(&layer), types: layer.types });
    }
    Ok(record)
}

/// An image on its way to the registry.
struct ImageWriter<'a> {
    client: &'a Client,
    input: &'a Export,
    base: &'a Image,
    previous: Option<&'a Image>,
    layers: Vec<Descriptor>,
    diff_ids: Vec<Digest>,
    history: Vec<History>,
    /// Layers that were written, for the cache.
    pushed: BTreeMap<Digest, Descriptor>,
    added: u32,
    reused: u32,
}

impl<'a> ImageWriter<'a> {
    fn new(client: &'a Client, input: &'a Export, base: &'a Image, previous: Option<&'a Image>) -> Self {
        let (layers, diff_ids) = (base.manifest.layers.clone(), base.config.rootfs.diff_ids.clone());
        let kept: Vec<History> =
            base.config.history.iter().filter(|entry| !entry.empty_layer.unwrap_or(false)).cloned().collect();
        // One entry for each layer, or a later rebase cannot tell them apart.
        let history = if kept.len() == layers.len() { kept } else { vec![History::default(); layers.len()] };
        Self { client, input, base, previous, layers, diff_ids, history, pushed: BTreeMap::new(), added: 0, reused: 0 }
    }

    async fn take_over_base(&self) -> Result<()> {
        let from = &self.base.name.repository;
        for layer in &self.base.manifest.layers {
            let mounted = self.client.mount(&self.input.repository, from, &layer.digest).await;
            if !mounted.context(EXPORT_FAILED, || "taking over the run image".to_owned())? {
                return Err(Error::new(EXPORT_FAILED, format!("layer {} of the run image is gone", layer.digest)));
            }
        }
        Ok(())
    }

    /// Adds a layer. One that the previous image may have is hashed first, so that it need not be compressed and sent.
    async fn add(&mut self, created_by: &str, content: Content, before: Option<Sha>) -> Result<Sha> {
        if let Some(before) = before
            && self.previous.is_some_and(|image| image.layer(&before.sha).is_some())
        {
            let content = Arc::clone(&content);
            let hashed = tokio::task::spawn_blocking(move || hash(&content))
                .await
                .map_err(io::Error::other)
                .and_then(|hashed| hashed);
            if hashed.context(EXPORT_FAILED, || format!("reading {created_by}"))? == before.sha {
                self.reuse(created_by, before)?;
                return Ok(before);
            }
        }
        let written =
            self.client.push_layer(&self.input.repository, self.input.compression, move |out| content(out)).await;
        let layer = written.context(EXPORT_FAILED, || format!("writing {created_by}"))?;
        self.added += 1;
        self.pushed.insert(layer.diff_id, layer.blob.clone());
        self.push(created_by, layer.blob, layer.diff_id);
        Ok(Sha { sha: layer.diff_id })
    }

    fn reuse(&mut self, created_by: &str, before: Sha) -> Result<()> {
        let gone = || Error::new(EXPORT_FAILED, format!("the previous image does not have {created_by}"));
        let blob = self.previous.and_then(|image| image.layer(&before.sha)).ok_or_else(gone)?.clone();
        self.reused += 1;
        self.pushed.insert(before.sha, blob.clone());
        self.push(created_by, blob, before.sha);
        Ok(())
    }

    fn push(&mut self, created_by: &str, blob: Descriptor, diff_id: Digest) {
        self.layers.push(blob);
        self.diff_ids.push(diff_id);
        let created = Some(CREATED.to_owned());
        self.history.push(History { created, created_by: Some(created_by.to_owned()), ..History::default() });
    }

    async fn finish(self, record: &LifecycleMetadata, metadata: &Metadata) -> Result<Digest> {
        let config = ConfigFile {
            created: Some(CREATED.to_owned()),
            author: None,
            config: self.execution(record, metadata)?,
            rootfs: RootFs { diff_ids: self.diff_ids, ..RootFs::default() },
            history: self.history,
            ..self.base.config.clone()
        };
        let doing = || "writing the image".to_owned();
        let bytes = serde_json::to_vec(&config).context(EXPORT_FAILED, doing)?;
        let size = bytes.len() as u64;
        let digest = self.client.push_blob(&self.input.repository, bytes).await.context(EXPORT_FAILED, doing)?;
        let manifest = Manifest::image(Descriptor::new(MEDIA_TYPE_CONFIG, digest, size), self.layers);
        self.client
            .push_manifest(&self.input.repository, &self.input.tag, &manifest)
            .await
            .context(EXPORT_FAILED, doing)
    }

    fn execution(&self, record: &LifecycleMetadata, metadata: &Metadata) -> Result<ExecutionConfig> {
        let base = self.base.config.config.clone();
        let mut env = base.env.unwrap_or_default();
        let path = |value: &str| format!("PATH=/cnb/process:/cnb/lifecycle:{value}");
        match env.iter_mut().find(|entry| entry.starts_with("PATH=")) {
            Some(entry) => *entry = path(&entry["PATH=".len()..]),
            None => env.push(path("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")),
        }
        env.extend(["CNB_LAYERS_DIR=/layers", "CNB_APP_DIR=/workspace"].map(str::to_owned));
        env.extend([format!("CNB_PLATFORM_API={PLATFORM_API}"), "CNB_DEPRECATION_MODE=quiet".to_owned()]);
        let doing = || "writing labels".to_owned();
        let mut labels = base.labels.unwrap_or_default();
        labels.insert(LIFECYCLE.to_owned(), serde_json::to_string(record).context(EXPORT_FAILED, doing)?);
        labels.insert(BUILD.to_owned(), build_label(metadata).to_string());
        labels.insert(PROJECT.to_owned(), self.input.project.to_string());
        labels.extend(metadata.labels.iter().map(|label| (label.key.clone(), label.value.clone())));
        let entrypoint = match &metadata.buildpack_default_process_type {
            Some(default) => format!("/cnb/process/{default}"),
            None => LAUNCHER.to_owned(),
        };
        Ok(ExecutionConfig {
            env: Some(env),
            entrypoint: Some(vec![entrypoint]),
            cmd: None,
            working_dir: Some("/workspace".to_owned()),
            labels: Some(labels),
            ..base
        })
    }
}

/// Writes the cached layers as an image of their own. What the application image has as well is only mounted.
async fn save_cache(
    dirs: &Dirs,
    input: &Export,
    client: &Client,
    group: &Group,
    pushed: &BTreeMap<Digest, Descriptor>,
) -> Result<Option<ImageName>> {
    let doing = || "writing the cache".to_owned();
    let before = client.manifest(&input.cache_repository, CACHE_TAG).await.context(1, doing)?;
    let before = match before {
        Some((digest, _)) => Image::read(client, &ImageName::new(&input.cache_repository, digest)).await?,
        None => None,
    };
    let mut record = CacheMetadata::default();
    let (mut blobs, mut diff_ids) = (Vec::new(), Vec::new());
    for element in &group.group {
        let folder = dirs.layers.join(escape(&element.id));
        let mut of_buildpack =
            BuildpackLayers { key: element.id.clone(), version: element.version.clone(), ..Default::default() };
        for (name, layer) in layers(&folder)?.into_iter().filter(|(_, layer)| layer.types.cache) {
            let place = folder.join(&name);
            if !is_folder(&place) {
                println!("Warning: cached layer '{name}' of {} has no contents", element.id);
                continue;
            }
            let Layer { blob, diff_id, .. } =
                cached(client, input, &place, &inside(element, &name), before.as_ref(), pushed).await?;
            blobs.push(blob);
            diff_ids.push(diff_id);
            of_buildpack.layers.insert(name, LayerMetadata { sha: diff_id, data: data(&layer), types: layer.types });
        }
        record.buildpacks.push(of_buildpack);
    }
    if blobs.is_empty() {
        return Ok(None);
    }
    let label = serde_json::to_string(&record).context(1, doing)?;
    let config = ConfigFile {
        created: Some(CREATED.to_owned()),
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        config: ExecutionConfig { labels: Some(BTreeMap::from([(CACHE.to_owned(), label)])), ..Default::default() },
        rootfs: RootFs { diff_ids, ..RootFs::default() },
        ..Default::default()
    };
    let bytes = serde_json::to_vec(&config).context(1, doing)?;
    let size = bytes.len() as u64;
    let digest = client.push_blob(&input.cache_repository, bytes).await.context(1, doing)?;
    let manifest = Manifest::image(Descriptor::new(MEDIA_TYPE_CONFIG, digest, size), blobs);
    let digest = client.push_manifest(&input.cache_repository, CACHE_TAG, &manifest).await.context(1, doing)?;
    Ok(Some(ImageName::new(&input.cache_repository, digest)))
}

/// One layer of the cache: as it is in the last cache, or in the image, or written.
async fn cached(
    client: &Client,
    input: &Export,
    place: &Path,
    inside: &str,
    before: Option<&Image>,
    pushed: &BTreeMap<Digest, Descriptor>,
) -> Result<Layer> {
    let (place, inside): (PathBuf, String) = (place.to_owned(), inside.to_owned());
    let content: Content = Arc::new(move |out| tar::tree(out, &place, &inside));
    let doing = || "writing the cache".to_owned();
    let again = Arc::clone(&content);
    let diff_id =
        tokio::task::spawn_blocking(move || hash(&again)).await.map_err(io::Error::other).and_then(|hashed| hashed);
    let diff_id = diff_id.context(1, doing)?;
    if let Some(blob) = before.and_then(|image| image.layer(&diff_id)) {
        return Ok(Layer { blob: blob.clone(), diff_id, tar_size: 0 });
    }
    if let Some(blob) = pushed.get(&diff_id)
        && client.mount(&input.cache_repository, &input.repository, &blob.digest).await.context(1, doing)?
    {
        return Ok(Layer { blob: blob.clone(), diff_id, tar_size: 0 });
    }
    client.push_layer(&input.cache_repository, Compression::Zstd, move |out| content(out)).await.context(1, doing)
}

/// The diffID of a layer.
fn hash(content: &Content) -> io::Result<Digest> {
    struct Sum(Sha256);
    impl Write for Sum {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut sum = io::BufWriter::with_capacity(64 << 10, Sum(Sha256::new()));
    content(&mut sum)?;
    let sum = sum.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(Digest::from_sha256(sum.0.finalize().into()))
}

/// Where a layer is in the image.
fn inside(element: &GroupElement, name: &str) -> String {
    format!("/layers/{}/{name}", escape(&element.id))
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

fn data(layer: &LayerToml) -> Option<serde_json::Value> {
    layer.metadata.as_ref().map(json)
}

fn json(value: &toml::Value) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}
