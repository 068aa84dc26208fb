//! `GET /daemon/routes`: every route, who answers it, and its certificate. Ours, not Epinio's.

use axum::{Json, extract::State};
use serde::Serialize;

use super::ApiState;
use crate::acme;

/// One line of the table.
#[derive(Debug, Default, Serialize)]
pub(super) struct Line {
    host: String,
    /// Empty for the whole host.
    path: String,
    /// Empty for the API.
    namespace: String,
    app: String,
    release: u64,
    /// How many take requests.
    instances: usize,
    /// Why none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// None where the daemon does not speak TLS.
    certificate: Option<Certificate>,
}

#[derive(Debug, Serialize)]
struct Certificate {
    /// The URL of an ACME directory, or `private` for the daemon's own authority.
    issuer: String,
    /// RFC 3339, as all times here.
    expires: String,
    renewal: String,
    /// `valid`, `waiting` for one of the public for the first time, `failing` to come by one, or `expired`.
    state: &'static str,
    /// What went wrong, and when it is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

const PRIVATE: &str = "private";

pub(super) async fn list(State(state): State<ApiState>) -> Json<Vec<Line>> {
    let mut lines: Vec<_> = state
        .apps
        .route_table()
        .all()
        .into_iter()
        .map(|(route, target)| Line {
            certificate: certificate(&state, route.host()),
            host: route.host().to_owned(),
            path: route.path().to_owned(),
            namespace: target.release.namespace.to_string(),
            app: target.release.app.to_string(),
            release: target.release.number,
            instances: target.backends.len(),
            reason: target.reason.clone(),
        })
        .collect();
    // Of the API itself, which is no application.
    if let Some(certificates) = &state.certificates {
        let host = certificates.api_host();
        lines.push(Line { certificate: certificate(&state, host), host: host.to_owned(), ..Line::default() });
    }
    lines.sort_by(|one, other| (&one.host, &one.path).cmp(&(&other.host, &other.path)));
    Json(lines)
}

fn certificate(state: &ApiState, host: &str) -> Option<Certificate> {
    let certificates = state.certificates.as_ref()?;
    let known = certificates.state(host)?;
    Some(Certificate {
        state: word(&known, certificates.is_sought(host)),
        issuer: known.directory.unwrap_or_else(|| PRIVATE.to_owned()),
        expires: known.expires.to_string(),
        renewal: known.renewal.to_string(),
        message: known.trouble.map(|(cause, next)| format!("{cause} (again at {next:.0})")),
    })
}

fn word(known: &acme::State, is_sought: bool) -> &'static str {
    if known.expires < jiff::Timestamp::now() {
        "expired"
    } else if known.trouble.is_some() {
        "failing"
    } else if known.directory.is_none() && is_sought {
        "waiting"
    } else {
        "valid"
    }
}
