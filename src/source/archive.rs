//! A walk through an archive, entry by entry. The same rules whether it is only checked or unpacked.

use std::{
    fs::File,
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

use super::{Error, Format, Limits};
use crate::oci::tree::{Attributes, TreeWriter, clean};

/// The longest name of an entry, in bytes.
const MAX_PATH_BYTES: usize = 4096;

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
}

enum Kind {
    Folder,
    File,
    Symlink(PathBuf),
    HardLink(PathBuf),
}

impl<'a> Walk<'a> {
    pub fn new(limits: Limits, tree: Option<&'a mut TreeWriter>, owner: Option<(u32, u32)>) -> Self {
        Self { tree, owner, limits, contents: Contents::default() }
    }

    /// A tar archive, compressed or not, as a stream. It is read to its very end.
    pub fn tar(mut self, format: Format, input: impl Read) -> Result<Contents, Error> {
        let decoded: Box<dyn Read + '_> = match format {
            Format::Tar => Box::new(input),
            Format::Gzip => Box::new(flate2::read::MultiGzDecoder::new(input)),
            Format::Xz => Box::new(lzma_rust2::XzReader::new(input, true)),
            Format::Bzip2 => Box::new(bzip2::read::MultiBzDecoder::new(input)),
            Format::Zstd => Box::new(zstd::Decoder::new(input).map_err(corrupt)?),
            Format::Zip => return Err(Error::UnknownFormat),
        };
        let most = self.limits.max_unpacked_bytes + self.limits.max_entries.saturating_mul(2048) + (1 << 20);
        let mut archive = tar::Archive::new(Bounded { input: decoded, left: most, zeros: 0 });
        for entry in archive.entries().map_err(corrupt)? {
            let mut entry = entry.map_err(|error| self.too_large_or(error))?;
            self.tar_entry(&mut entry)?;
        }
        let mut rest = archive.into_inner();
        io::copy(&mut rest, &mut io::sink()).map_err(|error| self.too_large_or(error))?;
        if rest.zeros < 512 {
            return Err(Error::Corrupt("it ends without an end mark".to_owned()));
        }
        self.finish()
    }

    /// A zip archive, which has its directory at the end.
    pub fn zip(mut self, file: File) -> Result<Contents, Error> {
        let damaged = |error: zip::result::ZipError| Error::Corrupt(error.to_string());
        let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(damaged)?;
        for index in 0..archive.len() {
            let mut entry = archive.by_index(index).map_err(damaged)?;
            let name = PathBuf::from(entry.name());
            let mode = entry.unix_mode().unwrap_or(if entry.is_dir() { 0o40755 } else { 0o100_644 });
            let kind = match mode & libc::S_IFMT {
                libc::S_IFLNK => {
                    let mut target = String::new();
                    entry.by_ref().take(MAX_PATH_BYTES as u64).read_to_string(&mut target).map_err(corrupt)?;
                    Kind::Symlink(PathBuf::from(target))
                }
                _ if entry.is_dir() => Kind::Folder,
                libc::S_IFREG | 0 => Kind::File,
                _ => return Err(refused(&name, "it is a device, a FIFO or a socket")),
            };
            let mtime = 0;
            self.entry(&name, kind, mode, mtime, &mut entry)?;
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
            Kind::HardLink(target) => {
                let target = clean(&target)
                    .map_err(|_| refused(name, "it is a link to something outside of the application's folder"))?;
                self.tree.as_mut().map_or(Ok(()), |tree| tree.hard_link(&path, &target))
            }
            Kind::File => return self.file(&path, attributes, content),
        };
        result.map_err(|error| self.write_failed(&path, error))
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
            _ => self.too_large_or(error),
        }
    }

    fn too_large_or(&self, error: io::Error) -> Error {
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
    let entry: String =
        entry.to_string_lossy().chars().map(|c| if c.is_control() { '?' } else { c }).take(200).collect();
    Error::Unsafe { entry, why: why.to_owned() }
}

fn corrupt(error: io::Error) -> Error {
    Error::Corrupt(error.to_string())
}

/// Ends a stream that grows beyond every limit, and knows how many zeros its end has.
struct Bounded<R> {
    input: R,
    left: u64,
    zeros: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        match buffer[..read].iter().rposition(|byte| *byte != 0) {
            Some(last) => self.zeros = (read - 1 - last) as u64,
            None => self.zeros += read as u64,
        }
        Ok(read)
    }
}
