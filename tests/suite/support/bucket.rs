//! A real S3 server of others (versitygw), with one bucket, and a proxy that does harm on the way to it.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use epiniod::{
    blob::{Claim, KeySource, Keys, S3Blobs, S3Settings},
    model::Digest,
};
use tempfile::TempDir;

use super::daemon::{free_port, scratch};

pub const BUCKET: &str = "shop";
pub const ACCESS: &str = "the-access-key-of-tests";
pub const SECRET: &str = "the-secret-key-of-tests";
const START: Duration = Duration::from_secs(20);

/// The server. Objects are files below a folder.
pub struct Bucket {
    dir: TempDir,
    scheme: &'static str,
    address: String,
    pub port: u16,
    server: Option<Child>,
}

impl Bucket {
    /// None where the server is not installed; that is said.
    pub fn start() -> Option<Self> {
        Self::start_with("http", "127.0.0.1")
    }

    /// At an address of this machine, for who does not reach loopback.
    pub fn start_at(address: &str) -> Option<Self> {
        Self::start_with("http", address)
    }

    /// With a certificate of an authority that nobody knows: [`Bucket::ca_file`].
    pub fn start_tls() -> Option<Self> {
        Self::start_with("https", "127.0.0.1")
    }

    fn start_with(scheme: &'static str, address: &str) -> Option<Self> {
        if Command::new("versitygw").arg("--version").output().is_err() {
            super::not_run("blobs in S3: versitygw is not installed (packaging/toolchain does it where there is Go)");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("epiniod-s3-").tempdir_in(scratch()).expect("a temporary folder");
        fs::create_dir_all(dir.path().join("data").join(BUCKET)).expect("a bucket");
        let mut bucket = Self { dir, scheme, address: address.to_owned(), port: free_port(), server: None };
        if scheme == "https" {
            bucket.make_certificates();
        }
        bucket.resume();
        Some(bucket)
    }

    pub fn resume(&mut self) {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).expect("a log");
        let mut command = Command::new("versitygw");
        command.args(["--port", &format!("{}:{}", self.address, self.port), "--keep-alive", "--quiet"]);
        if self.scheme == "https" {
            command.arg("--cert").arg(self.dir.path().join("server.pem"));
            command.arg("--key").arg(self.dir.path().join("server.key"));
        }
        command.arg("posix").arg(self.dir.path().join("data"));
        command.env("ROOT_ACCESS_KEY", ACCESS).env("ROOT_SECRET_KEY", SECRET);
        let server = command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log).spawn();
        self.server = Some(server.expect("versitygw starts"));
        super::wait_until("versitygw listens", START, || {
            TcpStream::connect((self.address.as_str(), self.port)).is_ok()
        });
    }

    pub fn stop(&mut self) {
        let mut server = self.server.take().expect("a running server");
        server.kill().and_then(|()| server.wait()).expect("it can be killed");
    }

    pub fn process(&self) -> &Child {
        self.server.as_ref().expect("a running server")
    }

    pub fn endpoint(&self) -> String {
        format!("{}://{}:{}", self.scheme, self.address, self.port)
    }

    pub fn settings(&self) -> S3Settings {
        S3Settings {
            endpoint: self.endpoint(),
            bucket: BUCKET.to_owned(),
            region: "us-east-1".to_owned(),
            ca_file: (self.scheme == "https").then(|| self.ca_file()),
            keys: KeySource::Fixed(keys(ACCESS, SECRET)),
        }
    }

    /// For a daemon.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("EPINIOD_S3_ENDPOINT", self.endpoint()),
            ("EPINIOD_S3_BUCKET", BUCKET.to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
        ]
    }

    /// Opens it as the daemon `tests` would.
    pub async fn open(&self) -> Arc<S3Blobs> {
        open(self.settings(), &self.copies()).await.expect("a usable bucket")
    }

    pub fn copies(&self) -> PathBuf {
        self.dir.path().join("copies")
    }

    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub fn folder(&self) -> PathBuf {
        self.dir.path().join("data").join(BUCKET)
    }

    /// The files below a folder of the bucket: objects, and what is not one yet.
    pub fn files(&self, below: &str) -> Vec<PathBuf> {
        files(&self.folder().join(below))
    }

    /// Makes a blob as old as can be.
    pub fn age(&self, digest: &Digest) {
        let hex = digest.hex();
        for kind in ["blobs", "touched"] {
            let path = self.folder().join(kind).join("sha256").join(&hex[..2]).join(&hex);
            if path.exists() {
                File::open(path).and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH)).expect("an own file");
            }
        }
    }

    fn make_certificates(&self) {
        let script = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
            openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr
            printf 'subjectAltName=IP:127.0.0.1,DNS:localhost' >ext
            openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -days 2 -extfile ext -out server.pem";
        let output = Command::new("sh").args(["-ec", script]).current_dir(self.dir.path()).output().expect("a shell");
        assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

pub fn keys(access: &str, secret: &str) -> Keys {
    Keys { access: access.to_owned(), secret: secret.to_owned(), session: None }
}

pub async fn open(settings: S3Settings, copies: &Path) -> Result<Arc<S3Blobs>, epiniod::blob::Error> {
    S3Blobs::open(settings, "tests", Claim::New, copies).await
}

pub fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Stands before a server.
pub struct Proxy {
    pub port: u16,
    harm: Arc<Harm>,
}

/// What is done to what passes.
#[derive(Default)]
struct Harm {
    replace: Mutex<Option<Replacement>>,
    /// An answer ends after so many bytes, so many times.
    cut: Mutex<Option<(usize, usize)>>,
    /// Heads of requests that passed.
    requests: Mutex<Vec<String>>,
    done: AtomicUsize,
}

struct Replacement {
    old: Vec<u8>,
    /// As long as the old.
    new: Vec<u8>,
    times: usize,
}

impl Proxy {
    pub fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let harm: Arc<Harm> = Arc::default();
        let shared = Arc::clone(&harm);
        // It ends with the process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                shared.join(&client, &server);
            }
        });
        Self { port, harm }
    }

    pub fn replace(&self, from: &str, to: &str, times: usize) {
        *self.harm.replace.lock().expect("no panic") = Some(Replacement { old: from.into(), new: to.into(), times });
    }

    pub fn cut_answers(&self, after: usize, times: usize) {
        *self.harm.cut.lock().expect("no panic") = Some((after, times));
    }

    /// The heads of all requests, as far as each came in one piece.
    pub fn requests(&self) -> Vec<String> {
        self.harm.requests.lock().expect("no panic").clone()
    }

    /// How often harm was done.
    pub fn done(&self) -> usize {
        self.harm.done.load(Ordering::SeqCst)
    }
}

impl Harm {
    fn join(self: &Arc<Self>, client: &TcpStream, server: &TcpStream) {
        let pairs = [(client, server, false), (server, client, true)];
        for (from, to, is_answer) in pairs {
            let (from, to) = (from.try_clone().expect("a stream"), to.try_clone().expect("a stream"));
            let harm = Arc::clone(self);
            std::thread::spawn(move || {
                let _ = harm.pass(&from, &to, is_answer);
                let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            });
        }
    }

    fn pass(&self, mut from: &TcpStream, mut to: &TcpStream, is_answer: bool) -> io::Result<()> {
        let (mut buffer, mut passed) = (vec![0; 64 * 1024], 0);
        loop {
            let read = from.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            let part = &mut buffer[..read];
            self.change(part);
            if !is_answer && let Some(end) = part.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&part[..end]).into_owned();
                self.requests.lock().expect("no panic").push(head);
            }
            passed += read;
            if is_answer && self.is_cut(passed) {
                return to.write_all(&part[..read / 2]);
            }
            to.write_all(part)?;
        }
    }

    fn change(&self, part: &mut [u8]) {
        let mut replace = self.replace.lock().expect("no panic");
        let Some(Replacement { old, new, times }) = replace.as_mut().filter(|one| one.times > 0) else { return };
        if let Some(at) = part.windows(old.len()).position(|window| window == old.as_slice()) {
            part[at..at + new.len()].copy_from_slice(new);
            *times -= 1;
            self.done.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn is_cut(&self, passed: usize) -> bool {
        let mut cut = self.cut.lock().expect("no panic");
        let Some((_, times)) = cut.as_mut().filter(|(after, times)| *times > 0 && passed > *after) else {
            return false;
        };
        *times -= 1;
        self.done.fetch_add(1, Ordering::SeqCst);
        true
    }
}
