//! Certificates of the public: from a real authority (Pebble), on an internet of the test's own, where the daemon has the
//! ports of the web.

mod blocked;
mod dns;
mod proxy;
mod trouble;

use std::{path::PathBuf, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::support::{Daemon, Internet, Manner, Packages, Response, RunBy, request, wait_until};

/// For an order, with an authority that takes its time.
const SOON: Duration = Duration::from_secs(60);

/// A daemon on such an internet.
struct Site {
    daemon: Daemon,
    internet: Internet,
    /// What clients trust.
    trusted: PathBuf,
}

impl Site {
    fn start(internet: Internet, more: &[(&'static str, &str)]) -> Self {
        let trusted = internet.trusted();
        let daemon = Daemon::start_in(internet.surroundings(more), Packages::Shared, RunBy::Caller);
        Self { daemon, internet, trusted }
    }

    /// As a browser asks that trusts the authority of the test.
    fn visit(&self, url: &str) -> std::io::Result<Response> {
        request(&["--max-time", "10", "--cacert", self.trusted.to_str().expect("a path"), url])
    }

    /// An application that is not deployed has a route, and answers 503.
    fn create(&self, app: &str, routes: &[&str]) {
        let routes = if routes.is_empty() { Value::Null } else { json!(routes) };
        let body = json!({"name": app, "configuration": {"routes": routes}});
        let credential = format!("admin:{}", self.daemon.password);
        let url = format!("http://127.0.0.1:{}/api/v1/namespaces/workspace/applications", self.daemon.port);
        let made = request(&["-u", &credential, "-d", &body.to_string(), "--max-time", "20", &url]).expect("an answer");
        assert_eq!(made.status, 201, "{made:?}");
    }

    fn is_trusted(&self, host: &str) -> bool {
        self.visit(&format!("https://{host}/")).is_ok()
    }

    fn wait_until_trusted(&self, host: &str) {
        wait_until(&format!("{host} has a certificate\n{}", self.lines()), SOON, || self.is_trusted(host));
    }

    fn lines(&self) -> Value {
        serde_json::from_str(&self.daemon.run(["routes", "--output", "json"])).expect("JSON")
    }

    /// What is said of the certificate of a host.
    fn certificate(&self, host: &str) -> Value {
        let lines = self.lines();
        let line = lines.as_array().expect("lines").iter().find(|line| line["host"] == host);
        line.map_or(Value::Null, |line| line["certificate"].clone())
    }

    fn message(&self, host: &str) -> String {
        self.certificate(host)["message"].as_str().unwrap_or_default().to_owned()
    }

    /// The number of the certificate that a host has.
    fn serial(&self, host: &str) -> String {
        let script = format!(
            "openssl s_client -connect 127.0.0.1:443 -servername {host} </dev/null 2>/dev/null | openssl x509 -noout -serial"
        );
        let output = Command::new("sh").args(["-c", &script]).output().expect("openssl");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

#[test]
fn every_route_and_the_api_have_a_certificate_at_once_and_keep_it() {
    let manner = Manner { bad_nonces: 15, ..Manner::default() };
    let Some(internet) = Internet::enter("certificates of the public by http-01", manner) else { return };
    let mut site = Site::start(internet, &[]);
    site.create("shop", &[]);
    site.create("docs", &["docs.paas.test", "docs.example.test/v2"]);
    let hosts = ["epinio.paas.test", "shop.paas.test", "docs.paas.test", "docs.example.test"];
    hosts.iter().for_each(|host| site.wait_until_trusted(host));
    assert_eq!(site.visit("https://shop.paas.test/").expect("an answer").status, 503, "it is not deployed");
    assert_eq!(site.visit("https://epinio.paas.test/ready").expect("an answer").status, 200);
    let said = site.certificate("docs.example.test");
    assert_eq!((&said["issuer"], &said["state"]), (&json!("https://127.0.0.1:14000/dir"), &json!("valid")), "{said}");
    let table = site.daemon.run(["routes"]);
    assert!(table.contains("(API)") && table.contains("valid, 127.0.0.1:14000"), "{table}");
    let moved = request(&["--max-time", "5", "-i", "http://shop.paas.test/x"]).expect("an answer");
    assert!(moved.status == 308 && moved.body.contains("https://shop.paas.test/x"), "{moved:?}");

    // What is kept is served by the next daemon, whether or not an authority is there.
    let serial = site.serial("shop.paas.test");
    site.daemon.kill();
    site.internet.stop_authority();
    site.daemon.resume();
    hosts.iter().for_each(|host| assert!(site.is_trusted(host), "{host}"));
    assert_eq!(site.serial("shop.paas.test"), serial);
}

#[test]
fn a_host_without_port_80_is_shown_to_be_here_by_tls() {
    let manner = Manner { slow: 2, ..Manner::default() };
    let Some(internet) = Internet::enter("certificates of the public by tls-alpn-01", manner) else { return };
    let mut surroundings = internet.surroundings(&[]);
    surroundings.port = Some(8080);
    let trusted = internet.trusted();
    let daemon = Daemon::start_in(surroundings, Packages::Shared, RunBy::Caller);
    let site = Site { daemon, internet, trusted };
    site.wait_until_trusted("epinio.paas.test");
    request(&["--max-time", "5", "http://127.0.0.1:80/"]).expect_err("nobody listens there");
}

#[test]
fn a_certificate_is_renewed_before_it_ends_and_after_a_daemon_was_away_for_long() {
    // What is left of its life when it is to be renewed is longer than the pause after an attempt that failed.
    let life = 60;
    let manner = Manner { validity: life, ..Manner::default() };
    let Some(internet) = Internet::enter("renewal of certificates of the public", manner) else { return };
    let mut site = Site::start(internet, &[]);
    let host = "epinio.paas.test";
    site.wait_until_trusted(host);
    let mut serials = vec![site.serial(host)];
    for _ in 0..2 {
        wait_until("there is another certificate", 2 * SOON, || {
            let visit = site.visit(&format!("https://{host}/"));
            assert!(
                visit.is_ok(),
                "there is always one that is valid: {visit:?}\n{}\n{}",
                site.lines(),
                site.daemon.log_tail()
            );
            !serials.contains(&site.serial(host))
        });
        serials.push(site.serial(host));
    }
    site.daemon.stop();
    let ended = std::time::Instant::now() + Duration::from_secs(u64::from(life) + 1);
    wait_until("the last certificate has ended", 2 * SOON, || std::time::Instant::now() > ended);
    site.daemon.resume();
    site.wait_until_trusted(host);
    assert!(!serials.contains(&site.serial(host)));
}

#[test]
fn an_authority_that_wants_a_certificate_to_be_renewed_sooner_is_heard() {
    let Some(internet) = Internet::enter("renewal information of an authority", Manner::default()) else { return };
    let mut site = Site::start(internet, &[]);
    let host = "epinio.paas.test";
    site.wait_until_trusted(host);
    let (serial, chain) = (site.serial(host), site.daemon.dir().join("chain.pem"));
    let script = format!(
        "openssl s_client -connect 127.0.0.1:443 -servername {host} </dev/null 2>/dev/null | openssl x509 > {}",
        chain.display()
    );
    assert!(Command::new("sh").args(["-c", &script]).status().expect("openssl").success());
    let certificate = std::fs::read_to_string(&chain).expect("a certificate");
    let window = r#"{"suggestedWindow": {"start": "2020-01-01T00:00:00Z", "end": "2020-01-02T00:00:00Z"}}"#;
    let body = json!({"Certificate": certificate, "ARIResponse": window}).to_string();
    site.internet.ask_authority(&["/set-renewal-info/", "-d", &body]).expect("the authority takes it");
    // A daemon asks when it starts, and then as often as the authority wants to be asked: each six hours.
    site.daemon.kill();
    site.daemon.resume();
    wait_until("there is another certificate", SOON, || site.serial(host) != serial && site.is_trusted(host));
}
