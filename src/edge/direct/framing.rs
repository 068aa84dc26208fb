//! Where the body of a response ends (RFC 9112, section 6), while it is handed on as it is.

/// What is left of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked(Chunks),
    UntilEnd,
}

/// Where in a chunked body one is (RFC 9112, section 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunks {
    Size {
        value: u64,
        digits: u8,
    },
    Extension {
        value: u64,
    },
    SizeEnd {
        value: u64,
    },
    Data {
        left: u64,
    },
    DataEnd {
        has_cr: bool,
    },
    /// At the begin of a line after the last chunk, in one, or behind its CR.
    Trailer,
    TrailerLine,
    TrailerEnd {
        is_empty: bool,
    },
    Over,
}

/// Digits of the size of a chunk.
const DIGITS: u8 = 15;

/// A body that is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong;

impl Framing {
    pub fn length(bytes: u64) -> Self {
        Self::Length(bytes)
    }

    pub fn chunked() -> Self {
        Self::Chunked(Chunks::Size { value: 0, digits: 0 })
    }

    pub fn until_end() -> Self {
        Self::UntilEnd
    }

    /// Whether nothing more belongs to it.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunks::Over))
    }

    /// How many of these bytes belong to it; the rest does not.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Wrong> {
        match self {
            Self::UntilEnd => Ok(bytes.len()),
            Self::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                Ok(taken)
            }
            Self::Chunked(chunks) => {
                let mut at = 0;
                while at < bytes.len() && *chunks != Chunks::Over {
                    if let Chunks::Data { left } = chunks {
                        let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                        *left -= taken as u64;
                        at += taken;
                        if *left == 0 {
                            *chunks = Chunks::DataEnd { has_cr: false };
                        }
                        continue;
                    }
                    *chunks = chunks.next(bytes[at])?;
                    at += 1;
                }
                Ok(at)
            }
        }
    }
}

impl Chunks {
    fn next(self, byte: u8) -> Result<Self, Wrong> {
        match (self, byte) {
            (Self::Size { value, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if digits < DIGITS => {
                let digit = u64::from((byte as char).to_digit(16).unwrap_or_default());
                Ok(Self::Size { value: value * 16 + digit, digits: digits + 1 })
            }
            (Self::Size { value, digits: 1.. }, b'\r') => Ok(Self::SizeEnd { value }),
            (Self::Size { value, digits: 1.. }, b';' | b' ' | b'\t') => Ok(Self::Extension { value }),
            (Self::Extension { value }, b'\r') => Ok(Self::SizeEnd { value }),
            (Self::Extension { .. }, b'\n') => Err(Wrong),
            (Self::Extension { value }, _) => Ok(Self::Extension { value }),
            (Self::SizeEnd { value: 0 }, b'\n') => Ok(Self::Trailer),
            (Self::SizeEnd { value }, b'\n') => Ok(Self::Data { left: value }),
            (Self::DataEnd { has_cr: false }, b'\r') => Ok(Self::DataEnd { has_cr: true }),
            (Self::DataEnd { has_cr: true }, b'\n') => Ok(Self::Size { value: 0, digits: 0 }),
            (Self::Trailer, b'\r') => Ok(Self::TrailerEnd { is_empty: true }),
            (Self::TrailerLine, b'\r') => Ok(Self::TrailerEnd { is_empty: false }),
            (Self::Trailer | Self::TrailerLine, b'\n') => Err(Wrong),
            (Self::Trailer | Self::TrailerLine, _) => Ok(Self::TrailerLine),
            (Self::TrailerEnd { is_empty: true }, b'\n') => Ok(Self::Over),
            (Self::TrailerEnd { is_empty: false }, b'\n') => Ok(Self::Trailer),
            _ => Err(Wrong),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_body_ends_where_it_ends_however_it_comes() {
        let body = b"4;x=y\r\nWiki\r\n5 \r\npedia\r\nA\r\n\r\n\r\n012345\r\n0\r\nSum: 1\r\n\r\n";
        for step in 1..=body.len() {
            let mut framing = Framing::chunked();
            let mut taken = 0;
            for part in [&body[..], b"HTTP/1.1"].concat().chunks(step) {
                taken += framing.take(part).unwrap();
            }
            assert!(framing.is_over() && taken == body.len(), "by {step}: {taken}");
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        for wrong in
            ["x\r\n", "\r\n", "4\nWiki", "4\r\nWikiX", "4\r\nWiki\n", "0\r\nSum\n", "-1\r\n", "fffffffffffffffff\r\n"]
        {
            assert_eq!(Framing::chunked().take(wrong.as_bytes()), Err(Wrong), "{wrong:?}");
        }
    }

    #[test]
    fn a_length_is_counted_and_not_passed() {
        let mut framing = Framing::length(3);
        assert_eq!(framing.take(b"ab"), Ok(2));
        assert!(!framing.is_over());
        assert_eq!(framing.take(b"cd"), Ok(1));
        assert!(framing.is_over());
    }
}
