//! What the names in an archive are so far: of half a million entries in a few megabytes.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

/// What a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    Folder,
    /// A plain file, by whichever of its names.
    File,
    Symlink,
}

/// Names are kept as hashes with a key of our own: 62 bits of hash, and 2 that say what it is.
#[derive(Default)]
pub(super) struct Names {
    known: HashSet<u64>,
    key: RandomState,
}

impl Names {
    pub fn find(&self, path: &Path) -> Option<Named> {
        if path.as_os_str().is_empty() {
            return Some(Named::Folder);
        }
        let hash = self.hash(path);
        [Named::Folder, Named::File, Named::Symlink]
            .into_iter()
            .find(|named| self.known.contains(&tagged(hash, *named)))
    }

    /// Notes an entry and the folders above it; says what is in its way if it cannot be there.
    pub fn add(&mut self, path: &Path, named: Named) -> Result<(), &'static str> {
        match (self.find(path), named) {
            (Some(Named::Folder), Named::File | Named::Symlink) => return Err("a folder has the same name"),
            (Some(Named::File | Named::Symlink), Named::Folder) => return Err("a file or a link has the same name"),
            // A later file takes the place of an earlier one.
            (Some(before), _) if before != named => drop(self.known.remove(&tagged(self.hash(path), before))),
            _ => {}
        }
        let mut above = path.parent();
        while let Some(folder) = above.filter(|folder| !folder.as_os_str().is_empty()) {
            match self.find(folder) {
                // So are those above it.
                Some(Named::Folder) => break,
                Some(_) => return Err("it is below a file or a link"),
                None => drop(self.known.insert(tagged(self.hash(folder), Named::Folder))),
            }
            above = folder.parent();
        }
        self.known.insert(tagged(self.hash(path), named));
        Ok(())
    }

    pub fn len(&self) -> u64 {
        self.known.len() as u64
    }

    fn hash(&self, path: &Path) -> u64 {
        self.key.hash_one(path.as_os_str().as_bytes())
    }
}

fn tagged(hash: u64, named: Named) -> u64 {
    hash << 2 | named as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_thing() {
        let mut names = Names::default();
        let mut add = |path: &str, named| names.add(Path::new(path), named).err();
        assert_eq!(add("a/b/c", Named::File), None);
        assert_eq!(add("a/b/c", Named::Symlink), None);
        assert_eq!(add("a", Named::Folder), None);
        assert_eq!(add("a/b", Named::File), Some("a folder has the same name"));
        assert_eq!(add("a/b/c", Named::Folder), Some("a file or a link has the same name"));
        assert_eq!(add("a/b/c/d/e", Named::File), Some("it is below a file or a link"));
        assert_eq!(names.find(Path::new("a/b/c")), Some(Named::Symlink));
        assert_eq!((names.find(Path::new("")), names.find(Path::new("b"))), (Some(Named::Folder), None));
    }
}
