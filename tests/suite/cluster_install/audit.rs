//! Who changed what, where a disk does not stay: in the log of the pod.

use super::Turn;
use crate::support::request;

#[test]
fn the_audit_log_is_in_the_log_of_the_pod_and_a_client_does_not_choose_its_address() {
    let Some(place) = Turn::take("the audit log in a cluster") else { return };
    place.import_image();
    // Whatever is not said otherwise.
    let login = place.install(&["--ephemeral-storage", "--env", "EPINIOD_LOG=warn"]);
    let token = place.run(&["tokens", "create", "ci", "--scope", "read"]);
    place.run(&["namespaces", "create", "blog"]);
    let said = place.fails(5, &["audit"]);
    assert!(said.contains("in the log of its pod"), "{said}");
    // The API is found by address as well, which asks no name server.
    let address = login.url.trim_start_matches("http://epinio.").trim_end_matches(".sslip.io");
    let me = format!("http://{address}/api/v1/me");
    let credential = format!("token:{}", token.trim());
    let answer = request(&["--max-time", "20", "-u", &credential, &me]).expect("an answer");
    assert!(answer.status == 200 && answer.body.contains("\"token\":\"ci\""), "{answer:?}");
    for made_up in ["203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4", "203.0.113.5"] {
        let header = format!("X-Forwarded-For: {made_up}");
        let answer = request(&["--max-time", "20", "-u", "admin:wrong", "-H", &header, &me]).expect("an answer");
        assert_eq!(answer.status, 401, "{answer:?}");
    }
    let header = "X-Forwarded-For: 203.0.113.6";
    let answer = request(&["--max-time", "20", "-u", "admin:wrong", "-H", header, &me]).expect("an answer");
    assert_eq!(answer.status, 429, "it is one address: {answer:?}");

    let logs = place.kubectl(&["logs", "-n", "epiniod", "deployment/epiniod"]);
    let lines: Vec<&str> = logs.lines().filter(|line| line.contains("epiniod::audit")).collect();
    for (action, who) in [("token.create", "ci"), ("namespace.create", "blog"), ("login", "admin")] {
        assert!(lines.iter().any(|line| line.contains(action) && line.contains(who)), "{action} of {who} in {logs}");
    }
    assert!(!logs.contains("203.0.113.") && !logs.contains(token.trim()), "{logs}");
}
