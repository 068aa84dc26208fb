//! The environment that buildpacks get.

use std::{collections::BTreeMap, fs, path::Path};

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

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Env(BTreeMap<String, String>);

impl Env {
    /// What is allowed through of these variables.
    pub fn allowed(all: impl IntoIterator<Item = (String, String)>) -> Self {
        let known = |name: &String| ALLOWED.contains(&name.as_str()) || PATHS.contains(&name.as_str());
        Self(all.into_iter().filter(|(name, _)| known(name)).collect())
    }

    pub fn into_vars(self) -> BTreeMap<String, String> {
        self.0
    }

    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// The variables of the platform: lists of folders are put in front, others win.
    pub fn add_platform(&mut self, platform: &Path) {
        for (name, value) in files(&platform.join("env")) {
            if PATHS.contains(&name.as_str()) {
                self.combine(&name, &value, ":", Place::Front);
            } else {
                self.set(&name, value);
            }
        }
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
                names.iter().for_each(|name| self.combine(name, &folder.to_string_lossy(), ":", Place::Front));
            }
        }
    }

    /// Files of a folder of a layer: the name is the variable, the suffix says what to do.
    pub fn add_folder(&mut self, folder: &Path) {
        let all = files(folder);
        for (file, value) in &all {
            let (name, suffix) = file.split_once('.').unwrap_or((file, ""));
            let delimiter = all.get(&format!("{name}.delim")).map_or("", String::as_str);
            match suffix {
                "" | "override" => self.set(name, value),
                "default" if self.0.get(name).is_none_or(String::is_empty) => self.set(name, value),
                "append" => self.combine(name, value, delimiter, Place::Back),
                "prepend" => self.combine(name, value, delimiter, Place::Front),
                _ => {}
            }
        }
    }

    fn combine(&mut self, name: &str, value: &str, delimiter: &str, place: Place) {
        let combined = match (self.0.get(name).filter(|known| !known.is_empty()), place) {
            (None, _) => value.to_owned(),
            (Some(known), Place::Front) => format!("{value}{delimiter}{known}"),
            (Some(known), Place::Back) => format!("{known}{delimiter}{value}"),
        };
        self.set(name, combined);
    }
}

#[derive(Clone, Copy)]
enum Place {
    Front,
    Back,
}

/// The files of a folder by name, with their content as it is. Folders are left out; links to files count.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let file = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let content = entry.path().is_file().then(|| fs::read(entry.path()).ok())??;
        Some((name, String::from_utf8_lossy(&content).into_owned()))
    };
    entries.filter_map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        env.add_folder(dir.path());
        let expected = [("A", "1:x"), ("B", "y2"), ("C", "z"), ("D", "w"), ("E", "4")];
        let expected: BTreeMap<String, String> = expected.map(|(n, v)| (n.to_owned(), v.to_owned())).into();
        assert_eq!(env.into_vars(), expected);
    }

    #[test]
    fn the_platform_wins_but_for_paths() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("env")).unwrap();
        fs::write(dir.path().join("env/PATH"), "/pp").unwrap();
        fs::write(dir.path().join("env/FOO"), "platform\n").unwrap();
        let given = [("PATH", "/usr/bin:/bin"), ("FOO", "pod"), ("CNB_REGISTRY_AUTH", "secret")];
        let mut env = Env::allowed(given.map(|(n, v)| (n.to_owned(), v.to_owned())));
        env.add_platform(dir.path());
        let expected = [("FOO", "platform\n"), ("PATH", "/pp:/usr/bin:/bin")];
        assert_eq!(env.into_vars(), expected.map(|(n, v)| (n.to_owned(), v.to_owned())).into());
    }
}
