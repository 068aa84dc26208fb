//! Whether a host leads to this edge. An authority counts what fails against us; what cannot succeed is not asked for.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Challenges, challenges::Given};
use crate::model::random_hex;

/// For an answer of DNS. The resolver of the system asks a second time after 5 s.
const LOOKUP: Duration = Duration::from_secs(12);
/// For an answer of whoever serves the host.
const DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);
const HTTP: u16 = 80;

/// Why it does not lead here. Where that cannot be said it may: from inside of a network its own address often does
/// not answer. Who is in front may take some time to learn of the host: `patience` is how long it is asked.
pub(super) async fn check(host: &str, challenges: &Arc<Challenges>, patience: Duration) -> Result<(), String> {
    let addresses = resolve(host).await?;
    let token = random_hex::<16>();
    let _given = challenges.give_text(&token, token.clone());
    let url = format!("http://{host}{}", Given::path_of(&token));
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(DEADLINE)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| error.to_string())?;
    let until = Instant::now() + patience;
    let answer = loop {
        let answer = match client.get(&url).send().await {
            Ok(answer) => Some(answer.text().await.unwrap_or_default()),
            Err(error) => {
                tracing::debug!(host, error = %crate::telemetry::chain(&error), "the host does not answer from here");
                None
            }
        };
        if answer.as_ref() == Some(&token) || Instant::now() >= until {
            break answer;
        }
        tokio::time::sleep(PAUSE).await;
    };
    if answer.is_none_or(|answer| answer == token) {
        return Ok(());
    }
    let list = addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    let here = if patience.is_zero() { "this machine" } else { "this cluster's ingress controller" };
    Err(format!("{host} leads to {list}, where another server answers; let its DNS record lead to {here}"))
}

async fn resolve(host: &str) -> Result<Vec<IpAddr>, String> {
    let found = tokio::time::timeout(LOOKUP, tokio::net::lookup_host((host, HTTP))).await;
    let late = |_| format!("DNS does not answer for {host} within {} s", LOOKUP.as_secs());
    let addresses = found.map_err(late)?.map_err(|error| unknown(host, &error))?;
    Ok(addresses.map(|address| address.ip()).collect())
}

/// What the resolver of the system says, whose errors have no kinds here.
fn unknown(host: &str, error: &std::io::Error) -> String {
    if error.to_string().contains("Temporary failure") {
        return format!("DNS fails for {host}; do the name servers of this machine and of its domain answer?");
    }
    format!("{host} is not in DNS; make an A or AAAA record for it that leads to this machine")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_is_not_there_is_told_apart_from_dns_that_fails() {
        let said = |cause: &str| {
            unknown("a.test", &std::io::Error::other(format!("failed to lookup address information: {cause}")))
        };
        assert!(said("Name or service not known").starts_with("a.test is not in DNS"));
        assert!(said("No address associated with hostname").starts_with("a.test is not in DNS"));
        assert!(said("Temporary failure in name resolution").starts_with("DNS fails for a.test"));
    }
}
