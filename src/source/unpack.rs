//! From an archive to files: in a sandbox, when an application is staged.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    path::Path,
};

use super::{Error, Format, Limits, SNIFFED_BYTES, archive::Walk};
use crate::oci::tree::TreeWriter;

/// Unpacks an archive into a folder that is there; returns the number of entries and of bytes. With an owner
/// (uid, gid) everything is given to that one, which needs root.
pub fn unpack(archive: &Path, dest: &Path, limits: Limits, owner: Option<(u32, u32)>) -> Result<(u64, u64), Error> {
    let io = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { doing, path, source }
    };
    let mut file = File::open(archive).map_err(io("opening", archive))?;
    let mut start = Vec::new();
    file.by_ref().take(SNIFFED_BYTES as u64).read_to_end(&mut start).map_err(io("reading", archive))?;
    file.rewind().map_err(io("reading", archive))?;
    let format = Format::sniff(&start).ok_or(Error::UnknownFormat)?;
    let mut tree = TreeWriter::new(dest).map_err(io("opening", dest))?;
    let walk = Walk::new(limits, Some(&mut tree), owner);
    let contents = match format {
        Format::Zip => walk.zip(file)?,
        format => walk.tar(format, std::io::BufReader::with_capacity(256 << 10, file))?,
    };
    tree.finish().map_err(io("writing", dest))?;
    Ok((contents.entries, contents.bytes))
}
