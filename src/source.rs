//! What a user hands in: archives, received as a stream, checked entry by entry, and unpacked safely.
//!
//! An upload is checked while it is written: it is sniffed by its first bytes, decompressed and walked through on
//! a thread of its own. What is not a plain tree of files below one folder is refused: absolute names and `..`, links that
//! leave the tree, devices, archives that are cut off or grow beyond the limits. Until everything is found
//! good and is durable, there is nothing: no blob, no object. Unpacking, later and in a sandbox, checks again.

mod archive;
mod names;
mod pack;
mod receive;
mod unpack;
mod xz;
mod zip;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

pub use pack::{PackStats, pack};
pub use unpack::unpack;

use crate::{
    blob::{self, SharedBlobs},
    model::{AppName, Digest, Namespace, Timestamp},
    store::{self, Key, Kind, Objects, Resource},
};

/// The uploads of this daemon.
pub struct Sources {
    objects: Objects,
    blobs: SharedBlobs,
    limits: Limits,
    /// Each upload takes a thread and the memory of a decoder.
    places: Semaphore,
}

/// How many uploads there may be at once.
const UPLOADS: usize = 16;

/// An archive that was uploaded and found good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Names the upload in the API (a UUID, version 4).
    pub uid: String,
    pub namespace: Namespace,
    pub app: AppName,
    pub digest: Digest,
    /// Of the archive, in bytes.
    pub size: u64,
    pub format: Format,
    pub entries: u64,
    /// Of the unpacked files, in bytes.
    pub unpacked_bytes: u64,
    pub created_at: Timestamp,
}

/// The kinds of archives that are understood, told by their first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Tar,
    Gzip,
    Xz,
    Bzip2,
    Zstd,
    Zip,
}

/// How large a source may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Of the archive, in bytes.
    pub max_archive_bytes: u64,
    /// Of all files in it, in bytes.
    pub max_unpacked_bytes: u64,
    pub max_entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_archive_bytes: 4 << 30, max_unpacked_bytes: 8 << 30, max_entries: 500_000 }
    }
}

/// The first bytes that a format is told by, at most.
pub(crate) const SNIFFED_BYTES: usize = 262;

impl Format {
    pub fn sniff(start: &[u8]) -> Option<Self> {
        let magics: [(&[u8], Self); 6] = [
            (b"\x1f\x8b", Self::Gzip),
            (b"\xfd7zXZ\0", Self::Xz),
            (b"BZh", Self::Bzip2),
            (b"\x28\xb5\x2f\xfd", Self::Zstd),
            (b"PK\x03\x04", Self::Zip),
            (b"PK\x05\x06", Self::Zip),
        ];
        let found = magics.into_iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, format)| format);
        // A tar without entries is its end mark: zeros.
        let is_end = || start.len() >= 257 && start.iter().all(|byte| *byte == 0);
        found.or_else(|| (start.get(257..262) == Some(b"ustar") || is_end()).then_some(Self::Tar))
    }
}

impl Sources {
    pub fn new(objects: Objects, blobs: SharedBlobs, limits: Limits) -> Self {
        Self { objects, blobs, limits, places: Semaphore::new(UPLOADS) }
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    pub async fn get(&self, namespace: &Namespace, uid: &str) -> Result<Option<Source>, Error> {
        let stored = self.objects.get::<Source>(&Source::key_of(namespace, uid)).await?;
        Ok(stored.map(|stored| stored.value))
    }

    /// Forgets uploads of applications that are gone, and all but the newest of the others that are older than this.
    pub async fn expire(&self, is_needed: impl Fn(&Source) -> bool, before: Timestamp) -> Result<Vec<Source>, Error> {
        let mut kept = Vec::new();
        for stored in self.objects.list::<Source>(None).await? {
            if is_needed(&stored.value) || stored.value.created_at > before {
                kept.push(stored.value);
                continue;
            }
            match self.objects.delete(&stored.value.key()).await {
                Ok(()) | Err(store::Error::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(kept)
    }
}

impl Source {
    pub fn key_of(namespace: &Namespace, uid: &str) -> Key {
        Key { kind: Kind::Source, namespace: namespace.to_string(), name: uid.to_owned() }
    }
}

impl Resource for Source {
    const KIND: Kind = Kind::Source;

    fn key(&self) -> Key {
        Self::key_of(&self.namespace, &self.uid)
    }
}

/// Why a source is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the upload is empty; send a tar archive (plain, or compressed with gzip, xz, bzip2 or zstd) or a zip archive"
    )]
    Empty,
    #[error(
        "the upload is no archive that is known here; send a tar archive (plain, or compressed with gzip, xz, bzip2 or zstd) or a zip archive"
    )]
    UnknownFormat,
    #[error("the archive has no files in it")]
    NoEntries,
    #[error("the archive is refused because of '{entry}': {why}")]
    Unsafe { entry: String, why: String },
    #[error("the archive is damaged or cut off: {0}; pack it again and repeat the upload")]
    Corrupt(String),
    #[error("the archive is larger than {0} bytes; leave out what the build does not need (.epinioignore)")]
    ArchiveTooLarge(u64),
    #[error(
        "the files in the archive come to more than {0} bytes; leave out what the build does not need (.epinioignore)"
    )]
    TooLarge(u64),
    #[error("the archive has more than {0} entries; leave out what the build does not need (.epinioignore)")]
    TooManyEntries(u64),
    #[error(
        "the archive cannot be unpacked in little memory: {0}; pack it again with a lower compression level and repeat the upload"
    )]
    NeedsMemory(String),
    #[error("{UPLOADS} uploads are on their way, which is as many as there may be; try again in a moment")]
    TooManyUploads,
    #[error("the upload ended early; repeat it")]
    ClientGone(#[source] std::io::Error),
    #[error("{doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the archive cannot be checked")]
    Check(#[source] std::io::Error),
    #[error("the store failed")]
    Store(#[from] store::Error),
    #[error("the blob store failed")]
    Blob(#[from] blob::Error),
}

impl Error {
    /// Is it the archive that is wrong, or are we?
    pub fn is_users(&self) -> bool {
        !matches!(self, Self::Store(_) | Self::Blob(_) | Self::Check(_) | Self::Io { .. })
    }
}
