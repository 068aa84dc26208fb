//! The registry that is built in (OCI distribution-spec 1.1).

mod authenticator;

pub use authenticator::{Action, Authenticator, Verdict};
