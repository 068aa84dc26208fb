//! From packages to a layer, in one pass and in memory: no root, no unpacking, no script is run.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use tar::EntryType;

use super::{
    alternatives::{self, Declared},
    deb::{self, Control, Data},
    definition::Definition,
    fixups::{self, Captured, Generated},
    linker_cache,
    tree::{Access, Tree},
};
use crate::oci::{Compression, Layer, LayerWriter};

/// A layer to be made.
pub(super) struct Plan {
    /// Names and files of the packages, in order of the names.
    pub packages: Vec<(String, PathBuf)>,
    pub architecture: String,
    pub compression: Compression,
    /// Of the layers below; none for the lowest layer.
    pub below: Option<Facts>,
}

/// What has to be known of a stack of layers to put another on top.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// Libraries in the default folders: paths by name.
    pub libraries: BTreeMap<String, String>,
    /// Alternatives that were linked, with their priorities.
    pub alternatives: BTreeMap<String, i64>,
}

impl Plan {
    /// Writes the compressed layer to `sink`; the facts are those of the whole stack with it.
    pub(super) fn assemble<W: Write>(self, sink: W) -> io::Result<(Layer, Facts, W)> {
        let definition = Definition::embedded();
        let mut assembly = Assembly {
            tree: Tree::new(LayerWriter::new(self.compression, sink)?),
            definition,
            architecture: &self.architecture,
            triplet: triplet(&self.architecture),
            captured: Captured::new(),
            declared: Vec::new(),
            libraries: Libraries::default(),
        };
        let files: Vec<PathBuf> = self.packages.iter().map(|(_, file)| file.clone()).collect();
        deb::read_all(&files, |number, control, data| {
            let name = &self.packages[number].0;
            let named = |error: io::Error| io::Error::new(error.kind(), format!("package {name}: {error}"));
            assembly.add_package(name, &control, data).map_err(named)
        })?;
        if self.below.is_none() {
            assembly.generate(fixups::of_lowest_layer(&assembly.captured))?;
        }
        assembly.generate(fixups::of_layer(&assembly.captured))?;
        let mut facts = self.below.unwrap_or_default();
        assembly.link_alternatives(&mut facts)?;
        facts.libraries.append(&mut std::mem::take(&mut assembly.libraries).named());
        if let Some(cache) = linker_cache::write(&facts.libraries, &self.architecture) {
            assembly.generate([("etc/ld.so.cache".to_owned(), Generated::File(Access::root(0o644), cache))].into())?;
        }
        let (layer, sink) = assembly.tree.finish()?.finish()?;
        Ok((layer, facts, sink))
    }
}

struct Assembly<'a, W: Write> {
    tree: Tree<LayerWriter<W>>,
    definition: &'static Definition,
    architecture: &'a str,
    triplet: &'static str,
    captured: Captured,
    declared: Vec<Declared>,
    libraries: Libraries,
}

impl<W: Write> Assembly<'_, W> {
    fn add_package(&mut self, name: &str, control: &Control, data: Data) -> io::Result<()> {
        self.declared.extend(alternatives::declared(&control.postinst));
        let mut archive = tar::Archive::new(data);
        for entry in archive.entries()? {
            self.add_entry(entry?)?;
        }
        // To the very end, so that damage there is not overlooked.
        io::copy(&mut archive.into_inner(), &mut io::sink())?;
        // One file per package, as in distroless images, so that layers stack without a shared file.
        let record = |extension: &str| format!("var/lib/dpkg/status.d/{name}{extension}");
        for (path, text) in [(record(""), &control.control), (record(".md5sums"), &control.md5sums)] {
            self.tree.file(&path, Access::root(0o644), text.len() as u64, text.as_bytes())?;
        }
        Ok(())
    }

    fn add_entry(&mut self, entry: tar::Entry<'_, Data>) -> io::Result<()> {
        let header = entry.header();
        let kind = header.entry_type();
        let path = merged_path(&entry.path_bytes(), kind)?;
        if path.is_empty() {
            return Ok(());
        }
        let access = Access { mode: header.mode()? & 0o1777, uid: header.uid()?, gid: header.gid()? };
        let left_out = self.definition.strip.leaves_out(&path, kind == EntryType::Symlink);
        match kind {
            EntryType::Directory if left_out => self.tree.expect_folder(&path, access),
            EntryType::Directory => self.tree.folder(&path, access)?,
            EntryType::Regular if fixups::is_wanted(&path) => {
                let mut content = Vec::new();
                entry.take(MAX_CAPTURED_BYTES).read_to_end(&mut content)?;
                if !left_out {
                    self.tree.file(&path, access, content.len() as u64, content.as_slice())?;
                }
                self.captured.insert(path, content);
            }
            _ if left_out => {}
            EntryType::Regular => self.add_file(&path, Access { mode: access.mode & 0o777, ..access }, entry)?,
            EntryType::Symlink => {
                let target = link_name(&entry)?;
                self.libraries.link(&path, &target, self.triplet);
                self.tree.link(kind, &path, &target)?;
            }
            EntryType::Link => {
                let target = merged_path(link_name(&entry)?.as_bytes(), EntryType::Regular)?;
                if !self.tree.has_file(&target) {
                    return Err(refused(&path, "is a hard link to a file that the layer does not have"));
                }
                self.tree.link(kind, &path, &target)?;
            }
            _ => return Err(refused(&path, "is neither a file, a folder nor a link")),
        }
        Ok(())
    }

    fn add_file(&mut self, path: &str, access: Access, mut entry: tar::Entry<'_, Data>) -> io::Result<()> {
        let size = entry.size();
        let mut start = Vec::with_capacity(4);
        (&mut entry).take(4).read_to_end(&mut start)?;
        if start == b"\x7fELF" {
            self.libraries.file(path, self.triplet);
        }
        self.tree.file(path, access, size, start.chain(entry))
    }

    fn generate(&mut self, made: BTreeMap<String, Generated>) -> io::Result<()> {
        for (path, what) in made {
            match what {
                Generated::Folder(access) => self.tree.folder(&path, access)?,
                Generated::File(access, content) => {
                    self.tree.file(&path, access, content.len() as u64, content.as_slice())?;
                }
                Generated::Link(target) => self.tree.link(EntryType::Symlink, &path, &target)?,
            }
        }
        Ok(())
    }

    /// Links what packages of this layer declare, the highest priority first; a layer below keeps its link unless this
    /// layer has a better one.
    fn link_alternatives(&mut self, facts: &mut Facts) -> io::Result<()> {
        let mut declared = std::mem::take(&mut self.declared);
        let fixed = self.definition.links.iter();
        declared.extend(fixed.map(|(link, target)| Declared {
            link: link.clone(),
            target: target.replace("@ARCHITECTURE@", self.architecture),
            priority: 0,
        }));
        declared.sort_by(|a, b| (&a.link, -a.priority, &a.target).cmp(&(&b.link, -b.priority, &b.target)));
        for Declared { link, target, priority } in declared {
            // Scripts still name places that Debian has merged into /usr: a link there would replace the merged folder.
            let link = merged_path(link.as_bytes(), EntryType::Symlink)?;
            let is_here = self.tree.has_file(&merged_path(target.as_bytes(), EntryType::Regular)?);
            let is_best = facts.alternatives.get(&link).is_none_or(|below| priority > *below);
            if is_here && is_best && !self.definition.strip.leaves_out(&link, false) {
                self.tree.link(EntryType::Symlink, &link, &target)?;
                facts.alternatives.insert(link, priority);
            }
        }
        Ok(())
    }
}

/// Of a file that fix-ups want to see; the largest has a few KiB.
const MAX_CAPTURED_BYTES: u64 = 1 << 20;

/// The path of an entry without `./`, in /usr where Debian has merged it.
fn merged_path(bytes: &[u8], kind: EntryType) -> io::Result<String> {
    let text = std::str::from_utf8(bytes).map_err(|_| refused(&String::from_utf8_lossy(bytes), "is not UTF-8"))?;
    let path = text.trim_start_matches("./").trim_matches('/');
    let path = if path == "." { "" } else { path };
    if path.split('/').any(|part| part == ".." || part == ".") {
        return Err(refused(path, "leaves the image"));
    }
    let is_merged = |top: &str| matches!(top, "bin" | "sbin" | "lib" | "lib64");
    let moved = match path.split_once('/') {
        Some((top, _)) => is_merged(top),
        None => kind == EntryType::Directory && is_merged(path),
    };
    Ok(if moved { format!("usr/{path}") } else { path.to_owned() })
}

fn link_name(entry: &tar::Entry<'_, Data>) -> io::Result<String> {
    let name = entry.link_name_bytes().ok_or_else(|| refused("a link", "has no target"))?;
    String::from_utf8(name.into_owned()).map_err(|_| refused("the target of a link", "is not UTF-8"))
}

fn refused(path: &str, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("'{path}' {why}"))
}

fn triplet(architecture: &str) -> &'static str {
    match architecture {
        "arm64" => "aarch64-linux-gnu",
        _ => "x86_64-linux-gnu",
    }
}

/// Libraries of a layer, as they come.
#[derive(Default)]
struct Libraries {
    paths: BTreeMap<String, String>,
    /// Files that a link of the same folder stands for: ldconfig lists only the link.
    linked: BTreeSet<String>,
}

impl Libraries {
    fn file(&mut self, path: &str, triplet: &str) {
        if let Some(name) = linker_cache::library_name(path, triplet) {
            let shown = path.trim_start_matches("usr");
            self.paths.insert(name.to_owned(), shown.to_owned());
        }
    }

    fn link(&mut self, path: &str, target: &str, triplet: &str) {
        self.file(path, triplet);
        if linker_cache::library_name(path, triplet).is_some() && !target.contains('/') {
            self.linked.insert(target.to_owned());
        }
    }

    fn named(mut self) -> BTreeMap<String, String> {
        // A link of a link (libx.so -> libx.so.1 -> libx.so.1.2) keeps its place: it has a soname.
        self.paths.retain(|name, _| !self.linked.contains(name) || is_soname(name));
        self.paths
    }
}

/// `libx.so.1`: at most one number after `.so`.
fn is_soname(name: &str) -> bool {
    name.rsplit_once(".so.").is_some_and(|(_, version)| !version.contains('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_merged_into_usr_and_checked() {
        let merged = |path: &str, kind| merged_path(path.as_bytes(), kind).ok();
        for (path, kind, result) in [
            ("./", EntryType::Directory, Some("")),
            ("./etc/passwd", EntryType::Regular, Some("etc/passwd")),
            ("./lib/x.so", EntryType::Regular, Some("usr/lib/x.so")),
            ("./bin", EntryType::Symlink, Some("bin")),
            ("./bin/", EntryType::Directory, Some("usr/bin")),
            ("./usr/../etc/x", EntryType::Regular, None),
            ("../x", EntryType::Regular, None),
        ] {
            assert_eq!(merged(path, kind).as_deref(), result, "{path}");
        }
    }
}
