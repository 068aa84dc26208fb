//! A command in an instance by websocket, in the protocol of Kubernetes' remote commands, which is Epinio's.
//!
//! Every frame begins with its channel: stdin, stdout, stderr, how it ended, the size of the terminal; version 5 adds the end
//! of a channel. Clients of Epinio offer different versions of it: the command line 5, its page the one with base64.

use std::{collections::HashMap, pin::pin, time::Duration};

use axum::{
    extract::{
        Path, Query, State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _, future::BoxFuture, stream::SplitStream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};

use super::{ApiError, ApiState, applications::find, credential::Caller, websocket};
use crate::{
    model::channel::{CLOSE, RESIZE, STATUS, STDERR, STDIN, STDOUT},
    runtime::{Error, Exit, Reader, Session, Terminal, TerminalSize, Writer},
    telemetry::chain,
};

/// From the newest to the oldest.
const PROTOCOLS: [&str; 4] = ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"];

/// The output in one frame, in bytes.
const CHUNK_BYTES: usize = 32 << 10;
/// Frames that wait for a slow client.
const AHEAD: usize = 4;
/// How often a connection without output shows that it lives.
const PING: Duration = Duration::from_secs(30);
/// How long output may pause after the end of a command: what it left running may hold its output for ever.
const REST: Duration = Duration::from_millis(500);

/// Parameters: `instance`, `tty`, and `command` for each word of it (ours; without it a shell is started).
pub(super) async fn exec(
    State(state): State<ApiState>,
    Path(path): Path<(String, String)>,
    Query(parameters): Query<Vec<(String, String)>>,
    caller: Caller,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let words = parameters.iter().filter(|(name, _)| name == "command").map(|(_, word)| word.clone()).collect();
    let single: HashMap<&str, &str> = parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let given = |name: &str| single.get(name).copied().filter(|value| !value.is_empty());
    let terminal = match given("tty") {
        None | Some("0" | "false") => Terminal::None,
        Some("1" | "true") => Terminal::Own,
        Some(_) => return Err(ApiError::bad_request("bad value of query parameter 'tty'")),
    };
    let app = find(&state, &path).await?;
    // Not what it is: commands have secrets in them.
    tracing::info!(app.name = %app.name, app.namespace = %app.namespace, user = %caller.0.name, "a command is run in an instance");
    let session = state.apps.exec(&app, given("instance"), words, terminal).await?;
    Ok(upgrade.protocols(PROTOCOLS).on_upgrade(move |socket| talk(socket, session)))
}

/// How frames are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// Binary frames; the end is told as text, when it was a failure.
    Plain,
    /// The same, in base64, behind the channel as a digit.
    Base64,
    /// Binary frames; the end is told as a `Status`.
    Status,
}

impl Protocol {
    fn of(name: Option<&str>) -> Self {
        match name {
            Some("v5.channel.k8s.io" | "v4.channel.k8s.io") => Self::Status,
            Some("base64.channel.k8s.io") => Self::Base64,
            _ => Self::Plain,
        }
    }

    fn frame(self, channel: u8, bytes: &[u8]) -> Message {
        if self == Self::Base64 {
            return Message::Text(format!("{channel}{}", STANDARD.encode(bytes)).into());
        }
        let mut frame = BytesMut::with_capacity(bytes.len() + 1);
        frame.put_u8(channel);
        frame.put_slice(bytes);
        Message::Binary(frame.freeze())
    }

    /// The channel of a frame, and what it says; nothing when it is not one of these.
    fn read(self, message: Message) -> Option<(u8, Bytes)> {
        match message {
            Message::Binary(bytes) => Some((*bytes.first()?, bytes.slice(1..))),
            Message::Text(text) => {
                let channel = text.as_bytes().first()?.checked_sub(b'0')?;
                let rest = text.get(1..)?;
                let bytes = if self == Self::Base64 { STANDARD.decode(rest).ok()? } else { rest.as_bytes().to_vec() };
                Some((channel, bytes.into()))
            }
            _ => None,
        }
    }

    /// How it ended.
    fn status(self, ended: Result<Exit, Error>) -> Option<Message> {
        let (code, message) = match ended {
            Ok(Exit { code: 0, .. }) if self != Self::Status => return None,
            Ok(Exit { code, message }) => (Some(code), message),
            Err(error) => (None, Some(chain(&error))),
        };
        let text = message.unwrap_or_else(|| format!("command terminated with exit code {}", code.unwrap_or(1)));
        if self != Self::Status {
            return Some(self.frame(STATUS, text.as_bytes()));
        }
        Some(self.frame(STATUS, status(code, &text).to_string().as_bytes()))
    }
}

/// As the API server of Kubernetes has it.
fn status(code: Option<i32>, message: &str) -> Value {
    match code {
        Some(0) => json!({ "metadata": {}, "status": "Success" }),
        Some(code) => json!({
            "metadata": {},
            "status": "Failure",
            "reason": "NonZeroExitCode",
            "message": message,
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        None => {
            json!({ "metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500 })
        }
    }
}

/// Until the command has ended and its output was sent, or the client is gone, with whom the command goes.
async fn talk(socket: WebSocket, session: Session) {
    let protocol = Protocol::of(socket.protocol().and_then(|name| name.to_str().ok()));
    let (mut sink, mut frames) = socket.split();
    let Session { stdin, stdout, stderr, resize, ended } = session;
    let (sender, mut output) = mpsc::channel(AHEAD);
    let said = speak(protocol, stdout, stderr, ended, sender);
    let heard = listen(protocol, &mut frames, stdin, resize);
    let sent = async {
        let mut ping = tokio::time::interval(PING);
        loop {
            let message = tokio::select! {
                message = output.recv() => match message {
                    Some(message) => message,
                    None => return true,
                },
                _ = ping.tick() => Message::Ping(Bytes::new()),
            };
            if sink.send(message).await.is_err() {
                return false;
            }
        }
    };
    let to_the_end = {
        let (mut said, mut heard, mut sent) = (pin!(said), pin!(heard), pin!(sent));
        let mut speaking = true;
        loop {
            tokio::select! {
                () = &mut said, if speaking => speaking = false,
                () = &mut heard => break false,
                whole = &mut sent => break whole,
            }
        }
    };
    if to_the_end && let Ok(socket) = frames.reunite(sink) {
        // Clients take any other end for a failure.
        let end = CloseFrame { code: close_code::NORMAL, reason: "".into() };
        websocket::close(socket, Some(end)).await;
    }
}

/// What a client says. It ends when the client is gone.
async fn listen(
    protocol: Protocol,
    frames: &mut SplitStream<WebSocket>,
    mut stdin: Writer,
    mut resize: Box<dyn FnMut(TerminalSize) + Send>,
) {
    while let Some(Ok(message)) = frames.next().await {
        if matches!(message, Message::Close(_)) {
            return;
        }
        // Commands need not read what they are told, and may end any time: that is no reason to end the conversation.
        match protocol.read(message) {
            Some((STDIN, bytes)) if !bytes.is_empty() => {
                let _ = stdin.write_all(&bytes).await;
                let _ = stdin.flush().await;
            }
            Some((CLOSE, channel)) if channel[..] == [STDIN] => {
                let _ = stdin.shutdown().await;
                stdin = Box::new(tokio::io::sink());
            }
            Some((RESIZE, size)) => {
                if let Ok(Size { width, height }) = serde_json::from_slice(&size) {
                    resize(TerminalSize { columns: width, rows: height });
                }
            }
            _ => {}
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// What a command says, and last how it ended.
async fn speak(
    protocol: Protocol,
    stdout: Reader,
    stderr: Reader,
    ended: BoxFuture<'static, Result<Exit, Error>>,
    sender: mpsc::Sender<Message>,
) {
    let over = tokio_util::sync::CancellationToken::new();
    let wait = async {
        let ended = ended.await;
        over.cancel();
        ended
    };
    let out = carry(protocol, STDOUT, stdout, &sender, &over);
    let err = carry(protocol, STDERR, stderr, &sender, &over);
    let (ended, ..) = tokio::join!(wait, out, err);
    if let Some(status) = protocol.status(ended) {
        // A client that is gone needs no answer.
        let _ = sender.send(status).await;
    }
}

/// Until the stream ends, or pauses after the command has ended.
async fn carry(
    protocol: Protocol,
    channel: u8,
    mut from: Reader,
    to: &mpsc::Sender<Message>,
    over: &tokio_util::sync::CancellationToken,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let rest = async {
            over.cancelled().await;
            tokio::time::sleep(REST).await;
        };
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            () = rest => return,
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                if to.send(protocol.frame(channel, &buffer[..read])).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_as_each_version_has_it() {
        let exit = |code| Ok(Exit { code, message: None });
        let frame = |text: &str| Some(Message::Binary([&[STATUS], text.as_bytes()].concat().into()));
        assert_eq!(Protocol::Status.status(exit(0)), frame(r#"{"metadata":{},"status":"Success"}"#));
        let Some(Message::Binary(failed)) = Protocol::Status.status(exit(3)) else { panic!("a binary frame") };
        let failed: Value = serde_json::from_slice(&failed[1..]).unwrap();
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"], json!([{ "reason": "ExitCode", "message": "3" }]));
        assert_eq!(Protocol::Plain.status(exit(0)), None);
        assert_eq!(Protocol::Plain.status(exit(3)), frame("command terminated with exit code 3"));
        let lost = Error::NotRunning("shop-1-0".to_owned());
        let Some(Message::Binary(lost)) = Protocol::Status.status(Err(lost)) else { panic!("a binary frame") };
        assert!(String::from_utf8_lossy(&lost).contains("shop-1-0 does not run"));
    }

    #[test]
    fn frames_have_their_channel_first() {
        assert_eq!(Protocol::Status.frame(STDOUT, b"hi"), Message::Binary(vec![1, b'h', b'i'].into()));
        assert_eq!(Protocol::Base64.frame(STDERR, b"hi"), Message::Text("2aGk=".into()));
        for (protocol, message) in [
            (Protocol::Status, Message::Binary(vec![0, b'h', b'i'].into())),
            (Protocol::Base64, Message::Text("0aGk=".into())),
        ] {
            assert_eq!(protocol.read(message), Some((STDIN, Bytes::from_static(b"hi"))));
        }
        for nothing in [Message::Binary(Bytes::new()), Message::Text("".into()), Message::Text("0&".into())] {
            assert_eq!(Protocol::Base64.read(nothing), None);
        }
    }
}
