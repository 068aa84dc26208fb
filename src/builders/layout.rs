//! An image in an OCI layout on this machine (image-spec, "OCI Image Layout").

use std::{
    collections::BTreeSet,
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
        let index: Index = serde_json::from_slice(&text)
            .map_err(|error| Error::malformed(&self.name, format!("{}: {error}", path.display())))?;
        let there: BTreeSet<&str> = index.manifests.iter().filter_map(name_of).collect();
        let all = there.iter().copied().collect::<Vec<_>>().join(", ");
        let Some(tag) = &self.tag else {
            if there.len() > 1 {
                let (folder, cause) = (self.folder.display(), "it is one of several");
                return Err(Error::malformed(&self.name, format!("{cause}; name it with oci:{folder}:TAG: {all}")));
            }
            return Ok(text);
        };
        let mut entries = index.manifests.iter().filter(|entry| has_name(entry, tag));
        let unknown = || Error::NotInLayout { folder: self.folder.clone(), tag: tag.clone(), there: all.clone() };
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

fn name_of(entry: &Descriptor) -> Option<&str> {
    NAMES.iter().find_map(|name| entry.annotations.get(*name)).map(String::as_str)
}

fn has_name(entry: &Descriptor, tag: &str) -> bool {
    NAMES.iter().filter_map(|name| entry.annotations.get(*name)).any(|name| is_same(name, tag))
}

/// `docker.io/library/x:1` is also `library/x:1`; what has no repository in it is a tag, and only itself.
fn is_same(annotation: &str, tag: &str) -> bool {
    let whole = |name: &str| {
        let reference = name.parse::<oci_distribution::Reference>().ok().filter(|_| name.contains('/'));
        reference.map(|reference| reference.whole())
    };
    annotation == tag || whole(tag).is_some_and(|tag| whole(annotation) == Some(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_several_spellings_and_tags_one() {
        for (annotation, tag) in [("24", "24"), ("docker.io/a/b:latest", "a/b"), ("a/b:1", "index.docker.io/a/b:1")] {
            assert!(is_same(annotation, tag), "{annotation} {tag}");
        }
        for (annotation, tag) in [("24", "25"), ("latest", "docker.io/library/latest"), ("a/b:1", "a/b:2")] {
            assert!(!is_same(annotation, tag), "{annotation} {tag}");
        }
    }
}
