//! The environment that buildpacks get. Values are bytes: nothing says that they are text.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use super::{Context as _, Result};

/// Variables that hold lists of folders.
const PATHS: [&str; 5] = ["PATH", "LD_LIBRARY_PATH", "LIBRARY_PATH", "CPATH", "PKG_CONFIG_PATH"];
/// What a buildpack may see of our own environment; everything else stays here.
const ALLOWED: [&str; 9] = [
    "CNB_STACK_ID",
    "HOSTNAME",
    "HOME",
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// The environment of this process, or that of a test.
pub type Variables = Vec<(OsString, OsString)>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Env(BTreeMap<String, OsString>);

impl Env {
    /// What is allowed through of these variables.
    pub fn allowed(all: &Variables) -> Self {
        let known = |name: &str| ALLOWED.contains(&name) || PATHS.contains(&name);
        let text = all.iter().filter_map(|(name, value)| Some((name.to_str()?.to_owned(), value.clone())));
        Self(text.filter(|(name, _)| known(name)).collect())
    }

    pub fn into_vars(self) -> BTreeMap<String, OsString> {
        self.0
    }

    pub fn set(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// The variables of the platform: lists of folders are put in front, others win.
    pub fn add_platform(&mut self, platform: &Path) -> Result<()> {
        for (name, value) in files(&platform.join("env"))? {
            if PATHS.contains(&name.as_str()) {
                self.combine(&name, &value, OsStr::new(":"), Place::Front);
            } else {
                self.set(&name, value);
            }
        }
        Ok(())
    }

    /// The variables of the builder: what says nothing else is a default.
    pub fn add_build_config(&mut self, cnb: &Path) -> Result<()> {
        self.add_files(&cnb.join("build-config/env"), "default")
    }

    /// Folders of a layer that have a meaning by their name.
    pub fn add_roots(&mut self, layer: &Path) {
        let roots = [
            ("bin", &["PATH"][..]),
            ("lib", &["LD_LIBRARY_PATH", "LIBRARY_PATH"]),
            ("include", &["CPATH"]),
            ("pkgconfig", &["PKG_CONFIG_PATH"]),
        ];
        for (folder, names) in roots {
            let folder = layer.join(folder);
            if folder.is_dir() {
                names.iter().for_each(|name| self.combine(name, folder.as_os_str(), OsStr::new(":"), Place::Front));
            }
        }
    }

    /// Files of a folder of a layer: the name is the variable, the suffix says what to do.
    pub fn add_folder(&mut self, folder: &Path) -> Result<()> {
        self.add_files(folder, "override")
    }

    /// `plain` is what a name without suffix means.
    fn add_files(&mut self, folder: &Path, plain: &str) -> Result<()> {
        let all = files(folder)?;
        for (file, value) in &all {
            let (name, suffix) = file.split_once('.').unwrap_or((file, plain));
            let delimiter = all.get(&format!("{name}.delim")).cloned().unwrap_or_default();
            match suffix {
                "override" => self.set(name, value),
                "default" if self.0.get(name).is_none_or(|known| known.is_empty()) => self.set(name, value),
                "append" => self.combine(name, value, &delimiter, Place::Back),
                "prepend" => self.combine(name, value, &delimiter, Place::Front),
                _ => {}
            }
        }
        Ok(())
    }

    fn combine(&mut self, name: &str, value: &OsStr, delimiter: &OsStr, place: Place) {
        let parts = match (self.0.get(name).filter(|known| !known.is_empty()), place) {
            (None, _) => vec![value],
            (Some(known), Place::Front) => vec![value, delimiter, known],
            (Some(known), Place::Back) => vec![known, delimiter, value],
        };
        let combined: Vec<u8> = parts.into_iter().flat_map(OsStr::as_bytes).copied().collect();
        self.set(name, OsString::from_vec(combined));
    }
}

#[derive(Clone, Copy)]
enum Place {
    Front,
    Back,
}

/// The files of a folder by name, with their content as it is. Folders are left out; links to files count.
fn files(folder: &Path) -> Result<BTreeMap<String, OsString>> {
    let doing = |path: PathBuf| move || format!("reading {}", path.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(BTreeMap::new());
        }
        entries => entries.context(1, doing(folder.to_owned()))?,
    };
    let mut files = BTreeMap::new();
    for entry in entries {
        let entry = entry.context(1, doing(folder.to_owned()))?;
        // A variable whose name is no text cannot be set.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if entry.path().is_file() {
            let content = fs::read(entry.path()).context(1, doing(entry.path()))?;
            files.insert(name, OsString::from_vec(content));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values<const N: usize>(all: [(&str, &str); N]) -> BTreeMap<String, OsString> {
        all.map(|(name, value)| (name.to_owned(), value.into())).into()
    }

    #[test]
    fn suffixes_do_what_the_specification_says() {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in [
            ("A.append", "x"),
            ("A.delim", ":"),
            ("B.prepend", "y"),
            ("C.default", "z"),
            ("D", "w"),
            ("E.default", "no"),
            ("F.other", "no"),
        ] {
            fs::write(dir.path().join(name), value).unwrap();
        }
        let mut env = Env::default();
        for (name, value) in [("A", "1"), ("B", "2"), ("D", "3"), ("E", "4")] {
            env.set(name, value);
        }
        env.add_folder(dir.path()).unwrap();
        assert_eq!(env.into_vars(), values([("A", "1:x"), ("B", "y2"), ("C", "z"), ("D", "w"), ("E", "4")]));
    }

    #[test]
    fn the_platform_wins_but_for_paths() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("env")).unwrap();
        fs::write(dir.path().join("env/PATH"), "/pp").unwrap();
        fs::write(dir.path().join("env/FOO"), "platform\n").unwrap();
        let given = [("PATH", "/usr/bin:/bin"), ("FOO", "pod"), ("CNB_REGISTRY_AUTH", "secret")];
        let mut env = Env::allowed(&given.map(|(name, value)| (name.into(), value.into())).to_vec());
        env.add_platform(dir.path()).unwrap();
        assert_eq!(env.into_vars(), values([("FOO", "platform\n"), ("PATH", "/pp:/usr/bin:/bin")]));
    }

    #[test]
    fn values_need_not_be_text() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("A.append"), [0xff]).unwrap();
        let mut env = Env::default();
        env.set("A", "x");
        env.add_folder(dir.path()).unwrap();
        assert_eq!(env.into_vars()["A"].as_bytes(), [b'x', 0xff]);
    }
}
