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
    let (parsed, wrong) = parse(filter);
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

/// A filter, and what is wrong with it.
fn parse(filter: &str) -> (EnvFilter, Option<tracing_subscriber::filter::ParseError>) {
    let (mut parsed, wrong) = match EnvFilter::try_new(filter) {
        Ok(parsed) => (parsed, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let repeated = Some(REPEATED).filter(|_| !filter.contains("kube_client"));
    for directive in repeated.into_iter().chain([AUDIT]) {
        parsed = parsed.add_directive(directive.parse().expect("a directive of our own"));
    }
    (parsed, wrong)
}

/// The client of Kubernetes logs every answer that is an error; who asked says what it means.
const REPEATED: &str = "kube_client::client::builder=off";

/// Who changed what, in a cluster: whatever else is left out.
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

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_filter_leaves_out_the_audit_log() {
        for filter in ["warn", "off", "epiniod=error", "nonsense=loud"] {
            let lines = Lines::default();
            let writer = lines.clone();
            let subscriber =
                tracing_subscriber::fmt().json().with_env_filter(parse(filter).0).with_writer(move || writer.clone());
            tracing::subscriber::with_default(subscriber.finish(), || {
                tracing::info!(target: "epiniod::audit", action = "app.delete", "audit");
            });
            let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
            assert!(text.contains("app.delete"), "{filter}: {text:?}");
        }
    }
}
