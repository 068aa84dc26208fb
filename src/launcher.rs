//! The launcher: the small program in every application image that starts its processes.
//!
//! It is compiled apart, with plain rustc and the standard library only (`src/launcher/program`), so that
//! images neither grow by the size of this binary nor change with each release of it.

/// The program, as it goes into images.
pub const BINARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/launcher"));

/// Its own version. `pack` wants 0.5.0 or newer.
pub const VERSION: &str = "1.0.0";
