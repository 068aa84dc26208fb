//! Trees of files: their digest, and moving them between the application and a layer.

use std::{
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::Path,
};

use sha2::{Digest as _, Sha256};

use super::{Error, error::At};
use crate::model::Digest;

/// The digest of names, kinds, executable bits and contents below `root`, without what `skip` says by name.
pub(super) fn digest(root: &Path, skip: &dyn Fn(&str) -> bool) -> Result<Digest, Error> {
    let mut hash = Sha256::new();
    add(root, Path::new(""), skip, &mut hash)?;
    Ok(Digest::from_sha256(hash.finalize().into()))
}

fn add(root: &Path, relative: &Path, skip: &dyn Fn(&str) -> bool, hash: &mut Sha256) -> Result<(), Error> {
    let directory = root.join(relative);
    let mut names = fs::read_dir(&directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>())
        .at(&directory)?;
    names.sort();
    for name in names {
        if name.to_str().is_some_and(skip) {
            continue;
        }
        let relative = relative.join(&name);
        let path = root.join(&relative);
        let metadata = path.symlink_metadata().at(&path)?;
        let (kind, content) = if metadata.is_dir() {
            (b'd', [0; 32])
        } else if metadata.is_symlink() {
            (b'l', Sha256::digest(fs::read_link(&path).at(&path)?.as_os_str().as_bytes()).into())
        } else {
            let kind = if metadata.permissions().mode() & 0o111 == 0 { b'f' } else { b'x' };
            let mut file = Sha256::new();
            io::copy(&mut fs::File::open(&path).at(&path)?, &mut Hasher(&mut file)).at(&path)?;
            (kind, file.finalize().into())
        };
        hash.update([kind]);
        hash.update((relative.as_os_str().len() as u64).to_le_bytes());
        hash.update(relative.as_os_str().as_bytes());
        hash.update(content);
        if metadata.is_dir() {
            add(root, &relative, skip, hash)?;
        }
    }
    Ok(())
}

struct Hasher<'a>(&'a mut Sha256);

impl io::Write for Hasher<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Moves a directory, copying where the two places are on different file systems.
pub(super) fn relocate(from: &Path, to: &Path) -> Result<(), Error> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            copy(from, to)?;
            remove(from)
        }
        result => result.at(from),
    }
}

/// Copies a directory with its links and permissions.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    fs::create_dir_all(to).at(to)?;
    for entry in fs::read_dir(from).at(from)? {
        let entry = entry.at(from)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().at(&source)?;
        if kind.is_dir() {
            copy(&source, &target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source).at(&source)?, &target).at(&target)?;
        } else {
            fs::copy(&source, &target).at(&source)?;
        }
    }
    let mode = from.metadata().at(from)?.permissions();
    fs::set_permissions(to, mode).at(to)
}

/// Bytes of all files below `root`.
pub(super) fn size(root: &Path) -> Result<u64, Error> {
    let mut sum = 0;
    for entry in fs::read_dir(root).at(root)? {
        let entry = entry.at(root)?;
        let metadata = entry.metadata().at(entry.path())?;
        sum += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
    }
    Ok(sum)
}

/// Removes what is in a directory.
pub(super) fn empty(root: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(root).at(root)? {
        remove(&entry.at(root)?.path())?;
    }
    Ok(())
}

/// Removes a file, a link or a directory; one that is not there is fine.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    let result = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at(path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_of_content_and_names_only() {
        let one = tempfile::tempdir().unwrap();
        let two = tempfile::tempdir().unwrap();
        for root in [one.path(), two.path()] {
            fs::create_dir(root.join("a")).unwrap();
            fs::write(root.join("a/b"), "text").unwrap();
            symlink("a/b", root.join("c")).unwrap();
        }
        fs::write(two.path().join(".git"), "left out").unwrap();
        let skip = |name: &str| name == ".git";
        assert_eq!(digest(one.path(), &skip).unwrap(), digest(two.path(), &skip).unwrap());
        fs::write(two.path().join("a/b"), "other").unwrap();
        assert_ne!(digest(one.path(), &skip).unwrap(), digest(two.path(), &skip).unwrap());
    }

    #[test]
    fn a_copy_has_links_and_modes() {
        let root = tempfile::tempdir().unwrap();
        let from = root.path().join("from");
        fs::create_dir_all(from.join("bin")).unwrap();
        fs::write(from.join("tool"), "#!").unwrap();
        fs::set_permissions(from.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("../tool", from.join("bin/tool")).unwrap();
        let to = root.path().join("to");
        copy(&from, &to).unwrap();
        let skip = |_: &str| false;
        assert_eq!(digest(&from, &skip).unwrap(), digest(&to, &skip).unwrap());
        assert!(size(&to).unwrap() >= 2);
        empty(&to).unwrap();
        assert_eq!(size(&to).unwrap(), 0);
        remove(&to).unwrap();
        remove(&to).unwrap();
        assert!(!to.exists());
    }
}
