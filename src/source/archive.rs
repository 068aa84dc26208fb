//! A walk through an archive, entry by entry. The same rules whether it is only checked or unpacked.

use std::{
    cell::Cell,
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::unix::ffi::OsStringExt as _,
    path::{Component, Path, PathBuf},
    rc::Rc,
};

use super::{
    Error, Format, Limits,
    names::{Named, Names},
    xz::Xz,
    zip::Zip,
};
use crate::oci::tree::{Attributes, TreeWriter, clean};

/// The longest name of an entry, in bytes.
const MAX_PATH_BYTES: usize = 4096;
/// The most folders that one may be in the other.
const MAX_DEPTH: usize = 256;
/// How far a compressed archive may refer back, in bytes: memory that its decoder takes.
const MAX_WINDOW: u64 = 16 << 20;
/// What the headers of one entry of a tar archive may take, in bytes: they are read as a whole.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub entries: u64,
    pub bytes: u64,
}

/// Where entries go, or nowhere.
pub(super) struct Walk<'a> {
    pub tree: Option<&'a mut TreeWriter>,
    pub owner: Option<(u32, u32)>,
    pub limits: Limits,
    contents: Contents,
    names: Names,
}

enum Kind {
    Folder,
    File,
    Symlink(PathBuf),
    HardLink(PathBuf),
}

impl<'a> Walk<'a> {
    pub fn new(limits: Limits, tree: Option<&'a mut TreeWriter>, owner: Option<(u32, u32)>) -> Self {
        Self { tree, owner, limits, contents: Contents::default(), names: Names::default() }
    }

    /// A tar archive, compressed or not, as a stream. It is read to its very end.
    pub fn tar(mut self, format: Format, input: impl Read) -> Result<Contents, Error> {
        let decoded: Box<dyn Read + '_> = match format {
            Format::Tar => Box::new(input),
            Format::Gzip => Box::new(flate2::read::MultiGzDecoder::new(input)),
            Format::Xz => Box::new(Xz::new(input, MAX_WINDOW)),
            Format::Bzip2 => Box::new(bzip2::read::MultiBzDecoder::new(input)),
            Format::Zstd => {
                let mut decoder = zstd::Decoder::new(input).map_err(corrupt)?;
                decoder.window_log_max(MAX_WINDOW.ilog2()).map_err(corrupt)?;
                Box::new(decoder)
            }
            Format::Zip => return Err(Error::UnknownFormat),
        };
        let most = self.limits.max_unpacked_bytes + self.limits.max_entries.saturating_mul(2048) + (1 << 20);
        let step = Rc::new(Cell::new(MAX_HEADER_BYTES));
        let mut archive = tar::Archive::new(Bounded { input: decoded, left: most, step: Rc::clone(&step), zeros: 0 });
        for entry in archive.entries().map_err(corrupt)? {
            let mut entry = entry.map_err(|error| self.read_failed(error))?;
            step.set(u64::MAX);
            self.tar_entry(&mut entry)?;
            // What is left of it would be taken for headers of the next.
            io::copy(&mut entry, &mut io::sink()).map_err(|error| self.read_failed(error))?;
            step.set(MAX_HEADER_BYTES);
        }
        step.set(u64::MAX);
        let mut rest = archive.into_inner();
        io::copy(&mut rest, &mut io::sink()).map_err(|error| self.read_failed(error))?;
        if rest.zeros < 512 {
            return Err(Error::Corrupt("it ends without an end mark".to_owned()));
        }
        self.finish()
    }

    /// A zip archive, which has its directory at the end.
    pub fn zip(mut self, file: File) -> Result<Contents, Error> {
        let mut archive = Zip::open(file).map_err(corrupt)?;
        if archive.entries() > self.limits.max_entries {
            return Err(Error::TooManyEntries(self.limits.max_entries));
        }
        while let Some(entry) = archive.next().map_err(corrupt)? {
            let mut content = archive.content(&entry).map_err(corrupt)?;
            let (is_folder, mode) = (entry.is_folder(), entry.mode);
            let name = PathBuf::from(OsString::from_vec(entry.name));
            let kind = match mode & libc::S_IFMT {
                libc::S_IFLNK => {
                    let mut target = Vec::new();
                    content.by_ref().take(MAX_PATH_BYTES as u64).read_to_end(&mut target).map_err(corrupt)?;
                    Kind::Symlink(PathBuf::from(OsString::from_vec(target)))
                }
                _ if is_folder => Kind::Folder,
                libc::S_IFDIR => Kind::Folder,
                libc::S_IFREG | 0 => Kind::File,
                _ => return Err(refused(&name, "it is a device, a FIFO or a socket")),
            };
            self.entry(&name, kind, mode, 0, &mut content)?;
        }
        self.finish()
    }

    fn finish(self) -> Result<Contents, Error> {
        if self.contents.entries == 0 { Err(Error::NoEntries) } else { Ok(self.contents) }
    }

    fn tar_entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), Error> {
        let name = entry.path().map_err(corrupt)?.into_owned();
        let link = entry.link_name().map_err(corrupt)?.map(|link| link.into_owned());
        let need = || refused(&name, "it is a link without a target");
        let kind = match entry.header().entry_type() {
            tar::EntryType::Directory => Kind::Folder,
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => Kind::File,
            tar::EntryType::Symlink => Kind::Symlink(link.ok_or_else(need)?),
            tar::EntryType::Link => Kind::HardLink(link.ok_or_else(need)?),
            // What git writes at the beginning of its archives.
            tar::EntryType::XGlobalHeader => return Ok(()),
            _ => return Err(refused(&name, "it is a device, a FIFO or a socket")),
        };
        let mode = entry.header().mode().map_err(corrupt)?;
        let mtime = i64::try_from(entry.header().mtime().map_err(corrupt)?).unwrap_or(0);
        self.entry(&name, kind, mode, mtime, entry)
    }

    fn entry(&mut self, name: &Path, kind: Kind, mode: u32, mtime: i64, content: &mut dyn Read) -> Result<(), Error> {
        self.contents.entries += 1;
        if self.contents.entries > self.limits.max_entries {
            return Err(Error::TooManyEntries(self.limits.max_entries));
        }
        if name.as_os_str().len() > MAX_PATH_BYTES {
            return Err(refused(name, "its name is longer than 4096 bytes"));
        }
        let path = clean(name).map_err(|_| refused(name, "it would be outside of the application's folder"))?;
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        if path.components().count() > MAX_DEPTH {
            return Err(refused(name, &format!("it is in more than {MAX_DEPTH} folders")));
        }
        self.name(&path, &kind)?;
        let executable = if mode & 0o111 == 0 { 0o644 } else { 0o755 };
        let attributes = Attributes { mode: executable, owner: self.owner, mtime };
        let result = match kind {
            Kind::Folder => {
                self.tree.as_mut().map_or(Ok(()), |tree| tree.folder(&path, Attributes { mode: 0o755, ..attributes }))
            }
            Kind::Symlink(target) => {
                check_link(&path, &target)?;
                self.tree.as_mut().map_or(Ok(()), |tree| tree.symlink(&path, &target, attributes))
            }
            Kind::HardLink(target) if clean(&target).is_ok_and(|target| target == path) => Ok(()),
            Kind::HardLink(target) => self.tree.as_mut().map_or(Ok(()), |tree| tree.hard_link(&path, &target)),
            Kind::File => return self.file(&path, attributes, content),
        };
        result.map_err(|error| self.write_failed(&path, error))
    }

    /// Whether an entry can be where it says, after those that came before. Found out here, at the upload, as nothing
    /// is written then.
    fn name(&mut self, path: &Path, kind: &Kind) -> Result<(), Error> {
        let named = match kind {
            Kind::Folder => Named::Folder,
            Kind::File => Named::File,
            Kind::Symlink(_) => Named::Symlink,
            Kind::HardLink(target) => {
                let target = clean(target)
                    .map_err(|_| refused(path, "it is a link to something outside of the application's folder"))?;
                // A second name of a symbolic link would be one that leads elsewhere.
                if self.names.find(&target) != Some(Named::File) {
                    return Err(refused(path, "it is a hard link to what is no file that came before it"));
                }
                Named::File
            }
        };
        self.names.add(path, named).map_err(|why| refused(path, why))?;
        // Folders that are only in the names of others count as well.
        if self.names.len() > self.limits.max_entries {
            return Err(Error::TooManyEntries(self.limits.max_entries));
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, attributes: Attributes, content: &mut dyn Read) -> Result<(), Error> {
        let left = self.limits.max_unpacked_bytes - self.contents.bytes;
        let mut limited = content.take(left + 1);
        let copied = match &mut self.tree {
            Some(tree) => tree.file(path, attributes, &mut limited),
            None => io::copy(&mut limited, &mut io::sink()),
        };
        let copied = copied.map_err(|error| self.write_failed(path, error))?;
        if copied > left {
            return Err(Error::TooLarge(self.limits.max_unpacked_bytes));
        }
        self.contents.bytes += copied;
        Ok(())
    }

    /// Reading and writing meet here: what is wrong with the archive is the user's, the rest is ours.
    fn write_failed(&self, path: &Path, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::InvalidData if error.to_string().contains("is refused") => {
                refused(path, "a file, a folder or a link with this name is in its way")
            }
            io::ErrorKind::StorageFull | io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Error::Io { doing: "writing", path: path.to_owned(), source: error }
            }
            _ => self.read_failed(error),
        }
    }

    fn read_failed(&self, error: io::Error) -> Error {
        if error.kind() == io::ErrorKind::FileTooLarge {
            Error::TooLarge(self.limits.max_unpacked_bytes)
        } else {
            corrupt(error)
        }
    }
}

/// A link may begin with as many `..` as lead to the top, and then only go down: so it stays inside, whatever
/// other links it goes through.
pub(super) fn check_link(path: &Path, target: &Path) -> Result<(), Error> {
    let depth = path.components().count() - 1;
    let mut up = 0;
    let mut down = false;
    for part in target.components() {
        match part {
            Component::ParentDir if down => return Err(refused(path, "it is a link with '..' after a name")),
            Component::ParentDir => up += 1,
            Component::Normal(_) => down = true,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => {
                return Err(refused(path, &format!("it is a link to the absolute path '{}'", target.display())));
            }
        }
    }
    if up > depth {
        let why = format!("it is a link to '{}', outside of the application's folder", target.display());
        return Err(refused(path, &why));
    }
    Ok(())
}

fn refused(entry: &Path, why: &str) -> Error {
    Error::Unsafe { entry: shown(&entry.to_string_lossy()), why: why.to_owned() }
}

/// What an archive brings, fit for a message: it may be long, and do things to a terminal.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || c == char::REPLACEMENT_CHARACTER { '?' } else { c }).take(200).collect()
}

/// What zstd says, in an error without a kind, when a window is larger than it may be.
const ZSTD_WINDOW: &str = "requires too much memory";

fn corrupt(error: io::Error) -> Error {
    let text = shown(&error.to_string());
    match error.kind() {
        io::ErrorKind::OutOfMemory => Error::NeedsMemory(text),
        _ if text.contains(ZSTD_WINDOW) => {
            Error::NeedsMemory(format!("its zstd window has more than the {MAX_WINDOW} bytes that are taken"))
        }
        _ => Error::Corrupt(text),
    }
}

/// Ends a stream that grows beyond every limit, and knows how many zeros its end has.
struct Bounded<R> {
    input: R,
    left: u64,
    /// What may be read before it is set again.
    step: Rc<Cell<u64>>,
    zeros: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        let step = self.step.get().checked_sub(read as u64);
        self.step.set(step.ok_or_else(|| io::Error::other("the headers of an entry are larger than 1 MiB"))?);
        match buffer[..read].iter().rposition(|byte| *byte != 0) {
            Some(last) => self.zeros = (read - 1 - last) as u64,
            None => self.zeros += read as u64,
        }
        Ok(read)
    }
}
