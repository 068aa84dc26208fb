//! The journal: every write as a line of JSON, synced before it is acknowledged.
//!
//! The first line is a header with the format's version and the generation of the file; each later
//! line is one write with its sequence number. A file is only appended to, or replaced as a whole by
//! its compaction.
//!
//! Writes that share a sync are a group, and say so. When power is lost, any part of the last group may be
//! missing: it was never acknowledged, and is cut off from the first line that cannot be read. Anything else that
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
    /// The first write of its group; none when it is that itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u64>,
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
    /// When it has this size it is looked whether much of it is history.
    due: u64,
    /// Why nothing can be written any more. Opening the journal again finds out what is in it.
    broken: Option<String>,
    pub generation: u64,
    pub last_seq: u64,
}

impl Journal {
    /// Opens or creates a journal. `replay` gets every entry in order.
    pub fn open(dir: &Path, mut replay: impl FnMut(u64, Entry) -> Result<(), Error>) -> Result<Self, Error> {
        let path = dir.join("journal");
        if !path.exists() {
            let written = write_beside(&path, 1, std::iter::empty()).and_then(|_| replace(&path));
            written
                .map_err(|source| Error::Io { doing: format!("creating the journal {}", path.display()), source })?;
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
                // Of the same group as the write that is missing.
                (Ok(entry), Some(_)) if entry.group.is_some_and(|first| first <= last_seq + 1) => {}
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
        let generation = header.generation;
        Ok(Self { file, size: good_until, due: COMPACT_FROM, broken: None, generation, last_seq, path })
    }

    /// Appends a group of entries and syncs it: what is in them is durable when this returns.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), Error> {
        if let Some(cause) = &self.broken {
            let cause = format!("{cause}; see to that and start epiniod again");
            return Err(Error::Backend { doing: format!("writing the journal {}", self.path.display()), cause });
        }
        let mut text = Vec::with_capacity(entries.len() * 512);
        for entry in entries {
            encode(&mut text, entry).map_err(|source| self.failed("encoding an entry of", source))?;
        }
        if let Err(source) = self.file.write_all(&text).and_then(|()| self.file.sync_data()) {
            // What is written of it must not come before a later entry.
            let cut = self.file.set_len(self.size).and_then(|()| self.file.seek(SeekFrom::Start(self.size)));
            if let Err(error) = cut.and_then(|_| self.file.sync_all()) {
                self.give_up(format!("a write that failed ({source}) could not be taken back ({error})"));
            }
            return Err(self.failed("writing", source));
        }
        self.size += text.len() as u64;
        self.last_seq = entries.last().map_or(self.last_seq, |entry| entry.seq);
        Ok(())
    }

    pub fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Refuses whatever is still to be written.
    pub fn give_up(&mut self, cause: String) {
        tracing::error!(cause, "the store takes no more writes");
        self.broken = Some(cause);
    }

    /// Is so much of the journal perhaps history that it is worth a look?
    pub fn is_due(&self) -> bool {
        self.size > self.due && self.broken.is_none()
    }

    /// Would it be much smaller when it were written anew? If not, the next look is when it may be.
    pub fn is_worth_it(&mut self, live_bytes: u64) -> bool {
        self.due = COMPACT_FROM.max(live_bytes.saturating_mul(COMPACT_RATIO));
        self.is_due()
    }

    /// Replaces the journal by one that has only what is live. Nothing changes when that cannot be read.
    pub fn compact(&mut self, live: impl Iterator<Item = Result<Object, Error>>) -> Result<(), Error> {
        let seq = self.last_seq;
        let mut unreadable = None;
        let entries = live.map_while(|object| match object {
            Ok(object) => Some(Entry { seq, group: None, write: Write::Put(object) }),
            Err(error) => {
                unreadable = Some(error);
                None
            }
        });
        let written = write_beside(&self.path, self.generation + 1, entries);
        if let Some(error) = unreadable {
            return Err(error);
        }
        let (new, size) = written.map_err(|source| self.failed("compacting", source))?;
        if let Err(source) = replace(&self.path) {
            // Whether the old one or the new one is there after a loss of power is not known.
            self.give_up(format!("its compaction could not be finished ({source})"));
            return Err(self.failed("compacting", source));
        }
        self.file = new;
        self.size = size;
        self.due = COMPACT_FROM.max(size.saturating_mul(COMPACT_RATIO));
        self.generation += 1;
        Ok(())
    }

    /// Waits with the next look until the journal has twice its size.
    pub fn put_off(&mut self) {
        self.due = self.size.saturating_mul(2);
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

fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Writes a whole journal beside the old one, and syncs it. Returns it open at its end, and its size.
fn write_beside(path: &Path, generation: u64, entries: impl Iterator<Item = Entry>) -> io::Result<(File, u64)> {
    let mut out = BufWriter::new(File::create(beside(path))?);
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
    let size = file.seek(SeekFrom::End(0))?;
    Ok((file, size))
}

/// Puts what was written beside in its place.
fn replace(path: &Path) -> io::Result<()> {
    fs::rename(beside(path), path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Kind;

    fn entry(seq: u64, group: Option<u64>) -> Entry {
        let key = Key { kind: Kind::App, namespace: "ns".to_owned(), name: seq.to_string() };
        Entry { seq, group, write: Write::Delete(key) }
    }

    fn open(dir: &Path) -> Result<(Journal, Vec<u64>), Error> {
        let mut seen = Vec::new();
        let journal = Journal::open(dir, |_, entry| {
            seen.push(entry.seq);
            Ok(())
        })?;
        Ok((journal, seen))
    }

    /// Overwrites a line, counted from 1, with zeros: a page that did not reach the disk.
    fn lose(path: &Path, number: usize) {
        let text = fs::read_to_string(path).unwrap();
        let lines = text.split_inclusive('\n').enumerate();
        let lines = lines.map(|(at, line)| if at + 1 == number { "\0".repeat(line.len()) } else { line.to_owned() });
        fs::write(path, lines.collect::<String>()).unwrap();
    }

    #[test]
    fn what_is_missing_of_the_last_group_is_cut_off_and_of_an_earlier_one_is_an_error() {
        let group = [entry(3, None), entry(4, Some(3)), entry(5, Some(3))];
        // Lines: the header, 1 and 2 alone, then the group.
        for (lost, left) in [(4, Some(2)), (5, Some(3)), (6, Some(4)), (3, None), (2, None)] {
            let dir = tempfile::tempdir().unwrap();
            let (mut journal, _) = open(dir.path()).unwrap();
            journal.append(&[entry(1, None)]).unwrap();
            journal.append(&[entry(2, None)]).unwrap();
            journal.append(&group).unwrap();
            drop(journal);
            lose(&dir.path().join("journal"), lost);
            match (open(dir.path()), left) {
                (Ok((mut journal, seen)), Some(left)) => {
                    assert_eq!(seen, (1..=left).collect::<Vec<_>>(), "line {lost}");
                    journal.append(&[entry(left + 1, None)]).unwrap();
                    assert_eq!(open(dir.path()).unwrap().1.len() as u64, left + 1);
                }
                (Err(error), None) => assert!(error.to_string().contains(&format!("line {lost}")), "{error}"),
                (result, _) => panic!("line {lost}: {:?}", result.map(|(_, seen)| seen)),
            }
        }
    }

    #[test]
    fn a_compaction_that_cannot_read_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path()).unwrap();
        journal.append(&[entry(1, None)]).unwrap();
        let unreadable = || Error::Backend { doing: "reading".to_owned(), cause: "damaged".to_owned() };
        assert!(journal.compact([Err(unreadable())].into_iter()).is_err());
        journal.append(&[entry(2, None)]).unwrap();
        assert_eq!(open(dir.path()).unwrap().1, [1, 2]);
    }

    #[test]
    fn a_journal_that_gave_up_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path()).unwrap();
        journal.give_up("the disk is gone".to_owned());
        let refused = journal.append(&[entry(1, None)]).unwrap_err().to_string();
        assert!(refused.contains("the disk is gone; see to that and start epiniod again"), "{refused}");
    }
}
