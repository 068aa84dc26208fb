//! The body of a request, as far as its client keeps to limits: so many bytes, and never silent for long.
//!
//! Time in all is not limited, as an upload may take as long as it moves. Where a client waits for `100 Continue`, nothing is
//! read of its body before the instance has said so, and an instance that refuses is heard without the body.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, Bytes};
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use tokio::{
    sync::Notify,
    time::{Sleep, sleep},
};

use super::pages::{self, Accept};
use crate::apps::Traffic;

/// What the body of a request has to keep to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub most_bytes: Option<u64>,
    /// How long nothing of it may come while somebody waits for it.
    pub silence: Option<Duration>,
}

/// Which limit a body did not keep to.
#[derive(Clone, Default)]
pub(super) struct Verdict(Option<Arc<AtomicU8>>);

const TOO_LARGE: u8 = 1;
const TOO_SLOW: u8 = 2;
/// How long an instance may take to say that it wants a body: curl does not wait longer either.
const CONTINUE: Duration = Duration::from_secs(1);

struct Checked {
    body: Body,
    limits: Limits,
    read: u64,
    traffic: Option<Arc<Traffic>>,
    silent: Option<Pin<Box<Sleep>>>,
    verdict: Verdict,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the body is larger than {0} bytes")]
    TooLarge(u64),
    #[error("nothing of the body arrived for {} s", .0.as_secs())]
    TooSlow(Duration),
}

impl Verdict {
    fn is(&self, reason: u8) {
        if let Some(verdict) = &self.0 {
            verdict.store(reason, Ordering::Relaxed);
        }
    }
}

impl Limits {
    /// The same request, held to the limits; an answer where it says itself that it does not keep to them.
    pub fn check(
        self,
        request: Request<Body>,
        accept: &Accept,
        traffic: Option<&Arc<Traffic>>,
    ) -> Result<(Request<Body>, Verdict), Box<Response<Body>>> {
        if http_body::Body::is_end_stream(request.body()) {
            return Ok((request, Verdict::default()));
        }
        if let Some(most) = self.most_bytes
            && http_body::Body::size_hint(request.body()).lower() > most
        {
            return Err(Box::new(pages::too_large(accept, most)));
        }
        let kept = Verdict(Some(Arc::default()));
        let (verdict, traffic) = (kept.clone(), traffic.cloned());
        let request =
            request.map(|body| Body::new(Checked { body, limits: self, read: 0, traffic, silent: None, verdict }));
        Ok((request, kept))
    }

    /// What is answered where a body was given up, and its request with it.
    pub fn answer(self, verdict: &Verdict, response: Response<Body>, accept: &Accept) -> Response<Body> {
        let verdict = verdict.0.as_ref().map(|verdict| verdict.load(Ordering::Relaxed));
        match (verdict, self.most_bytes, self.silence) {
            (Some(TOO_LARGE), Some(most), _) => pages::too_large(accept, most),
            (Some(TOO_SLOW), _, Some(silence)) => pages::too_slow(accept, silence),
            _ => response,
        }
    }
}

impl http_body::Body for Checked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
            let Some(silence) = this.limits.silence else { return Poll::Pending };
            let silent = this.silent.get_or_insert_with(|| Box::pin(sleep(silence)));
            ready!(silent.as_mut().poll(context));
            this.verdict.is(TOO_SLOW);
            return Poll::Ready(Some(Err(axum::Error::new(Error::TooSlow(silence)))));
        };
        this.silent = None;
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            this.read += data.len() as u64;
            if let Some(most) = this.limits.most_bytes.filter(|most| this.read > *most) {
                this.verdict.is(TOO_LARGE);
                return Poll::Ready(Some(Err(axum::Error::new(Error::TooLarge(most)))));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Checked {
    fn drop(&mut self) {
        if let Some(traffic) = &self.traffic {
            traffic.received(self.read);
        }
    }
}

/// A body that is not read before it is wanted.
struct Held {
    wanted: Option<BoxFuture<'static, ()>>,
    body: Body,
}

/// Makes a client wait until the instance says that it wants the body, or takes long to say so.
pub(super) fn hold(request: Request<Body>) -> Request<Body> {
    let expects = request.headers().get(header::EXPECT).map(HeaderValue::as_bytes);
    if !expects.is_some_and(|expects| expects.eq_ignore_ascii_case(b"100-continue")) {
        return request;
    }
    let said = Arc::new(Notify::new());
    let heard = Arc::clone(&said);
    let wanted = Box::pin(async move {
        let _ = tokio::time::timeout(CONTINUE, heard.notified()).await;
    });
    let mut request = request.map(|body| Body::new(Held { wanted: Some(wanted), body }));
    hyper::ext::on_informational(&mut request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            said.notify_one();
        }
    });
    request
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(wanted) = &mut self.wanted {
            ready!(wanted.as_mut().poll(context));
            self.wanted = None;
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
