//! An image on its way to the registry: layer by layer, then its configuration and manifest.

use std::{collections::BTreeMap, io, io::Write, sync::Arc};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{
    Context as _, Error, PLATFORM_API, PLATFORM_API_VARIABLE, Result,
    export::EXPORT_FAILED,
    image::Image,
    metadata::{BUILD, BuildLabel, LIFECYCLE, LifecycleMetadata, PROJECT, Sha},
    patience::patiently,
    phase::{CnbUser, Export},
    tar::Sink,
    types::Metadata,
};
use crate::{
    model::Digest,
    oci::{
        CREATED, Client, Compression, ConfigFile, Descriptor, ExecutionConfig, History, Layer, MEDIA_TYPE_CONFIG,
        Manifest, RootFs,
    },
};

/// What starts processes in the image.
pub(super) const LAUNCHER: &str = "/cnb/lifecycle/launcher";

/// What writes the bytes of a layer; it may be asked twice.
pub(super) type Content = Arc<dyn Fn(&mut Sink<'_>) -> io::Result<()> + Send + Sync>;

/// What is known of a layer before it is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Expect {
    /// It is likely the same as then: it is hashed first, as it need not be compressed and sent if it is.
    Same(Digest),
    /// Nothing, or that it changed: it is read once.
    New,
}

/// The layers of one image, or of the cache, go through this: together they have a limit.
pub(super) struct Layers<'a> {
    pub client: &'a Client,
    pub repository: &'a str,
    pub compression: Compression,
    user: CnbUser,
    /// How many bytes they may still have.
    left: u64,
}

impl<'a> Layers<'a> {
    pub fn new(client: &'a Client, repository: &'a str, input: &Export) -> Self {
        Self { client, repository, compression: input.compression, user: input.user, left: input.max_bytes }
    }

    /// Whether a layer is the one that is expected.
    pub async fn is_same(&mut self, content: &Content, expect: Expect) -> io::Result<bool> {
        let Expect::Same(diff_id) = expect else { return Ok(false) };
        let (content, left, user) = (Arc::clone(content), self.left, self.user);
        let hashed = tokio::task::spawn_blocking(move || hash(&content, left, user)).await.map_err(io::Error::other)?;
        let (found, size) = hashed?;
        if found == diff_id {
            self.left = self.left.saturating_sub(size);
        }
        Ok(found == diff_id)
    }

    /// Writes a layer in one pass.
    pub async fn write(&mut self, content: Content) -> Result<Layer, crate::oci::ClientError> {
        let (left, user) = (self.left, self.user);
        let push = async || {
            let content = Arc::clone(&content);
            let write = move |out: &mut dyn Write| content(&mut Sink::new(out, left, user));
            self.client.push_layer(self.repository, self.compression, write).await
        };
        let layer = patiently(push).await?;
        self.left = self.left.saturating_sub(layer.tar_size);
        Ok(layer)
    }
}

/// The diffID and the size of a layer.
fn hash(content: &Content, left: u64, user: CnbUser) -> io::Result<(Digest, u64)> {
    struct Sum {
        sum: Sha256,
        size: u64,
    }
    impl Write for Sum {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.sum.update(bytes);
            self.size += bytes.len() as u64;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut sum = io::BufWriter::with_capacity(64 << 10, Sum { sum: Sha256::new(), size: 0 });
    content(&mut Sink::new(&mut sum, left, user))?;
    let Sum { sum, size } = sum.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok((Digest::from_sha256(sum.finalize().into()), size))
}

pub(super) struct ImageWriter<'a> {
    input: &'a Export,
    base: &'a Image,
    previous: Option<&'a Image>,
    written: Layers<'a>,
    layers: Vec<Descriptor>,
    diff_ids: Vec<Digest>,
    history: Vec<History>,
    /// The layers of the application by diffID, for the cache.
    pub pushed: BTreeMap<Digest, Descriptor>,
    pub added: u32,
    pub reused: u32,
}

impl<'a> ImageWriter<'a> {
    pub fn new(client: &'a Client, input: &'a Export, base: &'a Image, previous: Option<&'a Image>) -> Self {
        let layers: Vec<Descriptor> = base.manifest.layers.iter().map(Descriptor::in_oci_terms).collect();
        let diff_ids = base.config.rootfs.diff_ids.clone();
        let kept: Vec<History> =
            base.config.history.iter().filter(|entry| !entry.empty_layer.unwrap_or(false)).cloned().collect();
        // One entry for each layer, or a later rebase cannot tell them apart.
        let history = if kept.len() == layers.len() { kept } else { vec![History::default(); layers.len()] };
        let written = Layers::new(client, &input.repository, input);
        let (pushed, added, reused) = (BTreeMap::new(), 0, 0);
        Self { input, base, previous, written, layers, diff_ids, history, pushed, added, reused }
    }

    pub async fn take_over_base(&self) -> Result<()> {
        let from = &self.base.name.repository;
        for layer in &self.base.manifest.layers {
            let mount = async || self.written.client.mount(&self.input.repository, from, &layer.digest).await;
            let mounted = patiently(mount).await;
            if !mounted.context(EXPORT_FAILED, || "taking over the run image".to_owned())? {
                return Err(Error::new(EXPORT_FAILED, format!("layer {} of the run image is gone", layer.digest)));
            }
        }
        Ok(())
    }

    pub async fn add(&mut self, created_by: &str, content: Content, expect: Expect) -> Result<Sha> {
        let before = match (expect, self.previous) {
            (Expect::Same(diff_id), Some(previous)) if previous.layer(&diff_id).is_some() => expect,
            _ => Expect::New,
        };
        let same = self.written.is_same(&content, before).await;
        if let Expect::Same(sha) = before
            && same.context(EXPORT_FAILED, || format!("reading {created_by}"))?
        {
            self.reuse(created_by, Sha { sha })?;
            return Ok(Sha { sha });
        }
        let layer = self.written.write(content).await.context(EXPORT_FAILED, || format!("writing {created_by}"))?;
        let known = self.previous.and_then(|image| image.layer(&layer.diff_id));
        if known.is_some_and(|known| known.digest == layer.blob.digest) {
            self.reused += 1;
        } else {
            self.added += 1;
        }
        self.push(created_by, layer.blob, layer.diff_id);
        Ok(Sha { sha: layer.diff_id })
    }

    /// Takes a layer of the previous image as it is.
    pub fn reuse(&mut self, created_by: &str, before: Sha) -> Result<()> {
        let gone = || Error::new(EXPORT_FAILED, format!("the previous image does not have {created_by}"));
        let blob = self.previous.and_then(|image| image.layer(&before.sha)).ok_or_else(gone)?.clone();
        self.reused += 1;
        self.push(created_by, blob, before.sha);
        Ok(())
    }

    fn push(&mut self, created_by: &str, blob: Descriptor, diff_id: Digest) {
        self.pushed.insert(diff_id, blob.clone());
        self.layers.push(blob);
        self.diff_ids.push(diff_id);
        let created = Some(CREATED.to_owned());
        self.history.push(History { created, created_by: Some(created_by.to_owned()), ..History::default() });
    }

    pub async fn finish(self, record: &LifecycleMetadata, metadata: &Metadata) -> Result<Digest> {
        let config = ConfigFile {
            created: Some(CREATED.to_owned()),
            author: None,
            config: self.execution(record, metadata)?,
            rootfs: RootFs { diff_ids: self.diff_ids, ..RootFs::default() },
            history: self.history,
            ..self.base.config.clone()
        };
        let written =
            write_documents(self.written.client, &self.input.repository, &self.input.tag, &config, self.layers);
        written.await.context(EXPORT_FAILED, || "writing the image".to_owned())
    }

    fn execution(&self, record: &LifecycleMetadata, metadata: &Metadata) -> Result<ExecutionConfig> {
        let base = self.base.config.config.clone();
        let mut env = base.env.unwrap_or_default();
        let path = |value: &str| format!("PATH=/cnb/process:/cnb/lifecycle:{value}");
        match env.iter_mut().find(|entry| entry.starts_with("PATH=")) {
            Some(entry) => *entry = path(&entry["PATH=".len()..]),
            None => env.push(path("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")),
        }
        env.extend(["CNB_LAYERS_DIR=/layers", "CNB_APP_DIR=/workspace"].map(str::to_owned));
        env.extend([format!("{PLATFORM_API_VARIABLE}={PLATFORM_API}"), "CNB_DEPRECATION_MODE=quiet".to_owned()]);
        let doing = || "writing labels".to_owned();
        let mut labels = base.labels.unwrap_or_default();
        let build = serde_json::to_string(&BuildLabel::new(metadata)).context(EXPORT_FAILED, doing)?;
        labels.insert(LIFECYCLE.to_owned(), serde_json::to_string(record).context(EXPORT_FAILED, doing)?);
        labels.insert(BUILD.to_owned(), build);
        labels.insert(PROJECT.to_owned(), self.input.project.to_string());
        labels.extend(metadata.labels.iter().map(|label| (label.key.clone(), label.value.clone())));
        let entrypoint = match &metadata.buildpack_default_process_type {
            Some(default) => format!("/cnb/process/{default}"),
            None => LAUNCHER.to_owned(),
        };
        Ok(ExecutionConfig {
            env: Some(env),
            entrypoint: Some(vec![entrypoint]),
            cmd: None,
            working_dir: Some("/workspace".to_owned()),
            labels: Some(labels),
            ..base
        })
    }
}

/// Writes configuration and manifest of an image.
pub(super) async fn write_documents(
    client: &Client,
    repository: &str,
    tag: &str,
    config: &ConfigFile,
    layers: Vec<Descriptor>,
) -> Result<Digest, crate::oci::ClientError> {
    let bytes = serde_json::to_vec(config).expect("an image's configuration is plain data");
    let size = bytes.len() as u64;
    let bytes = Bytes::from(bytes);
    let digest = patiently(async || client.push_blob(repository, bytes.clone()).await).await?;
    let manifest = Manifest::image(Descriptor::new(MEDIA_TYPE_CONFIG, digest, size), layers);
    patiently(async || client.push_manifest(repository, tag, &manifest).await).await
}
