//! What a user hands in: archives, received as a stream, checked entry by entry, and unpacked safely.

use serde::{Deserialize, Serialize};

use crate::{
    model::{AppName, Digest, Namespace, Timestamp},
    store::{Key, Kind, Resource},
};

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
