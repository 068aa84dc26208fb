//! Export: the layers go to the registry, then the image, then the cache.
//!
//! What is expected to have changed is read once: tar, diffID, compression, digest and upload in one pass. What is
//! expected to be what it was is hashed, which is all there is to do if it is.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{
    Dirs, Error, Result,
    buildpack::is_name,
    cache::save_cache,
    escape,
    image::{Image, Lost, connect},
    layers,
    metadata::{
        BuildpackLayers, LIFECYCLE, LayerMetadata, LifecycleMetadata, RunImage, Sha, Stack, StackImage, find, json,
    },
    phase::{Export, Exported},
    read_toml, slices, tar,
    types::{Group, GroupElement, Metadata, StoreToml},
    writer::{Content, Expect, ImageWriter, LAUNCHER},
};
use crate::{
    launcher,
    model::{Digest, ImageName},
    oci::Client,
};

pub(super) const EXPORT_FAILED: i32 = 62;

/// Writes the image, then the cache.
pub(super) fn export(dirs: &Dirs, input: &Export) -> Result<Exported> {
    let (runtime, client) = connect(&input.registry.address)?;
    runtime.block_on(export_to(dirs, input, &client))
}

/// The same, to a registry that is reached by a given client.
pub async fn export_to(dirs: &Dirs, input: &Export, client: &Client) -> Result<Exported> {
    println!("===> EXPORTING");
    let group: Group = read_toml(&dirs.layers.join("group.toml"), EXPORT_FAILED)?.unwrap_or_default();
    let metadata: Metadata = read_toml(&dirs.layers.join("config/metadata.toml"), EXPORT_FAILED)?.unwrap_or_default();
    let lost = Lost::read(dirs);
    let mut warnings = Vec::new();
    let previous = Image::find(client, input.previous.as_ref(), &mut warnings).await;
    let previous = previous.map(|image| image.without(&lost));
    let gone = || Error::new(EXPORT_FAILED, format!("run image {} is gone", input.run_image));
    let run_image = Image::read(client, &input.run_image).await?.ok_or_else(gone)?;
    let known: LifecycleMetadata =
        previous.as_ref().map(|image| image.label(LIFECYCLE, &mut warnings)).unwrap_or_default();
    let mut writer = ImageWriter::new(client, input, &run_image, previous.as_ref());
    writer.take_over_base().await?;
    let mut record = LifecycleMetadata::default();
    for element in &group.group {
        record.buildpacks.push(buildpack(dirs, &mut writer, element, &known).await?);
    }
    add_own(dirs, &mut writer, &metadata, &known, &mut record).await?;
    let top = run_image.config.rootfs.diff_ids.last().map(Digest::to_string).unwrap_or_default();
    let base = input.run_image.to_string();
    let name = input.run_image_name.clone().unwrap_or_else(|| base.clone());
    record.run_image = RunImage { top_layer: top, reference: base, image: name.clone() };
    record.stack = Stack { run_image: StackImage { image: name } };
    let (added, reused) = (writer.added, writer.reused);
    let pushed = std::mem::take(&mut writer.pushed);
    let digest = writer.finish(&record, &metadata).await?;
    let image = ImageName::new(&input.repository, digest);
    println!("image {image}: {added} layers added, {reused} reused");
    let architecture = &run_image.config.architecture;
    let cache = match save_cache(dirs, input, client, &record, &pushed, architecture, &mut warnings).await {
        Ok(cache) => cache,
        // The image is out: a cache that is not saved only costs time.
        Err(error) => {
            warnings.push(format!("the build cache was not saved: {}", error.cause));
            None
        }
    };
    warnings.iter().for_each(|warning| println!("Warning: {warning}"));
    Ok(Exported { image, cache, layers_added: added, layers_reused: reused, warnings })
}

/// The launch layers of one buildpack, by name.
async fn buildpack(
    dirs: &Dirs,
    writer: &mut ImageWriter<'_>,
    element: &GroupElement,
    known: &LifecycleMetadata,
) -> Result<BuildpackLayers> {
    // The build may have written the group.
    if !is_name(&escape(&element.id)) {
        return Err(Error::new(EXPORT_FAILED, format!("'{}' in group.toml names no buildpack", element.id)));
    }
    let folder = dirs.layers.join(escape(&element.id));
    let mut layers = layers::read(&folder, EXPORT_FAILED)?;
    layers.retain(|layer| layer.types.launch);
    layers.sort_by(|a, b| a.name.cmp(&b.name));
    let store = read_toml::<StoreToml>(&folder.join("store.toml"), EXPORT_FAILED)?.and_then(|store| store.metadata);
    let store = store.map(|metadata| serde_json::json!({ "metadata": json(&metadata) }));
    let mut record =
        BuildpackLayers { key: element.id.clone(), version: element.version.clone(), layers: BTreeMap::new(), store };
    for layer in layers {
        let name = layer.name.as_str();
        let before = find(&known.buildpacks, &element.id, name);
        let data = layer.metadata.as_ref().map(json);
        let created_by = format!("Layer: '{name}', Created by buildpack: {}@{}", element.id, element.version);
        let sha = if layer.has_contents(EXPORT_FAILED)? {
            let expect = likely(before, data.as_ref());
            writer.add(&created_by, folder_at(&layer.place, &inside(&element.id, name)), expect).await?
        } else {
            let nothing =
                |why: &str| Error::new(EXPORT_FAILED, format!("layer '{name}' of buildpack {} {why}", element.id));
            if layer.types.cache {
                return Err(nothing("is cache=true but has no contents"));
            }
            let before = before.ok_or_else(|| nothing("cannot be reused: the previous image does not have it"))?;
            let before = Sha { sha: before.sha };
            writer.reuse(&created_by, before)?;
            before
        };
        let (name, types) = (layer.name, layer.types);
        record.layers.insert(name, LayerMetadata { sha: sha.sha, data, types });
    }
    Ok(record)
}

/// The layers that are not of a buildpack.
async fn add_own(
    dirs: &Dirs,
    writer: &mut ImageWriter<'_>,
    metadata: &Metadata,
    known: &LifecycleMetadata,
    record: &mut LifecycleMetadata,
) -> Result<()> {
    if dirs.layers.join("sbom/launch").is_dir() {
        let content = folder_at(&dirs.layers.join("sbom/launch"), "/layers/sbom/launch");
        record.sbom = Some(writer.add("Software Bill-of-Materials", content, Expect::New).await?);
    }
    let split = slices::split(&dirs.app, &metadata.slices);
    let split = split.map_err(|error| Error::new(EXPORT_FAILED, format!("reading the application: {error}")))?;
    for (number, names) in split.into_iter().enumerate() {
        let created_by = match metadata.slices.len() {
            0 => "Application Layer".to_owned(),
            _ => format!("Application Slice: {}", number + 1),
        };
        // The last is the rest, which nearly always changed.
        let before = known.app.get(number).filter(|_| number < metadata.slices.len());
        let expect = before.map_or(Expect::New, |before| Expect::Same(before.sha));
        let app = dirs.app.clone();
        let content: Content = Arc::new(move |out| tar::entries(out, &app, "/workspace", &names));
        record.app.push(writer.add(&created_by, content, expect).await?);
    }
    let same = |before: Option<Sha>| before.map_or(Expect::New, |before| Expect::Same(before.sha));
    let program = launcher::program();
    let content: Content = Arc::new(move |out| tar::program(out, LAUNCHER, &program));
    record.launcher = Some(writer.add("Buildpacks Application Launcher", content, same(known.launcher)).await?);
    let content = folder_at(&dirs.layers.join("config"), "/layers/config");
    record.config = Some(writer.add("Buildpacks Launcher Config", content, Expect::New).await?);
    if !metadata.processes.is_empty() {
        let names: Vec<String> =
            metadata.processes.iter().map(|process| format!("/cnb/process/{}", process.r#type)).collect();
        let content: Content = Arc::new(move |out| tar::links(out, &names, LAUNCHER));
        let expect = same(known.process_types);
        record.process_types = Some(writer.add("Buildpacks Process Types", content, expect).await?);
    }
    Ok(())
}

/// A folder as the content of a layer.
pub(super) fn folder_at(place: &Path, inside: &str) -> Content {
    let (place, inside) = (place.to_owned(), inside.to_owned());
    Arc::new(move |out| tar::tree(out, &place, &inside))
}

/// A layer whose metadata is what it was is most likely what it was.
pub(super) fn likely(before: Option<&LayerMetadata>, data: Option<&serde_json::Value>) -> Expect {
    match before {
        Some(before) if before.data.as_ref() == data => Expect::Same(before.sha),
        _ => Expect::New,
    }
}

/// Where a layer is in the image.
pub(super) fn inside(id: &str, name: &str) -> String {
    format!("/layers/{}/{name}", escape(id))
}
