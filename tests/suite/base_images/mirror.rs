//! A Debian mirror of the test's own: packages, indexes and signatures made on the spot, and faults on request.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use base64::Engine as _;
use epiniod::{
    base::{Keyring, Mirrors, Options},
    model::Digest,
};
use futures::stream;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

/// A package to be served.
#[derive(Clone)]
pub struct Deb {
    pub name: String,
    pub version: String,
    pub depends: String,
    pub postinst: String,
    /// Path, mode, content; a path that ends with `/` is a folder, `a -> b` a link.
    pub files: Vec<(String, u32, String)>,
}

impl Deb {
    pub fn new(name: &str, version: &str) -> Self {
        let copyright = (format!("usr/share/doc/{name}/copyright"), 0o644, format!("{name} is free\n"));
        let manual = (format!("usr/share/man/man1/{name}.1"), 0o644, "read me".to_owned());
        let program = (format!("usr/bin/{name}"), 0o4755, format!("{name} {version}"));
        let (name, version) = (name.to_owned(), version.to_owned());
        Self { name, version, depends: String::new(), postinst: String::new(), files: vec![copyright, manual, program] }
    }

    pub fn needs(mut self, depends: &str) -> Self {
        self.depends = depends.to_owned();
        self
    }

    pub fn with(mut self, path: &str, mode: u32, content: &str) -> Self {
        self.files.push((path.to_owned(), mode, content.to_owned()));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let control = format!("Package: {}\nVersion: {}\n", self.name, self.version);
        let mut control_tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (path, content) in [("./control", &control), ("./postinst", &self.postinst)] {
            control_tar.append_data(&mut header(0o644, content.len()), path, content.as_bytes()).unwrap();
        }
        let control_tar = control_tar.into_inner().unwrap().finish().unwrap();
        let mut data = tar::Builder::new(Vec::new());
        for (path, mode, content) in &self.files {
            match path.split_once(" -> ") {
                Some((path, target)) => {
                    let mut header = header(0o777, 0);
                    header.set_entry_type(tar::EntryType::Symlink);
                    data.append_link(&mut header, format!("./{path}"), target).unwrap();
                }
                None => {
                    let mut header = header(*mode, content.len());
                    if path.ends_with('/') {
                        header.set_entry_type(tar::EntryType::Directory);
                    }
                    data.append_data(&mut header, format!("./{path}"), content.as_bytes()).unwrap();
                }
            }
        }
        let data = xz(&data.into_inner().unwrap());
        let members = [("debian-binary", b"2.0\n".to_vec()), ("control.tar.gz", control_tar), ("data.tar.xz", data)];
        let mut deb = b"!<arch>\n".to_vec();
        for (name, content) in members {
            writeln!(deb, "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, 0, "100644", content.len()).unwrap();
            deb.extend_from_slice(&content);
            deb.extend_from_slice(&b"\n"[..content.len() % 2]);
        }
        deb
    }
}

fn header(mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size as u64);
    header.set_mtime(1_700_000_000);
    header
}

pub fn xz(content: &[u8]) -> Vec<u8> {
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    writer.write_all(content).unwrap();
    writer.finish().unwrap()
}

/// What goes wrong with a file.
#[derive(Clone, Copy)]
pub enum Fault {
    /// The connection breaks after so many bytes, once.
    Cut(usize),
    /// One byte is another one.
    Changed,
    /// Nothing ever comes.
    Silent,
}

#[derive(Default)]
struct Served {
    files: BTreeMap<String, Vec<u8>>,
    faults: BTreeMap<String, Fault>,
    /// Paths with their `Range`.
    requests: Vec<String>,
}

/// A mirror that answers until it is dropped.
pub struct Mirror {
    url: String,
    served: Arc<Mutex<Served>>,
    server: tokio::task::JoinHandle<()>,
    key: Ed25519KeyPair,
}

/// Which releases a mirror has; the defaults are good ones.
pub struct Releases {
    /// Seconds from now.
    pub date: i64,
    pub valid_for: i64,
    pub codename: &'static str,
}

impl Default for Releases {
    fn default() -> Self {
        Self { date: -3600, valid_for: 86_400, codename: "trixie" }
    }
}

impl Mirror {
    /// A mirror with the run set, and these packages instead or on top.
    pub async fn start(packages: &[Deb]) -> Self {
        let served = Arc::new(Mutex::new(Served::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/debian", listener.local_addr().unwrap());
        let router = Router::new().fallback(serve).with_state(served.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let mirror = Self { url, served, server, key: Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap() };
        mirror.release(packages, &Releases::default());
        mirror
    }

    /// Replaces what is served.
    pub fn release(&self, packages: &[Deb], releases: &Releases) {
        let mut all: BTreeMap<String, Deb> = run_set().into_iter().map(|deb| (deb.name.clone(), deb)).collect();
        all.extend(packages.iter().map(|deb| (deb.name.clone(), deb.clone())));
        let mut files = BTreeMap::new();
        let mut index = String::new();
        for deb in all.values() {
            let (bytes, path) = (deb.bytes(), format!("pool/{}_{}.deb", deb.name, deb.version));
            let (hash, size) = (Digest::of(&bytes).hex(), bytes.len());
            let Deb { name, version, depends, .. } = deb;
            index += &format!(
                "Package: {name}\nVersion: {version}\nArchitecture: amd64\nDepends: {depends}\n\
                 Filename: {path}\nSize: {size}\nSHA256: {hash}\n\n"
            );
            files.insert(format!("/debian/{path}"), bytes);
        }
        let suites = [("", index.as_str()), ("-updates", ""), ("-security", "")];
        for (suffix, index) in suites {
            let packed = xz(index.as_bytes());
            let (folder, hash) = (format!("/debian/dists/trixie{suffix}"), Digest::of(&packed).hex());
            let text = format!(
                "Codename: {}{suffix}\nDate: {}\nValid-Until: {}\nSHA256:\n {hash} {} main/binary-amd64/Packages.xz\n",
                releases.codename,
                date(releases.date),
                date(releases.valid_for),
                packed.len()
            );
            files.insert(format!("{folder}/InRelease"), self.sign(&text).into_bytes());
            files.insert(format!("{folder}/main/binary-amd64/by-hash/SHA256/{hash}"), packed);
        }
        self.served.lock().unwrap().files = files;
    }

    pub fn options(&self, folder: &Path) -> Options {
        let mirrors = Mirrors { archive: Some(self.url.clone()), security: Some(self.url.clone()) };
        Options {
            keyring: self.keyring(),
            architecture: "amd64".to_owned(),
            retry_delay: Duration::from_millis(1),
            ..Options::new(folder, mirrors)
        }
    }

    /// A fault in each file whose path contains this.
    pub fn fault(&self, part: &str, fault: Fault) {
        let mut served = self.served.lock().unwrap();
        let paths: Vec<String> = served.files.keys().filter(|path| path.contains(part)).cloned().collect();
        assert!(!paths.is_empty(), "nothing is served as {part}");
        served.faults.extend(paths.into_iter().map(|path| (path, fault)));
    }

    pub fn repair(&self) {
        self.served.lock().unwrap().faults.clear();
    }

    /// What was asked for since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.served.lock().unwrap().requests)
    }

    /// Ends the server and waits until its port is closed.
    pub async fn stop(mut self) {
        self.server.abort();
        let _ = (&mut self.server).await;
    }

    /// With a mirror from apt sources instead of flags.
    pub fn options_of_host(&self, folder: &Path) -> Options {
        let apt = folder.join("apt");
        std::fs::create_dir_all(apt.join("sources.list.d")).unwrap();
        let other = self.url.replace("/debian", "/ubuntu");
        std::fs::write(apt.join("sources.list"), format!("deb {other} noble main\n")).unwrap();
        let sources = format!("Types: deb\nURIs: {}/\nSuites: bookworm\nComponents: main\n", self.url);
        std::fs::write(apt.join("sources.list.d/debian.sources"), sources).unwrap();
        Options { mirrors: Mirrors::default(), apt, ..self.options(folder) }
    }

    /// Serves the files that `is_there` keeps at another place of this host too; its URL.
    pub fn serve_part(&self, place: &str, is_there: impl Fn(&str) -> bool) -> String {
        let mut served = self.served.lock().unwrap();
        let files = served.files.iter().filter(|(path, _)| is_there(path));
        let files: Vec<_> = files.map(|(path, content)| (format!("/{place}{path}"), content.clone())).collect();
        served.files.extend(files);
        self.url.replace("/debian", &format!("/{place}/debian"))
    }

    fn keyring(&self) -> Keyring {
        let point = self.key.public_key().as_ref();
        let body = [&[4, 0, 0, 0, 1, 22, 9][..], ED25519_OID, &[1, 7, 0x40], point].concat();
        let length = u8::try_from(body.len()).unwrap();
        Keyring::from_packets(&[&[0xc6, length][..], &body].concat()).unwrap()
    }

    /// A clear signature (RFC 9580 §7) by legacy Ed25519 over SHA-256.
    fn sign(&self, text: &str) -> String {
        let head = [4, 1, 22, 8, 0, 6, 5, 2, 0, 0, 0, 1];
        let canonical = text.trim_end().replace('\n', "\r\n");
        let signed = [canonical.as_bytes(), &head, &[4, 0xff, 0, 0, 0, 12]].concat();
        let hash = ring::digest::digest(&ring::digest::SHA256, &signed);
        let signature = self.key.sign(hash.as_ref());
        let (r, s) = signature.as_ref().split_at(32);
        let body = [&head[..], &[0, 0], &hash.as_ref()[..2], &mpi(r), &mpi(s)].concat();
        let packet = [&[0xc2, u8::try_from(body.len()).unwrap()][..], &body].concat();
        let armour = base64::engine::general_purpose::STANDARD.encode(packet);
        format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{text}-----BEGIN PGP SIGNATURE-----\n\n{armour}\n\
             -----END PGP SIGNATURE-----\n"
        )
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.server.abort();
    }
}

const ED25519_OID: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];

fn mpi(number: &[u8]) -> Vec<u8> {
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    let number = &number[start..];
    let bits = number.len() * 8 - number.first().map_or(0, |byte| byte.leading_zeros() as usize);
    [&u16::try_from(bits).unwrap().to_be_bytes()[..], number].concat()
}

/// The packages of every base, with what the fix-ups look for.
fn run_set() -> Vec<Deb> {
    let deb = |name: &str| {
        let deb = Deb::new(name, "1");
        match name {
            "base-files" => deb.with("bin -> usr/bin", 0, "").with("tmp/", 0o1777, ""),
            "base-passwd" => deb
                .with("usr/share/base-passwd/passwd.master", 0o644, "root:*:0:0:root:/root:/bin/bash\n")
                .with("usr/share/base-passwd/group.master", 0o644, "root:*:0:\n"),
            "ca-certificates" => deb.with("usr/share/ca-certificates/mozilla/A.crt", 0o644, "A CA\n"),
            "libc6" => deb.with("lib/x86_64-linux-gnu/libc.so.6", 0o755, "\x7fELF..."),
            _ => deb,
        }
    };
    listed(|definition| &definition["run"]["packages"]).iter().map(|name| deb(name)).collect()
}

/// The packages that stand for compilers.
pub fn build_tools() -> Vec<Deb> {
    listed(|definition| &definition["aliases"]["build-tools"]).iter().map(|name| Deb::new(name, "1")).collect()
}

fn listed(list: impl Fn(&toml::Table) -> &toml::Value) -> Vec<String> {
    let definition = include_str!("../../../embedded/base/definition.toml").parse().unwrap();
    list(&definition).as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn date(seconds_from_now: i64) -> String {
    let now = jiff::Timestamp::now().as_second();
    let then = jiff::Timestamp::from_second(now + seconds_from_now).unwrap();
    then.strftime("%a, %d %b %Y %H:%M:%S UTC").to_string()
}

async fn serve(State(served): State<Arc<Mutex<Served>>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let range = request.headers().get(header::RANGE).map(|range| range.to_str().unwrap().to_owned());
    let is_silent = matches!(served.lock().unwrap().faults.get(&path), Some(Fault::Silent));
    if is_silent {
        return std::future::pending().await;
    }
    let mut served = served.lock().unwrap();
    served.requests.push(format!("{path} {}", range.as_deref().unwrap_or("")).trim().to_owned());
    let Some(mut content) = served.files.get(&path).cloned() else { return StatusCode::NOT_FOUND.into_response() };
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match served.faults.get(&path).copied() {
        Some(Fault::Changed) => {
            let middle = content.len() / 2;
            content[middle] ^= 1;
        }
        Some(Fault::Cut(length)) => {
            served.faults.remove(&path);
            let pieces = content[..length].chunks(16_384).map(|piece| Ok(Bytes::copy_from_slice(piece)));
            let pieces: Vec<_> = pieces.chain([Err(io::Error::other("cut"))]).collect();
            return ([(header::CONTENT_LENGTH, content.len())], Body::from_stream(stream::iter(pieces)))
                .into_response();
        }
        Some(Fault::Silent) | None => {}
    }
    match from {
        Some(from) => (StatusCode::PARTIAL_CONTENT, content.split_off(from)).into_response(),
        None => content.into_response(),
    }
}
