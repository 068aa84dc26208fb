//! What containers write, by the API server.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, StreamExt as _,
    stream::{self, BoxStream},
};
use k8s_openapi::{api::core::v1::Pod, jiff};
use kube::{Api, ResourceExt as _, api::LogParams};
use tokio::sync::mpsc;

use super::{
    Cluster,
    names::{self, InstanceName},
};
use crate::{
    model::{AppName, Namespace, Timestamp},
    runtime::{LogLine, LogQuery, LogSink, LogStream},
};

/// Longer lines are cut in pieces, in bytes.
const LINE_BYTES: u64 = 16 << 10;
/// Between attempts to read on.
const PAUSE: Duration = Duration::from_millis(500);
/// How long reading may fail without a line in between: longer than an API server is away that starts again.
const GIVE_UP: Duration = Duration::from_secs(120);
/// Lines of an instance that wait for a slow reader.
const AHEAD: usize = 64;
/// How many lines of a pod are read when nobody says how many.
const HISTORY: usize = 10_000;

/// Gives the output of a container on from its first line but for what was seen before, until it ends. A connection that
/// breaks is taken up where it was.
pub(super) async fn forward(pods: &Api<Pod>, pod: &str, container: &str, seen: usize, log: &LogSink) {
    let (mut skip, mut last) = (seen, None);
    let (mut give_up, mut new) = (Instant::now() + GIVE_UP, true);
    while Instant::now() < give_up {
        let params = LogParams {
            container: Some(container.to_owned()),
            follow: true,
            timestamps: true,
            since_time: last.map(second_of),
            ..LogParams::default()
        };
        match pods.log_stream(pod, &params).await {
            Ok(output) => {
                let mut lines = Lines::new(output, container);
                while let Some((at, line)) = lines.next().await {
                    // After a broken connection the lines of the last second come again.
                    new = if lines.continues { new } else { last.is_none_or(|last| at > last) };
                    if new && skip > 0 {
                        skip -= 1;
                    } else if new {
                        let _ = log.send(line).await;
                    }
                    last = last.max(Some(at));
                    give_up = Instant::now() + GIVE_UP;
                }
                if ended(pods, pod, container).await {
                    return;
                }
            }
            Err(kube::Error::Api(status)) if status.code == 404 => return,
            Err(error) => tracing::debug!(pod, container, %error, "the output of a container cannot be read yet"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    tracing::warn!(pod, container, "the output of a container cannot be read; its log has a gap");
}

/// The API server also ends a stream when a connection behind it breaks.
async fn ended(pods: &Api<Pod>, pod: &str, container: &str) -> bool {
    let Ok(pod) = pods.get(pod).await else { return false };
    let Some(status) = pod.status else { return false };
    let all =
        status.init_container_statuses.into_iter().flatten().chain(status.container_statuses.into_iter().flatten());
    all.into_iter().any(|status| status.name == container && status.state.is_some_and(|s| s.terminated.is_some()))
}

/// The lines of an application's pods, oldest first; with `follow` also of pods that come later.
pub(super) fn read(
    cluster: Arc<Cluster>,
    namespace: &Namespace,
    app: &AppName,
    query: LogQuery,
) -> BoxStream<'static, LogLine> {
    let (sink, lines) = mpsc::channel(AHEAD);
    let (namespace, app) = (namespace.clone(), app.clone());
    tokio::spawn(async move {
        // Whoever does not listen any more ends this.
        tokio::select! {
            () = sink.closed() => {}
            () = feed(&cluster, &namespace, &app, query, &sink) => {}
        }
    });
    stream::unfold(lines, |mut lines| async move { Some((lines.recv().await?, lines)) }).boxed()
}

async fn feed(cluster: &Arc<Cluster>, namespace: &Namespace, app: &AppName, query: LogQuery, sink: &LogSink) {
    let pods: Api<Pod> = Api::namespaced(cluster.streams.clone(), namespace.as_str());
    let mut changes = cluster.observed.changes();
    let mut known = BTreeMap::new();
    let mut history = Vec::new();
    for pod in cluster.observed.pods_of(namespace, app) {
        let lines = past(&pods, &pod, query.tail.unwrap_or(HISTORY)).await;
        known.insert(pod.name_any(), lines.last().map(|(at, _)| *at));
        history.extend(lines);
    }
    history.sort_by_key(|(at, _)| *at);
    let surplus = query.tail.map_or(0, |tail| history.len().saturating_sub(tail));
    for (_, line) in history.into_iter().skip(surplus) {
        if sink.send(line).await.is_err() {
            return;
        }
    }
    if !query.follow {
        return;
    }
    let mut readers = tokio::task::JoinSet::new();
    for (pod, since) in &known {
        follow(&mut readers, cluster, &pods, pod, *since, sink);
    }
    loop {
        for pod in cluster.observed.pods_of(namespace, app) {
            let name = pod.name_any();
            let runs = pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
            if runs && !known.contains_key(&name) {
                follow(&mut readers, cluster, &pods, &name, None, sink);
                known.insert(name, None);
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            Some(_) = readers.join_next() => {}
        }
    }
}

type At = jiff::Timestamp;

/// What may be asked for is whole seconds, and the client would round up: lines would be missing.
fn second_of(at: At) -> At {
    At::from_second(at.as_second()).unwrap_or(at)
}

/// What a pod wrote so far.
async fn past(pods: &Api<Pod>, pod: &Pod, tail: usize) -> Vec<(At, LogLine)> {
    let name = pod.name_any();
    let params = LogParams { timestamps: true, tail_lines: i64::try_from(tail).ok(), ..LogParams::default() };
    // A pod that has not begun yet has written nothing.
    let Ok(output) = pods.log_stream(&name, &params).await else { return Vec::new() };
    let mut lines = Lines::new(output, &origin(pod));
    let mut past = Vec::new();
    while let Some(line) = lines.next().await {
        past.push(line);
    }
    past
}

fn follow(
    readers: &mut tokio::task::JoinSet<()>,
    cluster: &Arc<Cluster>,
    pods: &Api<Pod>,
    name: &str,
    since: Option<At>,
    sink: &LogSink,
) {
    let (cluster, pods, name, sink) = (Arc::clone(cluster), pods.clone(), name.to_owned(), sink.clone());
    readers.spawn(async move {
        let mut last = since;
        // A container that is started again has a new stream; a pod that is gone has none.
        while let Some(pod) = cluster.observed.pod(pods.namespace(), &name) {
            let since_time = last.map(second_of);
            let params = LogParams { follow: true, timestamps: true, since_time, ..LogParams::default() };
            if let Ok(output) = pods.log_stream(&name, &params).await {
                let mut lines = Lines::new(output, &origin(&pod));
                while let Some((at, line)) = lines.next().await {
                    // The moment asked for is given again.
                    let new = last.is_none_or(|last| at > last) || lines.continues;
                    if new && sink.send(line).await.is_err() {
                        return;
                    }
                    last = Some(at);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
}

/// What the lines of a pod are said to come from.
pub(super) fn origin(pod: &Pod) -> String {
    let label = |name: &str| pod.labels().get(name).map(String::as_str).unwrap_or_default();
    InstanceName { app: label(names::APP), release: label(names::RELEASE), pod: &pod.name_any() }.to_string()
}

/// Lines with their times, each of limited size.
struct Lines<R> {
    output: R,
    origin: String,
    /// The time of the last line.
    at: At,
    /// The last one was a piece of a line that was too long, so its rest comes next, without a time.
    cut: bool,
    /// The last one was such a rest.
    continues: bool,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    fn new(output: R, origin: &str) -> Self {
        Self { output, origin: origin.to_owned(), at: At::UNIX_EPOCH, cut: false, continues: false }
    }

    /// None at the end, and when the connection breaks.
    async fn next(&mut self) -> Option<(At, LogLine)> {
        let mut line = Vec::new();
        let read = (&mut self.output).take(LINE_BYTES).read_until(b'\n', &mut line).await.ok()?;
        if read == 0 {
            return None;
        }
        self.continues = self.cut;
        self.cut = line.last() != Some(&b'\n');
        while line.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            line.pop();
        }
        let mut text = String::from_utf8_lossy(&line).into_owned();
        if !self.continues
            && let Some((at, rest)) = text.split_once(' ')
            && let Ok(at) = at.parse()
        {
            self.at = at;
            text = rest.to_owned();
        }
        let (origin, stream) = (self.origin.clone(), LogStream::Stdout);
        let at = Timestamp::from_second(self.at.as_second());
        Some((self.at, LogLine { origin, stream, at, text }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_have_times_and_a_limit() {
        let long = "x".repeat(40_000);
        let text = format!(
            "2026-01-02T03:04:05.000000001Z one\n2026-01-02T03:04:06Z {long}\n2026-01-02T03:04:07Z \nno time\n"
        );
        let mut lines = Lines::new(text.as_bytes(), "shop-1-x");
        let mut read = Vec::new();
        while let Some((at, line)) = lines.next().await {
            read.push((at.as_second() % 60, line.text, lines.continues));
        }
        assert_eq!((read[0].0, read[0].1.as_str(), read[0].2), (5, "one", false));
        let pieces: Vec<_> = read.iter().filter(|(second, ..)| *second == 6).collect();
        assert_eq!(pieces.iter().map(|(_, text, _)| text.as_str()).collect::<String>(), long);
        assert!(pieces.iter().all(|(_, text, _)| text.len() <= 16 << 10) && pieces[1].2);
        assert_eq!((read[4].0, read[4].1.as_str()), (7, ""));
        assert_eq!(read[5].1, "no time", "what has no time has that of the line before");
    }
}
