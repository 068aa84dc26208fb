//! What is wrong with the machine itself: a port that nobody reaches, and a clock that is not right.

use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::json;

use super::{
    Site,
    proxy::{CHALLENGE, ORDER, Proxy, Verdict},
};
use crate::support::{Daemon, Internet, Manner, Packages, RunBy, wait_until};

#[test]
fn a_host_that_the_authority_does_not_reach_has_no_certificate_and_users_are_told_which_port_is_shut() {
    let Some(internet) = Internet::enter("a challenge that is blocked", Manner::default()) else { return };
    let trusted = internet.trusted();
    let mut surroundings = internet.surroundings(&[("EPINIOD_LISTEN_TLS", "127.0.0.1:8443")]);
    surroundings.port = Some(8080);
    let daemon = Daemon::start_in(surroundings, Packages::Shared, RunBy::Caller);
    let site = Site { daemon, internet, trusted };
    let host = "epinio.paas.test";
    wait_until("users are told", super::SOON, || !site.message(host).is_empty());
    let (message, said) = (site.message(host), site.certificate(host));
    assert!(message.contains("127.0.0.1") && message.contains("ports 80 and 443"), "{message}");
    assert_eq!((&said["issuer"], &said["state"]), (&json!("private"), &json!("failing")), "it is served all the same");
    println!("{}", site.daemon.run(["routes"]));
}

#[test]
fn an_authority_that_saw_at_once_that_a_port_is_shut_is_shown_the_host_another_way() {
    let Some(internet) = Internet::enter("a challenge that fails at once", Manner::default()) else { return };
    let proxy = Proxy::start(&internet);
    let challenges = AtomicUsize::new(0);
    proxy.behave(move |path| match path.starts_with(CHALLENGE) && challenges.fetch_add(1, Ordering::Relaxed) == 0 {
        true => Verdict::Judged,
        false => Verdict::Pass,
    });
    let trusted = internet.trusted();
    let mut surroundings = internet.surroundings(&[("EPINIOD_ACME_DIRECTORY", &proxy.directory())]);
    surroundings.port = Some(8080);
    let daemon = Daemon::start_in(surroundings, Packages::Shared, RunBy::Caller);
    let site = Site { daemon, internet, trusted };
    site.wait_until_trusted("epinio.paas.test");
    assert_eq!((proxy.asked(CHALLENGE), proxy.asked(ORDER)), (2, 2), "at port 80, and by TLS");
}

#[test]
fn a_clock_that_is_wrong_is_named_with_how_much() {
    let Some(internet) = Internet::enter("a clock that is wrong", Manner::default()) else { return };
    let proxy = Proxy::start(&internet);
    proxy.behave(|_| Verdict::Later { hours: 50 });
    let site = Site::start(internet, &[("EPINIOD_ACME_DIRECTORY", &proxy.directory())]);
    let host = "epinio.paas.test";
    wait_until("users are told", super::SOON, || site.message(host).contains("behind the authority's"));
    let message = site.message(host);
    assert!(message.contains("this was asked long ago; the clock here is 50h behind"), "{message}");
}

#[test]
fn an_authority_whose_own_certificate_is_not_valid_yet_has_users_look_at_their_clock() {
    let Some(internet) = Internet::enter("a clock that is years behind", Manner::default()) else { return };
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(2090, 1, 1), date_time_ymd(2091, 1, 1));
    let late = params.self_signed(&key).unwrap().pem();
    let trusted = internet.dir().join("late.pem");
    // Of who is between the two.
    for (path, text) in [
        (internet.dir().join("server.pem"), &late),
        (internet.dir().join("server.key"), &key.serialize_pem()),
        (trusted.clone(), &late),
    ] {
        std::fs::write(path, text).unwrap();
    }
    let proxy = Proxy::start(&internet);
    let more = [("EPINIOD_ACME_DIRECTORY", &*proxy.directory()), ("EPINIOD_ACME_CA_FILE", trusted.to_str().unwrap())];
    let site = Site::start(internet, &more);
    let host = "epinio.paas.test";
    wait_until("users are told", super::SOON, || site.message(host).contains("not valid yet"));
    let message = site.message(host);
    assert!(message.contains("is the clock here right? It says 20"), "{message}");
}
