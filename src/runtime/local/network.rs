//! The network of sandboxes: as root a bridge of this data directory; rootless the network of the machine.

use std::{fs, io, net::Ipv4Addr, ops::Range, os::fd::AsRawFd as _};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};

use super::{
    firewall::{self, Subnet},
    forwarding,
    netlink::Netlink,
    spec::Network,
};
use crate::{model::Digest, runtime::Error};

/// Where addresses of sandboxes begin: a corner of 10.0.0.0/8 that few networks use.
const FIRST_SUBNET: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 0);
/// Each data directory has a subnet of this size, one of 64.
const PREFIX: u8 = 22;
const SUBNETS: u32 = 64;
const DEFAULT_MTU: u32 = 1500;
/// Ports of instances that share the network of the machine: below those that the kernel gives to outgoing connections.
const PORTS: Range<u16> = 20_000..30_000;

/// How sandboxes are connected.
#[derive(Debug, Clone)]
pub(super) enum Connection {
    Bridge(Bridge),
    /// Everybody shares the network of the machine; instances get a port of their own.
    Host,
}

#[derive(Debug, Clone)]
pub(super) struct Bridge {
    name: String,
    table: String,
    first: Ipv4Addr,
    mtu: u32,
}

impl Connection {
    /// Makes the bridge and its rules, or takes over what a daemon before left. `identity` is that of the data directory.
    pub fn open(identity: &Digest) -> Result<Self, Error> {
        Self::make(identity).map_err(|error| {
            Error::Unsupported(format!(
                "the network of sandboxes cannot be made: {error}; it needs CAP_NET_ADMIN, and bridges, veth and nf_tables \
                 in the kernel (to do without, run epiniod as another user than root)"
            ))
        })
    }

    fn make(identity: &Digest) -> io::Result<Self> {
        let hex = identity.hex();
        let number = u32::from_str_radix(&hex[..8], 16).unwrap_or(0);
        let mtu = default_mtu().unwrap_or(DEFAULT_MTU);
        let mut last = io::Error::other("every subnet is in use");
        for offset in 0..SUBNETS {
            let subnet = (number + offset) % SUBNETS;
            let first = Ipv4Addr::from_bits(FIRST_SUBNET.to_bits() + (subnet << (32 - PREFIX)));
            let bridge =
                Bridge { name: format!("ev{}", &hex[..8]), table: format!("epiniod-{}", &hex[..8]), first, mtu };
            match bridge.open() {
                Ok(()) => return Ok(Self::Bridge(bridge)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// What sandboxes are numbered with: their place on the bridge, or their port.
    pub fn numbers(&self) -> Range<u16> {
        match self {
            Self::Bridge(_) => 2..1022,
            Self::Host => PORTS,
        }
    }

    /// The network of a sandbox with this number on the bridge.
    pub fn network(&self, number: u16) -> Network {
        match self {
            Self::Host => Network::Host,
            Self::Bridge(bridge) => Network::Bridge {
                bridge: bridge.name.clone(),
                address: bridge.address(number),
                prefix: PREFIX,
                gateway: bridge.gateway(),
                mtu: bridge.mtu,
            },
        }
    }

    /// Where an instance is reached, and which port it is told.
    pub fn address(&self, number: u16, port: u16) -> std::net::SocketAddr {
        match self {
            Self::Host => (Ipv4Addr::LOCALHOST, port).into(),
            Self::Bridge(bridge) => (bridge.address(number), port).into(),
        }
    }

    /// Before something is started that needs the outside: a firewall may have come, or been made anew, since the last time.
    pub fn open_firewalls(&self) {
        let Self::Bridge(bridge) = self else { return };
        if let Err(error) = forwarding::open(&bridge.name, &bridge.table) {
            tracing::warn!(
                %error, bridge = bridge.name,
                "the firewall of this machine may keep sandboxes from the internet; let through what comes from this bridge"
            );
        }
    }

    pub fn describe(&self) -> &'static str {
        match self {
            Self::Bridge(_) => "bridge",
            Self::Host => "host",
        }
    }

    /// Takes everything away.
    pub fn close(&self) {
        if let Self::Bridge(bridge) = self {
            let _ = firewall::remove(&bridge.table);
            let _ = forwarding::close(&bridge.table);
            if let Ok(mut netlink) = Netlink::route() {
                let _ = netlink.delete(&bridge.name);
            }
        }
    }
}

impl Bridge {
    /// Numbers of sandboxes on a bridge.
    fn open(&self) -> io::Result<()> {
        let mut netlink = Netlink::route()?;
        if !exists(&self.name) {
            if !others(self.first, &self.name)?.is_empty() {
                return Err(io::Error::from(io::ErrorKind::AddrInUse));
            }
            netlink.add_bridge(&self.name, self.mtu)?;
        }
        // Somebody else may have looked at the same moment: of two with the same subnet the later name gives way.
        match netlink.add_address(&self.name, self.gateway(), PREFIX) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
            _ => {}
        }
        if others(self.first, &self.name)?.iter().any(|other| *other < self.name) {
            netlink.delete(&self.name)?;
            return Err(io::Error::from(io::ErrorKind::AddrInUse));
        }
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.name), "1");
        netlink.up(&self.name)?;
        // Packets of sandboxes go out, and the answers come in, over interfaces that we do not know.
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        firewall::install(&self.table, &self.name, Subnet { first: self.first, prefix: PREFIX })
    }

    fn gateway(&self) -> Ipv4Addr {
        self.address(1)
    }

    fn address(&self, number: u16) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() + u32::from(number))
    }
}

/// Can a program listen on this port of the machine?
pub(super) fn is_free(port: u16) -> bool {
    let address = SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
    // Bound, and never listened on: nobody can connect to it.
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
    socket.is_ok_and(|socket| bind(socket.as_raw_fd(), &address).is_ok())
}

/// What goes to `/etc/resolv.conf` of sandboxes. A name server on the loopback of the machine cannot be reached
/// from another network; systemd-resolved keeps the real ones in a second file.
pub(super) fn resolv_conf(connection: &Connection) -> String {
    let own = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let local = |text: &str| {
        let servers: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("nameserver")).map(str::trim).collect();
        servers.is_empty() || servers.iter().all(|server| server.starts_with("127.") || *server == "::1")
    };
    if matches!(connection, Connection::Host) || !local(&own) {
        return own;
    }
    match fs::read_to_string("/run/systemd/resolve/resolv.conf") {
        Ok(text) if !local(&text) => text,
        _ => {
            tracing::warn!(
                "the name servers of this machine listen on its loopback, where sandboxes cannot reach them; 9.9.9.9 is used instead"
            );
            "nameserver 9.9.9.9\n".to_owned()
        }
    }
}

fn exists(interface: &str) -> bool {
    nix::net::if_::if_nametoindex(interface).is_ok()
}

/// The other interfaces that have an address of this subnet.
fn others(first: Ipv4Addr, own: &str) -> io::Result<Vec<String>> {
    let mask = u32::MAX << (32 - PREFIX);
    let addresses = nix::ifaddrs::getifaddrs()?;
    let is_inside = |interface: &nix::ifaddrs::InterfaceAddress| {
        let address =
            interface.address.as_ref().and_then(|address| address.as_sockaddr_in().map(|address| address.ip()));
        address.is_some_and(|address| address.to_bits() & mask == first.to_bits())
    };
    let names = addresses.into_iter().filter(is_inside).map(|interface| interface.interface_name);
    Ok(names.filter(|name| name != own).collect())
}

/// The MTU of the interface of the default route.
fn default_mtu() -> Option<u32> {
    let routes = fs::read_to_string("/proc/net/route").ok()?;
    let interface = routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (name, destination) = (fields.next()?, fields.next()?);
        (destination == "00000000").then(|| name.to_owned())
    })?;
    fs::read_to_string(format!("/sys/class/net/{interface}/mtu")).ok()?.trim().parse().ok()
}
