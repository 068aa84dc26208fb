//! zip archives, read along their directory, one entry at a time: memory does not grow with the directory.
//!
//! Layout: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 to 4.5. Entries are stored or deflated; there are no encrypted ones,
//! and no archives of several parts.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt as _,
};

use flate2::{Crc, bufread::DeflateDecoder};

/// An open archive.
pub(super) struct Zip {
    file: File,
    directory: BufReader<Section>,
    entries: u64,
}

/// An entry, before its content.
pub(super) struct Entry {
    /// As it is in the archive: bytes, in UTF-8 wherever it was made lately.
    pub name: Vec<u8>,
    /// With the bits that say what kind it is; 0 where the archive was made without.
    pub mode: u32,
    method: u16,
    crc: u32,
    compressed: u64,
    size: u64,
    /// Where its local header is.
    at: u64,
}

const END: &[u8] = b"PK\x05\x06";
const END_BYTES: usize = 22;
const END64: &[u8] = b"PK\x06\x06";
const LOCATOR64: &[u8] = b"PK\x06\x07";
const CENTRAL: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";
/// Of a comment, which is at the very end.
const MAX_COMMENT: u64 = 0xffff;
/// Flags: encrypted; with strong encryption.
const ENCRYPTED: u16 = 1 | 1 << 6;

impl Zip {
    pub fn open(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let from = length.saturating_sub(MAX_COMMENT + END_BYTES as u64);
        let mut tail = Vec::new();
        Section::new(&file, from, length)?.read_to_end(&mut tail)?;
        let last = tail.windows(END_BYTES).rposition(|window| window.starts_with(END));
        let last = last.ok_or_else(|| invalid("it has no directory at its end"))?;
        let (end, end_at) = (&tail[last..], from + last as u64);
        let (mut entries, mut size, mut start) = (u64::from(u16_at(end, 10)), u32_at(end, 12), u32_at(end, 16));
        if entries == 0xffff || size == 0xffff_ffff || start == 0xffff_ffff {
            (entries, size, start) = end64(&file, end_at)?.unwrap_or((entries, size, start));
        }
        let until = start.checked_add(size).filter(|until| *until <= end_at);
        let until = until.ok_or_else(|| invalid("its directory is not where it says"))?;
        let directory = BufReader::with_capacity(64 << 10, Section::new(&file, start, until)?);
        Ok(Self { file, directory, entries })
    }

    /// How many entries there are, as the archive says.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The next entry of the directory.
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        if self.entries == 0 {
            return Ok(None);
        }
        self.entries -= 1;
        let mut fixed = [0; 46];
        self.directory.read_exact(&mut fixed)?;
        if !fixed.starts_with(CENTRAL) {
            return Err(invalid("its directory is damaged"));
        }
        let mut part = |length: u16| -> io::Result<Vec<u8>> {
            let mut bytes = vec![0; usize::from(length)];
            self.directory.read_exact(&mut bytes).map(|()| bytes)
        };
        let (name, extra) = (part(u16_at(&fixed, 28))?, part(u16_at(&fixed, 30))?);
        part(u16_at(&fixed, 32))?;
        if u16_at(&fixed, 8) & ENCRYPTED != 0 {
            return Err(invalid("it is encrypted"));
        }
        // Made on Unix, or on macOS: only these have modes.
        let mode = if matches!(fixed[5], 3 | 19) { u32::from(u16_at(&fixed, 40)) } else { 0 };
        let mut entry = Entry {
            name,
            mode,
            method: u16_at(&fixed, 10),
            crc: u32::from_le_bytes([fixed[16], fixed[17], fixed[18], fixed[19]]),
            compressed: u32_at(&fixed, 20),
            size: u32_at(&fixed, 24),
            at: u32_at(&fixed, 42),
        };
        entry.widen(&extra);
        Ok(Some(entry))
    }

    /// The content of an entry. It is checked when it has been read to its end.
    pub fn content(&self, entry: &Entry) -> io::Result<Box<dyn Read>> {
        let mut local = [0; 30];
        self.file.read_exact_at(&mut local, entry.at)?;
        if !local.starts_with(LOCAL) {
            return Err(invalid("an entry is not where the directory says"));
        }
        let start = entry.at + 30 + u64::from(u16_at(&local, 26)) + u64::from(u16_at(&local, 28));
        let until = start.checked_add(entry.compressed).ok_or_else(|| invalid("an entry has no end"))?;
        let section = Section::new(&self.file, start, until)?;
        let checked =
            |input| Box::new(Checked { input, crc: Crc::new(), entry: (entry.crc, entry.size) }) as Box<dyn Read>;
        match entry.method {
            0 => Ok(checked(Box::new(section) as Box<dyn Read>)),
            8 => Ok(checked(Box::new(DeflateDecoder::new(BufReader::with_capacity(64 << 10, section))))),
            other => Err(invalid(&format!("it is compressed by method {other}; only deflate is known here"))),
        }
    }
}

impl Entry {
    pub fn is_folder(&self) -> bool {
        self.name.ends_with(b"/")
    }

    /// §4.5.3: what does not fit is in an extra field.
    fn widen(&mut self, mut extra: &[u8]) {
        while let Some((head, rest)) = extra.split_first_chunk::<4>() {
            let Some((mut field, after)) = rest.split_at_checked(usize::from(u16_at(head, 2))) else { return };
            extra = after;
            if u16_at(head, 0) != 1 {
                continue;
            }
            for value in [&mut self.size, &mut self.compressed, &mut self.at] {
                if *value == 0xffff_ffff
                    && let Some((wide, rest)) = field.split_first_chunk::<8>()
                {
                    *value = u64::from_le_bytes(*wide);
                    field = rest;
                }
            }
        }
    }
}

/// §4.3.14: number of entries, size and start of the directory of a large archive; none when it is not one.
fn end64(file: &File, end_at: u64) -> io::Result<Option<(u64, u64, u64)>> {
    let Some(locator_at) = end_at.checked_sub(20) else { return Ok(None) };
    let mut locator = [0; 20];
    file.read_exact_at(&mut locator, locator_at)?;
    if !locator.starts_with(LOCATOR64) {
        return Ok(None);
    }
    let mut end = [0; 56];
    file.read_exact_at(&mut end, u64_at(&locator, 8))?;
    if !end.starts_with(END64) {
        return Err(invalid("its directory is not where it says"));
    }
    Ok(Some((u64_at(&end, 32), u64_at(&end, 40), u64_at(&end, 48))))
}

/// A part of the file. Several can be read at once.
struct Section {
    file: File,
    at: u64,
    until: u64,
}

impl Section {
    fn new(file: &File, at: u64, until: u64) -> io::Result<Self> {
        Ok(Self { file: file.try_clone()?, at, until })
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.until.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let most = left.min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(read)
    }
}

/// Content with what it has to come to.
struct Checked<R> {
    input: R,
    crc: Crc,
    entry: (u32, u64),
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.crc.update(&buffer[..read]);
        // The sum has the size modulo 2³².
        if read == 0 && !buffer.is_empty() && (self.crc.sum(), self.crc.amount()) != (self.entry.0, self.entry.1 as u32)
        {
            return Err(invalid("the content of an entry is damaged"));
        }
        Ok(read)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u16_at(bytes, at)) | u64::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u32_at(bytes, at) | u32_at(bytes, at + 4) << 32
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
