//! A layer as it is written: each path once, parents in front, nothing in it that depends on time or place.
//!
//! The order is that of the packages by name, each in the order of its own (sorted) data tar, then what
//! is generated, by path. All times are the one that CNB images have, so that equal packages give equal bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
};

use tar::{Builder, EntryType, Header};

use crate::oci::CREATED_SECONDS;

/// Writes the tar of a layer.
pub(super) struct Tree<W: Write> {
    tar: Builder<W>,
    folders: BTreeMap<String, Folder>,
    files: BTreeSet<String>,
}

/// Who may do what with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
}

impl Access {
    pub(super) const fn root(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0 }
    }

    /// Of the CNB user.
    pub(super) const fn cnb(mode: u32) -> Self {
        Self { mode, uid: 1000, gid: 1000 }
    }
}

struct Folder {
    access: Access,
    written: bool,
}

impl<W: Write> Tree<W> {
    pub(super) fn new(sink: W) -> Self {
        Self { tar: Builder::new(sink), folders: BTreeMap::new(), files: BTreeSet::new() }
    }

    /// Whether a file or link is at this path.
    pub(super) fn has_file(&self, path: &str) -> bool {
        self.files.contains(path)
    }

    /// Remembers a folder; it is written when something is in it.
    pub(super) fn expect_folder(&mut self, path: &str, access: Access) {
        self.folders.entry(path.to_owned()).or_insert(Folder { access, written: false });
    }

    /// Writes a folder, unless it was already.
    pub(super) fn folder(&mut self, path: &str, access: Access) -> io::Result<()> {
        if self.files.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        let folder = self.folders.entry(path.to_owned()).or_insert(Folder { access, written: false });
        if std::mem::replace(&mut folder.written, true) {
            return Ok(());
        }
        let access = folder.access;
        self.write(EntryType::Directory, access, &format!("{path}/"), 0, io::empty())
    }

    pub(super) fn file(&mut self, path: &str, access: Access, size: u64, content: impl Read) -> io::Result<()> {
        if self.take_path(path)? {
            self.write(EntryType::Regular, access, path, size, content)?;
        }
        Ok(())
    }

    /// A symbolic link, or one to a file of this layer (`hard`).
    pub(super) fn link(&mut self, kind: EntryType, path: &str, target: &str) -> io::Result<()> {
        if self.take_path(path)? {
            let mut header = header(kind, Access::root(0o777), 0);
            self.tar.append_link(&mut header, path, target)?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> io::Result<W> {
        self.tar.into_inner()
    }

    /// False when the path is taken: the first package that has a file wins.
    fn take_path(&mut self, path: &str) -> io::Result<bool> {
        if self.folders.get(path).is_some_and(|folder| folder.written) || !self.files.insert(path.to_owned()) {
            return Ok(false);
        }
        self.parents(path)?;
        Ok(true)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        let Some((parent, _)) = path.rsplit_once('/') else { return Ok(()) };
        match self.folders.get(parent) {
            Some(Folder { written: true, .. }) => Ok(()),
            Some(Folder { access, .. }) => self.folder(parent, *access),
            None => self.folder(parent, Access::root(0o755)),
        }
    }

    fn write(&mut self, kind: EntryType, access: Access, path: &str, size: u64, content: impl Read) -> io::Result<()> {
        self.tar.append_data(&mut header(kind, access, size), path, content)
    }
}

fn header(kind: EntryType, access: Access, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(access.mode);
    header.set_uid(access.uid);
    header.set_gid(access.gid);
    header.set_size(size);
    header.set_mtime(CREATED_SECONDS);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_each_path_once() {
        let mut tree = Tree::new(Vec::new());
        tree.expect_folder("usr/share/doc", Access::root(0o700));
        tree.folder("usr", Access::root(0o755)).unwrap();
        tree.file("usr/share/doc/a/copyright", Access::root(0o644), 1, &b"x"[..]).unwrap();
        tree.file("usr/share/doc/a/copyright", Access::root(0o644), 1, &b"y"[..]).unwrap();
        tree.folder("usr/share", Access::root(0o700)).unwrap();
        let deep = format!("usr/{}/file", ["long"; 60].join("/"));
        tree.file(&deep, Access::cnb(0o600), 0, io::empty()).unwrap();
        let bytes = tree.finish().unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), CREATED_SECONDS);
            assert_eq!(entry.header().username(), Ok(Some("")));
            seen.push((entry.path().unwrap().display().to_string(), entry.header().mode().unwrap()));
        }
        let first: Vec<(&str, u32)> = seen.iter().map(|(path, mode)| (path.as_str(), *mode)).take(5).collect();
        assert_eq!(
            first,
            [
                ("usr/", 0o755),
                ("usr/share/", 0o755),
                ("usr/share/doc/", 0o700),
                ("usr/share/doc/a/", 0o755),
                ("usr/share/doc/a/copyright", 0o644)
            ]
        );
        assert_eq!(seen.last().unwrap(), &(deep, 0o600));
    }
}
