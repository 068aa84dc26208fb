//! A package as the index describes it, and the syntax of its dependencies (Debian policy §7.1).

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::{Archive, version};
use crate::model::Digest;

/// A version of a package. This is also what a lock holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub architecture: String,
    pub archive: Archive,
    /// Below the root of the archive.
    pub filename: String,
    pub size: u64,
    pub sha256: Digest,
}

/// What a package needs and gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Relations {
    /// `Pre-Depends` and `Depends`, as they are written.
    pub depends: String,
    pub provides: String,
}

/// One of several packages that each satisfy a dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alternative<'a> {
    pub name: &'a str,
    pub constraint: Option<Constraint<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Constraint<'a> {
    relation: Relation,
    version: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Earlier,
    AtMost,
    Exactly,
    AtLeast,
    Later,
}

impl Constraint<'_> {
    pub(super) fn allows(&self, version: &str) -> bool {
        let order = version::compare(version, self.version);
        match self.relation {
            Relation::Earlier => order == Ordering::Less,
            Relation::AtMost => order != Ordering::Greater,
            Relation::Exactly => order == Ordering::Equal,
            Relation::AtLeast => order != Ordering::Less,
            Relation::Later => order == Ordering::Greater,
        }
    }
}

/// The dependencies of a field: each is a list of alternatives. What cannot be read is left out, as dpkg would
/// never have let it into the archive.
pub(super) fn dependencies(field: &str) -> impl Iterator<Item = Vec<Alternative<'_>>> {
    let groups = field.split(',').map(|group| group.split('|').filter_map(alternative).collect::<Vec<_>>());
    groups.filter(|group| !group.is_empty())
}

/// The names that a `Provides` field gives, with their versions.
pub(super) fn provided(field: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    field.split(',').filter_map(alternative).map(|given| {
        let version = given.constraint.filter(|constraint| constraint.relation == Relation::Exactly);
        (given.name, version.map(|constraint| constraint.version))
    })
}

/// `name[:arch] [(relation version)]`.
fn alternative(text: &str) -> Option<Alternative<'_>> {
    let (name, rest) = text.trim().split_once([' ', '(']).unwrap_or((text.trim(), ""));
    let name = name.split(':').next().filter(|name| !name.is_empty())?;
    let inside = rest.trim().trim_start_matches('(').split(')').next().unwrap_or("").trim();
    let operator = inside.find(|c| !matches!(c, '<' | '>' | '=')).unwrap_or(inside.len());
    let relation = match &inside[..operator] {
        "<<" => Relation::Earlier,
        "<=" | "<" => Relation::AtMost,
        "=" => Relation::Exactly,
        ">=" | ">" => Relation::AtLeast,
        ">>" => Relation::Later,
        _ => return Some(Alternative { name, constraint: None }),
    };
    Some(Alternative { name, constraint: Some(Constraint { relation, version: inside[operator..].trim() }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_as_the_policy_writes_them() {
        let read: Vec<Vec<(&str, bool)>> = dependencies("a (>= 1.0), b:any | c (<< 2), , python3-x(=1)")
            .map(|group| group.iter().map(|a| (a.name, a.constraint.is_none_or(|c| c.allows("1")))).collect())
            .collect();
        assert_eq!(read, [vec![("a", false)], vec![("b", true), ("c", true)], vec![("python3-x", true)]]);
    }

    #[test]
    fn a_provided_name_may_have_a_version() {
        let read: Vec<_> = provided("awk, node-types-node (= 20.17.47~20.19.2), debconf-2.0").collect();
        assert_eq!(read, [("awk", None), ("node-types-node", Some("20.17.47~20.19.2")), ("debconf-2.0", None)]);
    }
}
