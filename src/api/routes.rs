//! `GET /daemon/routes`: every route, who answers it, and its certificate. Ours, not Epinio's.

use axum::{Json, extract::State};
use serde::Serialize;

use super::{ApiState, Securing};
use crate::acme::{self, Issuer};

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
    /// The URL of an ACME directory, `private` for the daemon's own authority, or `cluster-issuer/NAME` for cert-manager;
    /// empty as long as an ingress controller has none but its own.
    issuer: String,
    /// RFC 3339, as all times here; empty where the daemon does not know.
    expires: String,
    renewal: String,
    /// `valid`, `waiting` for one of the public for the first time, `failing` to come by one, `expired`, or `delegated` to
    /// cert-manager; `none` where no authority of the public could sign for the host.
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
    if let Some(host) = state.securing.as_ref().map(Securing::api_host) {
        lines.push(Line { certificate: certificate(&state, host), host: host.to_owned(), ..Line::default() });
    }
    lines.sort_by(|one, other| (&one.host, &one.path).cmp(&(&other.host, &other.path)));
    Json(lines)
}

fn certificate(state: &ApiState, host: &str) -> Option<Certificate> {
    let certificates = match state.securing.as_ref()? {
        Securing::Daemon(certificates) => certificates,
        Securing::ClusterIssuer { name, .. } => return Some(delegated(name)),
    };
    let known = certificates.state(host)?;
    let time = |time: Option<jiff::Timestamp>| time.as_ref().map(ToString::to_string).unwrap_or_default();
    Some(Certificate {
        state: word(&known, certificates.is_sought(host)),
        issuer: match known.issuer {
            Issuer::Public(directory) => directory,
            Issuer::Own => PRIVATE.to_owned(),
            Issuer::Front => String::new(),
        },
        expires: time(known.times.map(|(expires, _)| expires)),
        renewal: time(known.times.map(|(_, renewal)| renewal)),
        message: known.trouble.map(|(cause, next)| format!("{cause} (again at {next:.0})")),
    })
}

fn delegated(issuer: &str) -> Certificate {
    Certificate {
        issuer: format!("cluster-issuer/{issuer}"),
        expires: String::new(),
        renewal: String::new(),
        state: "delegated",
        message: None,
    }
}

fn word(known: &acme::State, is_sought: bool) -> &'static str {
    let is_public = matches!(known.issuer, Issuer::Public(_));
    if known.times.is_some_and(|(expires, _)| expires < jiff::Timestamp::now()) {
        "expired"
    } else if known.trouble.is_some() {
        "failing"
    } else if !is_public && is_sought {
        "waiting"
    } else if known.issuer == Issuer::Front {
        "none"
    } else {
        "valid"
    }
}
