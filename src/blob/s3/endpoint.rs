//! The other end: requests are signed, sent within a deadline, and repeated where that may help.
//!
//! Whatever S3 does here is the same when it is done twice, so every request may be repeated: after a connection that broke, and
//! after an answer that says "later". Nobody is followed to another address. What stands still is given up; what is only slow is not.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use ::s3::region::Region;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue,
    header::{CONTENT_LENGTH, HeaderName},
};
use http_body::{Body, Frame, SizeHint};
use reqwest::{Certificate, Client, Method, Response, StatusCode, Url, redirect::Policy};

use super::{
    super::{Error, while_moving},
    answer::{Failure, Said},
    keys::{KeySource, Keys},
    sign::sign,
};
use crate::model::Digest;

/// Which bucket, where, and with which keys.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// A URL: scheme, host, perhaps a port.
    pub endpoint: String,
    pub bucket: String,
    pub region: String,
    /// Authorities that the endpoint's certificate is checked with, instead of those of this machine.
    pub ca_file: Option<PathBuf>,
    pub keys: KeySource,
}

/// The HTTP side of a bucket.
pub(super) struct Endpoint {
    client: Client,
    pub settings: S3Settings,
    region: Region,
    base: Url,
    keys: RwLock<Keys>,
}

/// A request before it is signed.
pub(super) struct Call {
    method: Method,
    key: String,
    query: Vec<(&'static str, String)>,
    headers: HeaderMap,
    body: Bytes,
    /// Hexadecimal; of the body.
    hash: String,
    /// How long nothing may happen.
    patience: Duration,
    /// For messages.
    pub doing: String,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Without a byte in either direction.
pub(super) const SILENCE: Duration = Duration::from_secs(20);
/// What the other end does alone, a copy say, takes it a while.
const LONG_SILENCE: Duration = Duration::from_secs(300);
const ATTEMPTS: u32 = 5;
/// Before the second attempt; doubles for each further one.
const DELAY: Duration = Duration::from_millis(250);
/// After this no attempt begins: who waits should know.
const GIVE_UP: Duration = Duration::from_secs(30);
/// Bodies go out in pieces of this, so that it shows whether they move, in bytes.
const PIECE: usize = 64 * 1024;
/// The longest answer in XML that is read, in bytes: a page of a list has 1000 keys.
const MAX_TEXT: usize = 4 << 20;
/// Connections that are kept for the next request.
const IDLE_CONNECTIONS: usize = 8;

impl Call {
    fn new(method: Method, key: &str, doing: &str) -> Self {
        Self {
            method,
            key: key.to_owned(),
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            hash: Digest::of("").hex(),
            patience: SILENCE,
            doing: doing.to_owned(),
        }
    }

    pub fn get(key: &str, doing: &str) -> Self {
        Self::new(Method::GET, key, doing)
    }

    pub fn head(key: &str, doing: &str) -> Self {
        Self::new(Method::HEAD, key, doing)
    }

    pub fn delete(key: &str, doing: &str) -> Self {
        Self::new(Method::DELETE, key, doing)
    }

    pub fn put(key: &str, doing: &str) -> Self {
        Self::new(Method::PUT, key, doing)
    }

    pub fn post(key: &str, doing: &str) -> Self {
        Self::new(Method::POST, key, doing)
    }

    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.query.push((name, value.to_string()));
        self
    }

    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// With a digest that is known already.
    pub fn body(mut self, body: Bytes, digest: &Digest) -> Self {
        self.body = body;
        self.hash = digest.hex();
        self
    }

    pub fn patient(mut self) -> Self {
        self.patience = LONG_SILENCE;
        self
    }
}

impl Endpoint {
    pub fn new(settings: S3Settings) -> Result<Self, Error> {
        let refused = |why: String| Error::Refused { doing: "opening the object storage".to_owned(), why };
        // The one provider of the process; another room may have been first, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .user_agent(concat!("epiniod/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(Policy::none())
            .pool_max_idle_per_host(IDLE_CONNECTIONS);
        if let Some(path) = &settings.ca_file {
            let pem = std::fs::read(path).map_err(|error| error.to_string());
            let parsed = pem.and_then(|pem| Certificate::from_pem_bundle(&pem).map_err(|error| error.to_string()));
            let wrong = |why| refused(format!("{} (--s3-ca-file) cannot be used: {why}", path.display()));
            builder = builder.tls_certs_only(parsed.map_err(wrong)?);
        }
        let client = builder.build().map_err(|error| refused(error.to_string()))?;
        let base = format!("{}/{}/", settings.endpoint.trim_end_matches('/'), settings.bucket);
        let base = base.parse().map_err(|error| refused(format!("'{base}' is not a URL: {error}")))?;
        let region = Region::Custom { region: settings.region.clone(), endpoint: settings.endpoint.clone() };
        let keys = RwLock::new(settings.keys.read().map_err(refused)?);
        Ok(Self { client, settings, region, base, keys })
    }

    /// The answer, as it begins; none when there is no such object.
    pub async fn stream(&self, call: Call) -> Result<Option<Response>, Error> {
        self.repeat(call, async |response| Ok(response)).await
    }

    /// The whole of an answer that is short; none when there is no such object.
    pub async fn text(&self, call: Call) -> Result<Option<String>, Error> {
        self.repeat(call, |response| read_text(response, LONG_SILENCE)).await
    }

    /// Attempts, until one succeeds, or says that others would not.
    async fn repeat<T>(
        &self,
        call: Call,
        read: impl AsyncFn(Response) -> Result<T, Failure>,
    ) -> Result<Option<T>, Error> {
        let begun = Instant::now();
        let (mut attempt, mut renewed) = (1, false);
        loop {
            let result = match self.attempt(&call).await {
                Ok(response) => read(response).await,
                Err(failure) => Err(failure),
            };
            let failure = match result {
                Ok(value) => return Ok(Some(value)),
                Err(failure) => failure,
            };
            if failure.is_missing(call.method == Method::HEAD) {
                return Ok(None);
            }
            if failure.is_about_keys() && !renewed && self.renew_keys() {
                renewed = true;
                continue;
            }
            if !failure.is_temporary() || attempt == ATTEMPTS || begun.elapsed() > GIVE_UP {
                return Err(failure.into_error(call.doing, &self.settings));
            }
            tracing::debug!(doing = call.doing, attempt, %failure, "repeating a request to the object storage");
            tokio::time::sleep(DELAY * 2_u32.pow(attempt - 1)).await;
            attempt += 1;
        }
    }

    async fn attempt(&self, call: &Call) -> Result<Response, Failure> {
        let mut url = self.base.join(&call.key).map_err(|error| Failure::Unsendable(error.to_string()))?;
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        let mut headers = call.headers.clone();
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        sign(&call.method, &url, &mut headers, &call.hash, &self.region, &keys)
            .map_err(|error| Failure::Unsendable(error.to_string()))?;
        let sent = Arc::new(AtomicU64::new(0));
        let mut request = self.client.request(call.method.clone(), url).headers(headers);
        if call.method == Method::PUT || call.method == Method::POST {
            let body = Pieces { rest: call.body.clone(), sent: Arc::clone(&sent) };
            // Also of nothing: AWS wants to be told.
            request = request.header(CONTENT_LENGTH, call.body.len()).body(reqwest::Body::wrap(body));
        }
        let response = while_moving(request.send(), &sent, call.patience).await;
        let response = response.ok_or(Failure::Silent(call.patience))?.map_err(Failure::Transport)?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(Failure::Said(Said::read(response).await))
    }

    /// Whether there are other keys now.
    fn renew_keys(&self) -> bool {
        let Ok(new) = self.settings.keys.read() else { return false };
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let changed = *keys != new;
        *keys = new;
        changed
    }
}

/// A short body. One that S3 begins before it knows how a copy ends may have an error in it.
pub(super) async fn read_text(mut response: Response, patience: Duration) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    loop {
        let chunk = tokio::time::timeout(patience, response.chunk()).await;
        let Some(chunk) = chunk.map_err(|_| Failure::Silent(patience))?.map_err(Failure::Transport)? else { break };
        if bytes.len() + chunk.len() > MAX_TEXT {
            return Err(Failure::Unreadable("it is longer than 4 MiB".to_owned()));
        }
        bytes.extend_from_slice(&chunk);
    }
    let text = String::from_utf8(bytes).map_err(|error| Failure::Unreadable(error.to_string()))?;
    match Said::parse(StatusCode::OK, &text) {
        Some(said) => Err(Failure::Said(said)),
        None => Ok(text),
    }
}

/// A body that counts what of it was taken.
struct Pieces {
    rest: Bytes,
    sent: Arc<AtomicU64>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let piece = self.rest.len().min(PIECE);
        self.sent.fetch_add(piece as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
