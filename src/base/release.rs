//! What an InRelease file says: which suite it is, from when, until when, and the hash of the package index.

use jiff::{civil::DateTime, tz::TimeZone};

use super::{Error, Keyring};
use crate::model::{Digest, Timestamp};

/// A suite that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Suite {
    Stable,
    Updates,
    Security,
}

/// A package archive. The security archive has servers of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Archive {
    Debian,
    Security,
}

impl Suite {
    pub(super) fn archive(self) -> Archive {
        match self {
            Self::Stable | Self::Updates => Archive::Debian,
            Self::Security => Archive::Security,
        }
    }

    /// The codename and folder of the suite, given that of the release.
    pub(super) fn codename(self, release: &str) -> String {
        match self {
            Self::Stable => release.to_owned(),
            Self::Updates => format!("{release}-updates"),
            Self::Security => format!("{release}-security"),
        }
    }
}

/// A verified release of a suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Release {
    pub date: Timestamp,
    pub packages: IndexFile,
}

/// The compressed package index of one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IndexFile {
    pub digest: Digest,
    pub size: u64,
}

impl Release {
    /// Verifies and reads an InRelease file that came from `url`.
    pub(super) fn verify(file: &str, source: &Expected<'_>) -> Result<Self, Error> {
        let url = source.url.to_owned();
        let text = source.keyring.verify(file).map_err(|cause| Error::Signature { url: url.clone(), source: cause })?;
        let malformed = |what: &str| Error::Malformed { what: format!("'{what}' of {url}") };
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let date = |name: &str| field(name).map(|value| parse_date(value).ok_or_else(|| malformed(name))).transpose();
        if field("Codename") != Some(source.codename) {
            let found = field("Codename").unwrap_or("nothing").to_owned();
            return Err(Error::WrongSuite { url, expected: source.codename.to_owned(), found });
        }
        if let Some(until) = date("Valid-Until")?
            && until < source.now
        {
            return Err(Error::Expired { url, until });
        }
        let path = format!("main/binary-{}/Packages.xz", source.architecture);
        let packages =
            sha256_section(&text).find_map(|line| index_file(line, &path)).ok_or_else(|| malformed(&path))?;
        let date = date("Date")?.ok_or_else(|| malformed("Date"))?;
        match source.not_before {
            Some(seen) if date < seen => Err(Error::Rollback { url, date, seen }),
            _ => Ok(Self { date, packages }),
        }
    }
}

/// What a release has to be.
pub(super) struct Expected<'a> {
    pub url: &'a str,
    pub codename: &'a str,
    pub architecture: &'a str,
    pub keyring: &'a Keyring,
    pub now: Timestamp,
    /// The newest date seen of this suite.
    pub not_before: Option<Timestamp>,
}

/// `Sat, 21 Nov 2026 09:15:44 UTC`.
fn parse_date(text: &str) -> Option<Timestamp> {
    let date = DateTime::strptime("%a, %d %b %Y %H:%M:%S UTC", text).ok()?;
    Some(Timestamp::from_second(date.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second()))
}

fn sha256_section(text: &str) -> impl Iterator<Item = &str> {
    text.lines().skip_while(|line| *line != "SHA256:").skip(1).take_while(|line| line.starts_with(' '))
}

fn index_file(line: &str, path: &str) -> Option<IndexFile> {
    let mut words = line.split_ascii_whitespace();
    let (digest, size) = (Digest::from_hex(words.next()?).ok()?, words.next()?.parse().ok()?);
    (words.next() == Some(path)).then_some(IndexFile { digest, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECURITY: &str = include_str!("../../tests/fixtures/debian/trixie-security.InRelease");

    fn verify(file: &str, codename: &str, now: i64) -> Result<Release, Error> {
        let expected = Expected {
            url: "http://x/",
            codename,
            architecture: "amd64",
            keyring: &Keyring::debian(),
            now: Timestamp::from_second(now),
            not_before: Some(Timestamp::from_second(now)).filter(|_| now == 1_795_500_000),
        };
        Release::verify(file, &expected)
    }

    #[test]
    fn a_release_names_the_index_of_the_architecture() {
        let release = verify(SECURITY, "trixie-security", 1_795_000_000).unwrap();
        assert_eq!(release.date.to_string(), "2026-11-22T19:58:57Z");
        assert_eq!(release.packages.size, 309_200);
        assert!(release.packages.digest.hex().starts_with("9b641b3080d3f789"));
    }

    #[test]
    fn an_expired_release_an_older_one_and_another_suite_are_refused() {
        assert!(matches!(verify(SECURITY, "trixie-security", 1_795_500_000), Err(Error::Rollback { .. })));
        assert!(matches!(verify(SECURITY, "trixie-security", 1_800_000_000), Err(Error::Expired { .. })));
        assert!(matches!(verify(SECURITY, "trixie", 1_795_000_000), Err(Error::WrongSuite { .. })));
    }
}
