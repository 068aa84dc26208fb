//! The log of a push on its way to whoever pushed, also where the daemon that took the push is not the one that ends it.
//!
//! The daemon tells everything once more from the first line. What was shown is left out: not by counting, as lines that
//! were never saved are missing in what is told by the next one, but line by line.

use std::{
    collections::{VecDeque, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    time::Duration,
};

use futures::StreamExt as _;
use indicatif::ProgressBar;
use reqwest::Method;
use serde_json::Value;

use super::{AWAY, Client, Error, Patience, Ui, is_away};
use crate::{
    api::STOPPED,
    model::{AppName, Namespace},
};

/// Follows one push to its end.
pub(super) struct Follower<'a> {
    client: &'a Client,
    ui: &'a Ui,
    namespace: &'a Namespace,
    name: &'a AppName,
    /// Its id, once the daemon has acknowledged it.
    staging: Option<String>,
    shown: Shown<'a>,
}

/// What came of one connection.
enum End {
    Url(String),
    Cause(String),
    /// Nobody said how it ends.
    Cut(Option<reqwest::Error>),
}

impl<'a> Follower<'a> {
    pub fn new(client: &'a Client, ui: &'a Ui, namespace: &'a Namespace, name: &'a AppName) -> Self {
        Self { client, ui, namespace, name, staging: None, shown: Shown::new(ui) }
    }

    /// Shows the log; its last line is the URL, or the cause.
    pub async fn follow(mut self, response: reqwest::Response) -> Result<String, Error> {
        let mut end = self.read(response).await;
        loop {
            let why = match (end, self.shown.deploys) {
                (End::Url(url), _) => return Ok(url),
                (End::Cause(cause), _) if cause == STOPPED => Error::Staging(cause),
                (End::Cause(cause), true) => return Err(Error::Deploy { cause, details: String::new() }),
                (End::Cause(cause), false) => return Err(Error::Staging(cause)),
                (End::Cut(Some(error)), _) => Error::Broken(error),
                (End::Cut(None), _) => Error::Staging("the daemon did not say how it ended".to_owned()),
            };
            let Some(staging) = self.staging.clone() else { return Err(why) };
            end = self.again(&staging, why).await?;
        }
    }

    /// Waits for the daemon that goes on with the push, and follows it there.
    async fn again(&mut self, staging: &str, why: Error) -> Result<End, Error> {
        let path = format!("/push/{}/{}/{staging}", self.namespace, self.name);
        let left = |cause| Error::Left { staging: staging.to_owned(), seconds: AWAY.as_secs(), cause: Box::new(cause) };
        let mut patience = Patience::new();
        patience.wait(self.ui, why).await.map_err(left)?;
        loop {
            match self.client.send(self.client.request(Method::GET, &path)).await {
                Ok(response) => return Ok(self.read(response).await),
                Err(error) if is_away(&error) => patience.wait(self.ui, error).await.map_err(left)?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Shows what comes until it ends.
    async fn read(&mut self, response: reqwest::Response) -> End {
        let mut stream = response.bytes_stream();
        let mut rest: Vec<u8> = Vec::new();
        // What may be the last line; all others are shown as they come.
        let mut last: Option<String> = None;
        self.shown.begin();
        let broken = loop {
            let part = match tokio::time::timeout(SILENCE, stream.next()).await {
                Ok(Some(Ok(part))) => part,
                Ok(Some(Err(error))) => break Some(error),
                Ok(None) => break None,
                // Nothing comes from a daemon that is gone without a word, and nothing is to come: then somebody else ended it.
                Err(_) if self.is_settled().await => break None,
                Err(_) => continue,
            };
            rest.extend_from_slice(&part);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&rest[..end]).into_owned();
                rest.drain(..=end);
                if let Some(line) = last.take() {
                    self.shown.line(&line);
                }
                self.staging = self.staging.take().or_else(|| acknowledged(&line));
                if is_result(&line) { last = Some(line) } else { self.shown.line(&line) }
            }
        };
        self.shown.end();
        let cause = last.as_deref().and_then(|line| line.strip_prefix(CAUSE)).map(str::to_owned);
        match (broken, cause, last) {
            (_, Some(cause), _) => End::Cause(cause),
            (None, None, Some(url)) => End::Url(url),
            (broken, None, _) => End::Cut(broken),
        }
    }

    /// Whether the push is over, as far as a daemon answers that knows it.
    async fn is_settled(&self) -> bool {
        let Some(staging) = &self.staging else { return false };
        let path = format!("/api/v1/namespaces/{}/staging/{staging}", self.namespace);
        let asked = tokio::time::timeout(SILENCE, self.client.get(&path)).await;
        asked.is_ok_and(|answer| answer.is_ok_and(|staging| staging.get("settled") == Some(&Value::Bool(true))))
    }
}

/// Lines of the log; downloads of packages as a bar where somebody watches.
struct Shown<'a> {
    ui: &'a Ui,
    bar: Option<ProgressBar>,
    /// The build is done.
    deploys: bool,
    /// Of all lines so far.
    hashes: Vec<u64>,
    /// Of those that may come once more.
    expected: VecDeque<u64>,
}

impl<'a> Shown<'a> {
    fn new(ui: &'a Ui) -> Self {
        Self { ui, bar: None, deploys: false, hashes: Vec::new(), expected: VecDeque::new() }
    }

    /// From here on everything is told from the beginning.
    fn begin(&mut self) {
        self.expected = self.hashes.iter().copied().collect();
    }

    fn line(&mut self, line: &str) {
        if self.is_known(line) {
            return;
        }
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

    /// Was it shown, behind what came last? Lines in between that do not come again were never saved.
    fn is_known(&mut self, line: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        line.hash(&mut hasher);
        let hash = hasher.finish();
        if let Some(at) = self.expected.iter().take(UNSAVED).position(|expected| *expected == hash) {
            self.expected.drain(..=at);
            return true;
        }
        self.hashes.push(hash);
        false
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// `staging ID of application NAME in namespace NAMESPACE`
fn acknowledged(line: &str) -> Option<String> {
    let (id, _) = line.strip_prefix("staging ")?.split_once(" of application ")?;
    Some(id.to_owned())
}

/// May it be the last line?
fn is_result(line: &str) -> bool {
    line.starts_with(CAUSE) || line.starts_with("http://") || line.starts_with("https://")
}

/// `downloaded 1.5 of 28.0 MB of Debian packages`
fn parse_download(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("downloaded ")?.strip_suffix(" MB of Debian packages")?;
    let (done, total) = rest.split_once(" of ")?;
    let bytes = |text: &str| text.parse::<f64>().ok().map(|mega| (mega * 1e6) as u64);
    Some((bytes(done)?, bytes(total)?))
}

/// What is before the cause of a failure.
const CAUSE: &str = "error: ";
/// The line of the log after which nothing is built any more.
const DEPLOYING: &str = "===> DEPLOYING";
/// After so long without a line it is asked whether there is still something to come.
const SILENCE: Duration = Duration::from_secs(20);
/// So many lines may be shown that the next daemon does not know of: those of its predecessor's last second.
const UNSAVED: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ui::Talk;

    #[test]
    fn downloads_are_recognised() {
        assert_eq!(parse_download("downloaded 1.5 of 28.0 MB of Debian packages"), Some((1_500_000, 28_000_000)));
        assert_eq!(parse_download("downloaded nothing"), None);
    }

    #[test]
    fn what_was_shown_is_left_out_and_what_was_not_is_never() {
        let ui = Ui::new(Talk::Errors);
        let mut shown = Shown::new(&ui);
        let mut told = |lines: &[&str]| -> Vec<String> {
            shown.begin();
            lines.iter().filter(|line| !shown.is_known(line)).map(|line| (*line).to_owned()).collect()
        };
        assert_eq!(told(&["a", "", "b", "a"]), ["a", "", "b", "a"]);
        assert_eq!(told(&["a", "", "b", "a", "c"]), ["c"]);
        // What was only noted by the daemon that is gone is missing; what comes twice by itself comes twice.
        assert_eq!(told(&["a", "b", "a", "c", "c", "a"]), ["c", "a"]);
        assert_eq!(told(&["a", "b", "a", "c", "c", "a"]), [""; 0]);
    }
}
