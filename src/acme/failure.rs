//! Why there is no certificate: who has to do something about it, and when it is worth asking again.

use instant_acme::Problem;
use jiff::{SignedDuration, Timestamp};

use super::{Error, http::Heard};

/// Why an order came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// These names were not found to be ours, each with why; others are not to blame.
    Names(Vec<(String, String)>),
    /// The authority did not answer, or not as one.
    Away(String),
    /// Who is in front of the edge cannot be told that an authority is coming.
    Front(String),
    /// It wants no more of us for now.
    Limited { cause: String, until: Option<Timestamp> },
    /// It does not know the account, or does not want it.
    Account(String),
    /// It will not do this, however often it is asked.
    Refused(String),
    /// Here something is wrong.
    Here(Error),
}

/// Before the kinds of problems (RFC 8555, section 6.7).
const PREFIX: &str = "urn:ietf:params:acme:error:";
/// What is said of a problem that has no words.
const WORDLESS: &str = "it does not say why";
/// A clock that is off by more than this may be the reason for anything.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

impl Failure {
    pub fn of(error: &instant_acme::Error, heard: &Heard) -> Self {
        use instant_acme::Error as Acme;
        match error {
            Acme::Api(problem) => Self::of_problem(problem, heard),
            Acme::Timeout(_) => Self::Away("it has not come to an end with the order in time".to_owned()),
            Acme::Json(_) => Self::Away("its answer is not one of ACME; is this the URL of a directory?".to_owned()),
            Acme::Unsupported(what) => Self::Refused(format!("it does not have {what}")),
            Acme::Crypto | Acme::KeyRejected => Self::Here(Error::Key {
                doing: "using the key of the account".to_owned(),
                cause: crate::telemetry::chain(error),
            }),
            other => Self::Away(crate::telemetry::chain(other)),
        }
    }

    fn of_problem(problem: &Problem, heard: &Heard) -> Self {
        let kind = problem.r#type.as_deref().unwrap_or_default();
        let cause = problem.detail.clone().unwrap_or_else(|| WORDLESS.to_owned());
        let named: Vec<_> = problem
            .subproblems
            .iter()
            .filter_map(|part| {
                let instant_acme::Identifier::Dns(name) = part.identifier.as_ref()? else { return None };
                Some((name.clone(), part.detail.clone().unwrap_or_else(|| cause.clone())))
            })
            .collect();
        if !named.is_empty() {
            return Self::Names(named);
        }
        match kind.strip_prefix(PREFIX).unwrap_or(kind) {
            "rateLimited" => Self::Limited { cause, until: heard.retry_after() },
            "accountDoesNotExist" | "unauthorized" => Self::Account(cause),
            "externalAccountRequired" => Self::Refused(format!("{cause}; set eab_key_id and eab_key_file in [acme]")),
            "serverInternal" | "badNonce" => Self::Away(cause),
            _ if problem.status.is_some_and(|status| status >= 500) => Self::Away(cause),
            _ => Self::Refused(cause),
        }
    }

    /// What is said of a name or an authority, with what may be behind it.
    pub fn with_clock(self, heard: &Heard) -> Self {
        let ahead = heard.clock_ahead();
        if ahead.abs() < SKEW {
            return self.with_doubt();
        }
        let way = if ahead.is_negative() { "behind" } else { "ahead of" };
        let minutes = SignedDuration::from_mins((ahead.abs().as_secs() + 30) / 60);
        let clock = format!("the clock here is {minutes:#} {way} the authority's: set it right");
        let add = |cause: String| format!("{cause}; {clock}");
        match self {
            Self::Names(names) => Self::Names(names.into_iter().map(|(name, cause)| (name, add(cause))).collect()),
            Self::Away(cause) => Self::Away(add(cause)),
            Self::Limited { cause, until } => Self::Limited { cause: add(cause), until },
            Self::Account(cause) => Self::Account(add(cause)),
            Self::Refused(cause) => Self::Refused(add(cause)),
            Self::Front(cause) => Self::Front(cause),
            Self::Here(error) => Self::Here(error),
        }
    }

    /// An authority whose own certificate is not valid now was not listened to: how late it is there, it has not said.
    fn with_doubt(self) -> Self {
        let is_about_time =
            |cause: &str| ["not valid yet", "certificate expired"].iter().any(|said| cause.contains(said));
        match self {
            Self::Away(cause) if is_about_time(&cause) => {
                let now = Timestamp::now();
                Self::Away(format!("{cause}; is the clock here right? It says {now:.0}"))
            }
            other => other,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Here(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: serde_json::Value) -> Failure {
        let problem: Problem = serde_json::from_value(json).unwrap();
        Failure::of(&problem.into(), &Heard::default())
    }

    #[test]
    fn a_problem_says_who_has_to_do_something() {
        let kind =
            |kind: &str| of(serde_json::json!({"type": format!("{PREFIX}{kind}"), "detail": "why", "status": 403}));
        assert!(matches!(kind("rateLimited"), Failure::Limited { until: None, .. }));
        assert!(matches!(kind("unauthorized"), Failure::Account(_)));
        assert!(matches!(kind("badCSR"), Failure::Refused(cause) if cause == "why"));
        assert!(matches!(of(serde_json::json!({"status": 503})), Failure::Away(cause) if cause == WORDLESS));
        let rejected = of(serde_json::json!({
            "type": format!("{PREFIX}rejectedIdentifier"), "detail": "some", "status": 400,
            "subproblems": [{"identifier": {"type": "dns", "value": "a.test"}, "detail": "forbidden"}],
        }));
        assert!(matches!(rejected, Failure::Names(names) if names == [("a.test".to_owned(), "forbidden".to_owned())]));
    }
}
