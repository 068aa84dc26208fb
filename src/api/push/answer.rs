//! The answer to a push: its log as text, which ends with the URL, or is cut off after the cause.

use std::{io, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

use super::{Failure, Pushed, outcome};
use crate::{
    api::ApiState,
    model::{Phase, Staging, StagingState},
};

/// Where lines go.
pub(super) type Sink = mpsc::Sender<Result<Bytes, io::Error>>;

/// How many lines of a log may wait for a slow client.
const QUEUE: usize = 256;
/// How long a client may take to read up to the cause, until its connection is cut.
const PATIENCE: Duration = Duration::from_secs(600);
/// What the server has taken is on its way after this.
const FLUSH: Duration = Duration::from_millis(200);

/// A body, and where its lines go.
pub(super) fn body() -> (Sink, Body) {
    let (sink, lines) = mpsc::channel(QUEUE);
    let lines = futures::stream::unfold(lines, |mut lines| async move { lines.recv().await.map(|line| (line, lines)) });
    (sink, Body::from_stream(lines))
}

/// Everything about a push, at the pace of the client.
pub(super) async fn tell(
    state: &ApiState,
    staging: &Staging,
    upload: u64,
    ended: JoinHandle<Result<Pushed, Failure>>,
    sink: &Sink,
) {
    let result = match tell_staging(state, staging, sink).await {
        Ok(()) => ended.await.map_err(Failure::from).and_then(|result| result),
        Err(failure) => Err(failure),
    };
    tell_end(result, &[(Phase::Upload, upload)], sink).await;
}

/// The same for a push that goes on already, or is over.
pub(super) async fn tell_again(state: &ApiState, staging: &Staging, sink: &Sink) {
    let result = match tell_staging(state, staging, sink).await {
        Ok(()) => outcome(state, staging).await,
        Err(failure) => Err(failure),
    };
    tell_end(result, &[], sink).await;
}

async fn tell_end(result: Result<Pushed, Failure>, before: &[(Phase, u64)], sink: &Sink) {
    match result {
        Ok(pushed) => {
            say(sink, &summary(&[before, pushed.timings.as_slice()].concat())).await;
            say(sink, &pushed.url).await;
        }
        Err(Failure { last_words, cause }) => {
            for line in last_words {
                say(sink, &format!("| {line}")).await;
            }
            fail(sink, &cause).await;
        }
    }
}

/// Says the cause, and cuts the body off when it is on its way.
async fn fail(sink: &Sink, cause: &str) {
    let (taken, gone) = oneshot::channel();
    let line = Tracked { text: format!("error: {cause}\n"), _taken: taken };
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

async fn tell_staging(state: &ApiState, staging: &Staging, sink: &Sink) -> Result<(), Failure> {
    let (namespace, id) = (&staging.namespace, &staging.id);
    say(sink, &format!("staging {id} of application {} in namespace {namespace}", staging.app)).await;
    let mut log = state.stagings.log(namespace, id, true).await?;
    while let Some(line) = log.next().await {
        say(sink, &line.text).await;
    }
    if state.stagings.wait(namespace, id).await?.state == StagingState::Done {
        say(sink, "===> DEPLOYING").await;
    }
    Ok(())
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

    async fn failing() -> Body {
        let (sink, body) = body();
        tokio::spawn(async move {
            for _ in 0..LINES {
                say(&sink, &"x".repeat(100)).await;
            }
            fail(&sink, "the cause").await;
        });
        body
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
