//! From a layer to files on disk.

use std::{
    io::{self, Read},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use super::{
    manifest::{
        DOCKER_LAYER_GZIP, DOCKER_LAYER_TAR, MEDIA_TYPE_LAYER_GZIP, MEDIA_TYPE_LAYER_TAR, MEDIA_TYPE_LAYER_ZSTD,
    },
    tree::{Attributes, TreeWriter},
};

/// In a folder: nothing of what lower layers have in it is there (image-spec, "Opaque Whiteout").
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Bookkeeping of a file system that made layers once.
const OF_AUFS: &[u8] = b".wh..wh.";

/// Whose files are once they are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// As the layer says. Needs root.
    AsInLayer,
    /// All of this uid and gid. Needs root.
    Of(u32, u32),
    /// The caller's.
    Ignore,
}

/// What a layer came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    pub entries: u64,
    pub bytes: u64,
}

/// Unpacks a layer into an empty directory. What the layer removes from those below it becomes a mark of overlayfs; devices,
/// FIFOs and sockets are left out, as sandboxes have their own. A layer whose files have more than `max_bytes` is an error before the file that is too much is written.
pub fn unpack_layer(
    blob: impl Read,
    media_type: &str,
    dest: &Path,
    ownership: Ownership,
    max_bytes: u64,
) -> io::Result<Unpacked> {
    unpack_tar(decompress(blob, media_type)?, dest, ownership, max_bytes)
}

/// The content of the first file in a layer that has one of these names, which are relative; none when it has none of
/// them. A file with more than `max_bytes` is an error.
pub fn read_layer_file(
    blob: impl Read,
    media_type: &str,
    names: &[&str],
    max_bytes: u64,
) -> io::Result<Option<Vec<u8>>> {
    let mut archive = tar::Archive::new(decompress(blob, media_type)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let name = super::tree::clean(path.strip_prefix("/").unwrap_or(&path)).unwrap_or_default();
        if !entry.header().entry_type().is_file() || !names.iter().any(|wanted| name == Path::new(wanted)) {
            continue;
        }
        if entry.size() > max_bytes {
            let text = format!("'{}' is larger than {max_bytes} bytes", name.display());
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        return Ok(Some(content));
    }
    Ok(None)
}

/// The tar of a layer.
fn decompress<'a>(blob: impl Read + 'a, media_type: &str) -> io::Result<Box<dyn Read + 'a>> {
    match media_type {
        // Docker's own media types have the same content.
        MEDIA_TYPE_LAYER_ZSTD => Ok(Box::new(zstd::Decoder::new(blob)?)),
        MEDIA_TYPE_LAYER_GZIP | DOCKER_LAYER_GZIP => Ok(Box::new(flate2::read::MultiGzDecoder::new(blob))),
        MEDIA_TYPE_LAYER_TAR | DOCKER_LAYER_TAR => Ok(Box::new(blob)),
        other => Err(io::Error::new(io::ErrorKind::Unsupported, format!("layers of type '{other}' are not known"))),
    }
}

fn unpack_tar(tar: impl Read, dest: &Path, ownership: Ownership, max_bytes: u64) -> io::Result<Unpacked> {
    let mut archive = tar::Archive::new(tar);
    let mut tree = TreeWriter::new(dest)?;
    let mut unpacked = Unpacked::default();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        let name = name.strip_prefix("/").unwrap_or(&name).to_owned();
        if entry.size() > max_bytes.saturating_sub(unpacked.bytes) {
            let text = format!("entry '{}' makes the layer larger than {max_bytes} bytes", name.display());
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        unpacked.bytes += unpack_entry(&mut tree, &name, &mut entry, ownership)?;
        unpacked.entries += 1;
    }
    // What comes after the end mark has the sum of the compressed stream.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    tree.finish()?;
    Ok(unpacked)
}

fn unpack_entry<R: Read>(
    tree: &mut TreeWriter,
    name: &Path,
    entry: &mut tar::Entry<'_, R>,
    ownership: Ownership,
) -> io::Result<u64> {
    let header = entry.header();
    let owner = match ownership {
        Ownership::AsInLayer => Some((id(header.uid()?)?, id(header.gid()?)?)),
        Ownership::Of(uid, gid) => Some((uid, gid)),
        Ownership::Ignore => None,
    };
    let attributes = Attributes { mode: header.mode()?, owner, mtime: i64::try_from(header.mtime()?).unwrap_or(0) };
    let kind = header.entry_type();
    let base = name.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
    if base == OPAQUE {
        tree.opaque(name.parent().unwrap_or(Path::new("")))?;
        return Ok(0);
    }
    if name.components().any(|part| part.as_os_str().as_bytes().starts_with(OF_AUFS)) {
        return Ok(0);
    }
    if let Some(removed) = base.strip_prefix(b".wh.") {
        tree.whiteout(&name.with_file_name(std::ffi::OsStr::from_bytes(removed)))?;
        return Ok(0);
    }
    let link = entry.link_name()?.map(|link| link.into_owned());
    let need = || io::Error::new(io::ErrorKind::InvalidData, format!("link '{}' has no target", name.display()));
    match kind {
        tar::EntryType::Directory => tree.folder(name, attributes)?,
        tar::EntryType::Symlink => tree.symlink(name, &link.ok_or_else(need)?, attributes)?,
        tar::EntryType::Link => {
            let target = link.ok_or_else(need)?;
            tree.hard_link(name, target.strip_prefix("/").unwrap_or(&target)).map_err(|error| {
                let (name, target) = (name.display(), target.display());
                io::Error::new(error.kind(), format!("hard link '{name}' to '{target}': {error}"))
            })?;
        }
        tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
            return tree.file(name, attributes, entry);
        }
        _ => {}
    }
    Ok(0)
}

fn id(id: u64) -> io::Result<u32> {
    u32::try_from(id).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{id} is not a uid")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_is_larger_than_it_may_be_is_refused_before_it_is_written() {
        let mut archive = tar::Builder::new(Vec::new());
        for name in ["small", "large"] {
            let mut header = tar::Header::new_ustar();
            header.set_size(600);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            archive.append_data(&mut header, name, &[b'x'; 600][..]).unwrap();
        }
        let archive = archive.into_inner().unwrap();
        let unpack = |most| {
            let dest = tempfile::tempdir().unwrap();
            let result = unpack_layer(&archive[..], MEDIA_TYPE_LAYER_TAR, dest.path(), Ownership::Ignore, most);
            assert_eq!(dest.path().join("large").exists(), result.is_ok());
            result
        };
        assert_eq!(unpack(1200).unwrap(), Unpacked { entries: 2, bytes: 1200 });
        let error = unpack(1199).unwrap_err();
        assert!(error.to_string().contains("'large' makes the layer larger than 1199 bytes"), "{error}");
    }
}
