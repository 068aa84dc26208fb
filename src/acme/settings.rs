//! How public certificates are come by.

use std::{
    hash::{DefaultHasher, Hash, Hasher as _},
    path::PathBuf,
    time::Duration,
};

use super::dns;

/// What is asked of whom.
#[derive(Debug, Clone, Hash)]
pub struct Settings {
    /// In the order in which they are asked: the next one only where one before cannot answer, or will not for now.
    pub directories: Vec<Directory>,
    /// Where an authority writes to about certificates that expire.
    pub email: Option<String>,
    /// The kind of certificate, of those that the authority has (`shortlived`); none is its own choice.
    pub profile: Option<String>,
    /// How the domain is shown to be ours, for a certificate of all names below it; none asks for each name.
    pub dns: Option<dns::Settings>,
    /// How long an authority may take for one order.
    pub patience: Duration,
}

/// An authority that speaks ACME (RFC 8555).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Directory {
    pub url: String,
    /// PEM: who signed the certificate of the authority's own server; none is whom this machine trusts.
    pub ca_file: Option<PathBuf>,
    pub binding: Option<Binding>,
}

/// An account elsewhere that the one here belongs to (external account binding, RFC 8555, section 7.3.4).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Binding {
    pub key_id: String,
    /// Of HMAC, as it is after base64url.
    pub key: Vec<u8>,
}

impl Settings {
    /// Differs where settings do: what failed under others is worth another try.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

impl std::fmt::Debug for Binding {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Binding").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}
