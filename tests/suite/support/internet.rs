//! A small internet for one test: a network with a name service and a certificate authority of the public, on which the
//! thread of the test, and whatever it starts, is alone. There a daemon has the ports of the web.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Surroundings, wait_until};

/// How the authority behaves.
#[derive(Clone)]
pub struct Manner {
    /// Of a hundred nonces that are good, how many it refuses.
    pub bad_nonces: u32,
    /// How long it takes to look at a challenge, in seconds.
    pub slow: u32,
    /// How long certificates are valid, in seconds.
    pub validity: u32,
    /// Whether it asks its clients to wait between two looks at an order.
    pub waits: bool,
    /// What its clients ask before they validate themselves; none asks the name service of the test.
    pub name_server: String,
    /// Whether an account needs a key of another one.
    pub binding: Option<(&'static str, &'static str)>,
}

impl Default for Manner {
    fn default() -> Self {
        let name_server = format!("{LOOPBACK}:53");
        Self { bad_nonces: 0, slow: 0, validity: 90 * 86_400, waits: true, name_server, binding: None }
    }
}

pub struct Internet {
    dir: TempDir,
    /// Of the authority and of the name service.
    address: String,
    manner: Manner,
    authority: Option<Child>,
    names: Child,
}

/// Where the directory of the authority is, on an internet of a test's own.
pub const DIRECTORY: &str = "https://127.0.0.1:14000/dir";
const LOOPBACK: &str = "127.0.0.1";
const START: Duration = Duration::from_secs(20);

impl Internet {
    /// Moves this thread into an internet of its own; none where that cannot be done.
    pub fn enter(what: &str, manner: Manner) -> Option<Self> {
        let programs = programs(what)?;
        unshare(CloneFlags::CLONE_NEWNET).expect("root may unshare");
        run("ip", &["link", "set", "lo", "up"]);
        Some(Self::start(programs, LOOPBACK, LOOPBACK, manner))
    }

    /// The same for what has a network already: authority and name service are at this address of the machine, and all
    /// names lead to another one.
    pub fn beside(what: &str, address: &str, leads_to: &str, manner: Manner) -> Option<Self> {
        let programs = programs(what)?;
        let name_server = format!("{address}:53");
        Some(Self::start(programs, address, leads_to, Manner { name_server, ..manner }))
    }

    /// From here on this thread asks the name service of the internet.
    fn start([pebble, names]: [PathBuf; 2], address: &str, leads_to: &str, manner: Manner) -> Self {
        let dir = tempfile::Builder::new().prefix("epiniod-internet-").tempdir().expect("a temporary folder");
        unshare(CloneFlags::CLONE_NEWNS).expect("root may unshare");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>).expect("a mount");
        let resolver = dir.path().join("resolv.conf");
        fs::write(&resolver, format!("nameserver {address}\n")).expect("a file");
        mount(Some(&resolver), "/etc/resolv.conf", None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("a mount");
        let silent = ["-http01", "", "-https01", "", "-doh", "", "-tlsalpn01", "", "-defaultIPv6", ""];
        let names = Command::new(names)
            .args(silent)
            .args(["-defaultIPv4", leads_to, "-dnsserver", &format!("{address}:53")])
            .args(["-management", &format!("{address}:8055")])
            .stdin(Stdio::null())
            .stdout(fs::File::create(dir.path().join("names.log")).expect("a log"))
            .stderr(Stdio::null())
            .spawn()
            .expect("a name service");
        fs::write(dir.path().join("program"), pebble.to_str().expect("a path")).expect("a file");
        let mut internet = Self { dir, address: address.to_owned(), manner, authority: None, names };
        internet.write_identity();
        internet.start_authority();
        wait_until("the name service answers", START, || {
            internet.names_are("clear-a", &json!({"host": "nobody.test"}))
        });
        internet
    }

    /// Where the directory of the authority is.
    pub fn directory(&self) -> String {
        format!("https://{}:14000/dir", self.address)
    }

    /// What a daemon is told of it; with more of the same.
    pub fn surroundings(&self, more: &[(&'static str, &str)]) -> Surroundings {
        let mut environment: Vec<_> = [
            ("EPINIOD_SYSTEM_DOMAIN", "paas.test"),
            ("EPINIOD_LISTEN_TLS", "127.0.0.1:443"),
            ("EPINIOD_ACME_DIRECTORY", &*self.directory()),
            ("EPINIOD_ACME_EMAIL", "admin@paas.test"),
            ("EPINIOD_ACME_CA_FILE", self.ca_file().to_str().expect("a path")),
        ]
        .map(|(name, value)| (name, value.to_owned()))
        .into();
        environment.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
        environment.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        Surroundings { environment, port: Some(80), ..Surroundings::default() }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Who signed the certificate of the authority's own server.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("server-ca.pem")
    }

    /// What the clients of the public trust.
    pub fn trusted(&self) -> PathBuf {
        let path = self.dir.path().join("public-ca.pem");
        let roots = self.ask_authority(&["/roots/0"]).expect("the root of the authority");
        fs::write(&path, roots).expect("a file");
        path
    }

    /// With nothing of what it knew.
    pub fn restart_authority(&mut self, manner: Manner) {
        self.stop_authority();
        self.manner = manner;
        self.start_authority();
    }

    pub fn stop_authority(&mut self) {
        if let Some(mut child) = self.authority.take() {
            child.kill().and_then(|()| child.wait()).expect("it ends");
        }
    }

    pub fn start_authority(&mut self) {
        let config = self.dir.path().join("pebble.json");
        let keys: serde_json::Map<String, Value> =
            self.manner.binding.iter().map(|(id, key)| ((*id).to_owned(), json!(key))).collect();
        let settings = json!({"pebble": {
            "listenAddress": format!("{}:14000", self.address),
            "managementListenAddress": format!("{}:15000", self.address),
            "certificate": self.dir.path().join("server.pem"),
            "privateKey": self.dir.path().join("server.key"),
            "httpPort": 80,
            "tlsPort": 443,
            "retryAfter": {"authz": i32::from(self.manner.waits), "order": i32::from(self.manner.waits)},
            "keyAlgorithm": "ecdsa",
            "externalAccountBindingRequired": self.manner.binding.is_some(),
            "externalAccountMACKeys": keys,
            "profiles": {
                "default": {"description": "as ever", "validityPeriod": self.manner.validity},
                "shortlived": {"description": "six days", "validityPeriod": self.manner.validity.min(518_400)},
            },
        }});
        fs::write(&config, settings.to_string()).expect("a file");
        let program = fs::read_to_string(self.dir.path().join("program")).expect("a path");
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("pebble.log"));
        let mut command = Command::new(program);
        command
            .args(["-config", config.to_str().expect("a path"), "-dnsserver", &self.manner.name_server])
            .env("PEBBLE_WFE_NONCEREJECT", self.manner.bad_nonces.to_string())
            .stdin(Stdio::null())
            .stdout(log.expect("a log"))
            .stderr(Stdio::null());
        match self.manner.slow {
            0 => command.env("PEBBLE_VA_NOSLEEP", "1"),
            seconds => command.env("PEBBLE_VA_SLEEPTIME", seconds.to_string()),
        };
        self.authority = Some(command.spawn().expect("the authority starts"));
        wait_until("the authority answers", START, || self.ask_authority(&["/roots/0"]).is_ok());
    }

    /// Changes what the name service answers.
    pub fn names_are(&self, what: &str, body: &Value) -> bool {
        let url = format!("http://{}:8055/{what}", self.address);
        super::request(&["--max-time", "5", "-d", &body.to_string(), &url]).is_ok_and(|answer| answer.status == 200)
    }

    /// A question to the management of the authority: the path, and more arguments of curl.
    pub fn ask_authority(&self, args: &[&str]) -> std::io::Result<String> {
        let (path, more) = args.split_first().expect("a path");
        let ca_file = self.ca_file();
        let url = format!("https://{}:15000{path}", self.address);
        let known = ["--max-time", "5", "--cacert", ca_file.to_str().expect("a path"), &url];
        let answer = super::request(&[&known[..], more].concat())?;
        if answer.status == 200 { Ok(answer.body) } else { Err(std::io::Error::other(answer.body)) }
    }

    /// How often the log of the authority has a text.
    pub fn said(&self, text: &str) -> usize {
        fs::read_to_string(self.dir.path().join("pebble.log")).expect("a log").matches(text).count()
    }

    fn write_identity(&self) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![self.address.clone(), "localhost".to_owned()]).expect("names");
        let certificate = params.self_signed(&key).expect("a certificate");
        for (name, text) in [
            ("server.pem", certificate.pem()),
            ("server-ca.pem", certificate.pem()),
            ("server.key", key.serialize_pem()),
        ] {
            fs::write(self.dir.path().join(name), text).expect("a file");
        }
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        self.stop_authority();
        let _ = self.names.kill().and_then(|()| self.names.wait());
    }
}

/// The authority and the name service.
fn programs(what: &str) -> Option<[PathBuf; 2]> {
    if !nix::unistd::Uid::effective().is_root() {
        super::not_run(&format!("{what}: only root can make a network"));
        return None;
    }
    super::programs(["pebble", "challtestsrv"]).inspect_err(|why| super::not_run(&format!("{what}: {why}"))).ok()
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().expect("a program");
    assert!(status.success(), "{program} {args:?} failed");
}
