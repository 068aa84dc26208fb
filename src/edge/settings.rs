//! What whoever runs the daemon may choose about its listeners.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::Scheme;

#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// For how long browsers are to use TLS only, once they have seen it (RFC 6797).
    pub strict_transport: Option<Duration>,
    pub access_log: AccessLog,
    /// Load balancers that say whom they speak for, by the PROXY protocol; others are clients themselves.
    pub load_balancers: Vec<IpNet>,
    /// Of the body of a request to an application.
    pub max_body_bytes: Option<u64>,
    /// How many may be open from one address.
    pub connections_per_address: Option<usize>,
    pub patience: Patience,
    pub compression: Compression,
    /// What holds for the routes of single hosts.
    pub routes: HashMap<String, RouteSettings>,
}

/// What holds for the routes of a host, in place of what holds for all.
#[derive(Debug, Clone, Copy, Default)]
pub struct RouteSettings {
    pub max_body_bytes: Option<u64>,
    /// How long an application may take until the head of its answer, the request's body included.
    pub response: Option<Duration>,
    /// How many requests the application is given at once, tunnels included.
    pub requests_in_flight: Option<usize>,
    pub compression: Option<Compression>,
}

/// Whether answers are compressed that were not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    #[default]
    Off,
    On,
}

/// How long clients may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For the first request of a connection, TLS included, and for the head of each: between requests, too, where they come one
    /// after the other (HTTP/1.1).
    pub head: Duration,
    /// Within a body that is waited for.
    pub body: Duration,
    /// Where nothing new is asked: then a connection ends with what is under way. Where nothing is taken of what is sent: then at once.
    pub idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { head: Duration::from_secs(30), body: Duration::from_secs(60), idle: Duration::from_secs(180) }
    }
}

/// Whether a line is logged for each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccessLog {
    #[default]
    Off,
    On,
}

impl Settings {
    /// All that holds for a host.
    pub(super) fn of_host(&self, host: &str) -> RouteSettings {
        let own = if self.routes.is_empty() { None } else { self.routes.get(host).copied() };
        let own = own.unwrap_or_default();
        RouteSettings {
            max_body_bytes: own.max_body_bytes.or(self.max_body_bytes),
            compression: own.compression.or(Some(self.compression)),
            ..own
        }
    }

    /// What clients of TLS are told in `Strict-Transport-Security`; what an application says itself holds.
    pub(super) fn strict_transport(&self, scheme: Scheme) -> Option<String> {
        let time = self.strict_transport.filter(|_| scheme == Scheme::Https)?;
        Some(format!("max-age={}", time.as_secs()))
    }

    pub(super) fn is_load_balancer(&self, address: IpAddr) -> bool {
        // A listener of both families has the addresses of the older one inside of the newer.
        let address = address.to_canonical();
        self.load_balancers.iter().any(|network| network.contains(&address))
    }
}
