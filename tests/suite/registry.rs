//! The registry, with its own client and with skopeo.

use std::{collections::HashSet, process::Command, sync::Arc};

use async_trait::async_trait;
use epiniod::{
    auth::{Audit, Auth, BuildClaims, Grant},
    blob::{DiskBlobs, SharedBlobs},
    model::{Digest, Staging, Timestamp},
    oci::{
        Client, Compression, ConfigFile, Descriptor, MEDIA_TYPE_CONFIG, Manifest, RootFs,
        registry::{Action, Authenticator, Credential, Registry, Verdict},
    },
    store::{self, DiskStore, Event, Key, Kind, Object, Objects, Page, SharedStore, Slice, Store},
};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::broadcast;

use crate::support::has_skopeo;

/// The password `letmein` may do everything but delete.
struct Password;

#[async_trait]
impl Authenticator for Password {
    async fn permits(&self, credential: Credential<'_>, _: Option<&str>, action: Action) -> Verdict {
        match credential.header {
            // `token:letmein`
            Some("Basic dG9rZW46bGV0bWVpbg==") if action != Action::Delete => Verdict::Allowed,
            Some("Basic dG9rZW46bGV0bWVpbg==") => Verdict::Denied,
            _ => Verdict::Unknown,
        }
    }
}

struct Place {
    _dir: TempDir,
    store: SharedStore,
    registry: Registry,
    address: String,
    client: Client,
}

async fn start() -> Place {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let store: SharedStore = DiskStore::open(&dir.path().join("store")).unwrap();
    let blobs = DiskBlobs::open(&dir.path().join("blobs")).unwrap();
    serve(dir, store, blobs).await
}

async fn serve(dir: TempDir, store: SharedStore, blobs: SharedBlobs) -> Place {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let registry = Registry::new(Objects::new(Arc::clone(&store)), blobs);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let router = registry.router(Arc::new(Password));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let client = Client::new(&address, "letmein").unwrap();
    Place { _dir: dir, store, registry, address, client }
}

/// An image of one layer; its manifest's digest.
async fn push(place: &Place, repository: &str, tag: &str, content: &'static [u8]) -> Result<String, String> {
    let text = |error: epiniod::oci::ClientError| {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        format!("{error}: {cause}")
    };
    let write = move |out: &mut dyn std::io::Write| {
        let mut archive = tar::Builder::new(out);
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, "file", content)?;
        archive.finish()
    };
    let layer = place.client.push_layer(repository, Compression::Zstd, write).await.map_err(text)?;
    let config = ConfigFile {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        rootfs: RootFs { diff_ids: vec![layer.diff_id], ..RootFs::default() },
        ..ConfigFile::default()
    };
    let config = serde_json::to_vec(&config).unwrap();
    let size = config.len() as u64;
    let digest = place.client.push_blob(repository, config).await.map_err(text)?;
    let manifest = Manifest::image(Descriptor::new(MEDIA_TYPE_CONFIG, digest, size), vec![layer.blob]);
    Ok(place.client.push_manifest(repository, tag, &manifest).await.map_err(text)?.to_string())
}

async fn status(place: &Place, method: &str, path: &str, range: Option<&str>) -> (u16, String) {
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let mut request = reqwest::Client::new().request(method, format!("http://{}{path}", place.address));
    if let Some(range) = range {
        request = request.header("Range", range);
    }
    let response = request.basic_auth("token", Some("letmein")).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_is_read_again_and_tags_of_applications_stay() {
    let place = start().await;
    let digest = push(&place, "workspace/app", "one", b"hello").await.unwrap();
    let (found, manifest) = place.client.manifest("workspace/app", "one").await.unwrap().unwrap();
    assert_eq!(found.to_string(), digest);
    let mut bytes = Vec::new();
    place.client.pull_blob("workspace/app", &manifest.layers[0], &mut bytes).await.unwrap();
    assert_eq!(epiniod::model::Digest::of(&bytes), manifest.layers[0].digest);
    assert_eq!(place.client.manifest("workspace/app", "none").await.unwrap(), None);
    let moved = push(&place, "workspace/app", "one", b"another").await.unwrap_err();
    assert!(moved.contains("cannot be moved"), "{moved}");
    push(&place, "epiniod/cache/workspace/app", "latest", b"a").await.unwrap();
    push(&place, "epiniod/cache/workspace/app", "latest", b"b").await.unwrap();
    assert_eq!(place.registry.tags("workspace/app").await.unwrap(), ["one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_read_only_where_it_is_and_by_whom_it_may() {
    let place = start().await;
    push(&place, "workspace/mine", "one", b"secret").await.unwrap();
    let (_, manifest) = place.client.manifest("workspace/mine", "one").await.unwrap().unwrap();
    let layer = &manifest.layers[0];
    let path = |repository: &str| format!("/v2/{repository}/blobs/{}", layer.digest);
    assert_eq!(status(&place, "GET", &path("workspace/mine"), None).await.0, 200);
    assert_eq!(status(&place, "GET", &path("workspace/other"), None).await.0, 404);
    assert_eq!(status(&place, "GET", &path("workspace/mine"), Some("bytes=0-3")).await.0, 206);
    assert_eq!(status(&place, "GET", &path("workspace/mine"), Some("bytes=999999-")).await.0, 416);
    assert_eq!(status(&place, "DELETE", &path("workspace/mine"), None).await.0, 403);
    let open = reqwest::get(format!("http://{}/v2/", place.address)).await.unwrap();
    assert_eq!(open.status(), 401);
    assert!(open.headers().contains_key("WWW-Authenticate"));
    assert!(place.client.mount("workspace/other", "workspace/mine", &layer.digest).await.unwrap());
    assert_eq!(status(&place, "GET", &path("workspace/other"), None).await.0, 200);
}

/// Puts a manifest; the status and the answer.
async fn put_manifest(place: &Place, path: &str, media_type: &str, body: Vec<u8>) -> (u16, String) {
    let request = reqwest::Client::new().put(format!("http://{}{path}", place.address)).body(body);
    let request = request.header("Content-Type", media_type).basic_auth("token", Some("letmein"));
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

/// Makes everything that repositories have two days old.
async fn age(place: &Place) {
    let page = Page { namespace: None, after: None, limit: 1000 };
    for mut object in place.store.list(Kind::Repository, &page).await.unwrap().objects {
        object.body["created_at"] = json!("2020-01-01T00:00:00Z");
        place.store.put(object).await.unwrap();
    }
}

/// The digests of an image: manifest, configuration, layer.
async fn parts(place: &Place, repository: &str, tag: &str) -> HashSet<Digest> {
    let digest = place.registry.resolve(repository, tag).await.unwrap().expect("a tag");
    let parts = place.registry.parts(&digest).await.unwrap();
    assert_eq!(parts.len(), 3);
    parts.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_is_refused_in_the_words_of_the_specification() {
    let place = start().await;
    push(&place, "workspace/app", "one", b"hello").await.unwrap();
    assert!(
        matches!(status(&place, "GET", "/v2/no/such/tags/list", None).await, (404, text) if text.contains("NAME_UNKNOWN"))
    );
    assert!(
        matches!(status(&place, "GET", "/v2/No/tags/list", None).await, (400, text) if text.contains("NAME_INVALID"))
    );
    let path = "/v2/workspace/app/manifests/two";
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let (code, text) = put_manifest(&place, path, oci, vec![b' '; (4 << 20) + 1]).await;
    assert!(code == 413 && text.contains("4 MiB"), "{code} {text}");
    let (code, text) = put_manifest(&place, path, "application/x-tar", b"{}".to_vec()).await;
    assert!(code == 400 && text.contains("'application/x-tar' are not known"), "{code} {text}");
    let (code, text) = put_manifest(&place, path, oci, b"{".to_vec()).await;
    assert!(code == 400 && text.contains("MANIFEST_INVALID"), "{code} {text}");
    let missing = json!({ "layers": [{ "digest": Digest::of("nothing").to_string() }] });
    let (code, text) = put_manifest(&place, path, oci, missing.to_string().into_bytes()).await;
    assert!(code == 400 && text.contains("MANIFEST_BLOB_UNKNOWN"), "{code} {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_give_a_tag_at_once_one_is_refused() {
    let place = start().await;
    for round in 0..10 {
        let tag = format!("tag-{round}");
        let (one, two) =
            tokio::join!(push(&place, "workspace/app", &tag, b"one"), push(&place, "workspace/app", &tag, b"two"));
        let (kept, refused) = if one.is_ok() { (one, two) } else { (two, one) };
        assert!(refused.unwrap_err().contains("cannot be moved"));
        let named = place.registry.resolve("workspace/app", &tag).await.unwrap().unwrap();
        assert_eq!(named.to_string(), kept.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_tag_leads_to_is_forgotten_where_tags_move_and_when_it_is_old() {
    let place = start().await;
    let (app, cache) = ("workspace/app", "epiniod/cache/workspace/app");
    push(&place, app, "one", b"an application").await.unwrap();
    push(&place, cache, "latest", b"a cache").await.unwrap();
    let left_behind = parts(&place, cache, "latest").await;
    push(&place, cache, "latest", b"a newer cache").await.unwrap();
    let kept: HashSet<Digest> = &parts(&place, app, "one").await | &parts(&place, cache, "latest").await;
    let all = place.registry.references().await.unwrap();
    assert!(all.is_superset(&left_behind) && all.is_superset(&kept), "somebody may be reading what is new");
    age(&place).await;
    assert_eq!(place.registry.references().await.unwrap(), kept);
    assert_eq!(place.registry.references().await.unwrap(), kept, "once more");

    push(&place, app, "two", b"an application").await.unwrap();
    place.registry.delete_tag(app, "one").await.unwrap();
    assert_eq!(parts(&place, app, "two").await.len(), 3, "another tag has the same image");
    place.registry.delete_tag(app, "two").await.unwrap();
    age(&place).await;
    assert_eq!(place.registry.references().await.unwrap(), parts(&place, cache, "latest").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_reaches_its_own_repository_and_no_list_of_all() {
    let place = start().await;
    let objects = Objects::new(Arc::clone(&place.store));
    let staging: Staging = serde_json::from_value(json!({
        "id": "0123456789abcdef", "namespace": "workspace", "app": "app", "source": Digest::of("source"),
        "blob_uid": "uid", "environment": {}, "created_at": "2020-01-01T00:00:00Z", "state": { "state": "exporting" },
        "image": null, "timings": [], "basis": null, "log": [],
    }))
    .unwrap();
    objects.create(&staging).await.unwrap();
    let auth = Auth::open(objects, Audit::nowhere()).await.unwrap();
    let token = auth.sign(&BuildClaims {
        namespace: staging.namespace,
        staging: staging.id,
        grants: vec![Grant { repository: "workspace/app".to_owned(), actions: vec![Action::Pull, Action::Push] }],
        expires_at: Timestamp::from_second(Timestamp::now().as_second() + 60),
    });
    let bearer = format!("Bearer {token}");
    let credential = Credential { header: Some(&bearer), from: [127, 0, 0, 1].into() };
    let permits = async |repository, action| auth.permits(credential, repository, action).await;
    assert_eq!(permits(None, Action::Pull).await, Verdict::Allowed);
    assert_eq!(permits(Some("workspace/app"), Action::Push).await, Verdict::Allowed);
    assert_eq!(permits(Some("workspace/app"), Action::Delete).await, Verdict::Denied);
    assert_eq!(permits(Some("workspace/other"), Action::Pull).await, Verdict::Denied);
    assert_eq!(permits(None, Action::Catalog).await, Verdict::Denied);
}

/// A cluster's API server that does not answer, or does not know the credential of a daemon that ends.
struct Away;

impl Away {
    fn error<T>() -> Result<T, store::Error> {
        Err(store::Error::Backend { doing: "asking".to_owned(), cause: "nobody answers".to_owned() })
    }
}

#[async_trait]
impl Store for Away {
    async fn get(&self, _: &Key) -> Result<Option<Object>, store::Error> {
        Self::error()
    }

    async fn list(&self, _: Kind, _: &Page) -> Result<Slice, store::Error> {
        Self::error()
    }

    async fn put(&self, _: Object) -> Result<Object, store::Error> {
        Self::error()
    }

    async fn delete(&self, _: &Key, _: Option<u64>) -> Result<(), store::Error> {
        Self::error()
    }

    fn watch(&self, _: Kind) -> broadcast::Receiver<Event> {
        broadcast::channel(1).1
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_no_verdict() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let blobs = DiskBlobs::open(&dir.path().join("blobs")).unwrap();
    let place = serve(dir, Arc::new(Away), blobs).await;
    let digest = Digest::of("a layer");
    let layer = place.client.push_layer("workspace/app", Compression::Zstd, |out| out.write_all(b"a layer"));
    for (what, error) in [
        ("has_blob", place.client.has_blob("workspace/app", &digest).await.map(drop)),
        ("manifest", place.client.manifest("workspace/app", "v1").await.map(drop)),
        ("mount", place.client.mount("workspace/app", "epiniod/base", &digest).await.map(drop)),
        ("push_layer", layer.await.map(drop)),
    ] {
        let error = error.expect_err(what);
        assert!(error.is_away(), "{what}: whoever asks is to ask again: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_and_inspects() {
    if !has_skopeo() {
        return;
    }
    let place = start().await;
    let digest = push(&place, "workspace/app", "one", b"for skopeo").await.unwrap();
    let skopeo = |arguments: &[&str]| {
        let output = Command::new("skopeo").args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let image = format!("docker://{}/workspace/app:one", place.address);
    let copy = format!("docker://{}/workspace/copy:one", place.address);
    let inspected = tokio::task::block_in_place(|| {
        skopeo(&[
            "copy",
            "--preserve-digests",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            "--src-creds",
            "token:letmein",
            "--dest-creds",
            "token:letmein",
            &image,
            &copy,
        ]);
        skopeo(&["inspect", "--tls-verify=false", "--creds", "token:letmein", &copy])
    });
    assert!(inspected.contains(&digest), "{inspected}");
}
