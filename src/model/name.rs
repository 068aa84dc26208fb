//! Names of namespaces, applications, users, tokens, environment variables and stagings.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A name that does not follow the rules of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} '{name}' is not valid: {rule}")]
pub struct InvalidName {
    pub kind: &'static str,
    pub name: String,
    pub rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(name: &str) -> Result<Self, InvalidName> {
                match $check(name) {
                    Ok(()) => Ok(Self(name.to_owned())),
                    Err(rule) => Err(InvalidName { kind: $kind, name: shorten(name), rule }),
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;

            fn try_from(name: String) -> Result<Self, InvalidName> {
                name.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// An RFC 1123 label that neither Kubernetes nor epiniod keeps for itself.
    Namespace, "namespace", check_namespace
}
name! {
    /// An RFC 1123 label, at most 63 characters: it becomes a host name.
    AppName, "application name", check_label
}
name! {
    /// A user of the API.
    UserName, "user name", check_user
}
name! {
    /// A POSIX environment variable name.
    EnvName, "environment variable name", check_env
}
name! {
    /// An API token; the name says what it is for, and is no secret.
    TokenName, "token name", check_label
}
name! {
    /// The id of a staging: 16 lower-case hexadecimal digits, as Epinio has it.
    StageId, "stage id", check_stage_id
}

impl Namespace {
    /// Where applications go that name no namespace.
    pub const DEFAULT: &'static str = "workspace";
}

impl Default for Namespace {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

const LABEL_RULE: &str =
    "use 1 to 63 lower-case letters, digits and '-', starting with a letter and ending with a letter or digit";

fn check_label(name: &str) -> Result<(), &'static str> {
    let body = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-';
    let bytes = name.as_bytes();
    let well_formed = (1..=63).contains(&bytes.len())
        && bytes.iter().all(body)
        && bytes[0].is_ascii_lowercase()
        && bytes[bytes.len() - 1] != b'-';
    if well_formed { Ok(()) } else { Err(LABEL_RULE) }
}

fn check_namespace(name: &str) -> Result<(), &'static str> {
    check_label(name)?;
    if name.starts_with("kube-") || matches!(name, "default" | "epinio" | "epiniod") {
        return Err("Kubernetes and epiniod keep 'default', 'kube-*', 'epinio' and 'epiniod' for themselves");
    }
    Ok(())
}

fn check_user(name: &str) -> Result<(), &'static str> {
    let body = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.' | b'@' | b'+');
    if (1..=128).contains(&name.len()) && name.bytes().all(body) {
        Ok(())
    } else {
        Err("use 1 to 128 letters, digits and '-_.@+'")
    }
}

fn check_env(name: &str) -> Result<(), &'static str> {
    let first = |c: u8| c.is_ascii_alphabetic() || c == b'_';
    let well_formed = name.bytes().next().is_some_and(first)
        && name.len() <= 256
        && name.bytes().all(|c| first(c) || c.is_ascii_digit());
    if well_formed { Ok(()) } else { Err("use letters, digits and '_', not starting with a digit") }
}

fn check_stage_id(name: &str) -> Result<(), &'static str> {
    let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    if name.len() == 16 && name.bytes().all(hex) { Ok(()) } else { Err("use 16 lower-case hexadecimal digits") }
}

/// What a message may quote of a name that somebody else chose.
fn shorten(name: &str) -> String {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    let quoted: String = name.chars().map(clean).take(64).collect();
    if quoted.len() < name.len() { quoted + "…" } else { quoted }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_rfc_1123_and_start_with_a_letter() {
        for good in ["a", "my-app", "a1", &"x".repeat(63)] {
            assert!(good.parse::<AppName>().is_ok(), "{good}");
        }
        for bad in ["", "A", "1a", "-a", "a-", "a_b", "a.b", "a/b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<AppName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn reserved_namespaces_are_refused() {
        for bad in ["default", "kube-system", "epiniod", "epinio"] {
            assert!(bad.parse::<Namespace>().is_err(), "{bad}");
        }
        assert!("workspace".parse::<Namespace>().is_ok());
    }

    #[test]
    fn a_message_quotes_the_name_without_control_characters() {
        let error = "a\u{7}b".parse::<AppName>().unwrap_err();
        assert!(error.to_string().contains("'a?b'"), "{error}");
    }
}
