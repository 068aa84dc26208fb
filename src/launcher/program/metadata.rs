//! `/layers/config/metadata.toml`, as far as the launcher needs it.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    Failure,
    toml::{self, Section, Value},
};

#[derive(Default)]
pub struct Metadata {
    /// Id and API, in order.
    pub buildpacks: Vec<(String, String)>,
    pub processes: Vec<Process>,
}

#[derive(Clone, Default)]
pub struct Process {
    pub kind: String,
    pub command: Vec<OsString>,
    pub args: Vec<OsString>,
    pub direct: bool,
    pub buildpack: String,
    pub working_dir: Option<String>,
}

impl Metadata {
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |why: String| Failure::new(format!("read {}: {why}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let mut metadata = Self::default();
        for section in toml::parse(&text).map_err(wrong)? {
            match section.name.as_str() {
                "buildpacks" => metadata.buildpacks.push((section.text("id"), section.text("api"))),
                "processes" => metadata.processes.push(Process::from(section)),
                _ => {}
            }
        }
        Ok(metadata)
    }

    pub fn process(&self, kind: &str) -> Option<&Process> {
        self.processes.iter().find(|process| process.kind == kind)
    }

    /// The layers of each buildpack, in order. Links are no layers.
    pub fn layer_folders(&self, layers: &Path) -> Vec<Vec<PathBuf>> {
        let of = |id: &str| {
            let entries = fs::read_dir(layers.join(id.replace('/', "_"))).into_iter().flatten().flatten();
            let is_folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
            let mut folders: Vec<PathBuf> = entries.filter(is_folder).map(|entry| entry.path()).collect();
            folders.sort();
            folders
        };
        self.buildpacks.iter().map(|(id, _)| of(id)).collect()
    }
}

impl Section {
    fn value(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// Empty when it is not there.
    fn text(&self, key: &str) -> String {
        match self.value(key) {
            Some(Value::Text(text)) => text.clone(),
            _ => String::new(),
        }
    }

    /// One word may be given as a string.
    fn words(&self, key: &str) -> Vec<OsString> {
        let word = |value: &Value| match value {
            Value::Text(text) => Some(OsString::from(text)),
            _ => None,
        };
        match self.value(key) {
            Some(Value::List(list)) => list.iter().filter_map(word).collect(),
            Some(value) => word(value).into_iter().collect(),
            None => Vec::new(),
        }
    }
}

impl From<Section> for Process {
    fn from(section: Section) -> Self {
        Self {
            kind: section.text("type"),
            command: section.words("command"),
            args: section.words("args"),
            direct: matches!(section.value("direct"), Some(Value::Flag(true))),
            buildpack: section.text("buildpack-id"),
            working_dir: Some(section.text("working-dir")).filter(|dir| !dir.is_empty()),
        }
    }
}
