//! What a Prometheus reads of a daemon.

use crate::support::{Daemon, get, request, sample};

/// The value of a line.
fn value(text: &str, line: &str) -> f64 {
    let found = text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("{line} is not in:\n{text}"))
}

#[test]
fn requests_of_each_application_are_counted_and_shown_to_who_may_read() {
    let daemon = Daemon::start();
    daemon.push("counted", &sample("procfile"));
    let mut length = 0;
    for _ in 0..3 {
        let answer = get(&daemon.url("counted")).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        length += answer.body.len();
    }
    let metrics = daemon.api("/metrics");
    assert_eq!(get(&metrics).expect("an answer").status, 401, "not to everybody");
    let scrape = |token: &str| request(&["-H", &format!("Authorization: Bearer {}", token.trim()), &metrics]).unwrap();
    let reads = daemon.run(["tokens", "create", "prometheus", "--scope", "read"]);
    let text = scrape(&reads).body;
    let labels = "namespace=\"workspace\",app=\"counted\"";
    assert_eq!(value(&text, &format!("epiniod_requests_total{{{labels},status=\"2xx\"}}")), 3.0);
    assert_eq!(value(&text, &format!("epiniod_requests_in_flight{{{labels}}}")), 0.0);
    assert_eq!(value(&text, &format!("epiniod_sent_bytes_total{{{labels}}}")), length as f64);
    assert_eq!(value(&text, &format!("epiniod_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}}")), 3.0);
    assert!(value(&text, &format!("epiniod_request_duration_seconds_sum{{{labels}}}")) > 0.0);
    let pushes = daemon.run(["tokens", "create", "ci"]);
    assert_eq!(scrape(&pushes).status, 403, "nor to who pushes");
    daemon.run(["apps", "delete", "counted"]);
    assert!(!scrape(&reads).body.contains("counted"), "nothing is kept of what is gone");
}
