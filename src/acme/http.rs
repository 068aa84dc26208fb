//! How an authority is spoken to: with a deadline for each request, and an ear for what the ACME library does not tell.

use std::{
    fs,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use jiff::{SignedDuration, Timestamp, fmt::rfc2822};

use super::{Directory, Error};

/// A client for one authority.
pub(super) struct Http {
    client: reqwest::Client,
    heard: Arc<Heard>,
}

/// What answers said beside their bodies.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// When to come again, of the last answer that was none.
    retry_after: Mutex<Option<Timestamp>>,
    /// How far the clock here is ahead of the authority's.
    ahead: Mutex<SignedDuration>,
}

/// For a request and its answer.
const DEADLINE: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(10);
/// What an answer may have, in bytes: a chain of certificates has some thousands.
const MOST: usize = 1 << 20;

impl Http {
    pub fn new(directory: &Directory) -> Result<Self, Error> {
        let mut builder = reqwest::Client::builder()
            .timeout(DEADLINE)
            .connect_timeout(CONNECT)
            .user_agent(concat!("epiniod/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none());
        if let Some(path) = &directory.ca_file {
            let doing = || format!("reading {}", path.display());
            let pem = fs::read(path).map_err(|error| Error::Key { doing: doing(), cause: error.to_string() })?;
            let roots = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|error| Error::Key { doing: doing(), cause: error.to_string() })?;
            builder = builder.tls_certs_only(roots);
        }
        let client = builder.build().map_err(|error| Error::Key {
            doing: "preparing to ask a certificate authority".to_owned(),
            cause: crate::telemetry::chain(&error),
        })?;
        Ok(Self { client, heard: Arc::default() })
    }

    pub fn heard(&self) -> Arc<Heard> {
        Arc::clone(&self.heard)
    }
}

impl Heard {
    /// When the last answer that was none said to come again.
    pub fn retry_after(&self) -> Option<Timestamp> {
        *self.retry_after.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the clock here is ahead of the authority's, to the second; negative where it is behind.
    pub fn clock_ahead(&self) -> SignedDuration {
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, answer: &reqwest::Response) {
        let text = |name| answer.headers().get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
        let now = Timestamp::now();
        let date = |text: &str| Some(rfc2822::parse(text).ok()?.timestamp());
        if let Some(theirs) = text(header::DATE).and_then(date) {
            *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = now.duration_since(theirs);
        }
        if answer.status().is_client_error() || answer.status().is_server_error() {
            let again = text(header::RETRY_AFTER).and_then(|text| match text.trim().parse::<u32>() {
                Ok(seconds) => Some(now + SignedDuration::from_secs(seconds.into())),
                Err(_) => date(text),
            });
            *self.retry_after.lock().unwrap_or_else(PoisonError::into_inner) = again;
        }
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let (client, heard) = (self.client.clone(), Arc::clone(&self.heard));
        Box::pin(async move { exchange(&client, &heard, request).await.map_err(instant_acme::Error::Other) })
    }
}

async fn exchange(
    client: &reqwest::Client,
    heard: &Heard,
    request: Request<BodyWrapper<Bytes>>,
) -> Result<BytesResponse, Box<dyn std::error::Error + Send + Sync>> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await;
    let mut answer =
        client.request(head.method, head.uri.to_string()).headers(head.headers).body(body.to_bytes()).send().await?;
    heard.hear(&answer);
    let mut response = http::Response::builder().status(answer.status());
    if let Some(headers) = response.headers_mut() {
        headers.extend(answer.headers().clone());
    }
    let mut content = BytesMut::new();
    while let Some(chunk) = answer.chunk().await? {
        if content.len() + chunk.len() > MOST {
            return Err(format!("its answer has more than {MOST} bytes").into());
        }
        content.extend_from_slice(&chunk);
    }
    Ok(BytesResponse::from(response.body(Full::new(content.freeze()))?))
}
