//! The launcher: the small program in every application image that starts its processes.
//!
//! It is compiled apart, with plain rustc and the standard library only (`src/launcher/program`), so that
//! images neither grow by the size of this binary nor change with each release of it.

use std::io::Read as _;

use crate::model::Digest;

const COMPRESSED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/launcher.gz"));

/// The program, as it goes into images.
pub fn program() -> Vec<u8> {
    expand(COMPRESSED)
}

/// Changes with the program.
pub fn digest() -> Digest {
    Digest::of(COMPRESSED)
}

/// A program that this one carries.
pub fn expand(compressed: &[u8]) -> Vec<u8> {
    let mut program = Vec::new();
    flate2::read::GzDecoder::new(compressed).read_to_end(&mut program).expect("the build compressed it");
    program
}

/// Its own version. `pack` wants 0.5.0 or newer.
pub const VERSION: &str = "1.0.0";
