//! Images on this machine: each layer is unpacked once, from the blob store, and shared by all sandboxes.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    blob::SharedBlobs,
    model::{Digest, ImageName},
    oci::{ConfigFile, Manifest, Ownership, tree::remove_tree, unpack_layer},
    runtime::Error,
};

/// Unpacked layers below a directory.
pub(super) struct Images {
    dir: PathBuf,
    blobs: SharedBlobs,
    ownership: Ownership,
    /// One unpacking of a layer at a time.
    busy: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

/// An image that is ready to run.
pub(super) struct LocalImage {
    pub config: ConfigFile,
    /// Lowest first.
    pub layers: Vec<PathBuf>,
}

impl Images {
    /// Opens the directory, and removes what an interrupted unpacking left.
    pub fn open(dir: PathBuf, blobs: SharedBlobs, ownership: Ownership) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("tmp-") {
                remove_tree(&entry.path())?;
            }
        }
        Ok(Self { dir, blobs, ownership, busy: Mutex::default() })
    }

    /// Unpacks what is not there yet.
    pub async fn ready(&self, image: &ImageName) -> Result<LocalImage, Error> {
        let (manifest, config) = self.documents(image)?;
        let unpacking = manifest.layers.iter().map(|layer| self.layer(image, layer.digest, &layer.media_type));
        let layers = futures::future::try_join_all(unpacking).await?;
        Ok(LocalImage { config, layers })
    }

    /// The file that holds a blob.
    pub fn blob(&self, digest: &Digest) -> Option<PathBuf> {
        self.blobs.local_path(digest)
    }

    fn documents(&self, image: &ImageName) -> Result<(Manifest, ConfigFile), Error> {
        let failed = |cause: String| Error::Image { image: image.clone(), cause };
        let read = |digest: &Digest| {
            let path = self.blobs.local_path(digest).ok_or_else(|| failed(format!("blob {digest} is not there")))?;
            fs::read(path).map_err(|error| failed(error.to_string()))
        };
        let manifest: Manifest =
            serde_json::from_slice(&read(&image.digest)?).map_err(|error| failed(format!("its manifest: {error}")))?;
        let config = serde_json::from_slice(&read(&manifest.config.digest)?)
            .map_err(|error| failed(format!("its configuration: {error}")))?;
        Ok((manifest, config))
    }

    async fn layer(&self, image: &ImageName, digest: Digest, media_type: &str) -> Result<PathBuf, Error> {
        let place = self.dir.join(digest.hex());
        if place.exists() {
            return Ok(place);
        }
        let turn = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(busy.entry(digest).or_default())
        };
        let _turn = turn.lock().await;
        if place.exists() {
            return Ok(place);
        }
        let failed = |cause: String| Error::Image { image: image.clone(), cause };
        let blob = self.blobs.local_path(&digest).ok_or_else(|| failed(format!("layer {digest} is not there")))?;
        let temporary = self.dir.join(format!("tmp-{}", digest.hex()));
        let (media_type, ownership, target) = (media_type.to_owned(), self.ownership, place.clone());
        let unpacked = tokio::task::spawn_blocking(move || {
            remove_tree(&temporary)?;
            fs::create_dir(&temporary)?;
            unpack_layer(File::open(blob)?, &media_type, &temporary, ownership)?;
            fs::rename(temporary, target)
        });
        let unpacked = unpacked.await.map_err(io::Error::other).and_then(|result| result);
        unpacked.map_err(|error| failed(format!("unpacking layer {digest}: {error}")))?;
        Ok(place)
    }

    /// Removes layers that none of these images has.
    pub fn collect(&self, keep: &[ImageName]) -> io::Result<()> {
        let mut wanted = HashSet::new();
        for image in keep {
            if let Ok((manifest, _)) = self.documents(image) {
                wanted.extend(manifest.layers.iter().map(|layer| layer.digest.hex()));
            }
        }
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !wanted.contains(&name) && !name.starts_with("tmp-") {
                // Renamed first: nobody finds half of it.
                let doomed = self.dir.join(format!("tmp-{name}"));
                fs::rename(entry.path(), &doomed)?;
                remove_tree(&doomed)?;
            }
        }
        Ok(())
    }
}
