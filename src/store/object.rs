//! What is stored, before it has a type.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::random_hex;

/// Names an object. Objects that belong to no namespace have an empty one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.as_str();
        match self.namespace.as_str() {
            "" => write!(f, "{kind} {}", self.name),
            namespace => write!(f, "{kind} {namespace}/{}", self.name),
        }
    }
}

/// The kinds of objects there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Namespace,
    App,
    Staging,
    Release,
    /// An uploaded source, by blob uid.
    Source,
    User,
    /// An API token: its digest, and how far it reaches.
    Token,
    /// Keys that the daemon made for itself (token signing).
    Secret,
    /// An image repository of the registry: its tags and what it may read.
    Repository,
    /// An assembled base image and its lock.
    Base,
    /// A certificate of the edge with its key, or what hinders one.
    Certificate,
}

impl Kind {
    pub const ALL: [Self; 11] = [
        Self::Namespace,
        Self::App,
        Self::Staging,
        Self::Release,
        Self::Source,
        Self::User,
        Self::Token,
        Self::Secret,
        Self::Repository,
        Self::Base,
        Self::Certificate,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::App => "app",
            Self::Staging => "staging",
            Self::Release => "release",
            Self::Source => "source",
            Self::User => "user",
            Self::Token => "token",
            Self::Secret => "secret",
            Self::Repository => "repository",
            Self::Base => "base",
            Self::Certificate => "certificate",
        }
    }
}

/// A stored object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Object {
    #[serde(flatten)]
    pub key: Key,
    /// Never used twice, also not for a later object of the same name.
    pub uid: String,
    /// 0 before the first write; grows with every one.
    pub version: u64,
    /// The schema that the body was written in.
    pub schema: u32,
    pub body: serde_json::Value,
}

/// Which part of a list is wanted.
#[derive(Debug, Clone)]
pub struct Page {
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only what comes after this (namespace, name).
    pub after: Option<(String, String)>,
    pub limit: usize,
}

/// A part of a list.
#[derive(Debug, Clone)]
pub struct Slice {
    pub objects: Vec<Object>,
    /// Pass it as `after` for the rest; none when there is no more.
    pub next: Option<(String, String)>,
}

/// A change of an object.
#[derive(Debug, Clone)]
pub enum Event {
    Put(Object),
    Deleted(Key),
}

pub(super) fn new_uid() -> String {
    random_hex::<16>()
}
