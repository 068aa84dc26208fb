//! Built images: the same wherever they are built, whole for other tools, and what instances really see.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, BufRead as _, Read as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use epiniod::model::Digest;

use crate::support::{Daemon, Packages, RunBy, Surroundings, copy, get, has_skopeo, sample, write};

const SAMPLES: [&str; 4] = ["python", "node", "static", "procfile"];
/// Files of a root that are not of the image: those of its sandbox, and what this test writes.
const NOT_OF_THE_IMAGE: [&str; 5] = ["tmp/list", ".epiniod/init", "etc/hostname", "etc/hosts", "etc/resolv.conf"];

#[test]
fn an_image_has_the_same_digest_wherever_it_is_built() {
    let first = digests(&Daemon::start());
    let closed = Surroundings { umask: Some("077"), ..Surroundings::default() };
    let elsewhere = digests(&Daemon::start_in(closed, Packages::Own, RunBy::Caller));
    assert_eq!(first, elsewhere, "in another data directory, with an empty cache, other ports and another umask");
    let rootless = digests(&Daemon::start_with(Packages::Own, RunBy::Nobody));
    assert_eq!(first, rootless, "built by a user without rights");
}

/// Pushes all samples, which answer; the digest of each image.
fn digests(daemon: &Daemon) -> BTreeMap<&'static str, String> {
    let pushed = SAMPLES.iter().map(|name| {
        let url = daemon.push(name, &sample(name));
        let page = get(&url).unwrap_or_else(|error| panic!("{url}: {error}\n{}", daemon.log_tail()));
        assert!(page.status == 200 && page.body.contains("Hello from the"), "{name}: {page:?}");
        (*name, image(daemon, name).rsplit_once('@').expect("a digest").1.to_owned())
    });
    pushed.collect()
}

/// The reference of the image that an application runs.
fn image(daemon: &Daemon, app: &str) -> String {
    let shown = daemon.run(["apps", "show", app, "--output", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let image = shown["image_url"].as_str().expect("an image").to_owned();
    // The name is the same whatever port is in use.
    image.replace("127.0.0.1:30500", &format!("127.0.0.1:{}", daemon.registry_port))
}

/// Authorities and proxies are for builds only.
#[test]
fn what_builds_are_given_is_in_no_image() {
    let place = tempfile::tempdir().expect("a folder");
    let bundle = place.path().join("authorities.pem");
    let own = std::env::var("SSL_CERT_FILE").unwrap_or_else(|_| "/etc/ssl/certs/ca-certificates.crt".to_owned());
    let authorities = fs::read_to_string(own).expect("the authorities of this machine");
    fs::write(&bundle, format!("{authorities}\n# marked-by-a-test\n")).expect("a file");
    let environment = vec![
        ("EPINIOD_BUILD_CA_FILE", bundle.display().to_string()),
        ("NO_PROXY", "marked-by-a-test.invalid".to_owned()),
    ];
    let surroundings = Surroundings { environment, ..Surroundings::default() };
    let daemon = Daemon::start_in(surroundings, Packages::Shared, RunBy::Caller);
    let node = daemon.dir().join("node");
    copy(&sample("node"), &node);
    let script = "const read = (path) => require('fs').readFileSync(path, 'utf8').includes('marked-by' + '-a-test');\n\
                  const { NO_PROXY, NODE_EXTRA_CA_CERTS } = process.env;\n\
                  const binding = '/platform/bindings/ca-certificates/';\n\
                  console.log('the build sees', NO_PROXY, read(NODE_EXTRA_CA_CERTS), read(binding + 'ca.pem'));\n";
    write(&node, "look.js", script);
    let package = fs::read_to_string(node.join("package.json")).expect("a file");
    let mut package: serde_json::Value = serde_json::from_str(&package).expect("JSON");
    package["scripts"]["build"] = "node look.js".into();
    write(&node, "package.json", &package.to_string());
    for (name, source) in [("node", node), ("python", sample("python"))] {
        daemon.push(name, &source);
        for blob in blobs(&daemon, &image(&daemon, name)) {
            assert!(!has_mark(&blob), "{name}: {}", blob.display());
        }
    }
    let log = daemon.output(["apps", "logs", "node", "--staging"]);
    let log = [log.stdout, log.stderr].concat();
    let log = String::from_utf8_lossy(&log);
    assert!(log.contains("the build sees marked-by-a-test.invalid true true"), "{log}");
}

/// The files of an image's layers and configuration in the data directory.
fn blobs(daemon: &Daemon, image: &str) -> Vec<PathBuf> {
    let file = |digest: &str| {
        let hex = digest.trim_start_matches("sha256:");
        daemon.data_dir().join("blobs/sha256").join(&hex[..2]).join(&hex[2..])
    };
    let manifest = fs::read(file(image.rsplit_once('@').expect("a digest").1)).expect("a manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    let layers = manifest["layers"].as_array().expect("layers");
    layers.iter().chain([&manifest["config"]]).map(|blob| file(blob["digest"].as_str().expect("a digest"))).collect()
}

/// Whether a blob has the mark in it, unpacked if it is packed.
fn has_mark(blob: &Path) -> bool {
    let grep = Command::new("grep").args(["-aqiF", "marked-by-a-test"]).stdin(Stdio::piped()).spawn();
    let mut grep = grep.expect("grep");
    let mut bytes = io::BufReader::new(fs::File::open(blob).expect("a blob"));
    let packed = bytes.fill_buf().expect("bytes").starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    let into = grep.stdin.take().expect("a pipe");
    // When it finds the mark, it reads no further.
    let _ = if packed { zstd::stream::copy_decode(bytes, into) } else { io::copy(&mut bytes, &mut { into }).map(drop) };
    grep.wait().expect("grep ends").success()
}

#[test]
fn skopeo_copies_and_inspects_built_images() {
    if !has_skopeo() {
        return;
    }
    let daemon = Daemon::start();
    for name in SAMPLES {
        daemon.push(name, &sample(name));
        let inspected: serde_json::Value =
            serde_json::from_str(&skopeo(&daemon, &["inspect"], &image(&daemon, name), None)).expect("JSON");
        assert_eq!(
            (inspected["Os"].as_str(), inspected["Architecture"].as_str()),
            (Some("linux"), Some(architecture()))
        );
        assert!(inspected["Labels"]["io.buildpacks.lifecycle.metadata"].is_string(), "{inspected}");
        let config = skopeo(&daemon, &["inspect", "--config"], &image(&daemon, name), None);
        assert!(config.contains("/cnb/process/web"), "{config}");
        let place = daemon.dir().join("copies").join(name);
        fs::create_dir_all(&place).expect("a folder");
        skopeo(
            &daemon,
            &["copy", "--preserve-digests"],
            &image(&daemon, name),
            Some(&format!("oci:{}:copy", place.display())),
        );
        let copied = Command::new("skopeo")
            .arg("inspect")
            .arg(format!("oci:{}:copy", place.display()))
            .output()
            .expect("skopeo");
        assert!(
            String::from_utf8_lossy(&copied.stdout)
                .contains(image(&daemon, name).rsplit_once('@').expect("a digest").1)
        );
    }
}

fn architecture() -> &'static str {
    if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" }
}

fn skopeo(daemon: &Daemon, arguments: &[&str], image: &str, target: Option<&str>) -> String {
    let credential = format!("admin:{}", daemon.password);
    let (tls, user) = match target {
        None => ("--tls-verify=false", "--creds"),
        Some(_) => ("--src-tls-verify=false", "--src-creds"),
    };
    let mut command = Command::new("skopeo");
    command.args(arguments).args([tls, user, &credential]).arg(format!("docker://{image}")).args(target);
    let output = command.output().expect("skopeo");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn an_instance_sees_the_files_of_its_manifest() {
    if !has_skopeo() {
        return;
    }
    let daemon = Daemon::start();
    let source = daemon.dir().join("src");
    copy(&sample("procfile"), &source);
    write(
        &source,
        "serve.sh",
        "#!/bin/bash\nfind / -xdev -type f -readable -print0 | xargs -0 sha256sum >/tmp/list\n\
         exec socat \"TCP-LISTEN:${PORT:-8080},fork,reuseaddr\" SYSTEM:./answer.sh\n",
    );
    write(
        &source,
        "answer.sh",
        "#!/bin/bash\nwhile read -r line && [ \"${line%$'\\r'}\" != '' ]; do :; done\n\
         printf 'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n' \"$(stat -c %s /tmp/list)\"\ncat /tmp/list\n",
    );
    let url = daemon.push("seer", &source);
    let page = get(&url).expect("the list").body;
    let seen: BTreeMap<&str, &str> =
        page.lines().filter_map(|line| line.split_once("  /")).map(|(sum, path)| (path, sum)).collect();
    let place = daemon.dir().join("pulled");
    skopeo(&daemon, &["copy"], &image(&daemon, "seer"), Some(&format!("dir:{}", place.display())));
    let files = Files::of(&place);
    assert!(files.sums.len() > 1000, "a base has more than {} files", files.sums.len());
    for (path, sum) in seen.iter().filter(|(path, _)| !NOT_OF_THE_IMAGE.contains(path)) {
        assert_eq!(files.sums.get(*path).map(String::as_str), Some(*sum), "/{path} is not that of the image");
    }
    let missing: Vec<_> =
        files.sums.keys().filter(|path| files.may_be_read(path) && !seen.contains_key(path.as_str())).collect();
    assert!(missing.is_empty(), "files of the image that the instance does not see: {missing:?}");
}

/// The files of an image, put together from its layers by the rules of the OCI image specification.
#[derive(Default)]
struct Files {
    sums: BTreeMap<String, String>,
    /// Files and folders that not everybody may read or enter.
    closed: BTreeSet<String>,
}

impl Files {
    /// Of an image that skopeo copied to a folder: a manifest, and blobs by their digests.
    fn of(place: &Path) -> Self {
        let manifest = fs::read(place.join("manifest.json")).expect("a manifest");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
        let mut files = Self::default();
        for layer in manifest["layers"].as_array().expect("layers") {
            let digest = layer["digest"].as_str().expect("a digest");
            let bytes = fs::read(place.join(digest.trim_start_matches("sha256:"))).expect("a layer");
            assert_eq!(Digest::of(&bytes).to_string(), digest);
            files.apply(&zstd::decode_all(bytes.as_slice()).expect("a zstd layer"));
        }
        files
    }

    fn apply(&mut self, layer: &[u8]) {
        let mut archive = tar::Archive::new(layer);
        for entry in archive.entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let path = name(&entry.path().expect("a name"));
            if let Some((folder, removed)) = path.rsplit_once("/.wh.") {
                self.remove(&format!("{folder}/{removed}"));
                continue;
            }
            let mode = entry.header().mode().expect("a mode");
            let kind = entry.header().entry_type();
            match kind {
                tar::EntryType::Directory if mode & 0o001 == 0 => drop(self.closed.insert(path)),
                tar::EntryType::Directory => drop(self.closed.remove(&path)),
                tar::EntryType::Link => {
                    let target = name(&entry.link_name().expect("a link").expect("a target"));
                    let sum = self.sums[&target].clone();
                    self.sums.insert(path, sum);
                }
                tar::EntryType::Regular => {
                    let mut bytes = Vec::new();
                    entry.read_to_end(&mut bytes).expect("content");
                    if mode & 0o004 == 0 {
                        self.closed.insert(path.clone())
                    } else {
                        self.closed.remove(&path)
                    };
                    self.sums.insert(path, Digest::of(&bytes).hex().to_owned());
                }
                _ => self.remove(&path),
            }
        }
    }

    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.sums.retain(|known, _| known != path && !known.starts_with(&below));
    }

    fn may_be_read(&self, path: &str) -> bool {
        !Path::new(path).ancestors().any(|part| self.closed.contains(part.to_str().unwrap_or_default()))
    }
}

fn name(path: &Path) -> String {
    let clean: PathBuf = path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect();
    clean.to_str().map(str::to_owned).ok_or_else(|| io::Error::other("a name in UTF-8")).expect("a name")
}
