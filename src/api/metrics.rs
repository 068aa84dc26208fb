//! `GET /metrics`: what was asked of each application, as Prometheus reads it (text, version 0.0.4). Ours, not Epinio's.
//!
//! There are as many series as there are applications with a route: names come from the route table, and never from requests.

use std::fmt::Write as _;

use axum::{
    extract::State,
    http::{HeaderName, header},
};

use super::ApiState;
use crate::apps::{BOUNDS, Counts};

const KIND: &str = "text/plain; version=0.0.4; charset=utf-8";
const REQUESTS: &str = "epiniod_requests_total";
const IN_FLIGHT: &str = "epiniod_requests_in_flight";
const DURATION: &str = "epiniod_request_duration_seconds";
const RECEIVED: &str = "epiniod_received_bytes_total";
const SENT: &str = "epiniod_sent_bytes_total";

pub(super) async fn metrics(State(state): State<ApiState>) -> ([(HeaderName, &'static str); 1], String) {
    let applications: Vec<_> = state
        .apps
        .route_table()
        .all_traffic()
        .into_iter()
        .map(|((namespace, app), (counts, in_flight))| {
            (format!("namespace=\"{namespace}\",app=\"{app}\""), counts, in_flight)
        })
        .collect();
    ([(header::CONTENT_TYPE, KIND)], text(&applications))
}

/// Of each application its labels, its counters, and how many requests are in flight. Names need no escapes.
fn text(applications: &[(String, Counts, usize)]) -> String {
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, lines: &dyn Fn(&mut String)| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        lines(&mut text);
    };
    family(REQUESTS, "counter", "Requests that were answered, by the class of the status.", &|text| {
        for (labels, counts, _) in applications {
            for (class, number) in (1..).zip(counts.answers) {
                let _ = writeln!(text, "{REQUESTS}{{{labels},status=\"{class}xx\"}} {number}");
            }
        }
    });
    family(IN_FLIGHT, "gauge", "Requests and websockets that are under way.", &|text| {
        for (labels, _, in_flight) in applications {
            let _ = writeln!(text, "{IN_FLIGHT}{{{labels}}} {in_flight}");
        }
    });
    family(DURATION, "histogram", "Time to the last byte of an answer; of websockets, until they are open.", &|text| {
        for (labels, counts, _) in applications {
            histogram(text, labels, counts);
        }
    });
    family(RECEIVED, "counter", "Bytes of bodies of requests, and of websockets.", &|text| {
        for (labels, counts, _) in applications {
            let _ = writeln!(text, "{RECEIVED}{{{labels}}} {}", counts.received_bytes);
        }
    });
    family(SENT, "counter", "Bytes of bodies of answers, and of websockets.", &|text| {
        for (labels, counts, _) in applications {
            let _ = writeln!(text, "{SENT}{{{labels}}} {}", counts.sent_bytes);
        }
    });
    text
}

fn histogram(text: &mut String, labels: &str, counts: &Counts) {
    let mut sum = 0;
    for (bound, number) in BOUNDS.iter().zip(counts.took) {
        sum += number;
        let _ = writeln!(text, "{DURATION}_bucket{{{labels},le=\"{}\"}} {sum}", bound.as_secs_f64());
    }
    sum += counts.took[BOUNDS.len()];
    let _ = writeln!(text, "{DURATION}_bucket{{{labels},le=\"+Inf\"}} {sum}");
    let _ = writeln!(text, "{DURATION}_sum{{{labels}}} {}", counts.total.as_secs_f64());
    let _ = writeln!(text, "{DURATION}_count{{{labels}}} {sum}");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::StatusCode;

    use super::*;
    use crate::apps::Traffic;

    #[test]
    fn a_scrape_has_what_was_counted() {
        let traffic = Traffic::default();
        traffic.answered(StatusCode::OK, Duration::from_millis(3));
        traffic.answered(StatusCode::BAD_GATEWAY, Duration::from_secs(100));
        traffic.received(5);
        traffic.sent(7);
        let text = text(&[("namespace=\"n\",app=\"a\"".to_owned(), traffic.counts(), 1)]);
        for line in [
            "# TYPE epiniod_requests_total counter",
            "epiniod_requests_total{namespace=\"n\",app=\"a\",status=\"2xx\"} 1",
            "epiniod_requests_total{namespace=\"n\",app=\"a\",status=\"4xx\"} 0",
            "epiniod_requests_total{namespace=\"n\",app=\"a\",status=\"5xx\"} 1",
            "epiniod_requests_in_flight{namespace=\"n\",app=\"a\"} 1",
            "epiniod_request_duration_seconds_bucket{namespace=\"n\",app=\"a\",le=\"0.001\"} 0",
            "epiniod_request_duration_seconds_bucket{namespace=\"n\",app=\"a\",le=\"0.005\"} 1",
            "epiniod_request_duration_seconds_bucket{namespace=\"n\",app=\"a\",le=\"60\"} 1",
            "epiniod_request_duration_seconds_bucket{namespace=\"n\",app=\"a\",le=\"+Inf\"} 2",
            "epiniod_request_duration_seconds_sum{namespace=\"n\",app=\"a\"} 100.003",
            "epiniod_request_duration_seconds_count{namespace=\"n\",app=\"a\"} 2",
            "epiniod_received_bytes_total{namespace=\"n\",app=\"a\"} 5",
            "epiniod_sent_bytes_total{namespace=\"n\",app=\"a\"} 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }
}
