//! What is kept of a base: the lock as a blob, and a small object that finds it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{BasePair, Error, Options, Package, assemble::Facts, definition::Definition};
use crate::{
    model::{Digest, ImageName, Timestamp},
    oci::{Compression, Layer},
    store::{Key, Kind, Resource},
};

/// A set of packages that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub(super) struct Request {
    pub run: BTreeSet<String>,
    pub build: BTreeSet<String>,
    /// The named sets that the build asked for.
    pub sets: BTreeSet<String>,
}

impl Request {
    pub(super) fn new(build: &[String], run: &[String]) -> Result<Self, Error> {
        let aliases = &Definition::embedded().aliases;
        let mut run = names(run)?;
        let sets_of_run: Vec<String> = run.iter().filter(|name| aliases.contains_key(*name)).cloned().collect();
        for set in sets_of_run {
            run.remove(&set);
            run.extend(aliases[&set].iter().cloned());
        }
        let (sets, build) = names(build)?.into_iter().partition(|name| aliases.contains_key(name));
        Ok(Self { run, build, sets })
    }

    /// Names the request in records: with all that may give another answer, but for the index.
    pub(super) fn id(&self, options: &Options) -> String {
        let parts = (Definition::embedded().recipe, &options.architecture, options.compression, self);
        Digest::of(serde_json::to_vec(&parts).unwrap_or_default()).hex()
    }
}

/// Debian policy §5.6.1: lower case letters, digits, `+`, `-` and `.`, at least two.
fn names(asked: &[String]) -> Result<BTreeSet<String>, Error> {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"+-.".contains(&c);
    let is_name = |name: &String| (2..=128).contains(&name.len()) && name.bytes().all(allowed);
    match asked.iter().find(|name| !is_name(name)) {
        Some(name) => Err(Error::BadPackageName(name.chars().take(80).collect())),
        None => Ok(asked.iter().cloned().collect()),
    }
}

/// Exactly what a base is made of. The same lock gives the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Lock {
    pub recipe: u32,
    pub architecture: String,
    /// The suites that were read, each with its date.
    pub suites: BTreeMap<String, Timestamp>,
    /// Lowest first.
    pub layers: Vec<LockedLayer>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LockedLayer {
    pub key: Digest,
    pub layer: Layer,
    pub packages: Vec<Package>,
    /// Of this layer with those that it was made on.
    pub facts: Facts,
}

/// The key of a layer: equal keys, equal bytes.
pub(super) fn layer_key(
    architecture: &str,
    compression: Compression,
    below: &[Digest],
    packages: &[Package],
) -> Digest {
    let hashes: Vec<Digest> = packages.iter().map(|package| package.sha256).collect();
    let parts = (Definition::embedded().recipe, architecture, compression, below, hashes);
    Digest::of(serde_json::to_vec(&parts).unwrap_or_default())
}

/// The identity of a pair of bases: the keys of its layers, each with whether only the build base has it. Dates of suites
/// do not count.
pub(super) fn lock_id(layers: impl Iterator<Item = (Digest, bool)>) -> Digest {
    Digest::of(serde_json::to_vec(&layers.collect::<Vec<_>>()).unwrap_or_default())
}

/// A pair of bases that was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseRecord {
    pub id: Digest,
    pub run: ImageName,
    pub build: ImageName,
    /// The blob that has the lock.
    pub lock: Digest,
    pub layers: Vec<RecordedLayer>,
    /// The requests that this pair is the answer to.
    pub requests: BTreeMap<String, Answer>,
    pub made: Timestamp,
}

/// A layer without what only the lock says of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedLayer {
    pub key: Digest,
    pub layer: Layer,
}

/// When a pair was the answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Of the index that was resolved on.
    pub snapshot: Digest,
    pub at: Timestamp,
}

impl BaseRecord {
    pub fn pair(&self) -> BasePair {
        BasePair { build: self.build.clone(), run: self.run.clone(), lock: self.id }
    }

    pub fn key_of(id: &Digest) -> Key {
        Key { kind: Kind::Base, namespace: String::new(), name: id.hex() }
    }
}

impl Resource for BaseRecord {
    const KIND: Kind = Kind::Base;

    fn key(&self) -> Key {
        Self::key_of(&self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_set_of_real_names() {
        let request = |build: &[&str], run: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            Request::new(&owned(build), &owned(run))
        };
        let tools = request(&["build-tools", "g++"], &["python3", "nginx", "python3"]).unwrap();
        assert_eq!(tools.run.iter().collect::<Vec<_>>(), ["nginx", "python3"]);
        assert!(tools.sets.contains("build-tools") && tools.build.contains("g++") && tools.build.len() == 1);
        let run = request(&[], &["build-tools"]).unwrap().run;
        assert!(run.contains("gcc") && run.contains("git") && !run.contains("build-tools"));
        let options = Options::new(std::path::Path::new("/"), crate::base::Mirrors::default());
        assert_ne!(tools.id(&options), request(&["build-tools"], &["python3"]).unwrap().id(&options));
        let elsewhere = Options { architecture: "riscv64".to_owned(), ..options.clone() };
        assert_ne!(tools.id(&options), tools.id(&elsewhere));
        for bad in ["", "x", "Python3", "a b", "../x", "a=1"] {
            assert!(matches!(request(&[], &[bad]), Err(Error::BadPackageName(_))), "{bad}");
        }
    }
}
