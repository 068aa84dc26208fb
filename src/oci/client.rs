//! A client of registries, for the phases of the lifecycle.
//!
//! Reading and small writes go through `oci_distribution`. Layers are written in a session of our own: their
//! digest is known only when their last byte is out, which that crate cannot do.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use oci_distribution::{
    Client as Distribution, Reference, RegistryOperation,
    client::{ClientConfig, ClientProtocol},
    errors::OciDistributionError,
    secrets::RegistryAuth,
};
use tokio::io::AsyncWrite;

use super::{
    layer::{Compression, Layer, LayerWriter},
    manifest::{ConfigFile, Descriptor, MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Manifest},
};
use crate::{blob::while_moving, model::Digest};

/// How long a registry may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// How long about a layer, while nothing of it is on its way: its object storage may have to copy it.
const LAYER_SILENCE: Duration = Duration::from_secs(330);
/// How long it may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// One that is gone without a word is noticed after a few of these.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVES: u32 = 4;
/// So long what is sent may not be taken: whoever takes it may wait for its object storage.
const UNTAKEN: Duration = Duration::from_secs(60);
/// How many steps of a compressed layer may wait for the network.
const QUEUE: usize = 8;
/// How much compressed data goes out at once, in bytes.
const STEP: usize = 256 * 1024;

/// A registry that is reached by plain HTTP.
pub struct Client {
    address: String,
    token: String,
    distribution: Distribution,
    http: reqwest::Client,
}

impl Client {
    /// `address` is `host:port`; the token goes with every request.
    pub fn new(address: &str, token: &str) -> Result<Self, Error> {
        let config = ClientConfig {
            protocol: ClientProtocol::Http,
            read_timeout: Some(SILENCE),
            connect_timeout: Some(CONNECT),
            ..ClientConfig::default()
        };
        let distribution = Distribution::try_from(config)
            .map_err(|source| Error::Registry { doing: "starting".to_owned(), source })?;
        // Each request has a deadline of its own: the answer to a layer comes after its last byte.
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT)
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE)
            .tcp_keepalive_retries(KEEPALIVES)
            .tcp_user_timeout(UNTAKEN)
            .build()
            .map_err(|source| Error::Http { doing: "starting".to_owned(), source })?;
        Ok(Self { address: address.to_owned(), token: token.to_owned(), distribution, http })
    }

    /// None when there is no such manifest.
    pub async fn manifest(&self, repository: &str, reference: &str) -> Result<Option<(Digest, Manifest)>, Error> {
        let image = self.reference(repository, reference).await?;
        let auth = self.auth();
        let accepted = [MEDIA_TYPE_MANIFEST, MEDIA_TYPE_INDEX];
        match self.distribution.pull_manifest_raw(&image, &auth, &accepted).await {
            Ok((bytes, _)) => {
                let doing = || format!("reading manifest {repository}:{reference}");
                let manifest =
                    serde_json::from_slice(&bytes).map_err(|source| Error::Malformed { doing: doing(), source })?;
                Ok(Some((Digest::of(&bytes), manifest)))
            }
            Err(error) if is_not_found(&error) => Ok(None),
            Err(source) => Err(Error::Registry { doing: format!("reading manifest {repository}:{reference}"), source }),
        }
    }

    /// The configuration of an image.
    pub async fn config(&self, repository: &str, manifest: &Manifest) -> Result<ConfigFile, Error> {
        let mut bytes = Vec::new();
        self.pull_blob(repository, &manifest.config, &mut bytes).await?;
        let doing = || format!("reading the configuration of an image in {repository}");
        serde_json::from_slice(&bytes).map_err(|source| Error::Malformed { doing: doing(), source })
    }

    /// Streams a blob; its digest is checked.
    pub async fn pull_blob(&self, repository: &str, blob: &Descriptor, sink: impl AsyncWrite) -> Result<(), Error> {
        let image = self.reference(repository, &blob.digest.to_string()).await?;
        let digest = blob.digest.to_string();
        let pulled = self.distribution.pull_blob(&image, digest.as_str(), sink).await;
        pulled.map_err(|source| Error::Registry { doing: format!("reading blob {digest} of {repository}"), source })
    }

    pub async fn has_blob(&self, repository: &str, digest: &Digest) -> Result<bool, Error> {
        let url = format!("http://{}/v2/{repository}/blobs/{digest}", self.address);
        let mut response = self.send(self.http.head(url), "looking for a blob").await?;
        if is_of_absence(response.status().as_u16()) {
            response = succeeded(response, "looking for a blob").await?;
        }
        Ok(response.status().is_success())
    }

    /// Lets a repository have a blob of another one; false when that cannot be done.
    pub async fn mount(&self, repository: &str, from: &str, digest: &Digest) -> Result<bool, Error> {
        let url = format!("http://{}/v2/{repository}/blobs/uploads/?mount={digest}&from={from}", self.address);
        let mut response = self.send(self.http.post(url), "mounting a blob").await?;
        if response.status() == reqwest::StatusCode::NOT_FOUND || is_of_absence(response.status().as_u16()) {
            response = succeeded(response, "mounting a blob").await?;
        }
        if response.status() == reqwest::StatusCode::ACCEPTED {
            // It opened an upload instead, which nobody needs.
            let location = self.location(&response)?;
            self.send(self.http.delete(location), "closing an upload").await?;
        }
        Ok(response.status() == reqwest::StatusCode::CREATED)
    }

    pub async fn push_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Result<Digest, Error> {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        let image = self.reference(repository, &digest.to_string()).await?;
        let pushed = self.distribution.push_blob(&image, bytes, &digest.to_string()).await;
        pushed.map_err(|source| Error::Registry { doing: format!("writing a blob to {repository}"), source })?;
        Ok(digest)
    }

    /// Writes a layer in one pass. `write` gives the bytes of a tar, on a thread of its own; they are hashed,
    /// compressed, hashed again and sent as they come.
    pub async fn push_layer(
        &self,
        repository: &str,
        compression: Compression,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> Result<Layer, Error> {
        let doing = || format!("writing a layer to {repository}");
        let local = |source| Error::Layer { doing: doing(), source };
        let start = self.http.post(format!("http://{}/v2/{repository}/blobs/uploads/", self.address));
        let session = self.location(&self.accepted(start, &doing()).await?)?;

        let (sender, receiver) = futures::channel::mpsc::channel::<io::Result<Bytes>>(QUEUE);
        let worker = tokio::task::spawn_blocking(move || {
            let mut layer = LayerWriter::new(compression, Channel { sender, buffer: Vec::with_capacity(STEP) })?;
            write(&mut layer)?;
            let (layer, mut channel) = layer.finish()?;
            channel.send()?;
            Ok::<_, io::Error>(layer)
        });
        // The two halves end each other: a worker that fails closes the body, a request that fails closes the channel.
        let steps = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&steps);
        let body = reqwest::Body::wrap_stream(receiver.inspect(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        let patch = self.http.patch(session).header("Content-Type", "application/octet-stream").body(body);
        let sent = self.accepted_layer(patch, &steps, &doing()).await;
        let written = worker.await.map_err(io::Error::other).and_then(|layer| layer);
        // A registry that refuses breaks the pipe of the writer: its answer is the cause.
        let (sent, layer) = match (sent, written) {
            (Err(refused), Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Err(refused),
            (sent, written) => (sent, written.map_err(local)?),
        };
        let session = self.location(&sent?)?;
        let separator = if session.contains('?') { '&' } else { '?' };
        let finish =
            self.http.put(format!("{session}{separator}digest={}", layer.blob.digest)).header("Content-Length", 0);
        self.accepted_layer(finish, &steps, &doing()).await?;
        Ok(layer)
    }

    /// Writes a manifest under a tag; returns its digest.
    pub async fn push_manifest(&self, repository: &str, tag: &str, manifest: &Manifest) -> Result<Digest, Error> {
        let doing = || format!("writing manifest {repository}:{tag}");
        let bytes = serde_json::to_vec(manifest).map_err(|source| Error::Malformed { doing: doing(), source })?;
        let digest = Digest::of(&bytes);
        let image = self.reference(repository, tag).await?;
        let media_type = http::HeaderValue::from_static(MEDIA_TYPE_MANIFEST);
        let pushed = self.distribution.push_manifest_raw(&image, bytes, media_type).await;
        pushed.map_err(|source| Error::Registry { doing: doing(), source })?;
        Ok(digest)
    }

    /// A reference, with the credential stored for it.
    async fn reference(&self, repository: &str, reference: &str) -> Result<Reference, Error> {
        let (host, name) = (self.address.clone(), repository.to_owned());
        let image = match reference.contains(':') {
            true => Reference::with_digest(host, name, reference.to_owned()),
            false => Reference::with_tag(host, name, reference.to_owned()),
        };
        self.distribution.store_auth_if_needed(image.resolve_registry(), &self.auth()).await;
        // This registry takes the credential as it is; the exchange for a token only has to be noted.
        let noted = self.distribution.auth(&image, &self.auth(), RegistryOperation::Push).await;
        noted.map_err(|source| Error::Registry { doing: format!("signing in to {}", self.address), source })?;
        Ok(image)
    }

    fn auth(&self) -> RegistryAuth {
        RegistryAuth::Basic("token".to_owned(), self.token.clone())
    }

    async fn accepted(&self, request: reqwest::RequestBuilder, doing: &str) -> Result<reqwest::Response, Error> {
        succeeded(self.send(request, doing).await?, doing).await
    }

    /// The same of one about a layer, of which `steps` are on their way.
    async fn accepted_layer(
        &self,
        request: reqwest::RequestBuilder,
        steps: &AtomicU64,
        doing: &str,
    ) -> Result<reqwest::Response, Error> {
        let accepted = async { succeeded(self.answer(request, doing).await?, doing).await };
        let silent = || Error::Silent { doing: doing.to_owned(), seconds: LAYER_SILENCE.as_secs() };
        while_moving(accepted, steps, LAYER_SILENCE).await.ok_or_else(silent)?
    }

    /// Of a request that has nothing long in it.
    async fn send(&self, request: reqwest::RequestBuilder, doing: &str) -> Result<reqwest::Response, Error> {
        self.answer(request.timeout(SILENCE), doing).await
    }

    async fn answer(&self, request: reqwest::RequestBuilder, doing: &str) -> Result<reqwest::Response, Error> {
        let sent = request.basic_auth("token", Some(&self.token)).send().await;
        sent.map_err(|source| Error::Http { doing: doing.to_owned(), source })
    }

    /// Where an upload goes on.
    fn location(&self, response: &reqwest::Response) -> Result<String, Error> {
        let location = response.headers().get("Location").and_then(|value| value.to_str().ok());
        match location {
            Some(path) if path.starts_with('/') => Ok(format!("http://{}{path}", self.address)),
            Some(url) => Ok(url.to_owned()),
            None => {
                let text = "the registry did not say where the upload goes on".to_owned();
                Err(Error::Refused { doing: "starting an upload".to_owned(), status: response.status().as_u16(), text })
            }
        }
    }
}

/// Does it say that a registry is away, and nothing of what was asked?
fn is_of_absence(status: u16) -> bool {
    matches!(status, 502..=504)
}

async fn succeeded(response: reqwest::Response, doing: &str) -> Result<reqwest::Response, Error> {
    if response.status().is_success() {
        return Ok(response);
    }
    let (status, text) = (response.status(), response.text().await.unwrap_or_default());
    Err(Error::Refused { doing: doing.to_owned(), status: status.as_u16(), text: text.chars().take(500).collect() })
}

/// The writing end of a request's body.
struct Channel {
    sender: futures::channel::mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Channel {
    fn send(&mut self) -> io::Result<()> {
        let step = std::mem::replace(&mut self.buffer, Vec::with_capacity(STEP));
        let sent = futures::executor::block_on(futures::SinkExt::send(&mut self.sender, Ok(step.into())));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the registry does not take the layer any more"))
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= STEP {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_not_found(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.iter().any(|error| error.code == oci_distribution::errors::OciErrorCode::ManifestUnknown)
        }
        _ => false,
    }
}

/// What can go wrong between us and a registry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing}")]
    Registry { doing: String, source: OciDistributionError },
    #[error("{doing}")]
    Http { doing: String, source: reqwest::Error },
    #[error("{doing}: the registry was silent for {seconds} s")]
    Silent { doing: String, seconds: u64 },
    #[error("{doing}: the registry answers {status}: {text}")]
    Refused { doing: String, status: u16, text: String },
    #[error("{doing}")]
    Layer { doing: String, source: io::Error },
    #[error("{doing}")]
    Malformed { doing: String, source: serde_json::Error },
}

impl Error {
    /// The registry did not answer, or said that it cannot just now; a moment later it may.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Http { source, .. } => !source.is_builder(),
            Self::Silent { .. } => true,
            Self::Registry { source: OciDistributionError::RequestError(source), .. } => !source.is_builder(),
            Self::Registry { source: OciDistributionError::ServerError { code: status, .. }, .. }
            | Self::Refused { status, .. }
                if is_of_absence(*status) =>
            {
                true
            }
            // A registry says what it does not have: this is somebody else, at an address that was its.
            Self::Registry { source: OciDistributionError::ServerError { code: 404, .. }, .. } => true,
            Self::Refused { status: 404, text, .. } if !text.contains("\"errors\"") => true,
            // An upload that was begun with the one before.
            Self::Refused { text, .. } if text.contains("BLOB_UPLOAD_UNKNOWN") => true,
            // The end of a body that was cut off.
            Self::Registry { source: OciDistributionError::IoError(_), .. } => true,
            _ => false,
        }
    }
}
