//! Prepare: the source is unpacked, the platform and the buildpacks are laid out, and what earlier builds left is restored.
//!
//! Layers are restored before anybody knows which buildpacks take part; the build forgets those of the others.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::unistd::Uid;
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::io::SyncIoBridge;

use super::{
    Context as _, Dirs, Error, Hooks, Result,
    buildpack::is_name,
    escape,
    image::{Image, Lost, connect},
    metadata::{BuildpackLayers, CACHE, CacheMetadata, LIFECYCLE, LayerMetadata, LifecycleMetadata, Sha, find},
    phase::{Buildpacks, CnbUser, Prepare, Prepared},
    rooted, sbom,
};
use crate::{
    oci::{Client, Descriptor, Ownership, tree::remove_tree, unpack_layer},
    runtime::OWN_BINARY,
};

/// How much of a restored layer may be between network and disk, in bytes.
const PIPE: usize = 512 << 10;
/// How many layers are restored at once.
const AT_ONCE: usize = 4;
/// The binding through which buildpacks are offered certificate authorities, and its type.
const CERTIFICATES: &str = "ca-certificates";

pub(super) fn prepare(dirs: &Dirs, root: &Path, input: &Prepare, hooks: &Hooks) -> Result<Prepared> {
    let source = rooted(root, Path::new(&input.source));
    let unpacked = (hooks.unpack)(&source, &dirs.app, input.max_bytes, input.max_entries, input.user);
    let (entries, bytes) =
        unpacked.map_err(|cause| Error::new(1, format!("the source cannot be unpacked: {cause}")))?;
    own(&dirs.app, input.user)?;
    own(&dirs.layers, input.user)?;
    lay_out_platform(dirs, input)?;
    if input.buildpacks == Buildpacks::Embedded {
        // Outside of a sandbox this program is where it was started.
        let own = if root == Path::new("/") { OWN_BINARY } else { "/proc/self/exe" };
        (hooks.install_buildpacks)(&dirs.cnb, own).context(1, || "laying out the buildpacks".to_owned())?;
    }
    let mut prepared = Prepared { entries, bytes, warnings: Vec::new() };
    if input.previous.is_some() || input.cache.is_some() {
        let (runtime, client) = connect(&input.registry.address)?;
        match runtime.block_on(restore(dirs, input, &client)) {
            Ok(warnings) => prepared.warnings = warnings,
            // A build without a cache takes longer, and that is all.
            Err(error) => prepared.warnings.push(format!("nothing was restored: {}", error.cause)),
        }
    }
    prepared.warnings.iter().for_each(|warning| println!("Warning: {warning}"));
    Ok(prepared)
}

fn lay_out_platform(dirs: &Dirs, input: &Prepare) -> Result<()> {
    let env = dirs.platform.join("env");
    fs::create_dir_all(&env).context(1, || format!("creating {}", env.display()))?;
    for (name, value) in &input.environment {
        fs::write(env.join(name), value).context(1, || format!("writing the variable {name}"))?;
    }
    let Some(bundle) = &input.ca_bundle else { return Ok(()) };
    let binding = dirs.platform.join("bindings").join(CERTIFICATES);
    let doing = || format!("writing {}", binding.display());
    fs::create_dir_all(&binding).context(1, doing)?;
    fs::write(binding.join("type"), CERTIFICATES).context(1, doing)?;
    // The bundle itself is there when the build is.
    symlink(bundle, binding.join("ca.pem")).context(1, doing)
}

/// Lays back what the previous image and the cache have of each buildpack; returns what was not possible, and why.
pub async fn restore(dirs: &Dirs, input: &Prepare, client: &Arc<Client>) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let previous = Image::find(client, input.previous.as_ref(), &mut warnings).await;
    let cache = Image::find(client, input.cache.as_ref(), &mut warnings).await;
    let mut of_app: LifecycleMetadata =
        previous.as_ref().map(|image| image.label(LIFECYCLE, &mut warnings)).unwrap_or_default();
    let mut of_cache: CacheMetadata = cache.as_ref().map(|image| image.label(CACHE, &mut warnings)).unwrap_or_default();
    keep_safe(&mut of_app.buildpacks);
    keep_safe(&mut of_cache.buildpacks);
    let mut restoring = Restoring {
        dirs,
        client,
        user: input.user,
        at_once: Arc::new(Semaphore::new(AT_ONCE)),
        pending: JoinSet::new(),
    };
    restoring.start_sbom(previous.as_ref(), of_app.sbom);
    restoring.start_sbom(cache.as_ref(), of_cache.sbom);
    for buildpack in &of_app.buildpacks {
        let folder = own_folder(dirs, &buildpack.key, input.user)?;
        if let Some(store) = &buildpack.store {
            write_owned(&folder.join("store.toml"), store, input.user)?;
        }
        for (name, layer) in &buildpack.layers {
            let types = layer.types;
            let in_cache = find(&of_cache.buildpacks, &buildpack.key, name).is_some_and(|cached| cached.types.cache);
            if types.launch && (!types.build || types.cache) && (!types.cache || in_cache) {
                write_metadata(&folder, name, layer, input.user)?;
            }
        }
    }
    for buildpack in &of_cache.buildpacks {
        let folder = own_folder(dirs, &buildpack.key, input.user)?;
        for (name, layer) in buildpack.layers.iter().filter(|(_, layer)| layer.types.cache) {
            let newer = find(&of_app.buildpacks, &buildpack.key, name).filter(|_| layer.types.launch);
            if newer.is_some_and(|newer| newer.sha != layer.sha) {
                // The cache is not what the image was made of: neither is used.
                let _ = fs::remove_file(folder.join(format!("{name}.toml")));
                continue;
            }
            write_metadata(&folder, name, newer.unwrap_or(layer), input.user)?;
            if let Some((image, blob)) = cache.as_ref().and_then(|image| Some((image, image.layer(&layer.sha)?))) {
                let what = format!("layer '{name}' of {}", buildpack.key);
                restoring.start(image, blob, Some(folder.join(name)), what);
            }
        }
    }
    warnings.extend(restoring.finish().await?);
    for (kind, buildpacks) in [("launch", &of_app.buildpacks), ("cache", &of_cache.buildpacks)] {
        for (buildpack, name) in buildpacks.iter().flat_map(|of| of.layers.keys().map(move |name| (of, name))) {
            if dirs.layers.join(escape(&buildpack.key)).join(format!("{name}.toml")).exists() {
                sbom::lay_back(dirs, kind, &buildpack.key, name, input.user)?;
            }
        }
    }
    Ok(warnings)
}

/// Labels of images may be of a buildpack's making: a name in them must not lead out of its folder.
fn keep_safe(buildpacks: &mut Vec<BuildpackLayers>) {
    buildpacks.retain(|buildpack| is_name(&escape(&buildpack.key)));
    buildpacks.iter_mut().for_each(|buildpack| buildpack.layers.retain(|name, _| is_name(name)));
}

/// Layers that are on their way to the disk.
struct Restoring<'a> {
    dirs: &'a Dirs,
    client: &'a Arc<Client>,
    user: CnbUser,
    at_once: Arc<Semaphore>,
    pending: JoinSet<Restored>,
}

struct Restored {
    blob: Descriptor,
    place: Option<PathBuf>,
    what: String,
    result: Result<()>,
}

impl Restoring<'_> {
    fn start_sbom(&mut self, image: Option<&Image>, sbom: Option<Sha>) {
        if let Some((image, blob)) = image.zip(sbom).and_then(|(image, sbom)| Some((image, image.layer(&sbom.sha)?))) {
            self.start(image, blob, None, "the bill of materials".to_owned());
        }
    }

    /// `place` is the folder that the layer comes to.
    fn start(&mut self, image: &Image, blob: &Descriptor, place: Option<PathBuf>, what: String) {
        let (client, repository, blob) = (Arc::clone(self.client), image.name.repository.clone(), blob.clone());
        let root = self.dirs.layers.parent().unwrap_or(Path::new("/")).to_owned();
        let (at_once, user) = (Arc::clone(&self.at_once), self.user);
        self.pending.spawn(async move {
            let _turn = at_once.acquire_owned().await;
            let result = unpack(&client, &repository, blob.clone(), root, user).await;
            Restored { blob, place, what, result }
        });
    }

    /// What was not restored.
    async fn finish(mut self) -> Result<Vec<String>> {
        let (mut lost, mut warnings) = (Lost::default(), Vec::new());
        while let Some(done) = self.pending.join_next().await {
            let Restored { blob, place, what, result } = done.context(1, || "restoring".to_owned())?;
            let Err(error) = result else { continue };
            if let Some(place) = place {
                // Half a layer, or metadata without content, would promise what is not there.
                let _ = fs::remove_file(place.with_added_extension("toml"));
                remove_tree(&place).context(1, || format!("removing {}", place.display()))?;
            }
            lost.blobs.push(blob.digest);
            warnings.push(format!("{what} was not restored: {}", error.cause));
        }
        lost.write(self.dirs)?;
        Ok(warnings)
    }
}

/// From the registry to the disk, without a copy in between. Whoever built it then, it is this build's user's now.
async fn unpack(client: &Client, repository: &str, blob: Descriptor, root: PathBuf, user: CnbUser) -> Result<()> {
    let (reader, writer) = tokio::io::duplex(PIPE);
    let media_type = blob.media_type.clone();
    let is_root = Uid::effective().is_root();
    let ownership = if is_root { Ownership::Of(user.uid, user.gid) } else { Ownership::Ignore };
    let bridge = SyncIoBridge::new(reader);
    // The runtime watches what a step writes.
    let unpack = move || unpack_layer(bridge, &media_type, &root, ownership, u64::MAX);
    let unpacking = tokio::task::spawn_blocking(unpack);
    let pulled = client.pull_blob(repository, &blob, writer).await;
    let unpacked = unpacking.await.map_err(io::Error::other).and_then(|unpacked| unpacked);
    pulled.context(1, || "reading".to_owned())?;
    unpacked.map(drop).context(1, || "unpacking".to_owned())
}

/// Only `[metadata]`: whether the layer is used again is the buildpack's decision.
fn write_metadata(folder: &Path, name: &str, layer: &LayerMetadata, user: CnbUser) -> Result<()> {
    let metadata = layer.data.clone().unwrap_or_else(|| serde_json::json!({}));
    write_owned(&folder.join(format!("{name}.toml")), &serde_json::json!({ "metadata": metadata }), user)
}

/// A file that the build may change.
fn write_owned(path: &Path, value: &serde_json::Value, user: CnbUser) -> Result<()> {
    let doing = || format!("writing {}", path.display());
    let table = without_nulls(value.clone());
    let text = toml::to_string(&table).context(1, doing)?;
    fs::write(path, text).context(1, doing)?;
    own(path, user)
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

fn own_folder(dirs: &Dirs, id: &str, user: CnbUser) -> Result<PathBuf> {
    let folder = dirs.layers.join(escape(id));
    fs::create_dir_all(&folder).context(1, || format!("creating {}", folder.display()))?;
    own(&folder, user)?;
    Ok(folder)
}

/// Gives a file to the user of the build.
pub(super) fn own(path: &Path, user: CnbUser) -> Result<()> {
    if !Uid::effective().is_root() {
        return Ok(());
    }
    std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))
        .context(1, || format!("changing the owner of {}", path.display()))
}
