//! What goes wrong between a daemon and an authority, and what users are told of it.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    Site,
    proxy::{CERTIFICATE, CHALLENGE, FINALIZE, ORDER, Proxy, Verdict},
};
use crate::support::{DIRECTORY, Internet, Manner, wait_until};

#[test]
fn an_authority_that_has_forgotten_the_account_gets_another_one() {
    let Some(internet) = Internet::enter("an account that is gone", Manner::default()) else { return };
    let mut site = Site::start(internet, &[]);
    site.wait_until_trusted("epinio.paas.test");
    // It keeps nothing: with a new root its certificates are others.
    site.internet.restart_authority(Manner::default());
    site.trusted = site.internet.trusted();
    site.create("shop", &[]);
    site.wait_until_trusted("shop.paas.test");
}

#[test]
fn an_authority_that_is_away_is_asked_again_and_users_are_told_meanwhile() {
    let Some(mut internet) = Internet::enter("an authority that is away", Manner::default()) else { return };
    let trusted = internet.trusted();
    internet.stop_authority();
    let daemon = crate::support::Daemon::start_in(
        internet.surroundings(&[]),
        crate::support::Packages::Shared,
        crate::support::RunBy::Caller,
    );
    let mut site = Site { daemon, internet, trusted };
    let host = "epinio.paas.test";
    wait_until("users are told", super::SOON, || site.message(host).contains("127.0.0.1:14000"));
    let said = site.certificate(host);
    assert_eq!((&said["issuer"], &said["state"]), (&json!("private"), &json!("failing")), "{said}");
    site.internet.start_authority();
    site.trusted = site.internet.trusted();
    site.wait_until_trusted(host);
}

#[test]
fn a_certificate_is_renewed_though_the_authority_has_forgotten_the_one_before() {
    // It is renewed after four seconds.
    let manner = Manner { validity: 6, ..Manner::default() };
    let Some(internet) = Internet::enter("an authority that forgets", manner) else { return };
    let proxy = Proxy::start(&internet);
    proxy.behave(|_| Verdict::ForgotIssued);
    let site = Site::start(internet, &[("EPINIOD_ACME_DIRECTORY", &proxy.directory())]);
    let host = "epinio.paas.test";
    wait_until("there is a certificate", super::SOON, || !site.serial(host).is_empty() && proxy.asked(CERTIFICATE) > 0);
    let asked = proxy.asked(CERTIFICATE);
    wait_until("there is another one", super::SOON, || proxy.asked(CERTIFICATE) > asked);
    assert!(proxy.asked(ORDER) > proxy.asked(CERTIFICATE), "it was asked with the one before, and without");
}

#[test]
fn an_account_is_bound_to_another_one_where_the_authority_wants_it() {
    let binding = Some(("kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"));
    let manner = Manner { binding, ..Manner::default() };
    let Some(internet) = Internet::enter("external account binding", manner) else { return };
    let (config, key) = (internet.dir().join("epiniod.toml"), internet.dir().join("eab"));
    std::fs::write(&config, "[acme]\nprofile = 'none such'\n").expect("a file");
    let mut site = Site::start(internet, &[("EPINIOD_CONFIG", config.to_str().expect("a path"))]);
    let host = "epinio.paas.test";
    wait_until("users are told what is missing", super::SOON, || {
        site.message(host).contains("set eab_key_id and eab_key_file")
    });
    site.daemon.kill();
    let bound = "[acme]\nprofile = 'none such'\neab_key_id = 'kid-1'\neab_key_file = 'eab'\n";
    std::fs::write(&config, bound).expect("a file");
    std::fs::write(&key, "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W\n").expect("a file");
    site.daemon.resume();
    site.create("shop", &[]);
    wait_until("users are told of the profile", super::SOON, || {
        let message = site.message("shop.paas.test");
        message.contains("'none such'") && message.contains("shortlived")
    });
    std::fs::write(&config, bound.replace("profile = 'none such'\n", "")).expect("a file");
    site.daemon.kill();
    site.daemon.resume();
    site.create("docs", &[]);
    site.wait_until_trusted("docs.paas.test");
}

#[test]
fn a_host_that_leads_elsewhere_or_nowhere_is_not_asked_for() {
    let Some(internet) = Internet::enter("hosts that lead elsewhere", Manner::default()) else { return };
    // Somebody else's server.
    let other = TcpListener::bind("127.0.0.3:80").expect("an address of loopback");
    std::thread::spawn(move || {
        for mut stream in other.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nother");
        }
    });
    assert!(internet.names_are("add-a", &json!({"host": "away.example.test.", "addresses": ["127.0.0.3"]})));
    assert!(internet.names_are("set-servfail", &json!({"host": "gone.example.test."})));
    let site = Site::start(internet, &[]);
    site.wait_until_trusted("epinio.paas.test");
    let orders = site.internet.said("Added order");
    site.create("away", &["away.example.test"]);
    site.create("gone", &["gone.example.test"]);
    wait_until("users are told where it leads", super::SOON, || {
        site.message("away.example.test").contains("leads to 127.0.0.3, where another server answers")
    });
    wait_until("users are told that nobody knows where it leads", super::SOON, || {
        site.message("gone.example.test").contains("DNS fails for gone.example.test")
    });
    assert!(orders > 0 && site.internet.said("Added order") == orders, "nothing was ordered for them");
    assert!(site.internet.names_are("clear-servfail", &json!({"host": "gone.example.test."})));
    wait_until("it has its certificate when it leads here", Duration::from_secs(40), || {
        site.is_trusted("gone.example.test")
    });
}

#[test]
fn an_authority_that_wants_no_more_for_now_is_left_alone_for_as_long_as_it_says() {
    let Some(internet) = Internet::enter("limits of an authority", Manner::default()) else { return };
    let proxy = Proxy::start(&internet);
    let site = Site::start(internet, &[("EPINIOD_ACME_DIRECTORY", &proxy.directory())]);
    site.wait_until_trusted("epinio.paas.test");
    let before = proxy.asked(ORDER);
    proxy.behave(|path| if path == ORDER { Verdict::Limit { seconds: 12 } } else { Verdict::Pass });
    let asked = Instant::now();
    site.create("shop", &[]);
    wait_until("users are told", super::SOON, || site.message("shop.paas.test").contains("too many of them"));
    assert_eq!(proxy.asked(ORDER), before + 1, "it is asked once");
    proxy.behave(|_| Verdict::Pass);
    wait_until("it is asked again", 4 * super::SOON, || proxy.asked(ORDER) > before + 1);
    assert!(asked.elapsed() >= Duration::from_secs(12), "not before the time that it said: {:?}", asked.elapsed());
    site.wait_until_trusted("shop.paas.test");
    assert_eq!(proxy.asked(ORDER), before + 2);
}

#[test]
fn another_authority_is_asked_where_one_wants_no_more() {
    let Some(internet) = Internet::enter("several authorities", Manner::default()) else { return };
    let proxy = Proxy::start(&internet);
    proxy.behave(|path| if path == ORDER { Verdict::Limit { seconds: 600 } } else { Verdict::Pass });
    let config = internet.dir().join("epiniod.toml");
    let text = format!("[[acme.fallback]]\ndirectory = '{DIRECTORY}'\nca_file = 'server-ca.pem'\n");
    std::fs::write(&config, text).expect("a file");
    let more = [("EPINIOD_ACME_DIRECTORY", &*proxy.directory()), ("EPINIOD_CONFIG", config.to_str().expect("a path"))];
    let site = Site::start(internet, &more);
    site.wait_until_trusted("epinio.paas.test");
    assert_eq!(site.certificate("epinio.paas.test")["issuer"], DIRECTORY);
    site.create("shop", &[]);
    site.wait_until_trusted("shop.paas.test");
    assert_eq!(proxy.asked(ORDER), 1, "who wants no more is not asked for each");
}

#[test]
fn an_order_outlives_an_authority_that_dies_and_a_daemon_that_does() {
    let Some(internet) = Internet::enter("an authority that dies half-way", Manner::default()) else { return };
    let proxy = Proxy::start(&internet);
    // It has taken the request for the certificate, and nobody hears what it answers.
    proxy.behave(|path| if path.starts_with(FINALIZE) { Verdict::PassUnheard } else { Verdict::Pass });
    let mut site = Site::start(internet, &[("EPINIOD_ACME_DIRECTORY", &proxy.directory())]);
    let host = "epinio.paas.test";
    wait_until("the order is to be finalized", super::SOON, || proxy.asked(FINALIZE) > 0);
    wait_until("users are told", super::SOON, || !site.message(host).is_empty());
    proxy.behave(|_| Verdict::Pass);
    site.wait_until_trusted(host);
    assert_eq!((proxy.asked(ORDER), proxy.asked(FINALIZE)), (1, 1), "it is the same order");

    // And a daemon that dies before it has heard.
    for (app, path) in [("a", ORDER), ("b", CHALLENGE), ("c", FINALIZE), ("d", CERTIFICATE)] {
        let (orders, times, valid) = (proxy.asked(ORDER), proxy.asked(path), site.internet.said("set VALID"));
        proxy.behave(move |asked| if asked.starts_with(path) { Verdict::Hang } else { Verdict::Pass });
        site.create(app, &[]);
        wait_until(&format!("{path} is asked for"), super::SOON, || proxy.asked(path) > times);
        if path == CHALLENGE {
            // Or it would find nobody, and be done with the order.
            wait_until("the authority has looked", super::SOON, || site.internet.said("set VALID") > valid);
        }
        site.daemon.kill();
        proxy.behave(|_| Verdict::Pass);
        site.daemon.resume();
        site.wait_until_trusted(&format!("{app}.paas.test"));
        // An order whose answer nobody heard is not known to anybody.
        let most = orders + if path == ORDER { 2 } else { 1 };
        assert_eq!(proxy.asked(ORDER), most, "{path}: the next daemon goes on with the order");
    }
}
