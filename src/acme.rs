//! Certificates for what the edge serves.
//!
//! For hosts of the public they come from authorities that speak ACME (RFC 8555). [`Keeper`] orders one as soon as a host
//! is served, and the next one in time; the edge answers what an authority looks at. Everything is kept in the store. Where
//! an ingress controller is in front of the edge, it leads authorities here and gets the certificates.
//!
//! For everything else, and until a public one is there, an authority of our own signs them, for whoever trusts it: it is
//! made at the first start, may sign for the system domain and this machine and for nothing else, and signs a certificate
//! when a host is first asked for.

mod account;
mod authority;
mod certificates;
mod challenges;
pub mod dns;
mod failure;
mod here;
mod http;
mod keeper;
mod kept;
mod order;
mod plan;
mod settings;

pub use authority::Authority;
pub use certificates::{Certificates, HostCheck, Issuer, State};
pub use challenges::{ALPN, Challenges};
pub use keeper::{Hosts, Keeper};
pub use settings::{Binding, Directory, Settings};

use crate::store;

/// What can go wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nothing can be read or kept of certificates")]
    Store(#[from] store::Error),
    #[error("{doing}")]
    Certificate { doing: String, source: rcgen::Error },
    #[error("{doing}: {cause}")]
    Key { doing: String, cause: String },
}
