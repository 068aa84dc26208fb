//! Which certificate a client gets: by the name that it asks for.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::Authority;

/// Whether something is served under a host: for nothing else a certificate is made.
pub type HostCheck = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// The certificates of the edge.
pub struct Certificates {
    authority: Authority,
    /// What a client gets that names no host: those who connect to an address.
    nameless: String,
    is_served: HostCheck,
    signed: Mutex<HashMap<String, (Arc<CertifiedKey>, Timestamp)>>,
}

impl Certificates {
    /// `api` is the host of the API.
    pub fn new(authority: Authority, api: String, is_served: HostCheck) -> Arc<Self> {
        Arc::new(Self { authority, nameless: api, is_served, signed: Mutex::default() })
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The certificate for a host; none for one that nothing is served under.
    pub fn find(&self, host: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let host = host.map_or_else(|| self.nameless.clone(), str::to_ascii_lowercase);
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, renewal)) = signed.get(&host)
            && Timestamp::now() < *renewal
        {
            return Some(Arc::clone(key));
        }
        if host != self.nameless && !(self.is_served)(&host) {
            return None;
        }
        // Of hosts that are not served any more nothing is kept.
        signed.retain(|host, _| (self.is_served)(host));
        let addresses: &[IpAddr] = if host == self.nameless { &LOOPBACK } else { &[] };
        match self.authority.sign(std::slice::from_ref(&host), addresses) {
            Ok((key, renewal)) => {
                signed.insert(host, (Arc::clone(&key), renewal));
                Some(key)
            }
            Err(error) => {
                tracing::error!(host, error = %crate::telemetry::chain(&error), "there is no certificate");
                None
            }
        }
    }
}

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name())
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Certificates").field("nameless", &self.nameless).finish_non_exhaustive()
    }
}
