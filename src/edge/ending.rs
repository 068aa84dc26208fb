//! A body that tells somebody when it has ended, however it did, and how much of it there was.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::Bytes;
use http_body::{Body, Frame, SizeHint};

pub(super) struct Ending<B, F: FnOnce(u64)> {
    body: B,
    bytes: u64,
    tell: Option<F>,
}

impl<B, F: FnOnce(u64)> Ending<B, F> {
    /// `tell` gets the number of bytes.
    pub fn new(body: B, tell: F) -> Self {
        Self { body, bytes: 0, tell: Some(tell) }
    }
}

impl<B: Body<Data = Bytes> + Unpin, F: FnOnce(u64) + Unpin> Body for Ending<B, F> {
    type Data = Bytes;
    type Error = B::Error;

    /// Frames as they are: data, and trailers.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.bytes += data.len() as u64;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B, F: FnOnce(u64)> Drop for Ending<B, F> {
    fn drop(&mut self) {
        if let Some(tell) = self.tell.take() {
            tell(self.bytes);
        }
    }
}
