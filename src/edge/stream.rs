//! The bytes of a connection: what was read of it already comes first, and a client that takes nothing for too long is given up.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

pub(super) struct Stream<S> {
    below: S,
    /// What is to be read once more, from `at` on.
    read: Vec<u8>,
    at: usize,
    /// How long nothing may go out while something waits to.
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncWrite + Unpin> Stream<S> {
    pub fn new(below: S, patience: Duration) -> Self {
        Self { below, read: Vec::new(), at: 0, patience, waiting: None }
    }

    /// The same, before it was read.
    pub fn rewound(self, read: Vec<u8>) -> Self {
        Self { read, at: 0, ..self }
    }

    /// What came of writing, unless nothing did for too long.
    fn waited<T>(&mut self, polled: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
        waiting.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.read.is_empty() {
            return Pin::new(&mut this.below).poll_read(context, into);
        }
        let count = into.remaining().min(this.read.len() - this.at);
        into.put_slice(&this.read[this.at..this.at + count]);
        this.at += count;
        if this.at == this.read.len() {
            this.read = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.below).poll_write(context, from);
        self.waited(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.below).poll_write_vectored(context, from);
        self.waited(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.below.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.below).poll_flush(context);
        self.waited(polled, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.below).poll_shutdown(context);
        self.waited(polled, context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn what_was_read_is_read_once_more() {
        let (mut client, stream) = duplex(16);
        let mut stream = Stream::new(stream, Duration::MAX).rewound(b"GET ".to_vec());
        client.write_all(b"/").await.unwrap();
        let mut text = [0; 5];
        stream.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"GET /");
    }

    #[tokio::test]
    async fn who_takes_nothing_is_given_up() {
        let (mut client, stream) = duplex(1);
        let mut stream = Stream::new(stream, Duration::from_millis(50));
        stream.write_all(b"a").await.unwrap();
        let (written, read) = tokio::join!(stream.write_all(b"b"), client.read_u8());
        written.unwrap();
        assert_eq!(read.unwrap(), b'a');
        assert!(stream.waiting.is_none(), "it starts anew when something went out");
        assert_eq!(stream.write_all(b"c").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
