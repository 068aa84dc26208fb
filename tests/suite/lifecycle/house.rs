//! Places for phases: folders with buildpacks of shell, and a registry.

use std::{fs, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use epiniod::{
    blob::DiskBlobs,
    lifecycle::{
        Built, Dirs, Error, Variables,
        phase::{Build, Buildpacks, CnbUser, Detect, Detected, Export, Prepare, RegistryAccess, Target},
    },
    model::{Digest, ImageName},
    oci::{
        Client, Compression, ConfigFile, Descriptor, ExecutionConfig, Layer, MEDIA_TYPE_CONFIG, Manifest, RootFs,
        registry::{Action, Authenticator, Credential, Registry, Verdict},
    },
    store::{DiskStore, Objects},
};
use tempfile::TempDir;

use crate::support::{executable, write};

/// The folders of phases.
pub struct House {
    dir: TempDir,
    pub dirs: Dirs,
}

impl House {
    pub fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = |name: &str| dir.path().join(name);
        let dirs = Dirs {
            app: path("workspace"),
            layers: path("layers"),
            platform: path("platform"),
            cnb: path("cnb"),
            scratch: path("tmp"),
        };
        for folder in [&dirs.app, &dirs.layers, &dirs.platform, &dirs.cnb, &dirs.scratch] {
            fs::create_dir(folder).unwrap();
        }
        Self { dir, dirs }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn file(&self, name: &str, content: &str) {
        write(self.dir.path(), name, content);
    }

    pub fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }

    /// Writes a buildpack of version 1: what its `buildpack.toml` has besides API and id, and a script.
    pub fn buildpack(&self, id: &str, api: &str, rest: &str, phase: &str, script: &str) {
        let folder = format!("cnb/buildpacks/{}/1", id.replace('/', "_"));
        let (head, tables) = rest.split_once("\n\n").unwrap_or((rest, ""));
        let text = format!("api = \"{api}\"\n[buildpack]\nid = \"{id}\"\nversion = \"1\"\n{head}\n{tables}\n");
        self.file(&format!("{folder}/buildpack.toml"), &text);
        executable(&self.path(&format!("{folder}/bin/{phase}")), format!("#!/bin/sh\n{script}\n").as_bytes());
    }

    pub fn detect(&self) -> Result<Detected, Error> {
        epiniod::lifecycle::detect(&self.dirs, &detect_input(), &variables())
    }

    pub fn build(&self) -> Result<Built, Error> {
        let input = Build { target: target(), build_environment: [].into(), detect: None };
        epiniod::lifecycle::build(&self.dirs, &input, &variables())
    }

    /// Detects and builds in one, as where a builder brings its own buildpacks.
    pub fn detect_and_build(&self, detect: Detect) -> Result<Built, Error> {
        let input = Build { target: target(), build_environment: [].into(), detect: Some(detect) };
        epiniod::lifecycle::build(&self.dirs, &input, &variables())
    }
}

pub fn detect_input() -> Detect {
    Detect { target: target(), builder: None, order: None }
}

/// ubuntu 24.04 on amd64, as in the vectors.
fn target() -> Target {
    Target {
        os: "linux".to_owned(),
        arch: "amd64".to_owned(),
        distro_name: "ubuntu".to_owned(),
        distro_version: "24.04".to_owned(),
    }
}

fn variables() -> Variables {
    let all = [
        ("PATH", "/usr/bin:/bin"),
        ("HOME", "/home/cnb"),
        ("CNB_STACK_ID", "stack"),
        ("FOO", "pod"),
        ("CNB_REGISTRY_AUTH", "secret"),
    ];
    all.map(|(name, value)| (name.into(), value.into())).to_vec()
}

/// A registry with a run image, and what an application has in it.
pub struct Shelf {
    dir: TempDir,
    pub client: Arc<Client>,
    pub run_image: ImageName,
    address: String,
}

pub const APP: &str = "workspace/app";
pub const CACHE: &str = "epiniod/cache/workspace/app";
const BASE: &str = "epiniod/base";

/// Whoever asks may do everything.
struct Anybody;

#[async_trait]
impl Authenticator for Anybody {
    async fn permits(&self, _: Credential<'_>, _: Option<&str>, _: Action) -> Verdict {
        Verdict::Allowed
    }
}

impl Shelf {
    pub async fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let objects = Objects::new(DiskStore::open(&dir.path().join("store")).unwrap());
        let registry = Registry::new(objects, DiskBlobs::open(&dir.path().join("blobs")).unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = registry.router(Arc::new(Anybody));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Arc::new(Client::new(&address, "anybody").unwrap());
        let mut shelf = Self { dir, client, run_image: ImageName::new(BASE, Digest::of("")), address };
        let layer = shelf.layer(BASE, "etc/base", b"base").await;
        shelf.run_image = shelf.image(BASE, "base", [], vec![layer]).await;
        shelf
    }

    /// A layer of one file, which is at an absolute path.
    pub async fn layer(&self, repository: &str, name: &'static str, content: &'static [u8]) -> Layer {
        let write = move |out: &mut dyn std::io::Write| {
            let mut archive = tar::Builder::new(out);
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_uid(1000);
            header.set_gid(1000);
            header.set_mtime(1);
            archive.append_data(&mut header, name, content)?;
            archive.finish()
        };
        self.client.push_layer(repository, Compression::Zstd, write).await.unwrap()
    }

    pub async fn image<const N: usize>(
        &self,
        repository: &str,
        tag: &str,
        labels: [(&str, serde_json::Value); N],
        layers: Vec<Layer>,
    ) -> ImageName {
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_string())).into();
        let config = ConfigFile {
            architecture: "riscv64".to_owned(),
            os: "linux".to_owned(),
            config: ExecutionConfig { labels: Some(labels), ..ExecutionConfig::default() },
            rootfs: RootFs { diff_ids: layers.iter().map(|layer| layer.diff_id).collect(), ..RootFs::default() },
            ..ConfigFile::default()
        };
        let config = serde_json::to_vec(&config).unwrap();
        let size = config.len() as u64;
        let digest = self.client.push_blob(repository, config).await.unwrap();
        let blobs = layers.into_iter().map(|layer| layer.blob).collect();
        let manifest = Manifest::image(Descriptor::new(MEDIA_TYPE_CONFIG, digest, size), blobs);
        ImageName::new(repository, self.client.push_manifest(repository, tag, &manifest).await.unwrap())
    }

    /// Manifest and configuration.
    pub async fn read(&self, image: &ImageName) -> (Manifest, ConfigFile) {
        let found = self.client.manifest(&image.repository, &image.digest.to_string()).await.unwrap();
        let (_, manifest) = found.expect("the image is there");
        let config = self.client.config(&image.repository, &manifest).await.unwrap();
        (manifest, config)
    }

    /// The entries of a layer: names, and the content of files.
    pub async fn entries(&self, repository: &str, blob: &Descriptor) -> Vec<(String, String)> {
        let mut bytes = Vec::new();
        self.client.pull_blob(repository, blob, &mut bytes).await.unwrap();
        let bytes = zstd::decode_all(bytes.as_slice()).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            (name, std::io::read_to_string(&mut entry).unwrap())
        });
        entries.collect()
    }

    /// Where the bytes of a blob are on disk.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.path().join("blobs/sha256").join(&hex[..2]).join(&hex[2..])
    }

    pub fn prepare(&self, previous: Option<&ImageName>, cache: Option<&ImageName>) -> Prepare {
        Prepare {
            source: String::new(),
            max_bytes: 0,
            max_entries: 0,
            environment: [].into(),
            ca_bundle: None,
            registry: RegistryAccess { address: self.address.clone() },
            previous: previous.cloned(),
            cache: cache.cloned(),
            buildpacks: Buildpacks::Embedded,
            user: CnbUser::EMBEDDED,
        }
    }

    pub fn export(&self, tag: &str, previous: Option<&ImageName>) -> Export {
        Export {
            registry: RegistryAccess { address: self.address.clone() },
            repository: APP.to_owned(),
            tag: tag.to_owned(),
            run_image: self.run_image.clone(),
            run_image_name: None,
            run_user: None,
            user: CnbUser::EMBEDDED,
            previous: previous.cloned(),
            cache_repository: CACHE.to_owned(),
            compression: Compression::Zstd,
            max_bytes: 64 << 20,
            project: serde_json::json!({}),
        }
    }
}
