//! Which layers a request comes to.
//!
//! ```text
//! build base only   what else the build asked for, and the linker cache of the whole
//! build base only   a named set (the compilers), made on the run set alone: one blob for all applications
//! both              what the application asked for
//! both              the run set
//! ```
//!
//! A named set may repeat libraries that the application's layer has too: from one index they are the same bytes.

use std::collections::BTreeSet;

use super::{
    Error, Options, Package,
    assemble::Facts,
    definition::Definition,
    index::PackageIndex,
    record::{LockedLayer, Request, layer_key},
    resolve::{Installed, Resolver},
};
use crate::model::Digest;

/// The packages of a layer that may or may not be there.
pub(super) struct Wanted {
    pub key: Digest,
    pub packages: Vec<Package>,
    /// Only the build base has it.
    pub is_build_only: bool,
    /// The numbers of the layers that it is made on.
    pub below: Vec<usize>,
    pub made: Option<LockedLayer>,
}

/// The layers of a request, lowest first.
pub(super) fn resolve(index: &PackageIndex, request: &Request, options: &Options) -> Result<Vec<Wanted>, Error> {
    let definition = Definition::embedded();
    let resolver = Resolver { index, drop: &definition.dependencies.drop };
    let mut stack = Stack { options, layers: Vec::new() };
    let mut run_set = Installed::default();
    stack.push(resolver.install(&names(&definition.run.packages), &mut run_set)?, false);
    let mut all = run_set.clone();
    stack.push_some(resolver.install(&request.run, &mut all)?, false);
    for set in request.sets.iter().filter_map(|set| definition.aliases.get(set)) {
        let mut with_set = run_set.clone();
        stack.push_on_run_set(resolver.install(&names(set), &mut with_set)?);
        all.absorb(with_set);
    }
    let rest = resolver.install(&request.build, &mut all)?;
    // Named sets do not know each other or the application's layer: then the linker cache has to be put together.
    let is_split = !request.sets.is_empty() && stack.layers.len() > 2;
    if is_split || !rest.is_empty() {
        stack.push(rest, true);
    }
    check_size(stack.layers.iter().flat_map(|layer| &layer.packages))?;
    Ok(stack.layers)
}

/// Of the packages of a base, compressed as they are.
const MAX_BYTES: u64 = 2_000_000_000;

fn check_size<'a>(packages: impl Iterator<Item = &'a Package> + Clone) -> Result<(), Error> {
    let total = packages.clone().map(|package| package.size).sum();
    match packages.max_by_key(|package| package.size) {
        Some(largest) if total > MAX_BYTES => Err(Error::TooLarge {
            total: megabytes(total),
            limit: megabytes(MAX_BYTES),
            name: largest.name.clone(),
            size: megabytes(largest.size),
        }),
        _ => Ok(()),
    }
}

fn names(list: &[String]) -> BTreeSet<String> {
    list.iter().cloned().collect()
}

struct Stack<'a> {
    options: &'a Options,
    layers: Vec<Wanted>,
}

impl Stack<'_> {
    fn push(&mut self, packages: Vec<Package>, is_build_only: bool) {
        self.add(packages, is_build_only, (0..self.layers.len()).collect());
    }

    fn push_some(&mut self, packages: Vec<Package>, is_build_only: bool) {
        if !packages.is_empty() {
            self.push(packages, is_build_only);
        }
    }

    fn push_on_run_set(&mut self, packages: Vec<Package>) {
        if !packages.is_empty() {
            self.add(packages, true, vec![0]);
        }
    }

    fn add(&mut self, packages: Vec<Package>, is_build_only: bool, below: Vec<usize>) {
        let keys: Vec<Digest> = below.iter().map(|number| self.layers[*number].key).collect();
        let key = layer_key(&self.options.architecture, self.options.compression, &keys, &packages);
        self.layers.push(Wanted { key, packages, is_build_only, below, made: None });
    }
}

/// What is known of all these layers together; none for no layers.
pub(super) fn facts_of<'a>(layers: impl Iterator<Item = &'a Facts>) -> Option<Facts> {
    layers.cloned().reduce(|mut all, mut facts| {
        all.libraries.append(&mut facts.libraries);
        for (link, priority) in facts.alternatives {
            let best = all.alternatives.entry(link).or_insert(priority);
            *best = priority.max(*best);
        }
        all
    })
}

pub(super) fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Archive;

    #[test]
    fn a_base_has_a_largest_size() {
        let package = |name: &str, size: u64| Package {
            name: name.to_owned(),
            version: "1".to_owned(),
            architecture: "amd64".to_owned(),
            archive: Archive::Debian,
            filename: "x".to_owned(),
            size,
            sha256: Digest::of(name),
        };
        let packages = [package("small", 1), package("huge", 1_500_000_000), package("large", 500_000_000)];
        assert!(check_size(packages[..2].iter()).is_ok());
        let error = check_size(packages.iter()).unwrap_err().to_string();
        assert!(error.contains("2000.0 MB") && error.contains("huge with 1500.0 MB"), "{error}");
    }
}
