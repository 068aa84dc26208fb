//! Writes files below a directory that nobody trusts the names of: no name leaves it, no link is followed.

use std::{
    ffi::{CStr, CString, OsStr},
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat},
    sys::{
        stat::{
            FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, futimens, mkdirat, mknodat, utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat},
};
use rustix::fs::XattrFlags;

/// What an entry gets besides its content.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    /// Permission bits, with set-uid and the like.
    pub mode: u32,
    /// uid and gid; none leaves the entry to whom it is written by.
    pub owner: Option<(u32, u32)>,
    /// Seconds since the epoch.
    pub mtime: i64,
}

/// Writes a tree. Names are relative to it; `..` and absolute names are errors.
pub struct TreeWriter {
    root: OwnedFd,
    /// The folder of the last entry: archives have neighbours beside each other.
    last: Option<(PathBuf, OwnedFd)>,
    /// Folders get their mode and time last, as later entries change both.
    folders: Vec<(PathBuf, Attributes)>,
}

impl TreeWriter {
    /// The directory has to exist.
    pub fn new(root: &Path) -> io::Result<Self> {
        let root = nix::fcntl::open(root, OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { root, last: None, folders: Vec::new() })
    }

    pub fn folder(&mut self, name: &Path, attributes: Attributes) -> io::Result<()> {
        let path = clean(name)?;
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        self.open_folder(&path)?;
        self.folders.push((path, attributes));
        Ok(())
    }

    /// The number of bytes that were copied.
    pub fn file(&mut self, name: &Path, attributes: Attributes, content: &mut dyn Read) -> io::Result<u64> {
        let (folder, name) = self.place(name)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(folder, name.as_os_str(), flags, Mode::from_bits_truncate(0o600))?);
        let copied = io::copy(content, &mut file)?;
        if let Some((uid, gid)) = attributes.owner {
            fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        fchmod(&file, Mode::from_bits_truncate(attributes.mode & 0o7777))?;
        let time = TimeSpec::new(attributes.mtime, 0);
        futimens(&file, &time, &time)?;
        Ok(copied)
    }

    /// What the link says is not looked at.
    pub fn symlink(&mut self, name: &Path, target: &Path, attributes: Attributes) -> io::Result<()> {
        let (folder, name) = self.place(name)?;
        symlinkat(target, folder, name.as_os_str())?;
        own(folder, &name, attributes)
    }

    /// A second name for a file that was written before.
    pub fn hard_link(&mut self, name: &Path, target: &Path) -> io::Result<()> {
        let target = clean(target)?;
        let parent = target.parent().unwrap_or(Path::new("")).to_owned();
        let from = self.open_folder(&parent)?.try_clone()?;
        let old = target.file_name().ok_or_else(|| invalid(&target, "it names no file"))?.to_owned();
        let (folder, name) = self.place(name)?;
        linkat(&from, old.as_os_str(), folder, name.as_os_str(), AtFlags::empty())?;
        Ok(())
    }

    /// A mark of overlayfs on a folder: nothing of what lower layers have in it is there. An overlay that a user without
    /// rights mounts reads another attribute than that of root; only root may write the one that root's reads.
    pub fn opaque(&mut self, name: &Path) -> io::Result<()> {
        let folder = self.open_folder(&clean(name)?)?;
        let path = format!("/proc/self/fd/{}", folder.as_raw_fd());
        let mark = |attribute: &str| rustix::fs::setxattr(&path, attribute, b"y", XattrFlags::empty());
        match mark("trusted.overlay.opaque") {
            Err(rustix::io::Errno::PERM) => Ok(mark("user.overlay.opaque")?),
            result => Ok(result?),
        }
    }

    /// A mark of overlayfs: what lower layers have here is gone. Needs root.
    pub fn whiteout(&mut self, name: &Path) -> io::Result<()> {
        let (folder, name) = self.place(name)?;
        mknodat(folder, name.as_os_str(), SFlag::S_IFCHR, Mode::empty(), 0)?;
        Ok(())
    }

    /// Gives folders their mode, owner and time.
    pub fn finish(mut self) -> io::Result<()> {
        for (path, attributes) in std::mem::take(&mut self.folders).into_iter().rev() {
            let parent = path.parent().unwrap_or(Path::new("")).to_owned();
            let name = path.file_name().unwrap_or_default().to_owned();
            let folder = self.open_folder(&parent)?;
            let mode = Mode::from_bits_truncate(attributes.mode & 0o7777);
            let set = own(folder, &name, attributes)
                .and_then(|()| Ok(fchmodat(folder, name.as_os_str(), mode, FchmodatFlags::FollowSymlink)?));
            match set {
                // One that was there before, and is somebody else's (a volume that is mounted there).
                Err(error) if attributes.owner.is_none() && error.raw_os_error() == Some(Errno::EPERM as i32) => {}
                set => set?,
            }
        }
        Ok(())
    }

    /// The folder of an entry, with nothing of its name in it.
    fn place(&mut self, name: &Path) -> io::Result<(&OwnedFd, std::ffi::OsString)> {
        let path = clean(name)?;
        let name = path.file_name().ok_or_else(|| invalid(&path, "it names no file"))?.to_owned();
        let parent = path.parent().unwrap_or(Path::new("")).to_owned();
        let folder = self.open_folder(&parent)?;
        match unlinkat(folder, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::EISDIR | Errno::EPERM) => return Err(invalid(&path, "a folder is in its place")),
            Err(error) => return Err(error.into()),
        }
        Ok((folder, name))
    }

    /// Opens a folder, and makes it and those above it if need be.
    fn open_folder(&mut self, path: &Path) -> io::Result<&OwnedFd> {
        if path.as_os_str().is_empty() {
            return Ok(&self.root);
        }
        let known = self.last.as_ref().is_some_and(|(last, _)| last == path);
        if !known {
            let how = OpenHow::new()
                .flags(OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
            let folder = match openat2(&self.root, path, how) {
                Err(Errno::ENOENT) => {
                    self.make_folders(path)?;
                    openat2(&self.root, path, how)
                }
                result => result,
            };
            let folder = folder.map_err(|error| match error {
                Errno::ELOOP | Errno::ENOTDIR | Errno::EXDEV => invalid(path, "a part of it is a link or a file"),
                error => error.into(),
            })?;
            self.last = Some((path.to_owned(), folder));
        }
        Ok(&self.last.as_ref().expect("it was just set").1)
    }

    fn make_folders(&self, path: &Path) -> io::Result<()> {
        let mut folder = self.root.try_clone()?;
        for part in path.components() {
            let name = part.as_os_str();
            match mkdirat(&folder, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            folder = match openat(&folder, name, flags, Mode::empty()) {
                Err(Errno::ENOTDIR | Errno::ELOOP) => return Err(invalid(path, "a part of it is a link or a file")),
                result => result?,
            };
        }
        Ok(())
    }
}

fn own(folder: &OwnedFd, name: &OsStr, attributes: Attributes) -> io::Result<()> {
    if let Some((uid, gid)) = attributes.owner {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        fchownat(folder, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    let time = TimeSpec::new(attributes.mtime, 0);
    utimensat(folder, name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

/// A name as it is below the root: `./a//b/` is `a/b`.
pub fn clean(name: &Path) -> io::Result<PathBuf> {
    let mut path = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(part) if part.as_bytes().contains(&0) => return Err(invalid(name, "it has a NUL byte")),
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return Err(invalid(name, "it is absolute")),
            Component::ParentDir => return Err(invalid(name, "it has '..' in it")),
        }
    }
    Ok(path)
}

/// Folders below each other that are emptied with all of them open; what is deeper is moved to the top first.
const OPEN_FOLDERS: usize = 64;

/// After so many looks at a folder somebody else must be writing to it, and its deletion fails.
const MOST_PASSES: usize = 10_000;

/// Deletes a tree without following links, also one with folders that may not be written to. However deep it is, this
/// takes a bounded number of descriptors and a bounded stack.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| invalid(path, "it names no folder"))?;
    let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
    let parent = match nix::fcntl::open(parent, flags, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        result => result?,
    };
    let name = CString::new(name.as_bytes())?;
    let mut top = match open_to_empty(&parent, &name) {
        Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            return Ok(unlinkat(&parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir)?);
        }
        result => result?,
    };
    let target = top.as_fd().try_clone_to_owned()?;
    let mut moved = 0;
    empty(&mut top, &target, &mut moved, 1)?;
    Ok(unlinkat(&parent, name.as_c_str(), UnlinkatFlags::RemoveDir)?)
}

/// Removes everything in a folder. `moved` counts the folders that were moved to the top.
fn empty(folder: &mut Dir, top: &OwnedFd, moved: &mut u64, depth: usize) -> io::Result<()> {
    for _ in 0..MOST_PASSES {
        let own = folder.as_fd().try_clone_to_owned()?;
        let mut found = false;
        for entry in folder.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            found = true;
            match unlinkat(&own, name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(Errno::EISDIR) if depth < OPEN_FOLDERS => {
                    empty(&mut open_to_empty(&own, name)?, top, moved, depth + 1)?;
                    unlinkat(&own, name, UnlinkatFlags::RemoveDir)?;
                }
                Err(Errno::EISDIR) => move_up(&own, name, top, moved)?,
                Err(error) => return Err(error.into()),
            }
        }
        if !found {
            break;
        }
    }
    Ok(())
}

/// Gives a folder a name at the top, where nothing else has it.
fn move_up(folder: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    // To be moved it has to be writable, as its `..` changes.
    drop(open_to_empty(folder, name)?);
    loop {
        *moved += 1;
        let free = format!(".{moved}");
        match renameat(folder, name, top, free.as_str()) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {}
            result => return Ok(result?),
        }
    }
}

/// Opens a folder that is to be emptied, and makes it ours to change if it is not.
fn open_to_empty(parent: &OwnedFd, name: &CStr) -> nix::Result<Dir> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let folder = match openat(parent, name, flags, Mode::empty()) {
        Err(Errno::EACCES) => {
            // That it is a folder and no link is known before its mode is changed.
            openat(parent, name, flags | OFlag::O_PATH, Mode::empty())?;
            fchmodat(parent, name, Mode::S_IRWXU, FchmodatFlags::FollowSymlink)?;
            openat(parent, name, flags, Mode::empty())?
        }
        result => result?,
    };
    if fstat(&folder)?.st_mode & libc::S_IRWXU != libc::S_IRWXU {
        // Whose folder it is not finds out when something cannot be removed.
        let _ = fchmod(&folder, Mode::S_IRWXU);
    }
    Dir::from_fd(folder)
}

fn invalid(name: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("entry '{}' is refused: {why}", name.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Attributes = Attributes { mode: 0o644, owner: None, mtime: 7 };

    #[test]
    fn nothing_is_written_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let mut tree = TreeWriter::new(dir.path()).unwrap();
        tree.symlink(Path::new("link"), outside.path(), PLAIN).unwrap();
        assert!(tree.file(Path::new("link/file"), PLAIN, &mut &b"x"[..]).is_err());
        assert!(tree.folder(Path::new("link/sub"), PLAIN).is_err());
        assert!(tree.file(Path::new("../file"), PLAIN, &mut &b"x"[..]).is_err());
        assert!(tree.file(Path::new("/file"), PLAIN, &mut &b"x"[..]).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        // A file takes the place of the link; what the link names is not touched.
        tree.file(Path::new("link"), PLAIN, &mut &b"x"[..]).unwrap();
        assert!(dir.path().join("link").symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn modes_and_times_are_kept() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let mut tree = TreeWriter::new(dir.path()).unwrap();
        tree.folder(Path::new("a"), Attributes { mode: 0o500, ..PLAIN }).unwrap();
        tree.file(Path::new("a/b"), Attributes { mode: 0o751, ..PLAIN }, &mut &b"x"[..]).unwrap();
        tree.hard_link(Path::new("c"), Path::new("a/b")).unwrap();
        tree.finish().unwrap();
        let (folder, file) = (dir.path().join("a").metadata().unwrap(), dir.path().join("c").metadata().unwrap());
        assert_eq!((folder.mode() & 0o7777, folder.mtime()), (0o500, 7));
        assert_eq!((file.mode() & 0o7777, file.mtime(), file.nlink()), (0o751, 7, 2));
        remove_tree(dir.path()).unwrap();
        assert!(!dir.path().exists());
    }

    #[test]
    fn a_tree_of_any_depth_is_removed_with_few_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        std::fs::create_dir(&top).unwrap();
        std::fs::create_dir(top.join(".1")).unwrap();
        std::fs::write(top.join(".1/kept"), "a name that is taken").unwrap();
        let mut folder: OwnedFd = File::open(&top).unwrap().into();
        let mut closed = None;
        for depth in 0..5000 {
            mkdirat(&folder, "beside", Mode::S_IRWXU).unwrap();
            mkdirat(&folder, "below", Mode::S_IRWXU).unwrap();
            folder = openat(&folder, "below", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
            if depth == 2500 {
                closed = Some(folder.try_clone().unwrap());
            }
        }
        fchmod(closed.unwrap(), Mode::empty()).unwrap();
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        remove_tree(&top).unwrap();
    }
}
