//! `package.json`, and what a lock says about the packages that it leads to.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;

use crate::buildpacks::{Error, error::At};

/// What is read of `package.json` and of the lock beside it.
#[derive(Debug)]
pub(super) struct Package {
    manifest: Manifest,
    /// The bytes of `package.json`, of the lock and of `.npmrc`.
    pub content: Vec<u8>,
    pub lock: Lock,
    pub locked: Vec<Locked>,
    /// The application is a native add-on itself.
    pub gyp: bool,
}

/// The lock that the versions are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    Npm(&'static str),
    /// npm reads the versions of a `yarn.lock` when there is no lock of its own.
    Yarn,
    Pnpm,
    None,
}

/// A package of the lock.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Locked {
    #[serde(skip)]
    pub name: String,
    pub has_install_script: bool,
    pub link: bool,
    pub dependencies: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Manifest {
    main: Option<serde_json::Value>,
    scripts: BTreeMap<String, serde_json::Value>,
    dependencies: BTreeMap<String, serde_json::Value>,
    dev_dependencies: BTreeMap<String, serde_json::Value>,
    optional_dependencies: BTreeMap<String, serde_json::Value>,
    engines: Option<serde_json::Value>,
    workspaces: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LockFile {
    packages: BTreeMap<String, Locked>,
}

/// What npm runs of the application itself when it installs.
const INSTALL_SCRIPTS: [&str; 5] = ["preinstall", "install", "postinstall", "prepublish", "prepare"];
const MANIFEST: &str = "package.json";
const NPM_LOCKS: [&str; 2] = ["npm-shrinkwrap.json", "package-lock.json"];

impl Package {
    /// `None` when `app` has no `package.json`.
    pub(super) fn read(app: &Path) -> Result<Option<Self>, Error> {
        let path = app.join(MANIFEST);
        if !path.is_file() {
            return Ok(None);
        }
        let mut content = fs::read(&path).at(&path)?;
        let manifest = serde_json::from_slice(without_mark(&content))
            .map_err(|error| Error::Refused(format!("{MANIFEST} is not valid JSON; correct it: {error}")))?;
        let lock = find_lock(app);
        let mut locked = Vec::new();
        for name in [lock.file(), Some(".npmrc")].into_iter().flatten() {
            let path = app.join(name);
            if !path.is_file() {
                continue;
            }
            let bytes = fs::read(&path).at(&path)?;
            if matches!(lock, Lock::Npm(file) if file == name) {
                locked = read_lock(name, &bytes)?;
            }
            content.extend_from_slice(format!("\0{name}\0").as_bytes());
            content.extend_from_slice(&bytes);
        }
        Ok(Some(Self { manifest, content, lock, locked, gyp: app.join("binding.gyp").is_file() }))
    }

    /// A script that says something.
    pub(super) fn script(&self, name: &str) -> Option<&str> {
        self.manifest.scripts.get(name)?.as_str().map(str::trim).filter(|script| !script.is_empty())
    }

    pub(super) fn main(&self) -> Option<&str> {
        self.manifest.main.as_ref()?.as_str()
    }

    pub(super) fn engine(&self) -> Option<&str> {
        self.manifest.engines.as_ref()?.get("node")?.as_str()
    }

    /// Names and wanted versions of all direct dependencies.
    pub(super) fn dependencies(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = [&self.manifest.dependencies, &self.manifest.dev_dependencies, &self.manifest.optional_dependencies];
        all.into_iter().flatten().map(|(name, version)| (name.as_str(), version.as_str().unwrap_or_default()))
    }

    /// Whether installing runs scripts of the application itself or builds it: then everything has to be
    /// installed, not only what the image needs.
    pub(super) fn needs_full_install(&self) -> bool {
        self.has_install_scripts() || self.script("build").is_some()
    }

    /// Why node_modules has to be in the application itself, where every build installs it; `None` where a link to a layer
    /// that is kept from build to build is as good.
    pub(super) fn in_place(&self) -> Option<&'static str> {
        let depends_on = |names: &[&str]| self.dependencies().any(|(name, _)| names.contains(&name));
        if self.links_into_app() {
            Some("it links into the application")
        } else if self.has_install_scripts() {
            Some("installing runs scripts of the application")
        } else if depends_on(&["prisma", "@prisma/client"]) {
            Some("Prisma writes code into it that it makes from the application")
        } else if depends_on(&["next"]) {
            Some("Next.js follows no link that leaves the application")
        } else {
            None
        }
    }

    fn has_install_scripts(&self) -> bool {
        self.gyp || INSTALL_SCRIPTS.iter().any(|name| self.script(name).is_some())
    }

    /// Whether node_modules links to directories of the application.
    fn links_into_app(&self) -> bool {
        self.manifest.workspaces.is_some()
            || self.locked.iter().any(|package| package.link)
            || self.dependencies().any(|(_, version)| {
                ["file:", "link:", "workspace:", "./", "../"].iter().any(|start| version.starts_with(start))
            })
    }
}

impl Lock {
    fn file(self) -> Option<&'static str> {
        match self {
            Self::Npm(name) => Some(name),
            Self::Yarn => Some("yarn.lock"),
            Self::Pnpm => Some("pnpm-lock.yaml"),
            Self::None => None,
        }
    }
}

fn find_lock(app: &Path) -> Lock {
    let there = |name: &str| app.join(name).is_file();
    if let Some(name) = NPM_LOCKS.into_iter().find(|name| there(name)) {
        Lock::Npm(name)
    } else if there("yarn.lock") {
        Lock::Yarn
    } else if there("pnpm-lock.yaml") {
        Lock::Pnpm
    } else {
        Lock::None
    }
}

fn read_lock(name: &str, bytes: &[u8]) -> Result<Vec<Locked>, Error> {
    let lock: LockFile = serde_json::from_slice(without_mark(bytes)).map_err(|error| {
        Error::Refused(format!("{name} is not valid JSON; make it anew with 'npm install' and push again: {error}"))
    })?;
    Ok(lock
        .packages
        .into_iter()
        .filter_map(|(path, locked)| {
            let name = path.rsplit_once("node_modules/")?.1.to_owned();
            Some(Locked { name, ..locked })
        })
        .collect())
}

/// Editors of Windows put a byte order mark in front.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes)
}

#[cfg(test)]
pub(super) fn package(files: &[(&str, &str)]) -> (tempfile::TempDir, Package) {
    let app = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(app.path().join(name), text).unwrap();
    }
    let package = Package::read(app.path()).unwrap().unwrap();
    (app, package)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_told_apart() {
        let manifest = ("package.json", r#"{"dependencies":{"express":"^5"}}"#);
        let lock = r#"{"packages":{"":{},"node_modules/a/node_modules/@x/b":{"hasInstallScript":true}}}"#;
        let (_app, package) = package(&[manifest, ("package-lock.json", lock), ("yarn.lock", "")]);
        assert_eq!(package.lock, Lock::Npm("package-lock.json"));
        assert_eq!(package.locked.len(), 1);
        assert_eq!(package.locked[0].name, "@x/b");
        assert!(package.locked[0].has_install_script);
        for (name, expected) in [("yarn.lock", Lock::Yarn), ("pnpm-lock.yaml", Lock::Pnpm), ("other", Lock::None)] {
            let (_app, package) = super::package(&[manifest, (name, "")]);
            assert_eq!(package.lock, expected);
        }
    }

    #[test]
    fn odd_manifests_are_read_or_refused() {
        let (_app, odd) = package(&[("package.json", "\u{feff}{\"main\":3,\"scripts\":{\"start\":\" \"}}")]);
        assert_eq!((odd.main(), odd.script("start")), (None, None));
        let app = tempfile::tempdir().unwrap();
        fs::write(app.path().join("package.json"), "{").unwrap();
        assert!(Package::read(app.path()).unwrap_err().to_string().contains("package.json is not valid JSON"));
    }

    #[test]
    fn what_needs_node_modules_in_the_application_has_it_there() {
        for (manifest, expected) in [
            (r#"{"workspaces":["packages/*"]}"#, true),
            (r#"{"dependencies":{"a":"file:../a"}}"#, true),
            (r#"{"scripts":{"postinstall":"node make.js"}}"#, true),
            (r#"{"dependencies":{"@prisma/client":"^6"}}"#, true),
            (r#"{"dependencies":{"next":"^16"}}"#, true),
            (r#"{"dependencies":{"a":"^1"},"scripts":{"build":"a"}}"#, false),
        ] {
            let package = package(&[("package.json", manifest)]).1;
            assert_eq!(package.in_place().is_some(), expected, "{manifest}");
        }
        let (_app, addon) = package(&[("package.json", "{}"), ("binding.gyp", "{}")]);
        assert!(addon.in_place().is_some() && addon.needs_full_install());
    }
}
