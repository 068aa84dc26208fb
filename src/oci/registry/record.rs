//! What a repository has: one object for each tag, manifest and blob.

use serde::{Deserialize, Serialize};

use crate::{
    model::{Digest, Timestamp},
    store::{Key, Kind, Resource},
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub repository: String,
    pub item: Item,
    /// The manifest or blob.
    pub digest: Digest,
    pub created_at: Timestamp,
    /// Of a manifest: its media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Of a manifest: everything it names (configuration, layers, manifests).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<Digest>,
    /// Of a manifest: what it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Item {
    Tag(String),
    Manifest(Digest),
    Blob(Digest),
}

impl Record {
    pub fn new(repository: &str, item: Item, digest: Digest) -> Self {
        Self {
            repository: repository.to_owned(),
            item,
            digest,
            created_at: Timestamp::now(),
            media_type: None,
            names: Vec::new(),
            subject: None,
        }
    }

    /// The same but for its time.
    pub fn same_as(&self, other: &Self) -> bool {
        *self == Self { created_at: self.created_at, ..other.clone() }
    }
}

impl Item {
    pub fn key(&self, repository: &str) -> Key {
        let name = match self {
            Self::Tag(tag) => format!("tag.{tag}"),
            Self::Manifest(digest) => format!("manifest.{}", digest.hex()),
            Self::Blob(digest) => format!("blob.{}", digest.hex()),
        };
        Key { kind: Kind::Repository, namespace: repository.to_owned(), name }
    }

    pub fn tag(self) -> Option<String> {
        match self {
            Self::Tag(tag) => Some(tag),
            _ => None,
        }
    }
}

impl Resource for Record {
    const KIND: Kind = Kind::Repository;

    fn key(&self) -> Key {
        self.item.key(&self.repository)
    }
}
