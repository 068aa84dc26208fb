//! The launcher: the small program in every application image that starts its processes.
//!
//! It is compiled apart, with plain rustc and the standard library only (`src/launcher/program`), so that
//! images neither grow by the size of this binary nor change with each release of it.

use crate::{model::Digest, oci};

const COMPRESSED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/launcher.gz"));

/// The program, as it goes into images.
pub fn program() -> Vec<u8> {
    oci::expand(COMPRESSED)
}

/// Changes with the program.
pub fn digest() -> Digest {
    Digest::of(COMPRESSED)
}

/// Its own version. `pack` wants 0.5.0 or newer.
pub const VERSION: &str = "1.0.0";
