//! A layer in one pass: what is written is hashed (diffID), compressed, hashed again (digest) and
//! handed on.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::manifest::{Descriptor, MEDIA_TYPE_LAYER_GZIP, MEDIA_TYPE_LAYER_ZSTD};
use crate::model::Digest;

/// How layers are compressed. The same everywhere, or digests would depend on where an image was built.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Level 3.
    #[default]
    Zstd,
    /// Level 6, without name and time.
    Gzip,
}

impl Compression {
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Zstd => MEDIA_TYPE_LAYER_ZSTD,
            Self::Gzip => MEDIA_TYPE_LAYER_GZIP,
        }
    }
}

/// A finished layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The compressed blob.
    pub blob: Descriptor,
    /// The digest of the uncompressed tar.
    pub diff_id: Digest,
    /// The size of the uncompressed tar in bytes.
    pub tar_size: u64,
}

/// Takes the bytes of an uncompressed tar; gives the compressed layer to `sink` as it comes.
pub struct LayerWriter<W: Write> {
    diff: Sha256,
    tar_size: u64,
    compression: Compression,
    encoder: Encoder<Hashed<W>>,
}

impl<W: Write> LayerWriter<W> {
    pub fn new(compression: Compression, sink: W) -> io::Result<Self> {
        let sink = Hashed { sum: Sha256::new(), size: 0, sink };
        let encoder = match compression {
            Compression::Zstd => Encoder::Zstd(zstd::Encoder::new(sink, 3)?),
            Compression::Gzip => Encoder::Gzip(flate2::write::GzEncoder::new(sink, flate2::Compression::new(6))),
        };
        Ok(Self { diff: Sha256::new(), tar_size: 0, compression, encoder })
    }

    /// Ends the compressed stream. The sink is returned so that its owner can close it.
    pub fn finish(self) -> io::Result<(Layer, W)> {
        let hashed = match self.encoder {
            Encoder::Zstd(encoder) => encoder.finish()?,
            Encoder::Gzip(encoder) => encoder.finish()?,
        };
        let digest = Digest::from_sha256(hashed.sum.finalize().into());
        let layer = Layer {
            blob: Descriptor::new(self.compression.media_type(), digest, hashed.size),
            diff_id: Digest::from_sha256(self.diff.finalize().into()),
            tar_size: self.tar_size,
        };
        Ok((layer, hashed.sink))
    }
}

impl<W: Write> Write for LayerWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.encoder {
            Encoder::Zstd(encoder) => encoder.write(bytes)?,
            Encoder::Gzip(encoder) => encoder.write(bytes)?,
        };
        self.diff.update(&bytes[..written]);
        self.tar_size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Encoder<W: Write> {
    Zstd(zstd::Encoder<'static, W>),
    Gzip(flate2::write::GzEncoder<W>),
}

struct Hashed<W> {
    sum: Sha256,
    size: u64,
    sink: W,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sink.write(bytes)?;
        self.sum.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_what_went_in_and_came_out() {
        for compression in [Compression::Zstd, Compression::Gzip] {
            let mut writer = LayerWriter::new(compression, Vec::new()).unwrap();
            writer.write_all(&[7; 100_000]).unwrap();
            let (layer, bytes) = writer.finish().unwrap();
            assert_eq!(layer.diff_id, Digest::of([7; 100_000]));
            assert_eq!(layer.blob.digest, Digest::of(&bytes));
            assert_eq!((layer.blob.size, layer.tar_size), (bytes.len() as u64, 100_000));
        }
    }
}
