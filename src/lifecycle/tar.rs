//! The bytes of layers: POSIX ustar, written so that equal trees give equal archives everywhere.
//!
//! Names are absolute and keep their slash; times are one second after 1980; owners are given, never read. Long
//! names that ustar cannot split become a PAX header. A layer has a limit: a file with holes costs its builder nothing,
//! and each further name of a file is a further copy.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _, Write},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use super::phase::CnbUser;
use crate::oci::CREATED_SECONDS;

const BLOCK: usize = 512;
const ROOT: CnbUser = CnbUser { uid: 0, gid: 0 };

/// Whose an entry is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Cnb,
    Root,
}

/// What an entry is, besides its name.
enum Entry<'a> {
    File { size: u64 },
    Folder,
    Link { target: &'a [u8] },
}

/// Where the bytes of a layer go, as long as there is room for them.
pub(super) struct Sink<'a> {
    out: &'a mut dyn Write,
    left: u64,
    /// Whose everything is that a build made.
    user: CnbUser,
}

impl<'a> Sink<'a> {
    /// `left` is how many bytes may be written.
    pub fn new(out: &'a mut dyn Write, left: u64, user: CnbUser) -> Self {
        Self { out, left, user }
    }

    fn reserve(&mut self, size: u64) -> io::Result<()> {
        let too_large = "the layers of the application are larger than they may be; make them smaller, \
                         or raise max_unpacked_bytes in the daemon's [sources], of which they may have the double";
        self.left =
            self.left.checked_sub(size).ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, too_large))?;
        Ok(())
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.reserve(bytes.len() as u64)?;
        self.out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes a tree that is on disk at `source`, as if it were at `name`, with the folders above it.
pub(super) fn tree(out: &mut Sink<'_>, source: &Path, name: &str) -> io::Result<()> {
    parents(out, name, Owner::Cnb)?;
    walk(out, source, name.as_bytes())?;
    end(out)
}

/// Writes entries of the tree at `source`, as if it were at `name`, in the order given: their names are relative to it.
pub(super) fn entries(out: &mut Sink<'_>, source: &Path, name: &str, entries: &[Vec<u8>]) -> io::Result<()> {
    for entry in entries {
        if entry.is_empty() {
            // The folder itself is a volume, whose mode says where it was built and nothing of the application.
            header(out, name.as_bytes(), 0o755, Owner::Cnb, &Entry::Folder)?;
        } else {
            one(out, &place(source, entry), &[name.as_bytes(), b"/", entry].concat())?;
        }
    }
    end(out)
}

/// Where an entry of a tree is on disk.
pub(super) fn place(source: &Path, entry: &[u8]) -> PathBuf {
    if entry.is_empty() { source.to_owned() } else { source.join(OsStr::from_bytes(entry)) }
}

/// An error that says where it happened.
pub(super) fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Writes one executable file, with the folders above it.
pub(super) fn program(out: &mut Sink<'_>, name: &str, content: &[u8]) -> io::Result<()> {
    parents(out, name, Owner::Root)?;
    header(out, name.as_bytes(), 0o755, Owner::Root, &Entry::File { size: content.len() as u64 })?;
    out.write_all(content)?;
    pad(out, content.len() as u64)?;
    end(out)
}

/// Writes links, with the folders above the first.
pub(super) fn links(out: &mut Sink<'_>, names: &[String], target: &str) -> io::Result<()> {
    if let Some(first) = names.first() {
        parents(out, first, Owner::Root)?;
    }
    for name in names {
        header(out, name.as_bytes(), 0o755, Owner::Root, &Entry::Link { target: target.as_bytes() })?;
    }
    end(out)
}

/// Every folder above a name but the root, outermost first.
fn parents(out: &mut Sink<'_>, name: &str, owner: Owner) -> io::Result<()> {
    for (slash, _) in name.match_indices('/').skip(1) {
        header(out, &name.as_bytes()[..slash], 0o755, owner, &Entry::Folder)?;
    }
    Ok(())
}

fn walk(out: &mut Sink<'_>, path: &Path, name: &[u8]) -> io::Result<()> {
    if !one(out, path, name)? {
        return Ok(());
    }
    let children = fs::read_dir(path)
        .and_then(|all| all.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<Vec<_>, _>>());
    let mut children = children.map_err(|error| at(path, error))?;
    children.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    for child in children {
        walk(out, &path.join(&child), &[name, b"/", child.as_bytes()].concat())?;
    }
    Ok(())
}

/// Writes one entry, not what is below it. Whether it is a folder.
fn one(out: &mut Sink<'_>, path: &Path, name: &[u8]) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(path).map_err(|error| at(path, error))?;
    let mode = metadata.mode() & 0o7777;
    let kind = metadata.file_type();
    if kind.is_dir() {
        header(out, name, mode, Owner::Cnb, &Entry::Folder)?;
    } else if kind.is_symlink() {
        let target = fs::read_link(path).map_err(|error| at(path, error))?;
        header(out, name, 0o777, Owner::Cnb, &Entry::Link { target: target.as_os_str().as_bytes() })?;
    } else if kind.is_file() {
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
        let file = file.map_err(|error| at(path, error))?;
        plain(out, file, metadata.len(), name, mode).map_err(|error| at(path, error))?;
    } else {
        println!("Warning: {} is neither file, folder nor link, and is left out", path.display());
    }
    Ok(kind.is_dir())
}

fn plain(out: &mut Sink<'_>, file: File, size: u64, name: &[u8], mode: u32) -> io::Result<()> {
    header(out, name, mode, Owner::Cnb, &Entry::File { size })?;
    // What has no room is not read first.
    out.reserve(size)?;
    let copied = io::copy(&mut file.take(size), &mut out.out)?;
    if copied != size {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter"));
    }
    pad(out, size)
}

fn header(out: &mut Sink<'_>, name: &[u8], mode: u32, owner: Owner, entry: &Entry<'_>) -> io::Result<()> {
    let (kind, size, link): (u8, u64, &[u8]) = match entry {
        Entry::File { size } => (b'0', *size, b""),
        Entry::Folder => (b'5', 0, b""),
        Entry::Link { target } => (b'2', 0, target),
    };
    let (split, is_large, is_long) = (split(name), size >= 8 << 30, |text: &[u8]| text.len() > 100 || !text.is_ascii());
    // When there is a PAX header at all, it has every name that is long, also one that ustar could split.
    let pax = split.is_none() || is_large || is_long(link);
    if pax {
        let mut records = Vec::new();
        if is_long(link) {
            record(&mut records, "linkpath", link);
        }
        if is_long(name) {
            record(&mut records, "path", name);
        }
        if is_large {
            record(&mut records, "size", size.to_string().as_bytes());
        }
        let mut pax = block(&pax_name(name), b"", 0, ROOT, 0, records.len() as u64, b'x', b"", false);
        checksum(&mut pax);
        out.write_all(&pax)?;
        out.write_all(&records)?;
        pad(out, records.len() as u64)?;
    }
    let ids = if owner == Owner::Cnb { out.user } else { ROOT };
    let shortened = stripped(name);
    let (prefix, rest) = split.filter(|_| !pax).unwrap_or((b"", &shortened));
    let shown = if is_large { 0 } else { size };
    let mut block = block(rest, prefix, mode, ids, CREATED_SECONDS, shown, kind, &stripped(link), true);
    checksum(&mut block);
    out.write_all(&block)
}

#[expect(clippy::too_many_arguments, reason = "one for each field of the header")]
fn block(
    name: &[u8],
    prefix: &[u8],
    mode: u32,
    ids: CnbUser,
    mtime: u64,
    size: u64,
    kind: u8,
    link: &[u8],
    devices: bool,
) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, format!("{mode:07o}\0").as_bytes());
    put(108, format!("{:07o}\0", ids.uid).as_bytes());
    put(116, format!("{:07o}\0", ids.gid).as_bytes());
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{mtime:011o}\0").as_bytes());
    put(156, &[kind]);
    put(157, link);
    put(257, b"ustar\x0000");
    if devices {
        put(329, b"0000000\0");
        put(337, b"0000000\0");
    }
    put(345, prefix);
    block
}

fn checksum(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Prefix and name, when ustar has room for them.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if !name.is_ascii() {
        return None;
    }
    if name.len() <= 100 {
        return Some((b"", name));
    }
    let slash = name[..name.len().min(156)].iter().rposition(|byte| *byte == b'/')?;
    let (prefix, rest) = (&name[..slash], &name[slash + 1..]);
    (slash > 0 && prefix.len() <= 155 && !rest.is_empty() && rest.len() <= 100).then_some((prefix, rest))
}

/// What fits of a name into its field: ASCII, 100 bytes, and no slash where it was cut.
fn stripped(name: &[u8]) -> Vec<u8> {
    let mut ascii: Vec<u8> = name.iter().copied().filter(u8::is_ascii).collect();
    if ascii.len() > 100 {
        ascii.truncate(100);
        while ascii.last() == Some(&b'/') {
            ascii.pop();
        }
    }
    ascii
}

fn pax_name(name: &[u8]) -> Vec<u8> {
    let slash = name.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let (folder, base) = (&name[..slash], name.get(slash + 1..).unwrap_or_default());
    stripped(&[folder, b"/PaxHeaders.0/", base].concat())
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn pad(out: &mut dyn Write, size: u64) -> io::Result<()> {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    if over == 0 { Ok(()) } else { out.write_all(&[0; BLOCK][over..]) }
}

fn end(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;

    fn bytes(write: impl FnOnce(&mut Sink<'_>) -> io::Result<()>) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut Sink::new(&mut bytes, u64::MAX, CnbUser::EMBEDDED)).unwrap();
        bytes
    }

    fn digest(write: impl FnOnce(&mut Sink<'_>) -> io::Result<()>) -> String {
        Digest::of(bytes(write)).to_string()
    }

    #[test]
    fn bytes_are_those_of_the_real_exporter() {
        let link = |kind: &str| format!("/cnb/process/{kind}");
        let launcher = "/cnb/lifecycle/launcher";
        let golden = [
            ("sha256:83d85471d9f8a3834b4e27cf701e3f0aef220cc816d9c173c7d32cd73909a590", vec![link("web")]),
            (
                "sha256:c32b6c6d08c5d84a980a518d1dd9093c22b9e003f2b6b468f12fe1e7cd918b3f",
                vec![link("web"), link("worker")],
            ),
        ];
        for (expected, names) in golden {
            assert_eq!(digest(|out| links(out, &names, launcher)), expected);
        }
        let expected = "sha256:5c5c60267ec5c2d74763990dcab5baa5d2cf88ce7b7154d05e3b48389949d6c1";
        assert_eq!(digest(|out| program(out, launcher, b"launcher-bytes")), expected);
        let expected = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
        assert_eq!(digest(|out| entries(out, Path::new("/nothing"), "/workspace", &[])), expected);
    }

    #[test]
    fn long_and_foreign_names_survive() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(120);
        fs::create_dir_all(dir.path().join("ä").join(&long)).unwrap();
        fs::write(dir.path().join("ä").join(&long).join("file"), "content").unwrap();
        std::os::unix::fs::symlink("y".repeat(150), dir.path().join("link")).unwrap();
        let bytes = bytes(|out| tree(out, dir.path(), "/layers/a"));
        let mut archive = ::tar::Archive::new(&bytes[..]);
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            names.push(entry.path().unwrap().to_string_lossy().into_owned());
            if let Some(target) = entry.link_name().unwrap() {
                assert_eq!(target.to_string_lossy(), "y".repeat(150));
            }
        }
        let file = format!("/layers/a/ä/{long}/file");
        assert!(names.contains(&file), "{names:?}");
        assert_eq!(names[..2], ["/layers", "/layers/a"]);
    }

    #[test]
    fn a_long_target_takes_a_long_name_into_the_same_header() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, target) = ("x".repeat(90), "y".repeat(150));
        fs::create_dir(dir.path().join(&folder)).unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join(&folder).join("link")).unwrap();
        let names = [format!("{folder}/link").into_bytes()];
        let bytes = bytes(|out| entries(out, dir.path(), "/workspace", &names));
        let records = String::from_utf8_lossy(&bytes[512..1024]);
        assert_eq!(
            records.trim_end_matches('\0'),
            format!("164 linkpath={target}\n116 path=/workspace/{folder}/link\n")
        );
        assert_eq!(bytes[1024 + 345], 0, "the prefix is empty");
    }

    #[test]
    fn what_is_larger_than_it_may_be_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("holes")).and_then(|file| file.set_len(1 << 40)).unwrap();
        let mut bytes = Vec::new();
        let error = tree(&mut Sink::new(&mut bytes, 1 << 20, CnbUser::EMBEDDED), dir.path(), "/layers/a").unwrap_err();
        assert!(error.to_string().contains("holes: the layers of the application are larger"), "{error}");
        assert!(bytes.len() < 10_000);
    }
}
