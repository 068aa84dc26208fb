//! The layers that a buildpack left: a file that describes each, and perhaps a folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    Context as _, Error, Result,
    buildpack::is_name,
    read_foreign,
    types::{LayerToml, LayerTypes},
};

/// `*.toml` in a buildpack's layers folder that are no layers.
pub(super) const RESERVED: [&str; 3] = ["launch", "build", "store"];
/// A buildpack may have so many layers.
const MAX_LAYERS: usize = 256;
/// All files that describe its layers may have so many bytes.
const MAX_TOML_BYTES: usize = 16 << 20;

/// A layer of a buildpack.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub name: String,
    /// Where its folder is, if it has one.
    pub place: PathBuf,
    pub types: LayerTypes,
    pub metadata: Option<toml::Value>,
}

impl Layer {
    /// Whether it has a folder. A file or a link in its place is an error.
    pub fn has_contents(&self, code: i32) -> Result<bool> {
        match fs::symlink_metadata(&self.place) {
            Ok(metadata) if metadata.is_dir() => Ok(true),
            Ok(_) => Err(Error::new(code, format!("layer {} is a file or a link, not a folder", self.place.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).context(code, || format!("reading {}", self.place.display())),
        }
    }
}

/// The layers of a buildpack in order of their file names, which differs from that of their own: `a-b.toml` is before
/// `a.toml`. `code` is the exit code of the phase when something is wrong with them.
pub(super) fn read(own: &Path, code: i32) -> Result<Vec<Layer>> {
    let doing = || format!("reading {}", own.display());
    match fs::symlink_metadata(own) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Ok(metadata) if !metadata.is_dir() => {
            return Err(Error::new(code, format!("{} is a file or a link, not a folder", own.display())));
        }
        other => other.context(code, doing)?,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(own).context(code, doing)? {
        let path = entry.context(code, doing)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    if files.len() > MAX_LAYERS + RESERVED.len() {
        let cause = format!("{} has {} layers; {MAX_LAYERS} are the most", own.display(), files.len());
        return Err(Error::new(code, cause));
    }
    files.sort();
    let mut layers = Vec::new();
    let mut size = 0;
    for file in files {
        let stem = file.file_stem().unwrap_or_default();
        let name = stem.to_str().filter(|name| is_name(name)).map(str::to_owned);
        let name = name.ok_or_else(|| Error::new(code, format!("{} does not name a layer", file.display())))?;
        if RESERVED.contains(&name.as_str()) {
            continue;
        }
        let text = read_foreign(&file, code)?.unwrap_or_default();
        size += text.len();
        if size > MAX_TOML_BYTES {
            return Err(Error::new(code, format!("the files of the layers in {} exceed 16 MiB", own.display())));
        }
        let wrong = |what: String| Error::new(code, format!("{} {what}", file.display()));
        let table: toml::Table = toml::from_str(&text).map_err(|error| wrong(format!("is not valid: {error}")))?;
        if let Some(flag) = ["launch", "build", "cache"].into_iter().find(|flag| table.contains_key(*flag)) {
            return Err(wrong(format!("has '{flag}' at its top; it belongs into [types]")));
        }
        let LayerToml { types, metadata } =
            table.try_into().map_err(|error| wrong(format!("is not valid: {error}")))?;
        layers.push(Layer { place: own.join(&name), name, types, metadata });
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_no_layer_is_refused_and_so_are_too_many() {
        for name in ["..toml", "...toml"] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(name), "").unwrap();
            let error = read(dir.path(), 52).unwrap_err();
            assert!(error.code == 52 && error.cause.contains("does not name a layer"), "{error:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        for number in 0..300 {
            fs::write(dir.path().join(format!("{number}.toml")), "").unwrap();
        }
        assert!(read(dir.path(), 52).unwrap_err().cause.contains("256 are the most"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        assert!(read(&link, 52).unwrap_err().cause.contains("is a file or a link"));
    }

    #[test]
    fn layers_come_in_the_order_of_their_files() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.toml", "a-b.toml", "launch.toml", "store.toml", "other"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let names: Vec<_> = read(dir.path(), 52).unwrap().into_iter().map(|layer| layer.name).collect();
        assert_eq!(names, ["a-b", "a"]);
    }
}
