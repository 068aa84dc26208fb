//! The keys of a bucket: from the environment, or from a file as AWS' tools write it.

use std::{fmt, fs, path::PathBuf};

/// What requests are signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    pub access: String,
    pub secret: String,
    /// Of keys that end after a while.
    pub session: Option<String>,
}

/// Where keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// The environment, which does not change.
    Fixed(Keys),
    /// Read again when its keys are not taken any more: somebody may have replaced them.
    File(PathBuf),
}

impl Keys {
    /// Those of `AWS_ACCESS_KEY_ID` and its siblings; none where they are not set.
    pub fn from_environment() -> Option<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Some(Self {
            access: variable("AWS_ACCESS_KEY_ID")?,
            secret: variable("AWS_SECRET_ACCESS_KEY")?,
            session: variable("AWS_SESSION_TOKEN"),
        })
    }

    /// The profile `default` of a file of credentials.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let mut profile = "";
        let (mut access, mut secret, mut session) = (None, None, None);
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[') {
                profile = name.trim_end_matches(']').trim();
            }
            let Some((name, value)) = line.split_once('=').filter(|_| profile == PROFILE) else { continue };
            let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
            match name.trim().to_ascii_lowercase().as_str() {
                "aws_access_key_id" => access = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => session = value,
                _ => {}
            }
        }
        match (access, secret) {
            (Some(access), Some(secret)) => Ok(Self { access, secret, session }),
            _ => Err("it has no aws_access_key_id and aws_secret_access_key below [default]"),
        }
    }
}

impl KeySource {
    /// What is there now; an error says what is wrong with the file.
    pub fn read(&self) -> Result<Keys, String> {
        match self {
            Self::Fixed(keys) => Ok(keys.clone()),
            Self::File(path) => {
                let wrong = |why: String| format!("the keys in {} cannot be read: {why}", path.display());
                let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
                Keys::parse(&text).map_err(|why| wrong(why.to_owned()))
            }
        }
    }
}

impl fmt::Debug for Keys {
    /// Secrets are never in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("access", &self.access).finish_non_exhaustive()
    }
}

const PROFILE: &str = "default";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_profile_is_taken_and_comments_are_not() {
        let text = "# of the shop\n[other]\naws_access_key_id = no\naws_secret_access_key = no\n\n[default]\n\
                    ; aws_access_key_id = old\naws_access_key_id=AK\nAWS_SECRET_ACCESS_KEY = s/e+c=\nregion = x\n";
        let keys = Keys::parse(text).unwrap();
        assert_eq!((keys.access.as_str(), keys.secret.as_str(), keys.session), ("AK", "s/e+c=", None));
    }

    #[test]
    fn half_of_a_pair_is_refused_and_no_secret_is_shown() {
        assert!(Keys::parse("[default]\naws_access_key_id = AK\naws_secret_access_key =\n").is_err());
        assert!(Keys::parse("aws_access_key_id = AK\naws_secret_access_key = SK\n").is_err());
        let keys = Keys { access: "AK".to_owned(), secret: "SK".to_owned(), session: Some("ST".to_owned()) };
        let shown = format!("{:?}", KeySource::Fixed(keys));
        assert!(shown.contains("AK") && !shown.contains("SK") && !shown.contains("ST"), "{shown}");
    }
}
