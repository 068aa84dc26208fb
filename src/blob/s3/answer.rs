//! What S3 answers when it does not do what it was asked for, in words that say what to change.

use std::{fmt, time::Duration};

use reqwest::{Response, StatusCode};
use serde::Deserialize;

use super::{
    super::Error,
    endpoint::{S3Settings, SILENCE},
};
use crate::telemetry;

/// Why one attempt failed.
pub(super) enum Failure {
    Unsendable(String),
    Transport(reqwest::Error),
    Silent(Duration),
    Said(Said),
    Unreadable(String),
}

/// An error of S3.
pub(super) struct Said {
    status: StatusCode,
    /// Empty where nothing came that S3 would say.
    code: String,
    message: String,
    /// Where the bucket is, from those who know.
    region: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    code: String,
    #[serde(default)]
    message: String,
    region: Option<String>,
}

/// Is worth another attempt. Some say it with a status of success.
const TEMPORARY: [&str; 6] =
    ["InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "OperationAborted", "TooManyRequests"];
/// A body that arrived as something else than was sent.
const DAMAGED: [&str; 3] = ["XAmzContentSHA256Mismatch", "BadDigest", "IncompleteBody"];
const KEYS: [&str; 6] = [
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    // Of versitygw.
    "XAdminUserNotFound",
];
/// How much of a foreign answer is shown, in characters.
const SHOWN: usize = 200;

impl Said {
    /// What the body has of it. A broken connection leaves the status, which is something.
    pub async fn read(mut response: Response) -> Self {
        let status = response.status();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let region = header("x-amz-bucket-region");
        let mut bytes = Vec::new();
        while let Ok(Ok(Some(chunk))) = tokio::time::timeout(SILENCE, response.chunk()).await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > 64 * 1024 {
                break;
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        let said = Self::parse(status, &text).unwrap_or_else(|| Self {
            status,
            code: String::new(),
            message: text.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect(),
            region: None,
        });
        Self { region: said.region.or(region), ..said }
    }

    /// None when the text is no error.
    pub fn parse(status: StatusCode, text: &str) -> Option<Self> {
        let start = text.trim_start();
        let start = if start.starts_with("<?") { start.split_once("?>")?.1.trim_start() } else { start };
        if !start.starts_with("<Error") {
            return None;
        }
        let found: Document = quick_xml::de::from_str(start).ok()?;
        Some(Self { status, code: found.code, message: found.message, region: found.region })
    }

    fn is(&self, codes: &[&str]) -> bool {
        codes.contains(&self.code.as_str())
    }
}

impl Failure {
    /// An answer to HEAD has no body that would say what is missing.
    pub fn is_missing(&self, of_head: bool) -> bool {
        let Self::Said(said) = self else { return false };
        said.status == StatusCode::NOT_FOUND && (said.code == "NoSuchKey" || (of_head && said.code.is_empty()))
    }

    pub fn is_about_keys(&self) -> bool {
        matches!(self, Self::Said(said) if said.is(&KEYS))
    }

    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unsendable(_) | Self::Unreadable(_) => false,
            Self::Transport(error) => !is_about_certificates(error),
            Self::Silent(_) => true,
            Self::Said(said) => {
                let status = said.status;
                let later = status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED;
                later
                    || status == StatusCode::TOO_MANY_REQUESTS
                    || status == StatusCode::REQUEST_TIMEOUT
                    || said.is(&TEMPORARY)
                    || said.is(&DAMAGED)
            }
        }
    }

    pub fn into_error(self, doing: String, place: &S3Settings) -> Error {
        let endpoint = place.endpoint.clone();
        if self.is_temporary() {
            return Error::Unavailable { doing, endpoint, cause: self.to_string() };
        }
        let why = match &self {
            Self::Said(said) => words(said, place),
            Self::Transport(error) => format!(
                "the certificate of {endpoint} is not trusted; name the authority that signed it with --s3-ca-file ({})",
                telemetry::chain(error)
            ),
            other => format!("{other}; is {endpoint} (--s3-endpoint) an S3 API?"),
        };
        Error::Refused { doing, why }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsendable(why) => write!(f, "the request cannot be made: {why}"),
            Self::Transport(error) => f.write_str(&telemetry::chain(error)),
            Self::Silent(patience) => write!(f, "nothing came for {} s", patience.as_secs()),
            Self::Said(said) if said.code.is_empty() => write!(f, "it answered {} {}", said.status, said.message),
            Self::Said(said) => write!(f, "it answered {} {} {}", said.status, said.code, said.message),
            Self::Unreadable(why) => write!(f, "its answer cannot be read: {why}"),
        }
    }
}

fn is_about_certificates(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref::<rustls::Error>() {
            return true;
        }
        // What an I/O error carries is not its source, but itself.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = inner.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    false
}

fn words(said: &Said, place: &S3Settings) -> String {
    let S3Settings { endpoint, bucket, region, .. } = place;
    let keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or --s3-credentials-file";
    match said.code.as_str() {
        "NoSuchBucket" => {
            format!("there is no bucket '{bucket}' at {endpoint}; make it, or name another one with --s3-bucket")
        }
        "RequestTimeTooSkewed" => {
            format!("the clock of this machine and that of {endpoint} differ by more than 15 minutes; set it")
        }
        "InvalidAccessKeyId" | "XAdminUserNotFound" => {
            format!("{endpoint} does not know the access key; correct it ({keys})")
        }
        "SignatureDoesNotMatch" => format!("the secret key does not belong to the access key; correct it ({keys})"),
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
            format!("the session of the keys has ended or is not valid; give new ones ({keys})")
        }
        "AccessDenied" | "AllAccessDisabled" => format!(
            "these keys may not do this in bucket '{bucket}' at {endpoint}; they need to read, write, delete and list ({keys})"
        ),
        "AuthorizationHeaderMalformed"
        | "PermanentRedirect"
        | "TemporaryRedirect"
        | "Redirect"
        | "IllegalLocationConstraintException" => {
            let other = said.region.as_deref().unwrap_or("another one");
            format!("the bucket '{bucket}' is in region {other}, and not in {region}; name it with --s3-region")
        }
        "" if said.region.as_ref().is_some_and(|there| there != region) => {
            let other = said.region.as_deref().unwrap_or_default();
            format!("the bucket '{bucket}' is in region {other}, and not in {region}; name it with --s3-region")
        }
        "" if said.status == StatusCode::FORBIDDEN => {
            format!("{endpoint} refuses these keys for bucket '{bucket}'; correct them ({keys})")
        }
        "" => format!("{endpoint} (--s3-endpoint) does not answer as S3 does: {} {}", said.status, said.message.trim()),
        code => format!("{endpoint} refused it: {} {code}: {}", said.status, said.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::{KeySource, Keys};

    fn place() -> S3Settings {
        S3Settings {
            endpoint: "http://s3.test".to_owned(),
            bucket: "shop".to_owned(),
            region: "us-east-1".to_owned(),
            ca_file: None,
            keys: KeySource::Fixed(Keys { access: String::new(), secret: String::new(), session: None }),
        }
    }

    #[test]
    fn errors_say_which_flag_to_change() {
        let table = [
            (404, "NoSuchBucket", "--s3-bucket"),
            (403, "RequestTimeTooSkewed", "clock"),
            (403, "InvalidAccessKeyId", "--s3-credentials-file"),
            (403, "SignatureDoesNotMatch", "secret key"),
            (403, "AccessDenied", "may not do this in bucket 'shop'"),
            (400, "AuthorizationHeaderMalformed", "region eu-1, and not in us-east-1"),
        ];
        for (status, code, part) in table {
            let text = format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Region>eu-1</Region></Error>");
            let said = Said::parse(StatusCode::from_u16(status).unwrap(), &text).unwrap();
            let failure = Failure::Said(said);
            assert!(!failure.is_temporary(), "{code}");
            let error = failure.into_error("doing".to_owned(), &place()).to_string();
            assert!(error.contains(part), "{code}: {error}");
        }
    }

    #[test]
    fn what_may_pass_is_told_from_what_does_not() {
        let failure = |status, code: &str| {
            let text = format!("<Error><Code>{code}</Code><Message>m</Message></Error>");
            Failure::Said(Said::parse(StatusCode::from_u16(status).unwrap(), &text).unwrap())
        };
        for (status, code) in [(500, "InternalError"), (503, "SlowDown"), (200, "InternalError"), (400, "BadDigest")] {
            assert!(failure(status, code).is_temporary(), "{code}");
        }
        assert!(!failure(501, "NotImplemented").is_temporary());
        assert!(failure(404, "NoSuchKey").is_missing(false) && !failure(404, "NoSuchBucket").is_missing(false));
        assert!(Said::parse(StatusCode::OK, "<CopyObjectResult/>").is_none());
    }
}
