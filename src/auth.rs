//! Users, passwords and tokens.

/// Checks who somebody is.
pub struct Auth {}
