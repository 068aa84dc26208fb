//! xz with bounded memory. Its decoder takes as much as the archive asks for, up to 4 GiB; so the headers
//! of the blocks are read on their way to it, and what asks for too much does not get there.
//!
//! Layout: the .xz file format 1.2.1, sections 2 and 3; of LZMA2 its chunks, which tell where a block ends.

use std::io::{self, Read};

use lzma_rust2::XzReader;

/// A decoder of one xz stream.
pub(super) struct Xz<R: Read> {
    decoder: XzReader<Guard<R>>,
}

impl<R: Read> Xz<R> {
    pub fn new(input: R, most: u64) -> Self {
        let guard = Guard {
            input,
            most,
            want: Want::StreamHeader,
            need: 12,
            taken: Vec::new(),
            skip: 0,
            block: 0,
            check: 0,
            rest: MAX_INDEX_BYTES,
        };
        Self { decoder: XzReader::new(guard, false) }
    }
}

impl<R: Read> Read for Xz<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(buffer)?;
        if read > 0 || buffer.is_empty() {
            return Ok(read);
        }
        // A second stream would be lost silently. Zeros are padding.
        let rest = &mut self.decoder.inner_mut().input;
        let mut step = [0; 4096];
        loop {
            match rest.read(&mut step)? {
                0 => return Ok(0),
                read if step[..read].iter().all(|byte| *byte == 0) => {}
                _ => return Err(invalid("there is more after the end of the xz stream")),
            }
        }
    }
}

/// Reads along.
struct Guard<R> {
    input: R,
    /// The largest dictionary that is let through, in bytes.
    most: u64,
    want: Want,
    /// Bytes that are still to come until `taken` is what is wanted.
    need: usize,
    taken: Vec<u8>,
    /// Bytes that do not matter and come first.
    skip: u64,
    /// Of the data of this block, so far.
    block: u64,
    /// The size of the check after a block.
    check: u64,
    /// How much may come after the last block: its index, which the decoder keeps.
    rest: u64,
}

#[derive(Clone, Copy)]
enum Want {
    StreamHeader,
    BlockSize,
    BlockHeader,
    Control,
    ChunkSize,
    /// The index follows, or what only the decoder can refuse.
    Nothing,
}

impl<R: Read> Read for Guard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        if matches!(self.want, Want::Nothing) {
            self.rest =
                self.rest.checked_sub(read as u64).ok_or_else(|| too_much("its xz index is too large".to_owned()))?;
        }
        let mut bytes = &buffer[..read];
        while !bytes.is_empty() && !matches!(self.want, Want::Nothing) {
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
            self.skip -= skipped as u64;
            let wanted = (bytes.len() - skipped).min(self.need);
            self.taken.extend_from_slice(&bytes[skipped..skipped + wanted]);
            self.need -= wanted;
            bytes = &bytes[skipped + wanted..];
            if self.need == 0 && self.skip == 0 {
                self.take()?;
                self.taken.clear();
            }
        }
        Ok(read)
    }
}

impl<R> Guard<R> {
    /// Something is there as a whole.
    fn take(&mut self) -> io::Result<()> {
        let first = self.taken[0];
        (self.want, self.need) = match self.want {
            Want::StreamHeader => {
                self.check = CHECK_SIZES[usize::from(self.taken[7] & 0x0f)];
                (Want::BlockSize, 1)
            }
            Want::BlockSize if first == 0 => (Want::Nothing, 0),
            Want::BlockSize => (Want::BlockHeader, (usize::from(first) + 1) * 4 - 1),
            Want::BlockHeader => {
                let size = dictionary(&self.taken).ok_or_else(|| invalid("a block header cannot be read"))?;
                if size > self.most {
                    let most = self.most;
                    return Err(too_much(format!("its xz dictionary has {size} bytes, and at most {most} are taken")));
                }
                self.block = 0;
                (Want::Control, 1)
            }
            Want::Control => {
                self.block += 1;
                match first {
                    0 => {
                        self.skip = self.block.next_multiple_of(4) - self.block + self.check;
                        (Want::BlockSize, 1)
                    }
                    1 | 2 => (Want::ChunkSize, 2),
                    0x80..0xc0 => (Want::ChunkSize, 4),
                    0xc0.. => (Want::ChunkSize, 5),
                    3..0x80 => (Want::Nothing, 0),
                }
            }
            Want::ChunkSize => {
                let at = if self.taken.len() == 2 { 0 } else { 2 };
                self.skip = u64::from(u16::from_be_bytes([self.taken[at], self.taken[at + 1]])) + 1;
                self.block += self.taken.len() as u64 + self.skip;
                (Want::Control, 1)
            }
            Want::Nothing => (Want::Nothing, 0),
        };
        Ok(())
    }
}

/// By the kind of check in the stream header, in bytes.
const CHECK_SIZES: [u64; 16] = [0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64];
const LZMA2: u64 = 0x21;
/// Enough for a hundred thousand blocks.
const MAX_INDEX_BYTES: u64 = 1 << 20;

/// The size of the dictionary that a block header asks for; none when the header makes no sense.
fn dictionary(header: &[u8]) -> Option<u64> {
    let (flags, mut rest) = header.split_first()?;
    for size_is_there in [flags & 0x40 != 0, flags & 0x80 != 0] {
        if size_is_there {
            integer(&mut rest)?;
        }
    }
    let mut size = 0;
    for _ in 0..=flags & 3 {
        let (id, length) = (integer(&mut rest)?, usize::try_from(integer(&mut rest)?).ok()?);
        let (properties, after) = rest.split_at_checked(length)?;
        if id == LZMA2 {
            let bits = u32::from(*properties.first()?);
            size = match bits {
                0..40 => u64::from(2 | bits & 1) << (bits / 2 + 11),
                _ => u64::from(u32::MAX),
            };
        }
        rest = after;
    }
    Some(size)
}

/// Seven bits in each byte, the lowest first.
fn integer(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The kind tells it from an archive that is damaged.
fn too_much(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::OutOfMemory, why)
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, num::NonZeroU64};

    use super::*;

    fn encode(content: &[u8], dictionary: u32) -> Vec<u8> {
        let mut options = lzma_rust2::XzOptions::with_preset(1);
        options.lzma_options.dict_size = dictionary;
        options.block_size = NonZeroU64::new(300_000);
        let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// Text that can be compressed and text that cannot, so that there are all kinds of chunks.
    fn content() -> Vec<u8> {
        let mut state = 1u32;
        let mut noise = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..1_000_000).map(|at| if at / 100_000 % 2 == 0 { b'x' } else { noise() }).collect()
    }

    #[test]
    fn archives_of_several_blocks_are_read_and_large_dictionaries_are_not() {
        let (content, mut read) = (content(), Vec::new());
        let small = encode(&content, 1 << 16);
        Xz::new(&small[..], 1 << 16).read_to_end(&mut read).unwrap();
        assert!(read == content);
        let error = Xz::new(&small[..], (1 << 16) - 1).read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        // The dictionary of a later block counts as well.
        let mut padded = small.clone();
        padded.extend([0; 8]);
        assert_eq!(Xz::new(&padded[..], 1 << 16).read_to_end(&mut Vec::new()).unwrap(), content.len());
        let two = [small.clone(), small].concat();
        assert!(Xz::new(&two[..], 1 << 16).read_to_end(&mut Vec::new()).is_err(), "a second stream is not lost");
    }

    #[test]
    fn a_dictionary_is_found_in_any_header() {
        // Sizes of the block, then a filter for x86 before LZMA2.
        assert_eq!(dictionary(&[0x01, 0x04, 0, 0x21, 1, 22]), Some(8 << 20));
        assert_eq!(dictionary(&[0xc0, 0x81, 1, 5, 0x21, 1, 40]), Some(u64::from(u32::MAX)));
        assert_eq!(dictionary(&[0x00, 0x21, 9, 1]), None);
    }
}
