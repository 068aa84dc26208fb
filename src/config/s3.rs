//! Where blobs are kept when not in the data directory. Flags, variables and the file say the same things.

use std::{ffi::OsString, path::PathBuf};

use super::{absolute, check_ca, check_mirror};
use crate::blob::{KeySource, Keys, S3Settings};

/// What is said about S3; `None` is left to the next who may say it.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct S3Flags {
    /// URL of an S3 API [default: that of AWS in the region]
    #[arg(long, env = "EPINIOD_S3_ENDPOINT", value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// Bucket for sources, images and caches, of this daemon alone [default: the data directory]
    #[arg(long, env = "EPINIOD_S3_BUCKET", value_name = "BUCKET")]
    pub s3_bucket: Option<String>,
    /// Region of the bucket [default: us-east-1]
    #[arg(long, env = "EPINIOD_S3_REGION", value_name = "REGION")]
    pub s3_region: Option<String>,
    /// Certificate authorities of the endpoint, PEM [default: those of this machine]
    #[arg(long, env = "EPINIOD_S3_CA_FILE", value_name = "FILE")]
    pub s3_ca_file: Option<PathBuf>,
    /// Keys, as AWS' tools write them (profile default) [default: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY]
    #[arg(long, env = "EPINIOD_S3_CREDENTIALS_FILE", value_name = "FILE")]
    pub s3_credentials_file: Option<PathBuf>,
}

const REGION: &str = "us-east-1";

impl S3Flags {
    /// What these do not say is taken from others.
    pub(super) fn or(self, others: Self) -> Self {
        Self {
            s3_endpoint: self.s3_endpoint.or(others.s3_endpoint),
            s3_bucket: self.s3_bucket.or(others.s3_bucket),
            s3_region: self.s3_region.or(others.s3_region),
            s3_ca_file: self.s3_ca_file.or(others.s3_ca_file),
            s3_credentials_file: self.s3_credentials_file.or(others.s3_credentials_file),
        }
    }

    /// None where no bucket is wanted.
    pub(super) fn settings(self, problems: &mut Vec<String>) -> Option<S3Settings> {
        let region = self.s3_region.unwrap_or_else(|| REGION.to_owned());
        let endpoint = self.s3_endpoint.clone().unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        problems.extend(check_endpoint(self.s3_endpoint.as_deref()));
        problems.extend(check_ca("s3_ca_file", self.s3_ca_file.as_deref()));
        let Some(bucket) = self.s3_bucket else {
            let lonely = self.s3_endpoint.is_some();
            problems.extend(lonely.then(|| "s3_bucket: an endpoint is named, and no bucket; name one".to_owned()));
            return None;
        };
        problems.extend(check_bucket(&bucket));
        problems.extend(check_region(&region));
        let keys = match self.s3_credentials_file {
            Some(path) => Some(KeySource::File(path)),
            None => Keys::from_environment().map(KeySource::Fixed),
        };
        let Some(keys) = keys else {
            problems.push(
                "s3_bucket: there are no keys for it; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file \
                 with s3_credentials_file"
                    .to_owned(),
            );
            return None;
        };
        problems.extend(keys.read().err().map(|why| format!("s3_credentials_file: {why}")));
        Some(S3Settings { endpoint, bucket, region, ca_file: self.s3_ca_file, keys })
    }

    pub(super) fn to_args(&self) -> [(&'static str, Option<OsString>); 5] {
        [
            ("--s3-endpoint", self.s3_endpoint.clone().map(Into::into)),
            ("--s3-bucket", self.s3_bucket.clone().map(Into::into)),
            ("--s3-region", self.s3_region.clone().map(Into::into)),
            ("--s3-ca-file", self.s3_ca_file.as_deref().map(absolute)),
            ("--s3-credentials-file", self.s3_credentials_file.as_deref().map(absolute)),
        ]
    }
}

/// Scheme, host and port: everything else would be signed, and not be what S3 sees.
fn check_endpoint(url: Option<&str>) -> Option<String> {
    let url = url?;
    let wrong = check_mirror("s3_endpoint", Some(url));
    let uri = url.parse::<http::Uri>().ok();
    let extra = uri.is_some_and(|uri| {
        uri.path().len() > 1 || uri.query().is_some() || uri.authority().is_some_and(|host| host.as_str().contains('@'))
    });
    wrong.or_else(|| {
        extra.then(|| format!("s3_endpoint: '{url}' has more than a host and a port; the bucket is named by s3_bucket"))
    })
}

/// The rules of S3 for names of buckets.
fn check_bucket(name: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_name = (3..=63).contains(&name.len())
        && name.chars().all(|c| plain(c) || c == '-' || c == '.')
        && name.starts_with(plain)
        && name.ends_with(plain)
        && !name.contains("..");
    let rule = "is not the name of a bucket: 3 to 63 lower-case letters, digits, '-' and '.'";
    (!is_name).then(|| format!("s3_bucket: '{name}' {rule}"))
}

fn check_region(name: &str) -> Option<String> {
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    (!is_name).then(|| format!("s3_region: '{name}' is not the name of a region such as {REGION}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(flags: S3Flags) -> (Option<S3Settings>, Vec<String>) {
        let mut problems = Vec::new();
        (flags.settings(&mut problems), problems)
    }

    #[test]
    fn keys_come_from_the_file_and_everything_else_has_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("credentials");
        std::fs::write(&keys, "[default]\naws_access_key_id = a\naws_secret_access_key = b\n").unwrap();
        let given =
            S3Flags { s3_bucket: Some("shop".to_owned()), s3_credentials_file: Some(keys), ..S3Flags::default() };
        let (found, problems) = settings(given);
        assert_eq!(problems, Vec::<String>::new());
        let found = found.unwrap();
        assert_eq!(
            (found.endpoint.as_str(), found.region.as_str()),
            ("https://s3.us-east-1.amazonaws.com", "us-east-1")
        );
        assert_eq!(found.keys.read().unwrap().secret, "b");
        assert!(settings(S3Flags::default()).0.is_none());
    }

    #[test]
    fn all_that_is_wrong_with_s3_is_named() {
        let text = |text: &str| Some(text.to_owned());
        let flags = S3Flags {
            s3_endpoint: text("https://s3.test/bucket"),
            s3_bucket: text("A bucket"),
            s3_region: text("a b"),
            s3_ca_file: Some("/nonexistent.pem".into()),
            s3_credentials_file: Some("/nonexistent".into()),
        };
        let (_, problems) = settings(flags);
        let names: Vec<_> = problems.iter().map(|problem| problem.split(':').next().unwrap_or_default()).collect();
        assert_eq!(
            names,
            ["s3_endpoint", "s3_ca_file", "s3_bucket", "s3_region", "s3_credentials_file"],
            "{problems:#?}"
        );
        let (_, lonely) = settings(S3Flags { s3_endpoint: text("http://[::1]:9000"), ..S3Flags::default() });
        assert!(lonely[0].starts_with("s3_bucket: an endpoint is named"), "{lonely:?}");
    }
}
