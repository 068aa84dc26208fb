//! Our end of a pseudo terminal.

use std::{
    io,
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use nix::{errno::Errno, unistd};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

use super::sys;
use crate::runtime::TerminalSize;

/// What a terminal takes for the end of its input at the beginning of a line.
const END_OF_FILE: u8 = 4;

/// What is typed, and what is shown.
#[derive(Clone)]
pub(super) struct Terminal {
    master: Arc<AsyncFd<OwnedFd>>,
    /// The last thing typed.
    last: u8,
}

impl Terminal {
    /// The descriptor must not block.
    pub fn new(master: OwnedFd) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        // SAFETY: the descriptor is owned by what is made of it, and is never taken out or closed before that goes.
        let master = unsafe { AsyncFd::register_with_interest(master, interest) }?;
        Ok(Self { master: Arc::new(master), last: b'\n' })
    }

    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        sys::resize(self.master.get_ref(), size.columns, size.rows)
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.master.poll_read_ready(context))?;
            let read = guard.try_io(|master| Ok(unistd::read(master.get_ref(), buffer.initialize_unfilled())?));
            match read {
                Ok(Ok(read)) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                // Nobody has the other end any more.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::EIO as i32) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.master.poll_write_ready(context))?;
            if let Ok(written) = guard.try_io(|master| Ok(unistd::write(master.get_ref(), bytes)?)) {
                drop(guard);
                if let Ok(count @ 1..) = written {
                    self.last = bytes[count - 1];
                }
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A terminal has no end: it is typed. In the middle of a line the first one only gives on what the line has so far.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !matches!(self.last, b'\n' | b'\r' | END_OF_FILE) {
            ready!(self.as_mut().poll_write(context, &[END_OF_FILE]))?;
        }
        ready!(self.poll_write(context, &[END_OF_FILE]))?;
        Poll::Ready(Ok(()))
    }
}
