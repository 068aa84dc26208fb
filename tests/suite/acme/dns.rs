//! One certificate for all names below the domain, shown by records of DNS.

use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::Site;
use crate::support::{Internet, Manner, executable, wait_until};

#[test]
fn a_program_makes_the_record_for_a_certificate_of_all_names_below_the_domain() {
    let Some(internet) = Internet::enter("dns-01 by a program", Manner::default()) else { return };
    let (program, config) = (internet.dir().join("hook"), internet.dir().join("epiniod.toml"));
    let script = r#"#!/bin/sh
case $1 in present) way=set-txt ;; *) way=clear-txt ;; esac
echo "$1 $2" >> "$0.log"
curl -sSf --max-time 5 -d "{\"host\": \"$2.\", \"value\": \"$3\"}" "http://127.0.0.1:8055/$way"
"#;
    executable(&program, script.as_bytes());
    std::fs::write(&config, "[acme]\nprofile = 'shortlived'\n[acme.dns]\nprogram = 'hook'\n").expect("a file");
    let site = Site::start(internet, &[("EPINIOD_CONFIG", config.to_str().expect("a path"))]);
    site.create("one", &[]);
    site.create("two", &[]);
    site.create("elsewhere", &["shop.example.test"]);
    let hosts = ["epinio.paas.test", "one.paas.test", "two.paas.test", "shop.example.test"];
    hosts.iter().for_each(|host| site.wait_until_trusted(host));
    assert_eq!(site.serial("one.paas.test"), site.serial("two.paas.test"), "it is one certificate");
    assert_ne!(site.serial("one.paas.test"), site.serial("shop.example.test"), "of another domain it cannot be");
    let said = std::fs::read_to_string(program.with_extension("log")).expect("what it was called with");
    let record = "_acme-challenge.paas.test";
    wait_until("the record is taken out again", super::SOON, || {
        let said = std::fs::read_to_string(program.with_extension("log")).expect("what it was called with");
        said.lines().last() == Some(&format!("remove {record}"))
    });
    assert!(said.starts_with(&format!("present {record}")), "{said}");
    let expires = site.certificate("one.paas.test")["expires"].as_str().expect("a time").to_owned();
    let days =
        expires.parse::<jiff::Timestamp>().expect("a time").duration_since(jiff::Timestamp::now()).as_hours() / 24;
    assert!((4..=6).contains(&days), "of the profile 'shortlived': {expires}");
}

/// A name server that takes updates, where one is installed.
struct NameServer(Child);

impl Drop for NameServer {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

const SECRET: &str = "c2VjcmV0LW9mLWEtdGVzdC1vZi1lcGluaW9kLXRoaXM=";

impl NameServer {
    fn start(internet: &Internet) -> Option<Self> {
        let folder = internet.dir().join("knot");
        std::fs::create_dir(&folder).expect("a folder");
        let zone =
            "$ORIGIN paas.test.\n$TTL 60\n@ SOA ns admin 1 60 60 600 60\n@ NS ns\nns A 127.0.0.2\n* A 127.0.0.1\n";
        std::fs::write(folder.join("paas.test.zone"), zone).expect("a file");
        let path = folder.display();
        let config = format!(
            "server:\n  listen: 127.0.0.2@53\n  rundir: {path}\ndatabase:\n  storage: {path}\n\
             key:\n  - id: epiniod.\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
             acl:\n  - id: updates\n    key: epiniod.\n    action: update\n\
             zone:\n  - domain: paas.test\n    storage: {path}\n    acl: updates\n    zonefile-sync: -1\n    journal-content: none\n"
        );
        let file = folder.join("knot.conf");
        std::fs::write(&file, config).expect("a file");
        let log = std::fs::File::create(folder.join("log")).expect("a log");
        let started = Command::new("/usr/sbin/knotd")
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn();
        match started {
            Ok(child) => Some(Self(child)),
            Err(_) => {
                assert!(std::env::var_os("EPINIOD_TEST_TOOLS").is_none(), "knot is not installed");
                crate::support::not_run("dns-01 by updates of a zone: knot is not installed");
                None
            }
        }
    }
}

#[test]
fn a_name_server_takes_the_record_as_an_update_that_is_signed() {
    // The authority asks the name server itself, as one of the public would in the end.
    let manner = Manner { name_server: "127.0.0.2:53".to_owned(), ..Manner::default() };
    let Some(internet) = Internet::enter("dns-01 by updates of a zone", manner) else { return };
    let Some(_server) = NameServer::start(&internet) else { return };
    internet.names_are("add-a", &json!({"host": "ns.paas.test.", "addresses": ["127.0.0.2"]}));
    let (config, key) = (internet.dir().join("epiniod.toml"), internet.dir().join("key"));
    let text = "[acme.dns]\nresolvers = ['127.0.0.2:53']\n\
                [acme.dns.update]\nserver = '127.0.0.2'\nkey_name = 'epiniod'\nkey_file = 'key'\n";
    std::fs::write(&config, text).expect("a file");
    // A key that the server does not know: what it answers is told.
    std::fs::write(&key, "d3Jvbmc=").expect("a file");
    let mut site = Site::start(internet, &[("EPINIOD_CONFIG", config.to_str().expect("a path"))]);
    let host = "epinio.paas.test";
    wait_until("the server has refused the key", super::SOON, || {
        site.message(host).contains("does it know the key epiniod")
    });
    site.daemon.kill();
    std::fs::write(&key, SECRET).expect("a file");
    site.daemon.resume();
    site.wait_until_trusted(host);
    let left =
        Command::new("sh").args(["-c", "kdig @127.0.0.2 +short TXT _acme-challenge.paas.test"]).output().expect("kdig");
    assert_eq!(String::from_utf8_lossy(&left.stdout).trim(), "", "the record is taken out again");
}
