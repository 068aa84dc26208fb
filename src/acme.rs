//! Certificates for what the edge serves.
//!
//! Where there is no public domain, an authority of our own signs them, for whoever trusts it: it is made at the first
//! start, may sign for the system domain and this machine and for nothing else, and signs a certificate when a host is
//! first asked for.

mod authority;
mod certificates;

pub use authority::Authority;
pub use certificates::{Certificates, HostCheck};

use crate::store;

/// What can go wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the authority for certificates cannot be read or kept")]
    Store(#[from] store::Error),
    #[error("{doing}")]
    Certificate { doing: String, source: rcgen::Error },
    #[error("{doing}: {cause}")]
    Key { doing: String, cause: String },
}
