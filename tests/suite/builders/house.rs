//! A builder image of shell scripts, in a registry that asks for a token, or in an OCI layout.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use axum::{
    Router,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use epiniod::{
    blob::DiskBlobs,
    model::Digest,
    oci::{
        Client, Compression, ConfigFile, Descriptor, ExecutionConfig, Index, Layer, LayerWriter, MEDIA_TYPE_CONFIG,
        MEDIA_TYPE_MANIFEST, Manifest, RootFs, architecture,
        registry::{Action, Authenticator, Credential, Registry, Verdict},
    },
    store::{DiskStore, Objects},
};
use serde_json::json;
use tempfile::TempDir;

use crate::support::Daemon;

/// Neither is the CNB user of our own images.
pub const UID: u32 = 1002;
pub const GID: u32 = 1003;
/// Who is named in a run image.
pub const WEB: u32 = 1004;
pub const STAFF: u32 = 1005;
pub const OTHERS: u32 = 1006;
const READER: &str = "reader:secret";
const TOKEN: &str = "a-token-of-the-registry";
/// What our own client says when it writes.
const WRITER: &str = "token:writer";

/// The parts of one image.
#[derive(Clone)]
pub struct Image {
    pub config: ConfigFile,
    /// With their bytes.
    layers: Vec<(Layer, Vec<u8>)>,
}

impl Image {
    /// A root file system with a shell and little else: the run base of a sample that was pushed.
    pub fn base(daemon: &Daemon, app: &str) -> Self {
        let read = |digest: &Digest| fs::read(blob(daemon, digest)).unwrap();
        let base = digest_in(run_image_of(daemon, app)["reference"].as_str().unwrap());
        let manifest: Manifest = serde_json::from_slice(&read(&base)).unwrap();
        let config: ConfigFile = serde_json::from_slice(&read(&manifest.config.digest)).unwrap();
        let layers = manifest.layers.into_iter().zip(&config.rootfs.diff_ids).map(|(blob, diff_id)| {
            let bytes = read(&blob.digest);
            (Layer { blob, diff_id: *diff_id, tar_size: 0 }, bytes)
        });
        let layers = layers.collect();
        Self { config: ConfigFile { history: Vec::new(), config: ExecutionConfig::default(), ..config }, layers }
    }

    pub fn with_layer(mut self, write: impl FnOnce(&mut tar::Builder<&mut dyn Write>)) -> Self {
        let mut writer = LayerWriter::new(Compression::Gzip, Vec::new()).unwrap();
        let out: &mut dyn Write = &mut writer;
        let mut archive = tar::Builder::new(out);
        write(&mut archive);
        archive.finish().unwrap();
        drop(archive);
        let (layer, bytes) = writer.finish().unwrap();
        self.config.rootfs.diff_ids.push(layer.diff_id);
        self.layers.push((layer, bytes));
        self
    }

    pub fn with_label(mut self, name: &str, value: &serde_json::Value) -> Self {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        self.config.config.labels.get_or_insert_default().insert(name.to_owned(), text);
        self
    }

    /// Whom it runs as, as its configuration has it.
    pub fn with_user(mut self, user: &str) -> Self {
        self.config.config.user = Some(user.to_owned());
        self
    }

    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.config.config.env.get_or_insert_default().push(format!("{name}={value}"));
        self
    }

    /// Its documents: configuration and manifest.
    fn documents(&self) -> (Vec<u8>, Vec<u8>) {
        let diff_ids = self.layers.iter().map(|(layer, _)| layer.diff_id).collect();
        let config = ConfigFile { rootfs: RootFs { diff_ids, ..RootFs::default() }, ..self.config.clone() };
        let config = serde_json::to_vec(&config).unwrap();
        let descriptor = Descriptor::new(MEDIA_TYPE_CONFIG, Digest::of(&config), config.len() as u64);
        let layers = self.layers.iter().map(|(layer, _)| layer.blob.clone()).collect();
        (config, serde_json::to_vec(&Manifest::image(descriptor, layers)).unwrap())
    }
}

/// What the label of an application's image says of its run image.
pub fn run_image_of(daemon: &Daemon, app: &str) -> serde_json::Value {
    let label = &config_of(daemon, app).labels.unwrap()["io.buildpacks.lifecycle.metadata"];
    let label: serde_json::Value = serde_json::from_str(label).unwrap();
    label["runImage"].clone()
}

/// Whom an application's image says that it runs as.
pub fn user_of(daemon: &Daemon, app: &str) -> String {
    config_of(daemon, app).user.unwrap()
}

fn config_of(daemon: &Daemon, app: &str) -> ExecutionConfig {
    let shown = daemon.run(["apps", "show", app, "--output", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let read = |digest: &Digest| fs::read(blob(daemon, digest)).unwrap();
    let app: Manifest = serde_json::from_slice(&read(&digest_in(shown["image_url"].as_str().unwrap()))).unwrap();
    serde_json::from_slice::<ConfigFile>(&read(&app.config.digest)).unwrap().config
}

fn digest_in(name: &str) -> Digest {
    name.rsplit_once('@').unwrap().1.parse().unwrap()
}

/// The run image: what a base has, and a mark.
pub fn run_image(base: &Image, mark: &str) -> Image {
    let image = base
        .clone()
        .with_layer(|layer| file(layer, "etc/run-image", 0o644, &format!("{mark}\n")))
        .with_env("PATH", "/usr/bin:/bin")
        .with_label("io.buildpacks.base.distro.name", &json!("test-os"))
        .with_label("io.buildpacks.base.distro.version", &json!("7"));
    let config = ExecutionConfig { user: Some(format!("{UID}:{GID}")), ..image.config.config.clone() };
    Image { config: ConfigFile { config, ..image.config.clone() }, ..image }
}

/// The same for a user who has a name: `web`, of the group `staff`, whose other group is `others`.
pub fn run_image_of_web(base: &Image, mark: &str) -> Image {
    run_image(base, mark).with_user("web").with_layer(|layer| {
        file(layer, "etc/passwd", 0o644, &format!("root:x:0:0::/root:/bin/sh\nweb:x:{WEB}:{STAFF}::/:/bin/sh\n"));
        file(layer, "etc/group", 0o644, &format!("root:x:0:\nstaff:x:{STAFF}:\nothers:x:{OTHERS}:\n"));
    })
}

/// A builder: two buildpacks that take part or not, in layers as they are found in the wild.
pub fn builder(base: &Image, run_image: &str) -> Image {
    let metadata = json!({
        "stack": { "runImage": { "image": "registry.invalid/of/old:1", "mirrors": null } },
        "images": [{ "image": run_image, "mirrors": null }],
    });
    let order = "[[order]]\n[[order.group]]\nid = \"test/never\"\nversion = \"1\"\noptional = true\n\
                 [[order.group]]\nid = \"test/site\"\nversion = \"1\"\n";
    let image = base
        .clone()
        .with_layer(|layer| {
            file(layer, "cnb/buildpacks/test_hidden/1/buildpack.toml", 0o644, "hidden by the layer above\n");
            file(layer, "cnb/removed", 0o644, "removed by the layer above\n");
        })
        .with_layer(|layer| {
            folder(layer, "cnb/buildpacks");
            file(layer, "cnb/buildpacks/.wh..wh..opq", 0o644, "");
            file(layer, "cnb/.wh.removed", 0o644, "");
            file(layer, "cnb/order.toml", 0o644, order);
            buildpack(layer, "never", "exit 100", "exit 1");
            buildpack(layer, "site", DETECT, BUILD);
            special(layer, tar::EntryType::Link, "cnb/a-hard-link", Some("cnb/order.toml"));
            special(layer, tar::EntryType::Char, "dev/a-device", None);
            special(layer, tar::EntryType::Fifo, "cnb/a-fifo", None);
            file(layer, "cnb/set-uid", 0o4755, "#!/bin/sh\n");
        })
        .with_env("PATH", "/usr/bin:/bin")
        .with_env("CNB_USER_ID", &UID.to_string())
        .with_env("CNB_GROUP_ID", &GID.to_string())
        .with_env("CNB_STACK_ID", "test.stack")
        .with_label("io.buildpacks.builder.metadata", &metadata);
    let config = ExecutionConfig { working_dir: Some("/layers".to_owned()), ..image.config.config.clone() };
    Image { config: ConfigFile { config, ..image.config.clone() }, ..image }
}

const DETECT: &str = r#"echo "site looks for page.txt"
[ -f page.txt ]"#;

/// Says what it sees, and leaves a layer that is made once.
const BUILD: &str = r#"echo "built by $(id -u):$(id -g) for $CNB_TARGET_DISTRO_NAME on $CNB_STACK_ID"
echo "buildpacks: $(ls /cnb/buildpacks | tr '\n' ' ')"
[ -e /cnb/removed ] && echo "the removed file is there"
[ -e /cnb/a-fifo ] && echo "the fifo is there"
[ "$(cat /cnb/a-hard-link)" = "$(cat /cnb/order.toml)" ] && echo "the link is whole"
tool="$CNB_LAYERS_DIR/tool"
if [ -f "$tool/made" ]; then echo "the tool is there"; else
    mkdir -p "$tool/bin"
    echo made >"$tool/made"
    printf '#!/bin/sh\necho a tool\n' >"$tool/bin/tool"
    chmod 700 "$tool/bin/tool"
fi
printf '[types]\nlaunch = true\ncache = true\n' >"$CNB_LAYERS_DIR/tool.toml"
printf '[[processes]]\ntype = "web"\ncommand = ["./serve.sh"]\ndefault = true\n' >"$CNB_LAYERS_DIR/launch.toml""#;

fn buildpack(layer: &mut tar::Builder<&mut dyn Write>, name: &str, detect: &str, build: &str) {
    let folder = format!("cnb/buildpacks/test_{name}/1");
    let toml = format!("api = \"0.10\"\n[buildpack]\nid = \"test/{name}\"\nversion = \"1\"\n");
    file(layer, &format!("{folder}/buildpack.toml"), 0o644, &toml);
    file(layer, &format!("{folder}/bin/detect"), 0o755, &format!("#!/bin/sh\n{detect}\n"));
    file(layer, &format!("{folder}/bin/build"), 0o755, &format!("#!/bin/sh\n{build}\n"));
}

pub fn file(layer: &mut tar::Builder<&mut dyn Write>, name: &str, mode: u32, content: &str) {
    let mut header = header_of(tar::EntryType::Regular, mode);
    header.set_size(content.len() as u64);
    layer.append_data(&mut header, name, content.as_bytes()).unwrap();
}

fn folder(layer: &mut tar::Builder<&mut dyn Write>, name: &str) {
    layer.append_data(&mut header_of(tar::EntryType::Directory, 0o755), name, &[][..]).unwrap();
}

fn special(layer: &mut tar::Builder<&mut dyn Write>, kind: tar::EntryType, name: &str, target: Option<&str>) {
    let mut header = header_of(kind, 0o644);
    match target {
        Some(target) => layer.append_link(&mut header, name, target).unwrap(),
        None => layer.append_data(&mut header, name, &[][..]).unwrap(),
    }
}

fn header_of(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_mtime(1);
    header
}

/// Where the bytes of a blob of a daemon are.
fn blob(daemon: &Daemon, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    daemon.data_dir().join("blobs/sha256").join(&hex[..2]).join(&hex[2..])
}

/// A registry of somebody else: it gives a token to who has the password, and content to who has the token.
pub struct Upstream {
    runtime: tokio::runtime::Runtime,
    registry: Registry,
    address: SocketAddr,
    server: Option<tokio::task::JoinHandle<()>>,
    _dir: TempDir,
}

struct Members;

#[async_trait]
impl Authenticator for Members {
    async fn permits(&self, credential: Credential<'_>, _: Option<&str>, _: Action) -> Verdict {
        let writer = format!("Basic {}", STANDARD.encode(WRITER));
        let known = [format!("Bearer {TOKEN}"), writer];
        match credential.header {
            Some(header) if known.iter().any(|known| known == header) => Verdict::Allowed,
            _ => Verdict::Unknown,
        }
    }
}

impl Upstream {
    pub fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let objects = Objects::new(DiskStore::open(&dir.path().join("store")).unwrap());
        let registry = Registry::new(objects, DiskBlobs::open(&dir.path().join("blobs")).unwrap());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut upstream = Self { runtime, registry, address, server: None, _dir: dir };
        upstream.serve();
        upstream
    }

    fn serve(&mut self) {
        let listener = self.runtime.block_on(tokio::net::TcpListener::bind(self.address)).unwrap();
        self.address = listener.local_addr().unwrap();
        let challenge = format!("Bearer realm=\"http://{}/token\",service=\"test\"", self.address);
        let challenge = HeaderValue::from_str(&challenge).unwrap();
        let challenged = move |mut response: Response| {
            if response.headers().contains_key(header::WWW_AUTHENTICATE) {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.clone());
            }
            std::future::ready(response)
        };
        let router = Router::new()
            .route("/token", get(token))
            .fallback_service(self.registry.router(Arc::new(Members)))
            .layer(axum::middleware::map_response(challenged));
        self.server = Some(self.runtime.spawn(async move { axum::serve(listener, router).await.unwrap() }));
    }

    /// Nobody listens there any more.
    pub fn stop(&mut self) {
        let server = self.server.take().unwrap();
        server.abort();
        // Its end is the end of its listener.
        let _ = self.runtime.block_on(server);
    }

    pub fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address)
    }

    pub fn push(&self, image: &Image, repository: &str, tag: &str) {
        let client = Client::new(&self.address.to_string(), WRITER.split_once(':').unwrap().1).unwrap();
        let (config, manifest) = image.documents();
        let parsed: Manifest = serde_json::from_slice(&manifest).unwrap();
        self.runtime.block_on(async {
            for (layer, bytes) in &image.layers {
                if !client.has_blob(repository, &layer.blob.digest).await.unwrap() {
                    client.push_blob(repository, bytes.clone()).await.unwrap();
                }
            }
            client.push_blob(repository, config).await.unwrap();
            client.push_manifest(repository, tag, &parsed).await.unwrap();
        });
    }

    /// Lets a daemon read, by the file that its administrator writes.
    pub fn give_credential(&self, daemon: &Daemon, credential: &str) {
        let auths = BTreeMap::from([(self.address.to_string(), json!({ "auth": STANDARD.encode(credential) }))]);
        let text = json!({ "auths": auths }).to_string();
        fs::write(daemon.data_dir().join("registries.json"), text).unwrap();
    }

    pub fn let_read(&self, daemon: &Daemon) {
        self.give_credential(daemon, READER);
    }
}

async fn token(headers: HeaderMap) -> Response {
    let right = [READER, WRITER].map(|right| format!("Basic {}", STANDARD.encode(right)));
    let given = headers.get(header::AUTHORIZATION).and_then(|header| header.to_str().ok());
    match given.is_some_and(|given| right.iter().any(|right| right == given)) {
        true => axum::Json(json!({ "token": TOKEN })).into_response(),
        false => StatusCode::UNAUTHORIZED.into_response(),
    }
}

/// Writes images into an OCI layout, each with its name.
pub fn layout(folder: &Path, images: &[(&str, &Image)]) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| fs::write(blobs.join(Digest::of(bytes).hex()), bytes).unwrap();
    let mut manifests = Vec::new();
    for (name, image) in images {
        let (config, manifest) = image.documents();
        image.layers.iter().for_each(|(_, bytes)| put(bytes));
        put(&config);
        put(&manifest);
        let mut entry = Descriptor::new(MEDIA_TYPE_MANIFEST, Digest::of(&manifest), manifest.len() as u64);
        entry.annotations.insert("org.opencontainers.image.ref.name".to_owned(), (*name).to_owned());
        entry.platform = Some(json!({ "os": "linux", "architecture": architecture() }));
        manifests.push(entry);
    }
    let index = Index { schema_version: 2, media_type: None, manifests, subject: None, annotations: BTreeMap::new() };
    fs::write(folder.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
