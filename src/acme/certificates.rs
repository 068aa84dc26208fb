//! Which certificate a client gets: by the name that it asks for.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{
    Authority,
    kept::{Issued, Kept, Trouble},
    plan,
};
use crate::{model::wildcard_of, runtime::HostCertificate};

/// Whether something is served under a host: for nothing else a certificate is made.
pub type HostCheck = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// The certificates of the edge.
pub struct Certificates {
    /// None where the edge does not speak TLS: who is in front of it has certificates of the public, or its own.
    authority: Option<Authority>,
    /// What a client gets that names no host: those who connect to an address.
    nameless: String,
    is_served: HostCheck,
    known: ArcSwap<Known>,
    /// Whether somebody asks for certificates of the public.
    is_kept: AtomicBool,
    /// Of our own authority.
    signed: Mutex<HashMap<String, (Arc<CertifiedKey>, Timestamp)>>,
}

/// What is known of names, which are hosts or `*.DOMAIN`.
#[derive(Default)]
struct Known {
    public: HashMap<String, Public>,
    trouble: HashMap<String, Trouble>,
}

/// Of an authority of the public.
#[derive(Clone)]
struct Public {
    /// What it was made of: what has not changed is not read again.
    issued: Issued,
    key: Arc<CertifiedKey>,
}

/// What a client gets for a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub issuer: Issuer,
    /// When it ends, and when the next one is asked for.
    pub times: Option<(Timestamp, Timestamp)>,
    /// Why there is none of the public, or no new one, and when it is tried again.
    pub trouble: Option<(String, Timestamp)>,
}

/// Whose a certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Issuer {
    /// Of the authority with this directory.
    Public(String),
    Own,
    /// There is none yet: who is in front of the edge shows one of its own.
    Front,
}

impl Certificates {
    /// `api` is the host of the API.
    pub fn new(authority: Option<Authority>, api: String, is_served: HostCheck) -> Arc<Self> {
        Arc::new(Self {
            authority,
            nameless: api,
            is_served,
            known: ArcSwap::default(),
            is_kept: AtomicBool::new(false),
            signed: Mutex::default(),
        })
    }

    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    /// The host of the API, whose certificate whoever gets that names none.
    pub fn api_host(&self) -> &str {
        &self.nameless
    }

    /// Whether a certificate of the public is wanted for a host.
    pub fn is_sought(&self, host: &str) -> bool {
        self.is_kept.load(Ordering::Relaxed) && plan::is_public(host)
    }

    /// From now on these are given to clients. What cannot be read is left out, and the log says so.
    pub(super) fn serve(&self, kept: &[Kept]) {
        self.is_kept.store(true, Ordering::Relaxed);
        let before = self.known.load();
        let mut new = Known::default();
        for kept in kept {
            for name in &kept.names {
                if let Some(trouble) = &kept.trouble {
                    new.trouble.insert(name.clone(), trouble.clone());
                }
                let Some(issued) = &kept.issued else { continue };
                if new.public.get(name).is_some_and(|known| known.issued.not_after >= issued.not_after) {
                    continue;
                }
                let known = before.public.get(name).filter(|known| known.issued == *issued);
                match known.map_or_else(|| Public::read(issued), |known| Ok(known.clone())) {
                    Ok(public) => drop(new.public.insert(name.clone(), public)),
                    Err(error) => {
                        tracing::error!(name, error = %crate::telemetry::chain(&error), "a certificate is left out");
                    }
                }
            }
        }
        self.known.store(Arc::new(new));
    }

    /// Those of the public.
    pub(super) fn public(&self) -> Vec<HostCertificate> {
        let known = self.known.load();
        let one = |(name, Public { issued, .. }): (&String, &Public)| HostCertificate {
            name: name.clone(),
            chain: issued.chain.clone(),
            key: issued.key.clone(),
        };
        known.public.iter().map(one).collect()
    }

    /// What a client gets for a host; signs what has to be signed for that.
    pub fn state(&self, host: &str) -> Option<State> {
        let known = self.known.load();
        let trouble = known.find(&known.trouble, host).map(|trouble| (trouble.cause.clone(), trouble.next));
        if let Some(Public { issued, .. }) = known.find(&known.public, host) {
            let issuer = Issuer::Public(issued.directory.clone());
            return Some(State { issuer, times: Some((issued.not_after, issued.renewal)), trouble });
        }
        if self.authority.is_none() {
            return Some(State { issuer: Issuer::Front, times: None, trouble });
        }
        self.find(Some(host))?;
        let signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, renewal) = signed.get(host)?;
        Some(State { issuer: Issuer::Own, times: Some((*renewal + Authority::grace(), *renewal)), trouble })
    }

    /// The certificate for a host; none for one that nothing is served under.
    pub fn find(&self, host: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let host = host.map_or_else(|| self.nameless.clone(), str::to_ascii_lowercase);
        let known = self.known.load();
        if let Some(public) = known.find(&known.public, &host) {
            return Some(Arc::clone(&public.key));
        }
        let authority = self.authority.as_ref()?;
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
        match authority.sign(std::slice::from_ref(&host), addresses) {
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

impl Known {
    /// By the host itself, or by all names that are where it is.
    fn find<'a, T>(&self, of: &'a HashMap<String, T>, host: &str) -> Option<&'a T> {
        of.get(host).or_else(|| of.get(&wildcard_of(host)?))
    }
}

impl Public {
    fn read(issued: &Issued) -> Result<Self, super::Error> {
        Ok(Self { issued: issued.clone(), key: issued.certified()? })
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
