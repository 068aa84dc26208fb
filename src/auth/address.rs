//! Where a request comes from.

use std::net::{IpAddr, Ipv6Addr};

/// The address of a client, as far as it can be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress {
    pub address: IpAddr,
    /// Who said so, where that is a proxy in front of the daemon.
    pub via: Option<IpAddr>,
}

impl ClientAddress {
    pub fn direct(address: IpAddr) -> Self {
        Self { address: address.to_canonical(), via: None }
    }

    /// Behind a proxy that adds the address of its client to `X-Forwarded-For`. Only the last one is the proxy's own word;
    /// what is in front of it anybody may have written.
    pub fn behind(proxy: IpAddr, forwarded_for: &str) -> Self {
        let last = forwarded_for.rsplit(',').next().unwrap_or_default().trim();
        match last.parse::<IpAddr>() {
            Ok(address) => Self { address: address.to_canonical(), via: Some(proxy.to_canonical()) },
            Err(_) => Self::direct(proxy),
        }
    }

    pub(super) fn network(self) -> Network {
        Network::of(self.address)
    }
}

/// What one client is thought to have: an IPv4 address, or a /64 of IPv6, of which each host has all addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Network(IpAddr);

impl Network {
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) if !address.is_loopback() => {
                let [a, b, c, d, ..] = address.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            address => address,
        })
    }

    pub fn is_this_machine(self) -> bool {
        self.0.is_loopback()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_host_has_all_of_its_64() {
        let of = |text| Network::of(ip(text));
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert!(of("::1").is_this_machine() && of("127.0.0.1").is_this_machine() && !of("::2").is_this_machine());
    }

    #[test]
    fn only_the_last_address_of_a_proxy_is_believed() {
        let behind = |said| ClientAddress::behind(ip("10.0.0.7"), said);
        let found = behind("198.51.100.1, 192.0.2.9");
        assert_eq!((found.address, found.via), (ip("192.0.2.9"), Some(ip("10.0.0.7"))));
        assert_eq!(behind("2001:db8::1").address, ip("2001:db8::1"));
        for nothing in ["", "unknown", "192.0.2.9, x"] {
            assert_eq!(behind(nothing), ClientAddress::direct(ip("10.0.0.7")), "{nothing}");
        }
    }
}
