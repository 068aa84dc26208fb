//! The environment of a process: what was there, changed by the folders of layers.

use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

#[derive(Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// Without what is for the launcher only.
    pub fn inherited(own: &[&str]) -> Self {
        let mut all: BTreeMap<OsString, OsString> = env::vars_os().collect();
        for name in own {
            all.remove(OsStr::new(name));
        }
        if let Some(path) = all.remove(OsStr::new("PATH")) {
            let kept = env::split_paths(&path).filter(|part| part != Path::new("/cnb/process") && part != Path::new("/cnb/lifecycle"));
            all.insert("PATH".into(), env::join_paths(kept).unwrap_or(path.clone()));
        }
        Self(all)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&OsString, &OsString)> {
        self.0.iter()
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.into(), value.into());
    }

    /// Folders of a layer that have a meaning by their name.
    pub fn add_roots(&mut self, layer: &Path) {
        for (folder, name) in [("bin", "PATH"), ("lib", "LD_LIBRARY_PATH")] {
            let folder = layer.join(folder);
            if folder.is_dir() {
                self.combine(OsStr::new(name), folder.as_os_str(), OsStr::new(":"), Place::Front);
            }
        }
    }

    /// Files of a folder: the name is the variable, the suffix says what to do.
    pub fn add_folder(&mut self, folder: &Path) {
        for file in files(folder) {
            let Ok(content) = fs::read(&file) else { continue };
            let value = OsString::from_vec(content);
            let file_name = file.file_name().unwrap_or_default().as_bytes().to_vec();
            let (name, suffix) = match file_name.iter().position(|byte| *byte == b'.') {
                Some(dot) => (&file_name[..dot], &file_name[dot + 1..]),
                None => (&file_name[..], &b""[..]),
            };
            let name = OsStr::from_bytes(name);
            let delimiter = || {
                let path = folder.join([name.as_bytes(), b".delim"].concat().as_slice().to_os());
                OsString::from_vec(fs::read(path).unwrap_or_default())
            };
            match suffix {
                b"" | b"override" => drop(self.0.insert(name.to_owned(), value)),
                b"default" if self.0.get(name).is_none_or(|known| known.is_empty()) => drop(self.0.insert(name.to_owned(), value)),
                b"append" => self.combine(name, &value, &delimiter(), Place::Back),
                b"prepend" => self.combine(name, &value, &delimiter(), Place::Front),
                _ => {}
            }
        }
    }

    /// Looks a program up as execvp does.
    pub fn find(&self, program: &str) -> Option<PathBuf> {
        if program.contains('/') {
            return Some(PathBuf::from(program));
        }
        let path = self.0.get(OsStr::new("PATH"))?;
        env::split_paths(path).map(|folder| folder.join(program)).find(|path| path.is_file())
    }

    fn combine(&mut self, name: &OsStr, value: &OsStr, delimiter: &OsStr, place: Place) {
        let known = self.0.get(name).filter(|known| !known.is_empty());
        let combined = match known {
            None => value.to_owned(),
            Some(known) => {
                let parts = match place {
                    Place::Front => [value, delimiter, known.as_os_str()],
                    Place::Back => [known.as_os_str(), delimiter, value],
                };
                parts.concat_os()
            }
        };
        self.0.insert(name.to_owned(), combined);
    }
}

enum Place {
    Front,
    Back,
}

trait ToOs {
    fn to_os(&self) -> OsString;
}

impl ToOs for [u8] {
    fn to_os(&self) -> OsString {
        OsString::from_vec(self.to_vec())
    }
}

trait Concat {
    fn concat_os(&self) -> OsString;
}

impl Concat for [&OsStr; 3] {
    fn concat_os(&self) -> OsString {
        self.iter().fold(OsString::new(), |mut all, part| {
            all.push(part);
            all
        })
    }
}

/// The files of a folder by name; links to files count.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}
