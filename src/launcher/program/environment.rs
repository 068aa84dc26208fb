//! The environment of a process: what was there, changed by the folders of layers.

use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::PermissionsExt,
    },
    path::{Path, PathBuf},
};

use crate::Failure;

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
            let own = |part: &PathBuf| part == Path::new("/cnb/process") || part == Path::new("/cnb/lifecycle");
            let kept = env::join_paths(env::split_paths(&path).filter(|part| !own(part)));
            all.insert("PATH".into(), kept.unwrap_or(path));
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
    pub fn add_folder(&mut self, folder: &Path) -> Result<(), Failure> {
        let read = |file: PathBuf| match fs::read(&file) {
            Ok(content) => Ok((file.file_name().unwrap_or_default().as_bytes().to_vec(), OsString::from_vec(content))),
            Err(error) => Err(Failure::new(format!("read {}: {error}", file.display()))),
        };
        let all = files(folder).into_iter().map(read).collect::<Result<BTreeMap<_, _>, _>>()?;
        for (file, value) in &all {
            let dot = file.iter().position(|byte| *byte == b'.').unwrap_or(file.len());
            let (name, suffix) = (OsStr::from_bytes(&file[..dot]), &file[dot..]);
            let delimiter = all.get(&[name.as_bytes(), b".delim"].concat());
            let delimiter = delimiter.map_or(OsStr::new(""), OsString::as_os_str);
            match suffix {
                b"" | b".override" => drop(self.0.insert(name.to_owned(), value.clone())),
                b".default" if self.0.get(name).is_none_or(|known| known.is_empty()) => {
                    self.0.insert(name.to_owned(), value.clone());
                }
                b".append" => self.combine(name, value, delimiter, Place::Back),
                b".prepend" => self.combine(name, value, delimiter, Place::Front),
                _ => {}
            }
        }
        Ok(())
    }

    /// Looks a program up as execvp does.
    pub fn find(&self, program: &OsStr) -> Option<PathBuf> {
        if program.as_bytes().contains(&b'/') {
            return Some(PathBuf::from(program));
        }
        let is_program = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
        };
        env::split_paths(self.0.get(OsStr::new("PATH"))?).map(|folder| folder.join(program)).find(is_program)
    }

    fn combine(&mut self, name: &OsStr, value: &OsStr, delimiter: &OsStr, place: Place) {
        let combined = match (self.0.get(name).filter(|known| !known.is_empty()), place) {
            (None, _) => value.to_owned(),
            (Some(known), Place::Front) => [value, delimiter, known].into_iter().collect(),
            (Some(known), Place::Back) => [known, delimiter, value].into_iter().collect(),
        };
        self.0.insert(name.to_owned(), combined);
    }
}

enum Place {
    Front,
    Back,
}

/// The files of a folder by name; links to files count.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}
