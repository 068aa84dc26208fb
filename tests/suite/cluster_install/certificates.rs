//! Certificates of the public in a cluster, from a real authority: behind Traefik, by cert-manager, and at the daemon's own
//! edge.

use std::{
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{Place, Turn, mirrors};
use crate::support::{
    Internet, Manner, Response,
    cluster::{address_towards, script, server_of},
    request, sample, wait_until,
};

/// For an order, with an authority and an ingress controller that take their time.
const SOON: Duration = Duration::from_secs(60);
/// What somebody else did is put right after a minute at most, and then half of one.
const PUT_RIGHT: Duration = Duration::from_secs(100);
const PAGE: &str = "Static sample";
const GREETING: &str = "Hello from the Procfile sample";

#[test]
fn routes_and_the_api_have_certificates_behind_traefik_and_at_the_own_edge() {
    let what = "certificates of the public in a cluster";
    let Some(place) = Turn::take(what) else { return };
    let traefik = Traefik::serves(&place);
    let Some(site) = Site::make(&place, what) else { return };
    place.import_image();
    let data = place.folder("certified");
    let ca_file = site.internet.ca_file();
    let directory = site.internet.directory();
    let acme = ["--acme-directory", &directory, "--acme-ca-file", ca_file.to_str().expect("a path")];
    let url = site.install(&[&["--storage-path", &data, "--system-domain", "paas.test"], &acme[..]].concat());
    assert_eq!(url, "https://epinio.paas.test");

    // An order of which the daemon does not see the end, unless it is faster than who looks.
    site.create("late");
    wait_until("the authority is led to the daemon", SOON, || !site.challenges().is_empty() || site.issued() == 2);
    site.kill_daemon();
    site.push("shop", "static", &[]);
    site.wait_until_answers("shop.paas.test", PAGE);
    place.kubectl(&["delete", "secret", "-n", "workspace", "epiniod-tls-shop.paas.test"]);
    site.push("docs", "procfile", &["--route", "docs.example.test"]);
    site.wait_until_answers("docs.example.test", GREETING);
    site.wait_until_trusted("epinio.paas.test");
    wait_until("the order that was interrupted is ended", SOON, || {
        site.certificate("late.paas.test")["state"] == "valid"
    });
    assert_eq!(site.certificate("late.paas.test")["issuer"], directory);
    assert_eq!(site.issued(), 4, "one for each host");
    wait_until("nothing leads an authority to the daemon any more", SOON, || site.challenges().is_empty());
    let plain = request(&["--max-time", "10", "http://shop.paas.test/"]).expect("an answer");
    assert!(plain.status == 200 && plain.body.contains(PAGE), "Traefik is not told to redirect: {plain:?}");

    site.is_not_told_an_address();

    let broken = r#"{"immutable":true,"data":{"tls.crt":"YnJva2Vu"}}"#;
    place.kubectl(&["patch", "secret", "-n", "workspace", "epiniod-tls-docs.example.test", "-p", broken]);
    wait_until("secrets are as they were", PUT_RIGHT, || {
        site.secrets("workspace") == ["epiniod-tls-docs.example.test", "epiniod-tls-shop.paas.test"]
            && site.is_trusted("docs.example.test")
            && site.is_trusted("shop.paas.test")
    });
    site.run(&["apps", "delete", "docs"]);
    let shop = ["epiniod-tls-shop.paas.test"];
    wait_until("the secret of a host goes with its route", SOON, || site.secrets("workspace") == shop);

    by_cert_manager(&site);
    drop(traefik);
    at_the_own_edge(&site);
}

/// Nobody issues anything: it is not there.
fn by_cert_manager(site: &Site) {
    site.install(&["--tls-issuer", "letsencrypt"]);
    for (namespace, name, host) in [("epiniod", "epiniod", "epinio.paas.test"), ("workspace", "shop", "shop.paas.test")]
    {
        let ingress = || site.json(&["ingress", "-n", namespace, name]);
        let wanted = json!([{"hosts": [host], "secretName": format!("tls-{host}")}]);
        wait_until("ingresses ask cert-manager", SOON, || {
            let issuer = &ingress()["metadata"]["annotations"]["cert-manager.io/cluster-issuer"];
            issuer == "letsencrypt" && ingress()["spec"]["tls"] == wanted
        });
        wait_until("no secret of the daemon is left", SOON, || site.secrets(namespace).is_empty());
    }
    site.create("other");
    let said = site.certificate_plain("other.paas.test");
    assert_eq!((&said["state"], &said["issuer"]), (&json!("delegated"), &json!("cluster-issuer/letsencrypt")));
}

fn at_the_own_edge(site: &Site) {
    let issued = site.issued();
    assert_eq!(issued, 4, "with cert-manager the daemon orders nothing");
    let url = site.install(&["--ingress", "own", "--expose", "host-ports", "--tls-issuer", "off"]);
    assert_eq!(url, "https://epinio.paas.test");
    site.push("docs", "procfile", &["--route", "www.example.test"]);
    site.wait_until_answers("www.example.test", GREETING);
    site.wait_until_answers("shop.paas.test", PAGE);
    site.wait_until_trusted("epinio.paas.test");
    let moved = request(&["--max-time", "10", "-i", "http://shop.paas.test/x"]).expect("an answer");
    assert!(moved.status == 308 && moved.body.contains("https://shop.paas.test/x"), "{moved:?}");
    wait_until("what has got no certificate meanwhile has one", SOON, || site.issued() == issued + 2);
    let left = site.place.kubectl(&["get", "ingress", "-A", "-o", "name"]);
    assert_eq!(left, "", "nobody would read them");
}

/// The ingress controller that the scripts of the cluster bring, on the node's ports.
struct Traefik<'a>(&'a Place);

impl<'a> Traefik<'a> {
    fn serves(place: &'a Place) -> Self {
        let up = script("up", &place.name).arg("--traefik").output().expect("a script");
        assert!(up.status.success(), "{up:?}");
        Self(place)
    }
}

impl Drop for Traefik<'_> {
    fn drop(&mut self) {
        self.0.kubectl(&["delete", "-f", &manifest("traefik"), "--wait"]);
        wait_until("Traefik is gone", SOON, || {
            self.0.kubectl(&["get", "pods", "-n", "kube-system", "-l", "app=traefik", "-o", "name"]).is_empty()
        });
    }
}

/// A cluster on an internet with an authority, whose names lead to the node.
struct Site<'a> {
    place: &'a Place,
    internet: Internet,
    /// What clients trust.
    trusted: PathBuf,
}

impl<'a> Site<'a> {
    fn make(place: &'a Place, what: &str) -> Option<Self> {
        let (address, (node, _)) = (address_towards(&place.kubeconfig), server_of(&place.kubeconfig));
        let internet = Internet::beside(what, &address, &node, Manner { slow: 3, ..Manner::default() })?;
        let trusted = internet.trusted();
        let site = Self { place, internet, trusted };
        let all = site.json(&["configmap", "-n", "kube-system", "coredns"])["data"]["Corefile"].take();
        let own = format!("test:53 {{\n    forward . {address}\n}}\n{}", all.as_str().expect("a text"));
        site.write_names(&own);
        Some(site)
    }

    /// What pods are told of names.
    fn write_names(&self, corefile: &str) {
        let change = json!({"data": {"Corefile": corefile}}).to_string();
        self.place.kubectl(&["patch", "configmap", "-n", "kube-system", "coredns", "-p", &change]);
        self.restart_names();
    }

    fn restart_names(&self) {
        self.place.kubectl(&["rollout", "restart", "-n", "kube-system", "deployment/coredns"]);
        self.place.kubectl(&["rollout", "status", "-n", "kube-system", "deployment/coredns", "--timeout=60s"]);
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.place.command(args);
        command.env("SSL_CERT_FILE", &self.trusted);
        command
    }

    /// stdout of a command that has to succeed.
    fn run(&self, args: &[&str]) -> String {
        self.ended(args, self.command(args).output().expect("epiniod can be run"))
    }

    /// The same without TLS, where nobody has a certificate that is trusted.
    fn run_plain(&self, args: &[&str]) -> String {
        let output = self.command(args).env("EPINIO_API", "http://epinio.paas.test").output();
        self.ended(args, output.expect("epiniod can be run"))
    }

    fn ended(&self, args: &[&str], output: Output) -> String {
        let daemon = || self.place.kubectl(&["logs", "-n", "epiniod", "deployment/epiniod", "--tail=40"]);
        assert!(output.status.success(), "epiniod {args:?}: {output:?}\n{}", daemon());
        String::from_utf8(output.stdout).expect("text")
    }

    /// The URL that it ends with.
    fn install(&self, args: &[&str]) -> String {
        let mirrors = mirrors();
        let all: Vec<&str> =
            ["install"].iter().chain(args).copied().chain(mirrors.iter().map(String::as_str)).collect();
        let said = self.run(&all);
        let url = said.lines().find_map(|line| line.strip_prefix("url")).expect("a URL");
        url.trim().to_owned()
    }

    /// An application that is not deployed has a route.
    fn create(&self, app: &str) {
        let password = "jsonpath={.data.password}";
        let password = self.place.kubectl(&["get", "secret", "-n", "epiniod", "epiniod-admin", "-o", password]);
        let password = STANDARD.decode(password).expect("base64");
        let credential = format!("admin:{}", String::from_utf8(password).expect("a text"));
        let body = json!({"name": app, "configuration": {}}).to_string();
        let url = "http://epinio.paas.test/api/v1/namespaces/workspace/applications";
        let ask = || request(&["-u", &credential, "-d", &body, "--max-time", "20", url]).expect("an answer");
        let mut made = ask();
        // Traefik learns of a daemon that takes the place of another every two seconds.
        wait_until("the API is served", SOON, || {
            if made.status == 404 {
                made = ask();
            }
            made.status != 404
        });
        assert_eq!(made.status, 201, "{made:?}");
    }

    /// What a client says of its own address the controller does not hand on.
    fn is_not_told_an_address(&self) {
        let url = "http://epinio.paas.test/api/v1/me";
        let made_up = "X-Forwarded-For: 203.0.113.6";
        let answer = request(&["--max-time", "20", "-u", "admin:wrong", "-H", made_up, url]).expect("an answer");
        assert_eq!(answer.status, 401, "{answer:?}");
        let logs = self.place.kubectl(&["logs", "-n", "epiniod", "deployment/epiniod"]);
        let refused = logs.lines().find(|line| line.contains("epiniod::audit") && line.contains("login"));
        let refused = refused.unwrap_or_else(|| panic!("no login was refused in {logs}"));
        assert!(refused.contains("admin") && !refused.contains("203.0.113.6"), "{refused}");
    }

    fn push(&self, app: &str, source: &str, more: &[&str]) {
        let source = sample(source);
        let push = ["push", "--name", app, "--path", source.to_str().expect("a path")];
        let url = self.run(&[&push[..], more].concat());
        assert!(url.starts_with("https://"), "{url}");
    }

    /// As a browser asks that trusts the authority of the test.
    fn visit(&self, host: &str) -> std::io::Result<Response> {
        let trusted = self.trusted.to_str().expect("a path");
        request(&["--max-time", "10", "--cacert", trusted, &format!("https://{host}/")])
    }

    fn is_trusted(&self, host: &str) -> bool {
        self.visit(host).is_ok()
    }

    fn wait_until_trusted(&self, host: &str) {
        wait_until(&format!("{host} has a certificate"), SOON, || self.is_trusted(host));
    }

    fn wait_until_answers(&self, host: &str, wanted: &str) {
        wait_until(&format!("https://{host} answers with '{wanted}'"), SOON, || {
            self.visit(host).is_ok_and(|answer| answer.status == 200 && answer.body.contains(wanted))
        });
    }

    /// With SIGKILL; the kubelet starts another one in its pod.
    fn kill_daemon(&self) {
        let of_daemon = ["get", "pods", "-n", "epiniod", "-l", "app.kubernetes.io/component=daemon", "-o"];
        let status = |field: &str| {
            let path = format!("jsonpath={{.items[0].status.containerStatuses[0].{field}}}");
            self.place.kubectl(&[&of_daemon[..], &[&path]].concat())
        };
        let container = status("containerID").trim_start_matches("containerd://").to_owned();
        let kill = ["ctr", "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", &container];
        assert!(self.place.on_node(&kill).status().expect("ctr can be run").success());
        wait_until("another daemon is ready", SOON, || status("restartCount") == "1" && status("ready") == "true");
        let is_ready =
            || request(&["--max-time", "5", "http://epinio.paas.test/ready"]).is_ok_and(|answer| answer.status == 200);
        wait_until("another daemon serves", SOON, is_ready);
    }

    /// What is said of the certificate of a host.
    fn certificate(&self, host: &str) -> Value {
        certificate_in(&self.run(&["routes", "--output", "json"]), host)
    }

    fn certificate_plain(&self, host: &str) -> Value {
        certificate_in(&self.run_plain(&["routes", "--output", "json"]), host)
    }

    /// How many certificates the authority has issued.
    fn issued(&self) -> usize {
        self.internet.said("Issued certificate serial")
    }

    /// The temporary ingresses.
    fn challenges(&self) -> String {
        self.place.kubectl(&["get", "ingress", "-A", "-l", "epiniod.dev/challenge", "-o", "name"])
    }

    /// Those with certificates that the daemon came by.
    fn secrets(&self, namespace: &str) -> Vec<String> {
        let names = "jsonpath={.items[*].metadata.name}";
        let of_daemon = ["get", "secret", "-n", namespace, "-l", "epiniod.dev/certificate", "-o", names];
        self.place.kubectl(&of_daemon).split_whitespace().map(str::to_owned).collect()
    }

    fn json(&self, args: &[&str]) -> Value {
        let text = self.place.kubectl(&[&["get", "-o", "json"], args].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }
}

impl Drop for Site<'_> {
    /// The next test's names are as they were.
    fn drop(&mut self) {
        self.place.kubectl(&["apply", "-f", &manifest("coredns")]);
        self.restart_names();
    }
}

fn certificate_in(lines: &str, host: &str) -> Value {
    let lines: Value = serde_json::from_str(lines).expect("JSON");
    let line = lines.as_array().expect("lines").iter().find(|line| line["host"] == host);
    line.map_or(Value::Null, |line| line["certificate"].clone())
}

/// Of a part of the tests' cluster.
fn manifest(part: &str) -> String {
    format!("{}/tests/cluster/manifests/{part}.yaml", env!("CARGO_MANIFEST_DIR"))
}
