//! The journal: every write as a line of JSON, synced before it is acknowledged.
//!
//! The first line is a header with the format's version and the generation of the file; each later
//! line is one write with its sequence number. A file is only appended to, or replaced as a whole by
//! its compaction. A last line that is torn was never acknowledged and is cut off; anything else that
//! cannot be read is an error that names the line.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, BufWriter, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Error, Key, Object};

/// The version of the format that this epiniod writes.
const FORMAT: u32 = 1;
/// A journal below this size is never compacted, in bytes.
const COMPACT_FROM: u64 = 8 << 20;
/// A journal is compacted when it is this many times larger than what is live.
const COMPACT_RATIO: u64 = 4;

/// One write.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub seq: u64,
    #[serde(flatten)]
    pub write: Write,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Write {
    Put(Object),
    Delete(Key),
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    journal: u32,
    generation: u64,
}

/// An open journal.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    size: u64,
    pub generation: u64,
    pub last_seq: u64,
}

impl Journal {
    /// Opens or creates a journal. `replay` gets every entry in order.
    pub fn open(dir: &Path, mut replay: impl FnMut(u64, Entry) -> Result<(), Error>) -> Result<Self, Error> {
        let path = dir.join("journal");
        if !path.exists() {
            write_new(&path, 1, std::iter::empty())?;
        }
        let doing = || format!("reading the journal {}", path.display());
        let io = |source| Error::Io { doing: doing(), source };
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io)?;
        let mut lines = Lines { reader: BufReader::new(file), offset: 0, number: 0 };
        let corrupt =
            |line: u64, cause: String| Error::Backend { doing: doing(), cause: format!("line {line}: {cause}") };

        let first = lines.next().map_err(io)?.unwrap_or_default();
        let header: Header = serde_json::from_slice(&first).map_err(|error| corrupt(1, error.to_string()))?;
        if header.journal > FORMAT {
            let cause = format!(
                "format {} is newer than this epiniod, which knows {FORMAT}; use a newer epiniod",
                header.journal
            );
            return Err(Error::Backend { doing: doing(), cause });
        }
        let mut last_seq = 0;
        let mut good_until = lines.offset;
        let mut torn: Option<(u64, String)> = None;
        while let Some(line) = lines.next().map_err(io)? {
            let parsed = if line.ends_with(b"\n") {
                serde_json::from_slice::<Entry>(&line).map_err(|error| error.to_string())
            } else {
                Err("it has no end".to_owned())
            };
            match (parsed, &torn) {
                (Ok(_), Some((number, cause))) => return Err(corrupt(*number, cause.clone())),
                (Ok(entry), None) => {
                    last_seq = entry.seq;
                    good_until = lines.offset;
                    replay(header.generation, entry)?;
                }
                (Err(cause), None) => torn = Some((lines.number, cause)),
                (Err(_), Some(_)) => {}
            }
        }
        let mut file = lines.reader.into_inner();
        if torn.is_some() {
            file.set_len(good_until).and_then(|()| file.sync_all()).map_err(io)?;
        }
        file.seek(SeekFrom::Start(good_until)).map_err(io)?;
        Ok(Self { file, size: good_until, generation: header.generation, last_seq, path })
    }

    /// Appends entries and syncs them: what is in them is durable when this returns.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), Error> {
        let mut text = Vec::with_capacity(entries.len() * 512);
        for entry in entries {
            encode(&mut text, entry).map_err(|source| self.failed("encoding an entry of", source))?;
        }
        if let Err(source) = self.file.write_all(&text).and_then(|()| self.file.sync_data()) {
            // What is written of it must not come before a later entry.
            let _ = self.file.set_len(self.size).and_then(|()| self.file.seek(SeekFrom::Start(self.size)).map(drop));
            return Err(self.failed("writing", source));
        }
        self.size += text.len() as u64;
        self.last_seq = entries.last().map_or(self.last_seq, |entry| entry.seq);
        Ok(())
    }

    /// Is so much of the journal history that it should be written anew?
    pub fn is_due(&self, live_bytes: u64) -> bool {
        self.size > COMPACT_FROM && self.size > live_bytes.saturating_mul(COMPACT_RATIO)
    }

    /// Replaces the journal by one that has only what is live.
    pub fn compact(&mut self, live: impl Iterator<Item = Object>) -> Result<(), Error> {
        let seq = self.last_seq;
        let entries = live.map(|object| Entry { seq, write: Write::Put(object) });
        let (file, size) = write_new(&self.path, self.generation + 1, entries)?;
        self.file = file;
        self.size = size;
        self.generation += 1;
        Ok(())
    }

    fn failed(&self, verb: &str, source: io::Error) -> Error {
        Error::Io { doing: format!("{verb} the journal {}", self.path.display()), source }
    }
}

/// Lines with their line feed, and where the next one begins.
struct Lines {
    reader: BufReader<File>,
    offset: u64,
    number: u64,
}

impl Lines {
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let read = self.reader.read_until(b'\n', &mut line)?;
        self.offset += read as u64;
        self.number += 1;
        Ok((read > 0).then_some(line))
    }
}

fn encode(text: &mut Vec<u8>, entry: &Entry) -> io::Result<()> {
    serde_json::to_writer(&mut *text, entry)?;
    text.push(b'\n');
    Ok(())
}

/// Writes a whole journal beside the old one, syncs it, and puts it in its place.
fn write_new(path: &Path, generation: u64, entries: impl Iterator<Item = Entry>) -> Result<(File, u64), Error> {
    let write = || -> io::Result<(File, u64)> {
        let temporary = path.with_extension("new");
        let mut out = BufWriter::new(File::create(&temporary)?);
        let mut line = Vec::new();
        serde_json::to_writer(&mut line, &Header { journal: FORMAT, generation })?;
        line.push(b'\n');
        out.write_all(&line)?;
        for entry in entries {
            line.clear();
            encode(&mut line, &entry)?;
            out.write_all(&line)?;
        }
        let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        let size = file.seek(SeekFrom::End(0))?;
        Ok((file, size))
    };
    write().map_err(|source| Error::Io { doing: format!("writing the journal {}", path.display()), source })
}
