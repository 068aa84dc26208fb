//! Into an instance of a cluster, by the API server: commands in its container, connections to its ports.
//!
//! Both are websockets of the API server's. Closing one does not end what runs in the pod: a command sees that its
//! input has ended or its terminal hung up, as with kubectl.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt as _;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Status};
use kube::{
    Api, ResourceExt as _,
    api::{AttachParams, AttachedProcess, TerminalSize},
};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::{Cluster, failed, logs, workload::CONTAINER};
use crate::{
    model::ReleaseId,
    runtime::{CANNOT_RUN, Command, Connection, Error, Exit, NOT_FOUND, Reader, Session, Terminal, Writer},
};

/// What is on its way in each stream, in bytes.
const BUFFER_BYTES: usize = 64 << 10;
/// How long the API server may take to begin.
const BEGIN: Duration = Duration::from_secs(30);
/// How long the kubelet may take to say that nobody listens on a port: it says nothing when somebody does.
const REFUSAL: Duration = Duration::from_millis(100);

pub(super) async fn exec(cluster: &Cluster, id: &ReleaseId, name: &str, command: Command) -> Result<Session, Error> {
    let pod = pod(cluster, id, name)?;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), id.namespace.as_str());
    exec_in(&pods, &pod, name, command).await
}

pub(super) async fn forward(cluster: &Cluster, id: &ReleaseId, name: &str, port: u16) -> Result<Connection, Error> {
    let pod = pod(cluster, id, name)?;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), id.namespace.as_str());
    forward_to(&pods, &pod, name, port).await
}

/// The name of the pod that an instance is.
fn pod(cluster: &Cluster, id: &ReleaseId, name: &str) -> Result<String, Error> {
    let pods = cluster.observed.pods_of_release(id);
    let mut alive = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let found = alive.find(|pod| logs::origin(pod) == name).map(|pod| pod.name_any());
    found.ok_or_else(|| Error::NotRunning(name.to_owned()))
}

async fn exec_in(pods: &Api<Pod>, pod: &str, name: &str, command: Command) -> Result<Session, Error> {
    let doing = || format!("starting a command in instance {name}");
    let terminal = command.terminal == Terminal::Own;
    let params = AttachParams::default()
        .container(CONTAINER)
        .stdin(true)
        .stdout(true)
        .stderr(!terminal)
        .tty(terminal)
        .max_stdin_buf_size(BUFFER_BYTES)
        .max_stdout_buf_size(BUFFER_BYTES)
        .max_stderr_buf_size(BUFFER_BYTES);
    let begun = tokio::time::timeout(BEGIN, pods.exec(pod, command.words, &params)).await;
    let mut process = begun.map_err(|_| slow(doing()))?.map_err(failed(doing()))?;
    let stdin: Writer = match process.stdin() {
        Some(stdin) => Box::new(stdin),
        None => Box::new(tokio::io::sink()),
    };
    let mut size = process.terminal_size();
    Ok(Session {
        stdin,
        stdout: reader(process.stdout()),
        stderr: reader(process.stderr()),
        resize: Box::new(move |wanted| {
            let wanted = TerminalSize { width: wanted.columns, height: wanted.rows };
            if let Some(size) = &mut size {
                // One that is not taken now is followed by another.
                let _ = size.try_send(wanted);
            }
        }),
        ended: ended(process, doing()).boxed(),
    })
}

fn reader(stream: Option<impl AsyncRead + Send + Unpin + 'static>) -> Reader {
    match stream {
        Some(stream) => Box::new(stream),
        None => Box::new(tokio::io::empty()),
    }
}

/// The process is kept until the end: dropping it ends the connection.
async fn ended(mut process: AttachedProcess, doing: String) -> Result<Exit, Error> {
    let status = match process.take_status() {
        Some(status) => status.await,
        None => None,
    };
    status.as_ref().map(exit).ok_or_else(|| Error::Failed {
        doing,
        cause: "the connection to the cluster broke before the command had ended".to_owned(),
    })
}

/// What the kubelet says of the end of a command.
fn exit(status: &Status) -> Exit {
    if status.status.as_deref() == Some("Success") {
        return Exit { code: 0, message: None };
    }
    let details = status.details.as_ref().and_then(|details| details.causes.as_ref());
    let code = details.into_iter().flatten().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    if let Some(code) = code.and_then(|cause| cause.message.as_deref()?.parse().ok()) {
        return Exit { code, message: None };
    }
    let message = status.message.clone().unwrap_or_else(|| "the cluster does not say why it failed".to_owned());
    // The runtimes of containers have words for it, and no codes.
    let missing = ["executable file not found", "no such file or directory"].iter().any(|word| message.contains(word));
    Exit { code: if missing { NOT_FOUND } else { CANNOT_RUN }, message: Some(message) }
}

async fn forward_to(pods: &Api<Pod>, pod: &str, name: &str, port: u16) -> Result<Connection, Error> {
    let doing = || format!("connecting to port {port} of instance {name}");
    let begun = tokio::time::timeout(BEGIN, pods.portforward(pod, &[port])).await;
    let mut forwarder = begun.map_err(|_| slow(doing()))?.map_err(failed(doing()))?;
    let lost = || Error::Failed { doing: doing(), cause: "the API server opened no stream".to_owned() };
    let stream = forwarder.take_stream(port).ok_or_else(lost)?;
    let refusal = forwarder.take_error(port).ok_or_else(lost)?;
    if let Ok(Some(cause)) = tokio::time::timeout(REFUSAL, refusal).await {
        let cause = refused(&cause);
        return Err(Error::Refused { instance: name.to_owned(), port, cause });
    }
    Ok(Box::new(Forwarded(stream)))
}

/// The kubelet names sandboxes and network namespaces; what matters comes last.
fn refused(cause: &str) -> String {
    if cause.contains("connection refused") {
        return "its program does not listen there".to_owned();
    }
    cause.trim().to_owned()
}

fn slow(doing: String) -> Error {
    let cause = format!("the API server did not answer within {} s", BEGIN.as_secs());
    Error::Failed { doing, cause }
}

/// A connection by the API server. Its protocol knows no half of one: whoever has said everything must not close it, or the
/// answer would be lost.
struct Forwarded(DuplexStream);

impl AsyncRead for Forwarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}

#[cfg(test)]
mod tests;
