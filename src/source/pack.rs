//! From a folder to the archive that is uploaded: sorted, without what `.epinioignore` names.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use ignore::{WalkBuilder, overrides::OverrideBuilder};

use super::{Error, archive::check_link};

/// Names of files that say what is left out, in the syntax of `.gitignore`.
const IGNORE_FILE: &str = ".epinioignore";

/// The time of every entry, in seconds: what the same files were in another checkout, or when, makes no difference.
/// It is that of the files in built images.
const TIME: u64 = 315_532_801;
/// Permission of the owner to run a file.
const EXECUTABLE: u32 = 0o100;

/// What was packed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackStats {
    pub entries: u64,
    pub bytes: u64,
    /// Names of sockets, FIFOs and devices, which were left out.
    pub skipped: Vec<String>,
}

/// Writes a folder as a tar archive, compressed with zstd. Equal folders give equal archives, whoever packs
/// them, wherever and whenever.
pub fn pack(dir: &Path, sink: impl Write) -> Result<PackStats, Error> {
    let io = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { doing, path, source }
    };
    let mut encoder = zstd::Encoder::new(sink, 3).map_err(io("packing", dir))?;
    encoder.include_checksum(true).map_err(io("packing", dir))?;
    let mut archive = tar::Builder::new(encoder);
    let mut stats = PackStats::default();
    for entry in entries(dir)? {
        let entry = entry.map_err(|error| Error::Io {
            doing: "reading",
            path: dir.to_owned(),
            source: io::Error::other(error),
        })?;
        let path = entry.path();
        let name = path.strip_prefix(dir).unwrap_or(path);
        if name.as_os_str().is_empty() {
            continue;
        }
        let metadata = fs::symlink_metadata(path).map_err(io("reading", path))?;
        append(&mut archive, path, name, &metadata, &mut stats)?;
    }
    let encoder = archive.into_inner().map_err(io("packing", dir))?;
    encoder.finish().and_then(|mut sink| sink.flush()).map_err(io("packing", dir))?;
    if stats.entries == 0 { Err(Error::NoEntries) } else { Ok(stats) }
}

fn entries(dir: &Path) -> Result<ignore::Walk, Error> {
    let failed =
        |error: ignore::Error| Error::Io { doing: "reading", path: dir.to_owned(), source: io::Error::other(error) };
    fs::read_dir(dir).map_err(|source| Error::Io { doing: "reading", path: dir.to_owned(), source })?;
    let mut overrides = OverrideBuilder::new(dir);
    overrides.add("!.git").map_err(failed)?;
    let mut walk = WalkBuilder::new(dir);
    walk.standard_filters(false)
        .add_custom_ignore_filename(IGNORE_FILE)
        .overrides(overrides.build().map_err(failed)?)
        .follow_links(false)
        .sort_by_file_name(std::ffi::OsStr::cmp);
    Ok(walk.build())
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &Path,
    name: &Path,
    metadata: &fs::Metadata,
    stats: &mut PackStats,
) -> Result<(), Error> {
    let io = |source| Error::Io { doing: "packing", path: path.to_owned(), source };
    let mut header = tar::Header::new_gnu();
    // What a umask or an owner of this machine makes of the rest is left out.
    let executable = metadata.is_dir() || metadata.is_file() && metadata.mode() & EXECUTABLE != 0;
    header.set_mode(if executable { 0o755 } else { 0o644 });
    header.set_mtime(TIME);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    if metadata.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        archive.append_data(&mut header, name.join(""), io::empty()).map_err(io)?;
    } else if metadata.is_symlink() {
        let target = fs::read_link(path).map_err(io)?;
        check_link(name, &target)?;
        header.set_entry_type(tar::EntryType::Symlink);
        archive.append_link(&mut header, name, target).map_err(io)?;
    } else if metadata.is_file() {
        let file = fs::File::open(path).map_err(io)?;
        header.set_size(metadata.len());
        // A file that grows meanwhile is cut; one that shrinks is an error.
        archive.append_data(&mut header, name, Exactly { file, left: metadata.len() }).map_err(io)?;
        stats.bytes += metadata.len();
    } else {
        stats.skipped.push(name.display().to_string());
        return Ok(());
    }
    stats.entries += 1;
    Ok(())
}

/// The beginning of a file, all of which has to be there.
struct Exactly {
    file: fs::File,
    left: u64,
}

impl io::Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read(&mut buffer[..most])?;
        if read == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was packed"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_left_out_and_the_rest_is_the_same_again() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        };
        ["app.py", "node_modules/x/y.js", ".git/HEAD", "sub/keep.txt", "sub/drop.log"]
            .iter()
            .for_each(|name| write(name));
        fs::write(dir.path().join(IGNORE_FILE), "node_modules\n*.log\n").unwrap();
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let stats = pack(dir.path(), &mut first).unwrap();
        // As in another checkout, of somebody with another umask.
        let file = fs::File::options().write(true).open(dir.path().join("app.py")).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o660)).unwrap();
        pack(dir.path(), &mut second).unwrap();
        assert_eq!(first, second);
        let short = Exactly { file: fs::File::open(dir.path().join("app.py")).unwrap(), left: 100 };
        assert!(io::read_to_string(short).is_err(), "a file that became shorter");
        let mut archive = tar::Archive::new(zstd::Decoder::new(&first[..]).unwrap());
        let names: Vec<String> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, [".epinioignore", "app.py", "sub/", "sub/keep.txt"]);
        assert_eq!(stats.entries, 4);
    }
}
