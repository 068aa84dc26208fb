//! Logs of the daemon: one line for each event, with fields, on stderr.

mod request;

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

pub use request::{in_request, new_request_id, request_id};

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One object in each line.
    Json,
}

/// Is it a filter as tracing has it (`info`, `debug`, `epiniod::edge=debug`)?
pub fn check(filter: &str) -> Result<(), tracing_subscriber::filter::ParseError> {
    EnvFilter::try_new(filter).map(|_| ())
}

/// Starts logging. A filter that cannot be read becomes `info`, and that is said.
pub fn init(filter: &str, format: Format) {
    let (parsed, wrong) = match EnvFilter::try_new(filter) {
        Ok(parsed) => (parsed, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let parsed = match REPEATED.parse() {
        Ok(directive) if !filter.contains("kube_client") => parsed.add_directive(directive),
        _ => parsed,
    };
    // Whatever else is left out.
    let parsed = match AUDIT.parse() {
        Ok(directive) => parsed.add_directive(directive),
        Err(_) => parsed,
    };
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    // A second start in one process changes nothing.
    let _ = match format {
        Format::Text => lines.with_ansi(colours).try_init(),
        Format::Json => lines.json().flatten_event(true).try_init(),
    };
    if let Some(error) = wrong {
        tracing::warn!(filter, %error, "the log filter is not valid; logging 'info'");
    }
}

/// The client of Kubernetes logs every answer that is an error; who asked says what it means.
const REPEATED: &str = "kube_client::client::builder=off";

/// Who changed what, in a cluster.
const AUDIT: &str = "epiniod::audit=info";

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
