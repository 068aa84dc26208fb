//! From names of packages to all that has to be installed.
//!
//! A stable archive is consistent: the first alternative that exists is right, and conflicts need no
//! search. What is on the layers below counts as installed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    Error, Package,
    index::{Found, PackageIndex},
    package::{Alternative, Relations, dependencies, provided},
};

/// Packages that are installed together, with what they provide.
#[derive(Debug, Clone, Default)]
pub(super) struct Installed {
    pub packages: BTreeMap<String, Package>,
    /// Virtual names, each with the versions it is provided in.
    provided: BTreeMap<String, BTreeSet<Option<String>>>,
}

impl Installed {
    fn insert(&mut self, package: Package, relations: &Relations) {
        for (name, version) in provided(&relations.provides) {
            self.provided.entry(name.to_owned()).or_default().insert(version.map(str::to_owned));
        }
        self.packages.insert(package.name.clone(), package);
    }

    /// Adds what is installed elsewhere, from the same index.
    pub(super) fn absorb(&mut self, other: Self) {
        self.packages.extend(other.packages);
        for (name, versions) in other.provided {
            self.provided.entry(name).or_default().extend(versions);
        }
    }

    fn satisfies(&self, wanted: &Alternative<'_>) -> bool {
        let allows = |version: &str| wanted.constraint.is_none_or(|constraint| constraint.allows(version));
        if self.packages.get(wanted.name).is_some_and(|package| allows(&package.version)) {
            return true;
        }
        let mut versions = self.provided.get(wanted.name).into_iter().flatten();
        versions.any(|version| version.as_deref().map_or(wanted.constraint.is_none(), allows))
    }
}

/// Resolves on an index.
pub(super) struct Resolver<'a> {
    pub index: &'a PackageIndex,
    /// Dependencies that are not installed; a name that is asked for is.
    pub drop: &'a [String],
}

impl Resolver<'_> {
    /// Adds these packages and all they need to what is installed; returns the new packages in order of their names.
    pub(super) fn install(&self, names: &BTreeSet<String>, installed: &mut Installed) -> Result<Vec<Package>, Error> {
        let mut added = BTreeMap::new();
        let mut queue = VecDeque::new();
        for name in names {
            if installed.packages.contains_key(name) {
                continue;
            }
            queue.push_back(self.add_root(name, installed, &mut added)?);
        }
        while let Some((dependent, relations)) = queue.pop_front() {
            for group in dependencies(&relations.depends) {
                let dropped = group.iter().any(|wanted| self.drop.iter().any(|name| name == wanted.name));
                if dropped || group.iter().any(|wanted| installed.satisfies(wanted)) {
                    continue;
                }
                let Some((package, relations)) = self.choose(&group)? else {
                    let dependency = group.iter().map(|wanted| wanted.name).collect::<Vec<_>>().join(" | ");
                    return Err(Error::Unsatisfiable { package: dependent, dependency });
                };
                added.insert(package.name.clone(), package.clone());
                queue.push_back((package.name.clone(), relations.clone()));
                installed.insert(package, &relations);
            }
        }
        Ok(added.into_values().collect())
    }

    /// A package that was asked for by name; a virtual name stands for its first provider.
    fn add_root(
        &self,
        name: &str,
        installed: &mut Installed,
        added: &mut BTreeMap<String, Package>,
    ) -> Result<(String, Relations), Error> {
        let wanted = Alternative { name, constraint: None };
        let Some((package, relations)) = self.choose(&[wanted])? else {
            let near = self.index.near(name).map_err(reading)?;
            return Err(Error::UnknownPackage { name: name.to_owned(), near });
        };
        added.insert(package.name.clone(), package.clone());
        installed.insert(package.clone(), &relations);
        Ok((package.name, relations))
    }

    /// The first alternative that there is.
    fn choose(&self, group: &[Alternative<'_>]) -> Result<Option<(Package, Relations)>, Error> {
        for wanted in group {
            let allows = |version: &str| wanted.constraint.is_none_or(|constraint| constraint.allows(version));
            let mut provider = None;
            for found in self.index.look_up(wanted.name).map_err(reading)? {
                match found {
                    Found::Real { package, relations } if allows(&package.version) => {
                        return Ok(Some((package, relations)));
                    }
                    Found::Provider { name, version }
                        if provider.is_none() && version.as_deref().map_or(wanted.constraint.is_none(), allows) =>
                    {
                        provider = Some(name);
                    }
                    _ => {}
                }
            }
            for found in
                provider.map(|name| self.index.look_up(&name)).transpose().map_err(reading)?.into_iter().flatten()
            {
                if let Found::Real { package, relations } = found {
                    return Ok(Some((package, relations)));
                }
            }
        }
        Ok(None)
    }
}

fn reading(source: std::io::Error) -> Error {
    Error::Io { doing: "reading the package index".to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{Archive, index::IndexBuilder},
        model::Digest,
    };

    /// Installs `names` from lines of `name version depends [provides]`, on top of what is there.
    fn install(archive: &[[&str; 4]], steps: &[&[&str]]) -> Result<Vec<Vec<String>>, Error> {
        let folder = tempfile::tempdir().unwrap();
        let text: String = archive.iter().map(|[name, version, depends, provides]| {
            let hash = Digest::of(name).hex();
            format!("Package: {name}\nVersion: {version}\nArchitecture: all\nFilename: x\nSize: 1\nSHA256: {hash}\nDepends: {depends}\nProvides: {provides}\n\n")
        }).collect();
        let path = folder.path().join("index");
        let mut builder = IndexBuilder::default();
        builder.add(Archive::Debian, text.as_bytes()).unwrap();
        builder.write(&path).unwrap();
        let index = PackageIndex::open(&path).unwrap();
        let resolver = Resolver { index: &index, drop: &["debconf".to_owned()] };
        let mut installed = Installed::default();
        let mut layers = Vec::new();
        for names in steps {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            let added = resolver.install(&names, &mut installed)?;
            layers.push(added.into_iter().map(|package| package.name).collect());
        }
        Ok(layers)
    }

    #[test]
    fn all_that_is_needed_is_installed_once() {
        let archive = [
            ["app", "1", "lib (>= 2), tool:any | other, debconf (>= 1) | debconf-2.0", ""],
            ["lib", "2", "libc", ""],
            ["libc", "1", "lib", ""],
            ["tool", "1", "libc", ""],
            ["more", "1", "app, extra", ""],
            ["extra", "1", "", ""],
            ["debconf", "1", "", ""],
        ];
        let layers = install(&archive, &[&["app"], &["more", "lib"], &["debconf"]]).unwrap();
        assert_eq!(layers, [vec!["app", "lib", "libc", "tool"], vec!["extra", "more"], vec!["debconf"]]);
    }

    #[test]
    fn what_is_provided_counts_with_its_version() {
        let archive = [
            ["a", "1", "awk", ""],
            ["mawk", "1", "", "awk"],
            ["gawk", "1", "", "awk"],
            ["b", "1", "abi (= 3)", ""],
            ["old", "1", "", "abi (= 2)"],
            ["new", "1", "", "abi (= 3)"],
            ["c", "1", "awk (>= 1)", ""],
        ];
        assert_eq!(install(&archive, &[&["a", "mawk"]]).unwrap(), [["a", "mawk"]]);
        assert_eq!(install(&archive, &[&["a"]]).unwrap(), [["a", "gawk"]]);
        assert_eq!(install(&archive, &[&["b"]]).unwrap(), [["b", "new"]]);
        assert!(matches!(install(&archive, &[&["c"]]), Err(Error::Unsatisfiable { .. })));
    }

    #[test]
    fn an_alternative_that_is_too_old_is_passed_over() {
        let archive = [["a", "1", "b (>= 2) | c", ""], ["b", "1", "", ""], ["c", "1", "", ""]];
        assert_eq!(install(&archive, &[&["a"]]).unwrap(), [["a", "c"]]);
    }

    #[test]
    fn an_unknown_package_comes_with_near_names() {
        let archive = [["nodejs", "1", "", ""]];
        match install(&archive, &[&["nodesj"]]) {
            Err(Error::UnknownPackage { name, near }) => {
                assert_eq!((name.as_str(), near), ("nodesj", vec!["nodejs".to_owned()]))
            }
            other => panic!("{other:?}"),
        }
    }
}
