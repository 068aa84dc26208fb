//! Base images: their layers, configurations and manifests as blobs.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use bytes::Bytes;
use futures::TryStreamExt as _;
use tokio::sync::mpsc;

use super::{
    Error,
    assemble::{Facts, Plan},
    definition::Definition,
};
use crate::{
    blob::SharedBlobs,
    model::Digest,
    oci::{CREATED, ConfigFile, Descriptor, ExecutionConfig, History, Layer, MEDIA_TYPE_CONFIG, Manifest, RootFs},
};

/// The two kinds of base images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Build,
    Run,
}

impl Role {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Run => "run",
        }
    }
}

/// Assembles a layer straight into the blob store. Nothing of it is visible before it is whole.
pub(super) async fn write_layer(blobs: &SharedBlobs, plan: Plan) -> Result<(Layer, Facts), Error> {
    let mut writer = blobs.writer().await?;
    let (sender, mut pieces) = mpsc::channel(8);
    let assembly = tokio::task::spawn_blocking(move || {
        let (layer, facts, mut sink) = plan.assemble(Sink { sender, buffer: Vec::with_capacity(SINK_BYTES) })?;
        sink.send().map(|()| (layer, facts))
    });
    while let Some(piece) = pieces.recv().await {
        writer.write(piece).await?;
    }
    let made = assembly.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
    let (layer, facts) = made.map_err(|source| Error::Assembly { source })?;
    writer.finish(Some(layer.blob.digest)).await?;
    Ok((layer, facts))
}

/// Writes configuration and manifest of an image and returns the manifest's digest.
pub(super) async fn write_image(
    blobs: &SharedBlobs,
    role: Role,
    architecture: &str,
    lock: &Digest,
    layers: &[Layer],
) -> Result<Digest, Error> {
    let config = to_json(&config(role, architecture, lock, layers))?;
    let descriptor = Descriptor::new(MEDIA_TYPE_CONFIG, Digest::of(&config), config.len() as u64);
    write_blob(blobs, config).await?;
    let layers = layers.iter().map(|layer| layer.blob.clone()).collect();
    write_blob(blobs, to_json(&Manifest::image(descriptor, layers))?).await
}

pub(super) async fn write_blob(blobs: &SharedBlobs, content: Vec<u8>) -> Result<Digest, Error> {
    let digest = Digest::of(&content);
    if blobs.size(&digest).await?.is_none() {
        let mut writer = blobs.writer().await?;
        writer.write(content.into()).await?;
        writer.finish(Some(digest)).await?;
    }
    Ok(digest)
}

/// A small blob as a whole; none when it is not there.
pub(super) async fn read_blob(blobs: &SharedBlobs, digest: &Digest) -> Result<Option<Vec<u8>>, Error> {
    let Some(reader) = blobs.open(digest, None).await? else { return Ok(None) };
    let read = reader.stream.try_fold(Vec::new(), |mut all, piece| async move {
        all.extend_from_slice(&piece);
        Ok(all)
    });
    let doing = || format!("reading blob {digest}");
    read.await.map(Some).map_err(|source| Error::Io { doing: doing(), source })
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn config(role: Role, architecture: &str, lock: &Digest, layers: &[Layer]) -> ConfigFile {
    let distro = &Definition::embedded().distro;
    let mut env = vec![PATH.to_owned(), "LANG=C.UTF-8".to_owned()];
    if role == Role::Build {
        env.extend(["CNB_USER_ID=1000", "CNB_GROUP_ID=1000"].map(str::to_owned));
    }
    let labels = [
        ("io.buildpacks.base.distro.name", distro.name.clone()),
        ("io.buildpacks.base.distro.version", distro.version.clone()),
        ("io.buildpacks.base.id", format!("epiniod-{}-{}", distro.name, distro.version)),
        ("io.epiniod.base.lock", lock.to_string()),
    ];
    let history = |_| History {
        created: Some(CREATED.to_owned()),
        created_by: Some("epiniod base".to_owned()),
        ..History::default()
    };
    ConfigFile {
        created: Some(CREATED.to_owned()),
        architecture: architecture.to_owned(),
        os: "linux".to_owned(),
        config: ExecutionConfig {
            user: Some("1000:1000".to_owned()),
            env: Some(env),
            labels: Some(labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>()),
            ..ExecutionConfig::default()
        },
        rootfs: RootFs { diff_ids: layers.iter().map(|layer| layer.diff_id).collect(), ..RootFs::default() },
        history: layers.iter().map(history).collect(),
        ..ConfigFile::default()
    }
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|source| Error::Io { doing: "writing JSON".to_owned(), source: source.into() })
}

const SINK_BYTES: usize = 256 * 1024;

/// Hands what a thread writes to the reactor, in pieces.
struct Sink {
    sender: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

impl Sink {
    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(SINK_BYTES));
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody wants the layer any more");
        self.sender.blocking_send(piece.into()).map_err(gone)
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= SINK_BYTES {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
