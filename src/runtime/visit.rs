//! What goes on in an instance beside its program: a command of somebody who looks inside, a connection to a port.
//!
//! Both are streams of bytes, so that no protocol of a place where things run leaves it. Whoever drops one ends it.

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Error;

/// A command to run beside the program of an instance: with its files, environment, limits, and as its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The program, which is looked up in `PATH`, and its arguments.
    pub words: Vec<String>,
    pub terminal: Terminal,
}

/// What a command talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Terminal {
    /// Three pipes.
    None,
    /// A terminal of its own: shells edit lines, and what it prints is one stream.
    Own,
}

/// In characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// A command that runs.
pub struct Session {
    /// Shutting it down ends the command's input; dropping it may not.
    pub stdin: Writer,
    pub stdout: Reader,
    /// Empty where there is a terminal.
    pub stderr: Reader,
    /// Without a terminal it does nothing.
    pub resize: Box<dyn FnMut(TerminalSize) + Send>,
    /// Whoever drops this ends the command. The output may have something left when it is ready.
    pub ended: BoxFuture<'static, Result<Exit, Error>>,
}

pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// How a command ended, as a shell says it: 127 was not found, 126 cannot be run, 128 and more was a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub code: i32,
    /// What there is to say about it that the command did not say itself.
    pub message: Option<String>,
}

/// A connection to a port.
pub type Connection = Box<dyn ReadWrite>;

/// Bytes both ways.
pub trait ReadWrite: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ReadWrite for T {}

/// Where a command could not be found.
pub const NOT_FOUND: i32 = 127;
/// It is there, and could not be started.
pub const CANNOT_RUN: i32 = 126;
