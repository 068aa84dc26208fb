//! The answer to a push: shown as it comes, and asked for again when the connection ends before it does.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use indicatif::ProgressBar;
use reqwest::{Method, Response};
use serde_json::Value;

use crate::{
    api::STOPPED,
    cli::{
        client::{Client, broken},
        error::Error,
        ui::Ui,
    },
};

/// How long a daemon may be away while it is replaced.
const AWAY: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(500);
/// After so long without a line it is asked whether there is still something to come.
const SILENCE: Duration = Duration::from_secs(20);

pub(super) struct Answer<'a> {
    client: &'a Client,
    /// `/push/NAMESPACE/APP`
    place: String,
    shown: Shown<'a>,
    /// Whole lines that arrived, and which staging the first one told of.
    lines: usize,
    staging: Option<String>,
}

/// How an answer ended.
enum End {
    Url(String),
    Cause(String),
    /// Before it said how the push ended.
    Early,
}

impl<'a> Answer<'a> {
    pub fn new(client: &'a Client, ui: &'a Ui, place: String) -> Self {
        Self { client, place, shown: Shown { ui, bar: None, deploys: false }, lines: 0, staging: None }
    }

    /// Nothing was heard of a staging.
    pub fn has_not_begun(&self) -> bool {
        self.staging.is_none()
    }

    /// Shows the log; the URL that it ends with.
    pub async fn follow(&mut self, mut response: Response) -> Result<String, Error> {
        loop {
            let early = match self.read(response).await {
                (End::Url(url), _) => return Ok(url),
                (End::Cause(cause), _) if self.shown.deploys => {
                    return Err(Error::Deploy { cause, details: String::new() });
                }
                (End::Cause(cause), _) => return Err(Error::Staging(cause)),
                (End::Early, broken) => broken,
            };
            let Some(staging) = self.staging.clone() else {
                let silent = || Error::Staging("the daemon did not say how it ended".to_owned());
                return Err(early.map_or_else(silent, broken));
            };
            let within = AWAY.as_secs();
            let text =
                format!("the connection to the daemon ended; asking for the rest when it answers, for {within} s");
            self.shown.ui.say(&text);
            response = self.rest(&staging).await?;
        }
    }

    /// Waits until a daemon answers.
    pub async fn wait_for_daemon(&self) -> Result<(), Error> {
        self.when_it_answers("/api/v1/info").await.map(drop)
    }

    async fn rest(&self, staging: &str) -> Result<Response, Error> {
        // The first line has no place in the log.
        let heard = self.lines.saturating_sub(1);
        self.when_it_answers(&format!("{}/{staging}?heard={heard}", self.place)).await
    }

    async fn when_it_answers(&self, path: &str) -> Result<Response, Error> {
        let until = Instant::now() + AWAY;
        loop {
            let asked = tokio::time::timeout(LOOK * 20, self.client.send(self.client.request(Method::GET, path))).await;
            match asked {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) if !is_interruption(&error) || Instant::now() >= until => return Err(error),
                Err(_) if Instant::now() >= until => {
                    let cause = format!("no answer within {} s", AWAY.as_secs());
                    return Err(Error::Unreachable { address: self.client.settings.api.clone(), cause });
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    async fn read(&mut self, response: Response) -> (End, Option<reqwest::Error>) {
        let mut stream = response.bytes_stream();
        let mut rest: Vec<u8> = Vec::new();
        // What may be the last line; all others are shown as they come.
        let mut last: Option<String> = None;
        let mut broken = None;
        loop {
            match tokio::time::timeout(SILENCE, stream.next()).await {
                Ok(Some(Ok(part))) => rest.extend_from_slice(&part),
                Ok(Some(Err(error))) => {
                    broken = Some(error);
                    break;
                }
                Ok(None) => break,
                // A daemon that is gone without a word says nothing either: another one ended what this one began.
                Err(_) if self.is_settled().await => break,
                Err(_) => continue,
            }
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&rest[..end]).into_owned();
                rest.drain(..=end);
                if let Some(line) = last.take() {
                    self.take(&line);
                }
                if is_result(&line) { last = Some(line) } else { self.take(&line) }
            }
        }
        self.shown.end();
        let end = match (&broken, last) {
            (_, Some(line)) if line.starts_with(CAUSE) => End::Cause(line[CAUSE.len()..].to_owned()),
            (None, Some(url)) => End::Url(url),
            // It would be a line of the log like others.
            (Some(_), last) => {
                last.iter().for_each(|line| self.take(line));
                End::Early
            }
            (None, None) => End::Early,
        };
        (end, broken)
    }

    /// Whether nothing is to come of the staging any more, as far as a daemon answers.
    async fn is_settled(&self) -> bool {
        let (Some(staging), Some(place)) = (&self.staging, self.place.strip_prefix("/push/")) else { return false };
        let namespace = place.split('/').next().unwrap_or_default();
        let path = format!("/api/v1/namespaces/{namespace}/staging/{staging}");
        let asked = tokio::time::timeout(SILENCE, self.client.get(&path)).await;
        asked.is_ok_and(|answer| answer.is_ok_and(|staging| staging.get("settled") == Some(&Value::Bool(true))))
    }

    fn take(&mut self, line: &str) {
        if self.staging.is_none() {
            self.staging = line.strip_prefix("staging ").and_then(|rest| rest.split(' ').next()).map(str::to_owned);
        }
        if line == STOPPED {
            // It is no part of what the next daemon says.
            return;
        }
        self.lines += 1;
        self.shown.line(line);
    }
}

/// Does the daemon perhaps answer a moment later?
pub(super) fn is_interruption(error: &Error) -> bool {
    is_of_absence(error) || matches!(error, Error::Unreachable { .. } | Error::Broken(_))
}

/// Does somebody say in its place that it is away?
pub(super) fn is_of_absence(error: &Error) -> bool {
    matches!(error, Error::NotServed { .. } | Error::Api { status: 502..=504, .. })
}

/// What is before the cause of a failure.
const CAUSE: &str = "error: ";

/// May it be the last line?
fn is_result(line: &str) -> bool {
    line.starts_with(CAUSE) || line.starts_with("http://") || line.starts_with("https://")
}

/// Lines of the log; downloads of packages as a bar where somebody watches.
struct Shown<'a> {
    ui: &'a Ui,
    bar: Option<ProgressBar>,
    /// The build is done.
    deploys: bool,
}

/// The line of the log after which nothing is built any more.
const DEPLOYING: &str = "===> DEPLOYING";

impl Shown<'_> {
    fn line(&mut self, line: &str) {
        self.deploys |= line == DEPLOYING;
        if self.ui.is_terminal()
            && let Some((done, total)) = parse_download(line)
        {
            let bar = self.bar.get_or_insert_with(|| self.ui.bytes("Debian packages", Some(total)));
            bar.set_length(total);
            bar.set_position(done);
            return;
        }
        self.end();
        self.ui.log(line);
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// `downloaded 1.5 of 28.0 MB of Debian packages`
fn parse_download(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("downloaded ")?.strip_suffix(" MB of Debian packages")?;
    let (done, total) = rest.split_once(" of ")?;
    let bytes = |text: &str| text.parse::<f64>().ok().map(|mega| (mega * 1e6) as u64);
    Some((bytes(done)?, bytes(total)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downloads_are_recognised() {
        assert_eq!(parse_download("downloaded 1.5 of 28.0 MB of Debian packages"), Some((1_500_000, 28_000_000)));
        assert_eq!(parse_download("downloaded nothing"), None);
    }
}
