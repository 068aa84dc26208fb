//! HTTPS without a public authority: the daemon's own one signs, for whoever trusts it.

use std::{path::PathBuf, process::Command, time::Duration};

use crate::support::{
    Daemon, Packages, Response, RunBy, Surroundings, epiniod, free_port, not_run, request, sample, wait_until,
};

struct Site {
    daemon: Daemon,
    port: u16,
    /// What curl trusts.
    authority: PathBuf,
    _config: tempfile::NamedTempFile,
}

impl Site {
    fn start() -> Self {
        let port = free_port();
        let config = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary file");
        std::fs::write(config.path(), "[edge]\nhsts_seconds = 60\naccess_log = true\n").expect("a file");
        let environment = vec![
            ("EPINIOD_LISTEN_TLS", format!("127.0.0.1:{port}")),
            ("EPINIOD_CONFIG", config.path().to_str().expect("a path").to_owned()),
        ];
        let surroundings = Surroundings { environment, ..Surroundings::default() };
        let daemon = Daemon::start_in(surroundings, Packages::Shared, RunBy::Caller);
        let authority = daemon.dir().join("ca.pem");
        std::fs::write(&authority, daemon.run(["ca", "show"])).expect("a file");
        Self { daemon, port, authority, _config: config }
    }

    fn curl(&self, more: &[&str]) -> std::io::Result<Response> {
        let authority = self.authority.to_str().expect("a path");
        request(&[&["--max-time", "20", "--cacert", authority], more].concat())
    }

    /// The CLI, logged in by a settings file of its own.
    fn epiniod(&self, args: &[&str]) -> (bool, String) {
        let output = Command::new(epiniod())
            .args(args)
            .env("EPINIO_SETTINGS", self.daemon.dir().join("login.yaml"))
            .env_remove("EPINIOD_DATA_DIR")
            .stdin(std::process::Stdio::null())
            .output()
            .expect("epiniod can be run");
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }
}

#[test]
fn applications_and_the_api_have_certificates_of_the_authority_that_clients_trust() {
    let mut site = Site::start();
    let url = site.daemon.push("page", &sample("procfile"));
    assert_eq!(url.trim(), format!("https://page.localhost:{}", site.port));
    for version in ["--http1.1", "--http2"] {
        let page = site.curl(&[version, url.trim()]).expect("the authority is trusted");
        assert!(page.status == 200 && page.body.contains("Hello from"), "{version}: {page:?}");
    }
    let stranger = request(&["--max-time", "20", url.trim()]).expect_err("nobody else trusts it");
    assert!(stranger.to_string().contains("certificate"), "{stranger}");
    // Also by address, as the daemon's own machine does it.
    let ready =
        site.curl(&[&format!("https://127.0.0.1:{}/ready", site.port)]).expect("the address is in the certificate");
    assert_eq!(ready.status, 200);
    let unknown = site.curl(&[&format!("https://nobody.localhost:{}", site.port)]);
    assert!(unknown.is_err(), "there is no certificate for what is not served: {unknown:?}");

    let plain = format!("http://page.localhost:{}/some/path?x=1", site.daemon.port);
    let moved = request(&["--max-time", "20", "-i", &plain]).expect("an answer");
    assert_eq!(moved.status, 308, "{moved:?}");
    let wanted = format!("location: https://page.localhost:{}/some/path?x=1", site.port);
    assert!(moved.body.to_lowercase().contains(&wanted), "{moved:?}");

    let strict = site.curl(&["-i", &format!("{}/some?secret=1", url.trim())]).expect("an answer");
    assert!(strict.body.to_lowercase().contains("strict-transport-security: max-age=60"), "{strict:?}");
    let mut line = String::new();
    wait_until("there is a line for the request", Duration::from_secs(10), || {
        let log = std::fs::read_to_string(site.daemon.dir().join("daemon.log")).expect("a log");
        let is_it = |line: &&str| line.contains("epiniod::access") && line.contains("scheme=\"https\" method=GET");
        line = log.lines().rfind(|line| is_it(line) && line.contains("/some")).unwrap_or_default().to_owned();
        !line.is_empty()
    });
    assert!(line.contains("page.localhost") && line.contains("status=200") && !line.contains("secret"), "{line}");

    site.daemon.stop();
    site.daemon.resume();
    wait_until(
        "the application is served by the next daemon, under the same authority",
        Duration::from_secs(20),
        || site.curl(&[url.trim()]).is_ok_and(|page| page.status == 200),
    );
}

#[test]
fn a_login_takes_an_authority_by_its_fingerprint() {
    let site = Site::start();
    let api = format!("https://epinio.localhost:{}", site.port);
    let output = site.daemon.output(["ca", "show"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let fingerprint = said.split_whitespace().nth(1).expect("SHA-256 and the fingerprint").to_owned();
    let login = ["login", &api, "--user", "admin", "--password", &site.daemon.password];
    let (succeeded, said) = site.epiniod(&login);
    assert!(!succeeded && said.contains("--ca-fingerprint") && said.contains(&fingerprint), "{said}");
    let wrong = fingerprint.replace(|c: char| c.is_ascii_digit(), "A");
    let (succeeded, said) = site.epiniod(&[&login[..], &["--ca-fingerprint", &wrong]].concat());
    assert!(!succeeded && said.contains(&fingerprint), "{said}");
    let (succeeded, said) = site.epiniod(&["info"]);
    assert!(!succeeded, "what failed is no login: {said}");
    let (succeeded, said) = site.epiniod(&[&login[..], &["--ca-fingerprint", &fingerprint]].concat());
    assert!(succeeded, "{said}");
    let (succeeded, said) = site.epiniod(&["info"]);
    assert!(succeeded && said.contains(&api), "{said}");
}

/// The machine's folders for authorities, as copies that end with the shell.
const APART: &str = r#"
set -e
mount -t tmpfs tmpfs "$1"
for folder in etc usr/local; do
    mkdir -p "$1/$folder/upper" "$1/$folder/work"
    mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$1/$folder/upper,workdir=$1/$folder/work" "/$folder"
done
mkdir -p /usr/local/share/ca-certificates
curl -sS "$3" && { echo "it is trusted already"; exit 1; }
"$2" ca trust
curl -sSf "$3"
"#;

#[test]
fn a_machine_that_is_told_to_trusts_the_authority() {
    if !nix::unistd::Uid::effective().is_root()
        || Command::new("update-ca-certificates").arg("--help").output().is_err()
    {
        return not_run("ca trust: it takes root, and update-ca-certificates");
    }
    let site = Site::start();
    let room = tempfile::tempdir().expect("a temporary folder");
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-c", APART, "apart"])
        .arg(room.path())
        .arg(epiniod())
        .arg(format!("https://127.0.0.1:{}/ready", site.port))
        .env("EPINIOD_DATA_DIR", site.daemon.data_dir())
        .env("EPINIO_SETTINGS", site.daemon.dir().join("login.yaml"))
        .env_remove("CURL_CA_BUNDLE")
        .env_remove("SSL_CERT_FILE")
        .env_remove("SSL_CERT_DIR")
        .output()
        .expect("unshare");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("this machine trusts"), "{told}");
    assert!(told.contains("unable to get local issuer certificate"), "it was not trusted before: {told}");
    let left = std::fs::read_dir("/usr/local/share/ca-certificates").into_iter().flatten().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(
        left.iter().all(|name| !name.to_string_lossy().starts_with("epiniod-")),
        "the machine is as it was: {left:?}"
    );
}
