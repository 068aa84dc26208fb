//! What the product talks about: names, digests, routes, applications, stagings, releases.
//!
//! Everything here is plain data, parsed once at the edge of the process: inside, a bad name or a
//! malformed digest cannot exist. The room does no I/O, but for asking the kernel for random bytes, and knows no other room.

mod app;
mod authority;
mod builder;
pub mod channel;
mod digest;
mod domain;
mod image;
mod name;
mod random;
mod release;
mod route;
mod staging;
mod time;

pub use app::{App, AppChange, Origin, Restart};
pub use authority::{LETS_ENCRYPT, directory_of_authority, is_mail_address};
pub use builder::{Builder, BuilderName, ImagePlace, InvalidBuilder};
pub use digest::{Digest, InvalidDigest};
pub use domain::{is_public_domain, wildcard_of};
pub use image::{ImageName, InvalidImageName, REGISTRY_NAME, SYSTEM_REPOSITORY};
pub use name::{AppName, EnvName, InvalidName, Namespace, StageId, TokenName, UserName};
pub use random::{hex, random, random_hex};
pub use release::{Release, ReleaseId, ReleaseState};
pub use route::{InvalidRoute, Route};
pub use staging::{AfterStaging, Basis, BuilderImages, Phase, Staging, StagingState};
pub use time::Timestamp;

/// Environment of an application, as the user set it.
pub type Environment = std::collections::BTreeMap<EnvName, String>;
