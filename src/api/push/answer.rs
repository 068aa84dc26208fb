//! The answer to a push: its log as text, which ends with the URL, or is cut off after the cause.

use std::{io, time::Duration};

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

use super::{Failure, Pushed};
use crate::{
    api::ApiState,
    model::{Phase, Staging, StagingState},
};

/// Where lines go.
pub(super) type Sink = mpsc::Sender<Result<Bytes, io::Error>>;

/// The last line of an answer whose daemon was told to end, and is replaced by another.
pub const STOPPED: &str = "the daemon was stopped; the next one goes on with this push";
/// The cause in the last line where nothing is to take its place.
const ALL_STOPPED: &str =
    "the daemon and its applications were stopped; it goes on with this push when it is started again";
/// How many lines of a log may wait for a slow client.
const QUEUE: usize = 256;
/// How long a client may take to read up to the cause, until its connection is cut.
const PATIENCE: Duration = Duration::from_secs(600);
/// What the server has taken is on its way after this.
const FLUSH: Duration = Duration::from_millis(200);

/// An answer, and where its lines go.
pub(super) fn begin() -> (Sink, Response) {
    let (sink, lines) = mpsc::channel(QUEUE);
    let lines = futures::stream::unfold(lines, |mut lines| async move { lines.recv().await.map(|line| (line, lines)) });
    // Without the second one a browser keeps the beginning to itself, until it has seen enough to guess what it is.
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (sink, (headers, Body::from_stream(lines)).into_response())
}

/// Everything about a push, at the pace of the client.
pub(super) async fn tell(
    state: &ApiState,
    staging: &Staging,
    upload: u64,
    ended: JoinHandle<Result<Pushed, Failure>>,
    sink: &Sink,
) {
    say(sink, &format!("staging {} of application {} in namespace {}", staging.id, staging.app, staging.namespace))
        .await;
    let outcome = async {
        tell_staging(state, staging, 0, sink).await?;
        ended.await.map_err(Failure::from)?
    };
    let result = before_the_end(state, outcome).await;
    let result = result.map(|pushed| Pushed {
        timings: [&[(Phase::Upload, upload)], pushed.timings.as_slice()].concat(),
        url: pushed.url,
    });
    tell_end(state, result, sink).await;
}

/// The outcome, as long as the daemon can wait for it.
pub(super) async fn before_the_end(
    state: &ApiState,
    outcome: impl Future<Output = Result<Pushed, Failure>>,
) -> Result<Pushed, Failure> {
    tokio::select! {
        biased;
        result = outcome => result,
        () = state.ending.given_up.cancelled() => Err(Failure::Stopped),
    }
}

/// The last lines.
pub(super) async fn tell_end(state: &ApiState, result: Result<Pushed, Failure>, sink: &Sink) {
    match result {
        Ok(pushed) => {
            say(sink, &summary(&pushed.timings)).await;
            say(sink, &pushed.url).await;
        }
        Err(Failure::Failed { last_words, cause }) => {
            for line in last_words {
                say(sink, &format!("| {line}")).await;
            }
            cut_off(sink, &format!("error: {cause}")).await;
        }
        Err(Failure::Stopped) if state.ending.everything.is_cancelled() => {
            cut_off(sink, &format!("error: {ALL_STOPPED}")).await;
        }
        Err(Failure::Stopped) => {
            cut_off(sink, STOPPED).await;
        }
    }
}

/// Says this, and cuts the body off when it is on its way.
async fn cut_off(sink: &Sink, text: &str) {
    let (taken, gone) = oneshot::channel();
    let line = Tracked { text: format!("{text}\n"), _taken: taken };
    // Nobody hears it when the client is gone.
    let _ = sink.send(Ok(Bytes::from_owner(line))).await;
    let _ = timeout(PATIENCE, gone).await;
    tokio::time::sleep(FLUSH).await;
    let _ = sink.send(Err(io::Error::other("the push failed"))).await;
}

/// A line that tells when it is dropped: the server has written it then, or the client is gone.
struct Tracked {
    text: String,
    _taken: oneshot::Sender<()>,
}

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

/// The log, and that the deployment begins; but for the first `heard` lines of that. Returns the staging as it ended.
pub(super) async fn tell_staging(
    state: &ApiState,
    staging: &Staging,
    heard: usize,
    sink: &Sink,
) -> Result<Staging, Failure> {
    let (namespace, id) = (&staging.namespace, &staging.id);
    let mut log = state.stagings.log(namespace, id, true).await?;
    let mut lines = 0;
    while let Some(line) = log.next().await {
        lines += 1;
        if lines > heard {
            say(sink, &line.text).await;
        }
    }
    let staging = state.stagings.wait(namespace, id).await?;
    if staging.state == StagingState::Done && lines >= heard {
        say(sink, "===> DEPLOYING").await;
    }
    Ok(staging)
}

fn summary(timings: &[(Phase, u64)]) -> String {
    let seconds = |millis: u64| format!("{:.2} s", millis as f64 / 1000.0);
    let each: Vec<String> =
        timings.iter().map(|(phase, millis)| format!("{} {}", phase.as_str(), seconds(*millis))).collect();
    let total: u64 = timings.iter().map(|(_, millis)| millis).sum();
    format!("phases: {}, total {}", each.join(", "), seconds(total))
}

async fn say(sink: &Sink, line: &str) {
    // A client that is gone does not stop a push.
    let _ = sink.send(Ok(Bytes::from(format!("{line}\n")))).await;
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpSocket,
    };

    use super::*;

    const LINES: usize = 5_000;
    /// What the kernel may keep of a connection at each end, at least, in bytes.
    const BUFFER: u32 = 4096;

    async fn failing() -> Response {
        let (sink, answer) = begin();
        tokio::spawn(async move {
            for _ in 0..LINES {
                say(&sink, &"x".repeat(100)).await;
            }
            cut_off(&sink, "error: the cause").await;
        });
        answer
    }

    #[tokio::test]
    async fn a_client_that_reads_slowly_gets_the_cause_before_the_end() {
        let listener = TcpSocket::new_v4().unwrap();
        listener.set_send_buffer_size(BUFFER).unwrap();
        listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = listener.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, Router::new().route("/", get(failing))).await });
        let client = TcpSocket::new_v4().unwrap();
        client.set_recv_buffer_size(BUFFER).unwrap();
        let mut client = client.connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let (mut text, mut part) = (Vec::new(), [0; 1024]);
        loop {
            // A reset would be an error, and no end that was read.
            let read = client.read(&mut part).await.unwrap();
            text.extend_from_slice(&part[..read]);
            if read == 0 {
                break;
            }
            if text.len() > 100 * (LINES - 1_000) {
                // What is left takes much longer than what was written is given to get out.
                tokio::time::sleep(FLUSH / 10).await;
            }
        }
        server.abort();
        let text = String::from_utf8(text).unwrap();
        assert!(text.ends_with("error: the cause\n\r\n"), "{:?}", &text[text.len().saturating_sub(200)..]);
        assert_eq!(text.matches(&"x".repeat(100)).count(), LINES);
    }
}
