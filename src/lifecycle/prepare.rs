//! Prepare: the source is unpacked, the platform and the buildpacks are laid out, and what earlier builds left is restored.
//!
//! Layers are restored before anybody knows which buildpacks take part; the build forgets those of the others.

use std::{fs, io, path::Path, sync::Arc};

use nix::unistd::Uid;
use tokio_util::io::SyncIoBridge;

use super::{
    Context as _, Dirs, Error, Hooks, Result, escape,
    image::{Image, connect},
    metadata::{BuildpackLayers, CACHE, CacheMetadata, LIFECYCLE, LayerMetadata, LifecycleMetadata},
    phase::{Prepare, Prepared},
};
use crate::{
    oci::{Client, Descriptor, Ownership, unpack_layer},
    runtime::{CNB_ID, OWN_BINARY},
};

/// How much of a restored layer may be between network and disk, in bytes.
const PIPE: usize = 512 << 10;

pub(super) fn prepare(dirs: &Dirs, input: &Prepare, hooks: &Hooks) -> Result<Prepared> {
    let unpacked = (hooks.unpack)(Path::new(&input.source), &dirs.app, input.max_bytes, input.max_entries);
    let (entries, bytes) =
        unpacked.map_err(|cause| Error::new(1, format!("the source cannot be unpacked: {cause}")))?;
    let env = dirs.platform.join("env");
    fs::create_dir_all(&env).context(1, || format!("creating {}", env.display()))?;
    for (name, value) in &input.environment {
        fs::write(env.join(name), value).context(1, || format!("writing the variable {name}"))?;
    }
    (hooks.install_buildpacks)(&dirs.cnb, OWN_BINARY).context(1, || "laying out the buildpacks".to_owned())?;
    let mut prepared = Prepared { entries, bytes, warnings: Vec::new() };
    if input.previous.is_some() || input.cache.is_some() {
        let (runtime, client) = connect(&input.registry.address)?;
        if let Err(error) = runtime.block_on(restore(dirs, input, &client, &mut prepared.warnings)) {
            // A build without a cache takes longer, and that is all.
            prepared.warnings.push(format!("nothing was restored: {}", error.cause));
        }
    }
    prepared.warnings.iter().for_each(|warning| println!("Warning: {warning}"));
    Ok(prepared)
}

async fn restore(dirs: &Dirs, input: &Prepare, client: &Arc<Client>, warnings: &mut Vec<String>) -> Result<()> {
    let previous = match &input.previous {
        Some(name) => Image::read(client, name).await?,
        None => None,
    };
    let cache = match &input.cache {
        Some(name) => Image::read(client, name).await?,
        None => None,
    };
    let of_app = previous.as_ref().and_then(|image| image.label::<LifecycleMetadata>(LIFECYCLE)).unwrap_or_default();
    let of_cache = cache.as_ref().and_then(|image| image.label::<CacheMetadata>(CACHE)).unwrap_or_default();
    for buildpack in &of_app.buildpacks {
        let folder = own_folder(dirs, &buildpack.key)?;
        if let Some(store) = &buildpack.store {
            write_owned(&folder.join("store.toml"), store)?;
        }
        for (name, layer) in &buildpack.layers {
            let types = layer.types;
            let in_cache = find(&of_cache.buildpacks, &buildpack.key, name).is_some_and(|cached| cached.types.cache);
            if types.launch && (!types.build || types.cache) && (!types.cache || in_cache) {
                write_metadata(&folder, name, layer)?;
            }
        }
    }
    let mut pending = tokio::task::JoinSet::new();
    for buildpack in &of_cache.buildpacks {
        let folder = own_folder(dirs, &buildpack.key)?;
        for (name, layer) in buildpack.layers.iter().filter(|(_, layer)| layer.types.cache) {
            let newer = find(&of_app.buildpacks, &buildpack.key, name).filter(|_| layer.types.launch);
            if newer.is_some_and(|newer| newer.sha != layer.sha) {
                // The cache is not what the image was made of: neither is used.
                let _ = fs::remove_file(folder.join(format!("{name}.toml")));
                continue;
            }
            write_metadata(&folder, name, newer.unwrap_or(layer))?;
            let Some((image, blob)) = cache.as_ref().and_then(|image| Some((image, image.layer(&layer.sha)?))) else {
                continue;
            };
            let (client, repository, blob) = (Arc::clone(client), image.name.repository.clone(), blob.clone());
            let (file, what) = (folder.join(format!("{name}.toml")), format!("layer '{name}' of {}", buildpack.key));
            pending.spawn(async move { (file, what, unpack(&client, &repository, blob).await) });
        }
    }
    while let Some(done) = pending.join_next().await {
        let (file, what, result) = done.context(1, || "restoring".to_owned())?;
        if let Err(error) = result {
            // Metadata without content would promise what is not there.
            let _ = fs::remove_file(file);
            warnings.push(format!("{what} was not restored: {}", error.cause));
        }
    }
    Ok(())
}

/// From the registry to the disk, without a copy in between.
async fn unpack(client: &Client, repository: &str, blob: Descriptor) -> Result<()> {
    let (reader, writer) = tokio::io::duplex(PIPE);
    let media_type = blob.media_type.clone();
    let ownership = if Uid::effective().is_root() { Ownership::AsInLayer } else { Ownership::Ignore };
    let bridge = SyncIoBridge::new(reader);
    let unpacking = tokio::task::spawn_blocking(move || unpack_layer(bridge, &media_type, Path::new("/"), ownership));
    let pulled = client.pull_blob(repository, &blob, writer).await;
    let unpacked = unpacking.await.map_err(io::Error::other).and_then(|unpacked| unpacked);
    pulled.context(1, || "reading".to_owned())?;
    unpacked.map(drop).context(1, || "unpacking".to_owned())
}

fn find<'a>(all: &'a [BuildpackLayers], id: &str, name: &str) -> Option<&'a LayerMetadata> {
    all.iter().find(|buildpack| buildpack.key == id)?.layers.get(name)
}

/// Only `[metadata]`: whether the layer is used again is the buildpack's decision.
fn write_metadata(folder: &Path, name: &str, layer: &LayerMetadata) -> Result<()> {
    let metadata = layer.data.clone().unwrap_or_else(|| serde_json::json!({}));
    write_owned(&folder.join(format!("{name}.toml")), &serde_json::json!({ "metadata": metadata }))
}

/// A file that the build may change.
fn write_owned(path: &Path, value: &serde_json::Value) -> Result<()> {
    let doing = || format!("writing {}", path.display());
    let table = without_nulls(value.clone());
    let text = toml::to_string(&table).context(1, doing)?;
    fs::write(path, text).context(1, doing)?;
    own(path)
}

/// TOML has no null.
fn without_nulls(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => map
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name, without_nulls(value)))
            .collect(),
        serde_json::Value::Array(list) => {
            list.into_iter().filter(|value| !value.is_null()).map(without_nulls).collect()
        }
        other => other,
    }
}

fn own_folder(dirs: &Dirs, id: &str) -> Result<std::path::PathBuf> {
    let folder = dirs.layers.join(escape(id));
    fs::create_dir_all(&folder).context(1, || format!("creating {}", folder.display()))?;
    own(&folder)?;
    Ok(folder)
}

fn own(path: &Path) -> Result<()> {
    if !Uid::effective().is_root() {
        return Ok(());
    }
    std::os::unix::fs::chown(path, Some(CNB_ID), Some(CNB_ID))
        .context(1, || format!("changing the owner of {}", path.display()))
}
