//! Images on this machine: each layer is unpacked once, from the blob store, and shared by all sandboxes.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::guard;
use crate::{
    blob::{self, SharedBlobs},
    model::{Digest, ImageName},
    oci::{ConfigFile, Manifest, Ownership, tree::remove_tree, unpack_layer},
    runtime::{
        Error,
        documents::{document, documents},
    },
    telemetry,
};

/// A job that has begun may be about to use a layer that no release has yet.
const LATELY: Duration = Duration::from_secs(2 * 60 * 60);
/// Layers are named by their digests.
const HEX_DIGITS: usize = 64;
/// A layer that comes to more is refused; so is one that leaves the disk no reserve.
const MAX_LAYER_BYTES: u64 = 32 << 30;

/// Unpacked layers below a directory.
pub(super) struct Images {
    dir: PathBuf,
    blobs: SharedBlobs,
    owners: Owners,
    /// One unpacking of a layer at a time.
    busy: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    /// How many temporary names were given: no two are the same.
    begun: AtomicU64,
    /// When each layer was last asked for.
    used: Mutex<HashMap<String, Instant>>,
}

/// Whose files are on disk.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owners {
    AsInLayer,
    /// As in the layer, with this added to every id: where the file system has no idmapped mounts.
    Shifted(u32),
    Caller,
}

/// An image that is ready to run.
pub(super) struct LocalImage {
    pub config: ConfigFile,
    /// Lowest first.
    pub layers: Vec<PathBuf>,
}

impl Images {
    /// Opens the directory, and removes what an interrupted unpacking left.
    pub fn open(dir: PathBuf, blobs: SharedBlobs, owners: Owners) -> io::Result<Self> {
        // A data directory may move from one kind of file system to the other.
        let dir = if let Owners::Shifted(_) = owners { dir.join("shifted") } else { dir };
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("tmp-") {
                remove_tree(&entry.path())?;
            }
        }
        Ok(Self { dir, blobs, owners, busy: Mutex::default(), begun: AtomicU64::default(), used: Mutex::default() })
    }

    /// Unpacks what is not there yet.
    pub async fn ready(&self, image: &ImageName) -> Result<LocalImage, Error> {
        let failed = |cause: String| Error::Image { image: image.clone(), cause };
        let gone = || failed(format!("blob {} is not there", image.digest));
        let (manifest, config) = documents(&self.blobs, &image.digest).await.map_err(&failed)?.ok_or_else(gone)?;
        let unpacking = manifest.layers.iter().map(|layer| self.layer(image, layer.digest, &layer.media_type));
        let layers = futures::future::try_join_all(unpacking).await?;
        Ok(LocalImage { config, layers })
    }

    /// The file that holds a blob.
    pub async fn blob(&self, digest: &Digest) -> Result<Option<PathBuf>, blob::Error> {
        self.blobs.local_file(digest).await
    }

    async fn layer(&self, image: &ImageName, digest: Digest, media_type: &str) -> Result<PathBuf, Error> {
        let place = self.dir.join(digest.hex());
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.hex(), Instant::now());
        if place.exists() {
            return Ok(place);
        }
        let turn = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(busy.entry(digest).or_default())
        };
        let turn = turn.lock_owned().await;
        if place.exists() {
            return Ok(place);
        }
        let failed = |cause: String| Error::Image { image: image.clone(), cause };
        let blob = self.blobs.local_file(&digest).await.map_err(|error| failed(telemetry::chain(&error)))?;
        let blob = blob.ok_or_else(|| failed(format!("layer {digest} is not there")))?;
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join(format!("tmp-{number}-{}", digest.hex()));
        let (media_type, owners, target) = (media_type.to_owned(), self.owners, place.clone());
        let unpacked = tokio::task::spawn_blocking(move || {
            // Whoever waits may be cancelled, this is not: the turn ends when the work does.
            let _turn = turn;
            let unpacked = make(File::open(blob)?, &media_type, &temporary, owners);
            unpacked.and_then(|()| fs::rename(&temporary, target)).inspect_err(|_| {
                // What cannot be removed now is by the next daemon.
                let _ = remove_tree(&temporary);
            })
        });
        let unpacked = unpacked.await.map_err(io::Error::other).and_then(|result| result);
        unpacked.map_err(|error| failed(format!("unpacking layer {digest}: {error}")))?;
        Ok(place)
    }

    /// The layers of these images, as far as they are there. It is an error when that cannot be found out now.
    pub async fn layers_of(&self, images: &[ImageName]) -> Result<HashSet<String>, Error> {
        let mut layers = HashSet::new();
        for image in images {
            let failed = |cause| Error::Image { image: image.clone(), cause };
            let Some(manifest) = document(&self.blobs, &image.digest).await.map_err(failed)? else { continue };
            // What is no manifest has no layers.
            if let Ok(manifest) = serde_json::from_slice::<Manifest>(&manifest) {
                layers.extend(manifest.layers.iter().map(|layer| layer.digest.hex()));
            }
        }
        Ok(layers)
    }

    /// Removes layers that are not among these, and nobody asked for lately.
    pub fn collect(&self, wanted: &HashSet<String>) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.len() != HEX_DIGITS || wanted.contains(&name) {
                continue;
            }
            let number = self.begun.fetch_add(1, Ordering::Relaxed);
            let doomed = self.dir.join(format!("tmp-{number}-{name}"));
            {
                // Who asks for it from here on finds nothing of it, rather than half.
                let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
                used.retain(|_, at| at.elapsed() < LATELY);
                if used.contains_key(&name) {
                    continue;
                }
                fs::rename(entry.path(), &doomed)?;
            }
            remove_tree(&doomed)?;
        }
        Ok(())
    }
}

/// Makes the folder of a layer. When this returns it is on the disk: what has its name later is whole, also after a power cut.
fn make(blob: File, media_type: &str, place: &Path, owners: Owners) -> io::Result<()> {
    fs::create_dir(place)?;
    let most = guard::spare_bytes(place)?.min(MAX_LAYER_BYTES);
    if most == 0 {
        return Err(io::Error::new(io::ErrorKind::StorageFull, "the disk is nearly full; make room on it"));
    }
    let ownership = if let Owners::Caller = owners { Ownership::Ignore } else { Ownership::AsInLayer };
    unpack_layer(blob, media_type, place, ownership, most)?;
    if let Owners::Shifted(by) = owners {
        shift(place, by)?;
    }
    Ok(nix::unistd::syncfs(File::open(place)?)?)
}

/// Adds to the owners of everything in a folder. The mode is set again, as a change of owner takes set-uid away.
fn shift(folder: &Path, by: u32) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = path.symlink_metadata()?;
        if metadata.is_dir() {
            shift(&path, by)?;
        }
        // A file with several names is met several times.
        if metadata.uid() < by {
            lchown(&path, Some(metadata.uid() + by), Some(metadata.gid() + by))?;
            if !metadata.is_symlink() {
                fs::set_permissions(&path, fs::Permissions::from_mode(metadata.mode()))?;
            }
        }
    }
    Ok(())
}
