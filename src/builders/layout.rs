//! An image in an OCI layout on this machine (image-spec, "OCI Image Layout").

use std::{
    io,
    path::{Path, PathBuf},
};

use futures::StreamExt as _;
use tokio_util::io::ReaderStream;

use super::{Error, upstream::MAX_DOCUMENT};
use crate::{
    blob::ByteStream,
    model::Digest,
    oci::{Descriptor, Index},
};

/// Annotations that name a manifest of a layout: `skopeo` writes the first, containerd and `docker save` both.
const NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];

pub(super) struct Layout {
    name: String,
    folder: PathBuf,
    tag: Option<String>,
}

impl Layout {
    pub fn new(folder: &Path, tag: Option<&str>, name: &str) -> Self {
        Self { name: name.to_owned(), folder: folder.to_owned(), tag: tag.map(str::to_owned) }
    }

    /// What the index has under the tag; without one the whole index, of which the right platform is chosen.
    pub async fn first(&self) -> Result<Vec<u8>, Error> {
        let path = self.folder.join("index.json");
        let text = self.read(&path).await?;
        let Some(tag) = &self.tag else { return Ok(text) };
        let index: Index = serde_json::from_slice(&text)
            .map_err(|error| Error::malformed(&self.name, format!("{}: {error}", path.display())))?;
        let named = |entry: &Descriptor| {
            NAMES.iter().any(|name| entry.annotations.get(*name).is_some_and(|is| is_tag(is, tag)))
        };
        let mut entries = index.manifests.into_iter().filter(named);
        let unknown = || Error::Unknown { image: format!("{tag} in {}", self.folder.display()) };
        let entry = entries.next().ok_or_else(unknown)?;
        self.read(&self.place(&entry.digest)).await
    }

    pub async fn blob(&self, digest: &Digest) -> Result<ByteStream, Error> {
        let path = self.place(digest);
        let file = tokio::fs::File::open(&path).await.map_err(|source| self.failed(&path, source))?;
        Ok(ReaderStream::with_capacity(file, 256 << 10).boxed())
    }

    fn place(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs/sha256").join(digest.hex())
    }

    async fn read(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let size = tokio::fs::metadata(path).await.map_err(|source| self.failed(path, source))?.len();
        if size > MAX_DOCUMENT {
            return Err(Error::malformed(&self.name, format!("{} is larger than 4 MiB", path.display())));
        }
        tokio::fs::read(path).await.map_err(|source| self.failed(path, source))
    }

    fn failed(&self, path: &Path, source: io::Error) -> Error {
        Error::Layout { image: self.name.clone(), path: path.to_owned(), source }
    }
}

/// `docker.io/library/x:1` is also `x:1`.
fn is_tag(annotation: &str, tag: &str) -> bool {
    let whole = |name: &str| name.parse::<oci_distribution::Reference>().map(|reference| reference.whole());
    annotation == tag
        || matches!((whole(annotation), whole(tag)), (Ok(one), Ok(other)) if one == other && tag.contains('/'))
}
