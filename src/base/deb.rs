//! Reading binary packages (deb(5)): an ar archive of a control tar and a data tar.
//!
//! Nothing is unpacked to disk. Threads decompress a few packages ahead, each into a bounded queue; the
//! visitor sees them one after another, in the order in which they were given.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

/// The parts of a control tar that are of use.
#[derive(Debug, Default)]
pub(super) struct Control {
    pub control: String,
    pub md5sums: String,
    /// Read for the alternatives that it declares, never run.
    pub postinst: String,
}

/// The uncompressed data tar of a package.
pub(super) struct Data {
    pieces: Receiver<io::Result<Vec<u8>>>,
    piece: io::Cursor<Vec<u8>>,
}

/// Shows each package to `visit`.
pub(super) fn read_all(
    packages: &[PathBuf],
    mut visit: impl FnMut(usize, Control, Data) -> io::Result<()>,
) -> io::Result<()> {
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for path in packages {
        let (control_sender, control) = sync_channel(1);
        let (data_sender, pieces) = sync_channel(QUEUED_PIECES);
        senders.push(Mutex::new(Some((path, control_sender, data_sender))));
        receivers.push((control, pieces));
    }
    let next = AtomicUsize::new(0);
    let work = || {
        // The receiver is gone when the visitor gave up: then nobody wants the rest either.
        while let Some(sender) = senders.get(next.fetch_add(1, Ordering::Relaxed)) {
            let taken = sender.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
            if let Some((path, control, data)) = taken {
                read_one(path, &control, &data);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        for _ in 0..threads {
            scope.spawn(work);
        }
        for (number, (control, pieces)) in receivers.into_iter().enumerate() {
            let control =
                control.recv().map_err(|_| io::Error::other("a thread that unpacks packages ended early"))??;
            visit(number, control, Data { pieces, piece: io::Cursor::default() })?;
        }
        Ok(())
    })
}

const PIECE_BYTES: usize = 128 * 1024;
const QUEUED_PIECES: usize = 32;
const MAX_THREADS: usize = 4;
/// Of each file of a control tar.
const MAX_CONTROL_BYTES: u64 = 8 << 20;

fn read_one(path: &Path, control: &SyncSender<io::Result<Control>>, data: &SyncSender<io::Result<Vec<u8>>>) {
    let opened = member(path, "control.tar").and_then(read_control).and_then(|found| {
        let reader = member(path, "data.tar")?;
        Ok((found, reader))
    });
    let mut reader = match opened {
        Ok((found, reader)) => match control.send(Ok(found)) {
            Ok(()) => reader,
            Err(_) => return,
        },
        Err(error) => {
            let _ = control.send(Err(error));
            return;
        }
    };
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let read = (&mut reader).take(PIECE_BYTES as u64).read_to_end(&mut piece);
        let last = matches!(read, Ok(0) | Err(_));
        // An empty piece says that the end is a true one.
        if data.send(read.map(|_| piece)).is_err() || last {
            return;
        }
    }
}

impl Read for Data {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.position() == self.piece.get_ref().len() as u64 {
            let piece = self.pieces.recv().map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))??;
            if piece.is_empty() {
                return Ok(0);
            }
            self.piece = io::Cursor::new(piece);
        }
        self.piece.read(buffer)
    }
}

fn read_control(reader: impl Read) -> io::Result<Control> {
    let mut control = Control::default();
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries()? {
        let entry = entry?;
        let path = entry.path()?.to_string_lossy().trim_start_matches("./").to_owned();
        let field = match path.as_str() {
            "control" => &mut control.control,
            "md5sums" => &mut control.md5sums,
            "postinst" => &mut control.postinst,
            _ => continue,
        };
        let mut bytes = Vec::new();
        entry.take(MAX_CONTROL_BYTES).read_to_end(&mut bytes)?;
        *field = String::from_utf8_lossy(&bytes).into_owned();
    }
    Ok(control)
}

/// The decompressed content of the member whose name starts so.
fn member(path: &Path, name: &str) -> io::Result<Box<dyn Read>> {
    let mut file = File::open(path)?;
    let mut magic = [0; 8];
    file.read_exact(&mut magic)?;
    if &magic != b"!<arch>\n" {
        return Err(malformed("the file is no ar archive"));
    }
    loop {
        let mut header = [0; 60];
        file.read_exact(&mut header)?;
        let text = |range| std::str::from_utf8(&header[range]).map(|text: &str| text.trim().trim_end_matches('/'));
        let (found, size) = match (text(0..16), text(48..58).map(str::parse::<u64>)) {
            (Ok(found), Ok(Ok(size))) if header.ends_with(b"`\n") => (found.to_owned(), size),
            _ => return Err(malformed("a header of the ar archive is malformed")),
        };
        let Some(compression) = found.strip_prefix(name) else {
            let skip =
                i64::try_from(size + size % 2).map_err(|_| malformed("a member of the ar archive is too large"))?;
            file.seek(SeekFrom::Current(skip))?;
            continue;
        };
        let content = BufReader::with_capacity(64 * 1024, Read::take(file, size));
        return match compression {
            ".xz" => Ok(Box::new(lzma_rust2::XzReader::new(content, true))),
            ".gz" => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(content))),
            ".zst" => Ok(Box::new(zstd::Decoder::with_buffer(content)?)),
            "" => Ok(Box::new(content)),
            other => Err(malformed(&format!("a member is compressed as '{other}', which is not known"))),
        };
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
