//! The network of sandboxes: as root a bridge of this data directory; rootless the network of the machine.

use std::{
    fs, io,
    net::Ipv4Addr,
    ops::Range,
    os::fd::AsRawFd as _,
    sync::Once,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket},
};

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
/// How long another daemon may take to make its bridge.
const TURN: Duration = Duration::from_secs(5);
/// Asked where the machine has no name server that a sandbox can reach.
const PUBLIC_NAME_SERVER: &str = "nameserver 9.9.9.9";
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
        let name = format!("ev{}", &hex[..8]);
        let _turn = turn();
        let addresses = addresses()?;
        // What runs on a bridge has addresses of its subnet: whatever the machine looks like by now, they stay.
        let kept = addresses.iter().find(|(interface, address)| *interface == name && is_ours(*address));
        let first = kept.map(|(_, address)| subnet_of(*address)).or_else(|| free_subnet(number, &addresses));
        let first = first.ok_or_else(|| io::Error::other("every subnet is in use"))?;
        let mtu = default_mtu().unwrap_or(DEFAULT_MTU);
        let bridge = Bridge { name, table: format!("epiniod-{}", &hex[..8]), first, mtu };
        bridge.open()?;
        Ok(Self::Bridge(bridge))
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
            // It is tried again and again.
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                tracing::warn!(
                    %error, bridge = bridge.name,
                    "the firewall of this machine may keep sandboxes from the internet; let through what comes from this bridge"
                );
            });
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
    fn open(&self) -> io::Result<()> {
        let mut netlink = Netlink::route()?;
        if !exists(&self.name) {
            netlink.add_bridge(&self.name, self.mtu)?;
        }
        match netlink.add_address(&self.name, self.gateway(), PREFIX) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
            _ => {}
        }
        netlink.fix_hardware_address(&self.name, self.gateway())?;
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

/// What goes to `/etc/resolv.conf` of a sandbox, as the machine has it now. systemd-resolved, which listens on the
/// loopback, keeps the real name servers in a second file.
pub(super) fn resolv_conf(connection: &Connection) -> String {
    let own = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    if matches!(connection, Connection::Host) {
        return own;
    }
    let machine: Vec<Ipv4Addr> = addresses().unwrap_or_default().into_iter().map(|(_, address)| address).collect();
    if let Some(text) = reachable(&own, &machine) {
        return text;
    }
    let resolved = fs::read_to_string("/run/systemd/resolve/resolv.conf").unwrap_or_default();
    reachable(&resolved, &machine).unwrap_or_else(|| {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            tracing::warn!(
                "no name server of this machine can be reached from sandboxes (they may not talk to the machine itself or to \
                 link-local addresses, and have no IPv6); 9.9.9.9 is used instead: name another one in /etc/resolv.conf"
            );
        });
        let rest = own.lines().filter(|line| name_server(line).is_none());
        rest.chain([PUBLIC_NAME_SERVER]).map(|line| format!("{line}\n")).collect()
    })
}

/// The text without the name servers that are out of reach; none when no other is left.
fn reachable(text: &str, machine: &[Ipv4Addr]) -> Option<String> {
    let is_reachable = |server: &str| {
        server.parse::<Ipv4Addr>().is_ok_and(|address| {
            let special = address.is_loopback() || address.is_link_local() || address.is_unspecified();
            !special && !machine.contains(&address)
        })
    };
    let kept = || text.lines().filter(|line| name_server(line).is_none_or(is_reachable));
    kept().any(|line| name_server(line).is_some()).then(|| kept().map(|line| format!("{line}\n")).collect())
}

fn name_server(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())
}

fn exists(interface: &str) -> bool {
    nix::net::if_::if_nametoindex(interface).is_ok()
}

/// Of daemons that share a network one at a time chooses a subnet. Whoever blocks this for long is not waited for.
fn turn() -> Option<Flock<fs::File>> {
    let mut file = fs::File::open("/proc/self/ns/net").ok()?;
    let until = Instant::now() + TURN;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(turn) => return Some(turn),
            Err((again, Errno::EWOULDBLOCK)) if Instant::now() < until => file = again,
            Err(_) => return None,
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The IPv4 addresses of this machine, with the names of their interfaces.
fn addresses() -> io::Result<Vec<(String, Ipv4Addr)>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?.as_sockaddr_in()?.ip();
        Some((interface.interface_name, address))
    };
    Ok(interfaces.filter_map(address).collect())
}

fn subnet_of(address: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(address.to_bits() & (u32::MAX << (32 - PREFIX)))
}

/// Is an address in one of our subnets?
fn is_ours(address: Ipv4Addr) -> bool {
    let number = (address.to_bits().wrapping_sub(FIRST_SUBNET.to_bits())) >> (32 - PREFIX);
    number < SUBNETS
}

/// The first of our subnets, from this number on, that nobody has an address of.
fn free_subnet(number: u32, addresses: &[(String, Ipv4Addr)]) -> Option<Ipv4Addr> {
    let subnets = (0..SUBNETS).map(|offset| (number + offset) % SUBNETS);
    let mut all = subnets.map(|subnet| Ipv4Addr::from_bits(FIRST_SUBNET.to_bits() + (subnet << (32 - PREFIX))));
    all.find(|first| !addresses.iter().any(|(_, address)| subnet_of(*address) == *first))
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

#[cfg(test)]
mod tests {
    use super::{super::netlink::alone, *};

    #[test]
    fn name_servers_that_sandboxes_cannot_reach_are_left_out() {
        let machine = [Ipv4Addr::new(10, 255, 255, 254)];
        for (given, expected) in [
            ("nameserver 10.0.0.2\n", Some("nameserver 10.0.0.2\n")),
            (
                "# mine\nsearch a.b\nnameserver 127.0.0.53\nnameserver 1.2.3.4\n",
                Some("# mine\nsearch a.b\nnameserver 1.2.3.4\n"),
            ),
            ("nameserver 169.254.169.254\nsearch c.internal\n", None),
            ("nameserver\t10.255.255.254\n", None),
            ("nameserver fd00::1\nnameserver ::1\n", None),
            ("nameserver\n", None),
            ("", None),
        ] {
            assert_eq!(reachable(given, &machine).as_deref(), expected, "{given:?}");
        }
    }

    fn first(connection: &Connection) -> Ipv4Addr {
        match connection {
            Connection::Bridge(bridge) => bridge.first,
            Connection::Host => panic!("it has a bridge"),
        }
    }

    #[test]
    fn a_bridge_keeps_its_subnet_and_others_get_another() {
        alone(|| {
            let identity = Digest::of("a data directory");
            let before = Connection::open(&identity).unwrap();
            assert_eq!(first(&Connection::open(&identity).unwrap()), first(&before), "a restart changes nothing");
            before.close();
            // Somebody else has it now, and then the bridge has another that is not the first choice any more.
            let mut netlink = Netlink::route().unwrap();
            netlink.add_bridge("other", DEFAULT_MTU).unwrap();
            netlink.add_address("other", first(&before), 24).unwrap();
            let moved = Connection::open(&identity).unwrap();
            assert_ne!(first(&moved), first(&before));
            netlink.delete("other").unwrap();
            assert_eq!(
                first(&Connection::open(&identity).unwrap()),
                first(&moved),
                "who runs on it keeps their address"
            );
        });
    }

    #[test]
    fn a_bridge_keeps_its_hardware_address_whatever_comes_and_goes() {
        alone(|| {
            let connection = Connection::open(&Digest::of("a data directory")).unwrap();
            let Connection::Bridge(bridge) = &connection else { panic!("it has a bridge") };
            // The folder of the machine shows other interfaces than those of this test.
            let address = || {
                let shown = std::process::Command::new("ip").args(["-o", "link", "show", &bridge.name]).output();
                let text = shown.map(|shown| String::from_utf8_lossy(&shown.stdout).into_owned()).unwrap_or_default();
                text.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).map(str::to_owned)
            };
            let Some(before) = address() else { return eprintln!("NOT RUN: this test needs ip") };
            let mut netlink = Netlink::route().unwrap();
            for name in ["port0", "port1", "port2", "port3"] {
                // This thread, as the process has the network of the machine.
                let thread = nix::unistd::gettid().as_raw().unsigned_abs();
                netlink.add_veth(name, &bridge.name, thread, DEFAULT_MTU, bridge.address(9)).unwrap();
                assert_eq!(address().as_ref(), Some(&before), "with {name}");
                netlink.delete(name).unwrap();
                assert_eq!(address().as_ref(), Some(&before), "without {name}");
            }
        });
    }

    #[test]
    fn a_subnet_is_taken_that_nobody_has_an_address_of() {
        let on = |text: &str| ("eth0".to_owned(), text.parse::<Ipv4Addr>().unwrap());
        assert_eq!(free_subnet(1, &[on("10.213.0.1")]), Some(Ipv4Addr::new(10, 213, 4, 0)));
        assert_eq!(free_subnet(63, &[on("10.213.255.7")]), Some(Ipv4Addr::new(10, 213, 0, 0)));
        let all: Vec<_> = (0..=255).map(|third| on(&format!("10.213.{third}.1"))).collect();
        assert_eq!(free_subnet(0, &all), None);
        assert!(is_ours(Ipv4Addr::new(10, 213, 255, 1)) && !is_ours(Ipv4Addr::new(10, 214, 0, 1)));
        assert!(!is_ours(Ipv4Addr::new(10, 212, 255, 1)));
    }
}
