//! `epiniod apps exec`: a command beside an application, as if it ran here.

use std::{
    io::{IsTerminal as _, Read as _, Write, stderr, stdin, stdout},
    pin::pin,
    time::Duration,
};

use futures::{Sink, SinkExt as _, Stream, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tokio_tungstenite::tungstenite::{Bytes, Error as WebSocketError, Message};

use super::{
    client::{Client, query},
    error::Error,
    terminal::{self, Raw},
};
use crate::model::{
    AppName, Namespace,
    channel::{CLOSE, RESIZE, STATUS, STDERR, STDIN, STDOUT},
};

/// The version of Kubernetes' protocol of remote commands that knows the end of an input.
const PROTOCOL: &str = "v5.channel.k8s.io";
/// What is read of stdin at once, in bytes.
const CHUNK_BYTES: usize = 16 << 10;
/// What was typed and is not sent yet, in chunks.
const AHEAD: usize = 4;
/// How often a session without input shows that it lives.
const PING: Duration = Duration::from_secs(20);

/// Runs a command (without one a shell) until it ends; its exit code.
pub async fn run(
    client: &Client,
    namespace: &Namespace,
    name: &AppName,
    instance: Option<&str>,
    command: &[String],
) -> Result<i32, Error> {
    let interactive = stdin().is_terminal() && stdout().is_terminal();
    let mut parameters = vec![("tty", if interactive { "1" } else { "0" })];
    parameters.extend(instance.map(|instance| ("instance", instance)));
    parameters.extend(command.iter().map(|word| ("command", word.as_str())));
    let path = format!("/namespaces/{namespace}/applications/{name}/exec?{}", query(&parameters));
    let socket = client.open_websocket(&path, Some(PROTOCOL)).await?;
    let windows = if interactive { Some(signal(SignalKind::window_change()).map_err(Error::Runtime)?) } else { None };
    let raw = if interactive { Raw::start() } else { None };
    let (sink, frames) = socket.split();
    let typed = pin!(send(sink, read_stdin(), windows));
    let shown = pin!(show(frames));
    let ended = tokio::select! {
        ended = shown => ended,
        error = typed => Err(error),
    };
    drop(raw);
    ended
}

/// On a thread of its own: nobody can be kept from waiting for the next key, and the process may end meanwhile.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, typed) = mpsc::channel(AHEAD);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match stdin().read(&mut buffer) {
                Ok(read @ 1..) if sender.blocking_send(buffer[..read].to_vec()).is_ok() => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    });
    typed
}

/// Gives on what is typed, and how large the window is, until the connection breaks.
async fn send(
    mut sink: impl Sink<Message, Error = WebSocketError> + Unpin,
    mut typed: mpsc::Receiver<Vec<u8>>,
    mut windows: Option<Signal>,
) -> Error {
    let mut open = true;
    let mut ping = tokio::time::interval(PING);
    let mut first = windows.as_ref().and_then(|_| window());
    loop {
        let changed = async {
            match &mut windows {
                Some(windows) => windows.recv().await,
                None => std::future::pending().await,
            }
        };
        let message = if let Some(first) = first.take() {
            first
        } else {
            tokio::select! {
                chunk = typed.recv(), if open => match chunk {
                    Some(chunk) => frame(STDIN, &chunk),
                    None => {
                        open = false;
                        frame(CLOSE, &[STDIN])
                    }
                },
                _ = changed => match window() {
                    Some(window) => window,
                    None => continue,
                },
                _ = ping.tick() => Message::Ping(Bytes::new()),
            }
        };
        if let Err(error) = sink.send(message).await {
            // What the other side said last may still have to be read.
            tokio::time::sleep(Duration::from_secs(5)).await;
            return Error::Websocket(error.to_string());
        }
    }
}

fn window() -> Option<Message> {
    let (columns, rows) = terminal::size()?;
    Some(frame(RESIZE, json!({ "Width": columns, "Height": rows }).to_string().as_bytes()))
}

fn frame(channel: u8, bytes: &[u8]) -> Message {
    Message::Binary([&[channel], bytes].concat().into())
}

/// Prints what the command says, until it says how it ended.
async fn show(mut frames: impl Stream<Item = Result<Message, WebSocketError>> + Unpin) -> Result<i32, Error> {
    while let Some(message) = frames.next().await {
        let frame = match message.map_err(|error| Error::Websocket(error.to_string()))? {
            Message::Binary(frame) => frame,
            Message::Close(_) => break,
            _ => continue,
        };
        match frame.split_first() {
            Some((&STDOUT, bytes)) => write(stdout(), bytes)?,
            Some((&STDERR, bytes)) => write(stderr(), bytes)?,
            Some((&STATUS, bytes)) => return exit_code(bytes),
            _ => {}
        }
    }
    Err(Error::Websocket("the connection ended before the command did".to_owned()))
}

/// Whoever reads our output may have what they want, and be gone.
fn write(mut out: impl Write, bytes: &[u8]) -> Result<(), Error> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.map_err(|source| Error::Write { path: "its output".into(), source }),
    }
}

fn exit_code(status: &[u8]) -> Result<i32, Error> {
    let status: Value = serde_json::from_slice(status).map_err(Error::Malformed)?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let message = status["message"].as_str().unwrap_or_default();
    let causes = status.pointer("/details/causes").and_then(Value::as_array);
    let code = causes.into_iter().flatten().find(|cause| cause["reason"] == "ExitCode");
    match code.and_then(|cause| cause["message"].as_str()?.parse().ok()) {
        Some(code) => {
            // What only repeats the code is nothing that the user has to read.
            if !message.is_empty() && !message.starts_with("command terminated with") {
                let _ = writeln!(stderr(), "error: {message}");
            }
            Ok(code)
        }
        None => Err(Error::Api { status: 500, title: message.to_owned(), details: String::new() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_read_from_the_status() {
        assert_eq!(exit_code(br#"{"metadata":{},"status":"Success"}"#).unwrap(), 0);
        let failed =
            br#"{"status":"Failure","reason":"NonZeroExitCode","message":"command terminated with exit code 7",
            "details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(exit_code(failed).unwrap(), 7);
        let lost = exit_code(br#"{"status":"Failure","reason":"InternalError","message":"the pod is gone"}"#);
        assert_eq!(lost.unwrap_err().to_string(), "the pod is gone");
        assert!(exit_code(b"oops").is_err());
    }
}
