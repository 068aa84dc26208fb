//! Messages to the kernel about interfaces, addresses and routes (rtnetlink), and the packing of them.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsFd as _, OwnedFd},
};

use nix::sys::{
    socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, setsockopt, socket, sockopt},
    time::{TimeVal, TimeValLike as _},
};
use std::os::fd::AsRawFd as _;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// An attribute that holds others.
const NESTED: u16 = 0x8000;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_PROTINFO: u16 = 12;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_ISOLATED: u16 = 33;

/// A message that is being put together.
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(header);
        Self { bytes }
    }

    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        push_attribute(&mut self.bytes, kind, value);
        self
    }

    pub fn text(self, kind: u16, text: &str) -> Self {
        self.attribute(kind, &[text.as_bytes(), &[0]].concat())
    }

    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    pub fn nested(self, kind: u16, inner: &Attributes) -> Self {
        self.attribute(kind | NESTED, &inner.0)
    }

    fn with_flags(mut self, flags: u16) -> Self {
        let all = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flags;
        self.bytes[6..8].copy_from_slice(&all.to_ne_bytes());
        self
    }

    pub fn with_sequence(mut self, sequence: u32, acknowledge: bool) -> Vec<u8> {
        if acknowledge {
            self = self.with_flags(NLM_F_ACK);
        }
        let length = u32::try_from(self.bytes.len()).expect("a message is small");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// Attributes inside of an attribute.
#[derive(Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        push_attribute(&mut self.0, kind, value);
        self
    }

    pub fn text(self, kind: u16, text: &str) -> Self {
        self.attribute(kind, &[text.as_bytes(), &[0]].concat())
    }

    pub fn nested(self, kind: u16, inner: &Self) -> Self {
        self.attribute(kind | NESTED, &inner.0)
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

fn push_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).expect("an attribute is small");
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The attributes in some bytes: kind (without its flags) and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & KIND, value))
    })
}

/// A conversation with one part of the kernel.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub fn route() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    pub fn netfilter() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // The kernel answers at once, or something is badly wrong.
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(10))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a message and waits for its acknowledgement.
    pub fn ask(&mut self, message: Message) -> io::Result<()> {
        self.sequence += 1;
        let bytes = message.with_sequence(self.sequence, true);
        self.send(&bytes, 1)
    }

    /// Sends messages that are taken together or not at all; `acknowledged` of them answer.
    pub fn send(&mut self, bytes: &[u8], acknowledged: usize) -> io::Result<()> {
        let mut answer = vec![0; 16 * 1024];
        let mut seen = 0;
        let mut length = super::sys::exchange(self.socket.as_fd(), bytes, &mut answer)?;
        loop {
            let mut rest = &answer[..length];
            while rest.len() >= 20 {
                let size = u32::from_ne_bytes(rest[..4].try_into().expect("4 bytes")) as usize;
                let kind = u16::from_ne_bytes(rest[4..6].try_into().expect("2 bytes"));
                if kind == NLMSG_ERROR {
                    let code = i32::from_ne_bytes(rest[16..20].try_into().expect("4 bytes"));
                    if code != 0 {
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    seen += 1;
                }
                rest = rest.get(size.next_multiple_of(4).max(16)..).unwrap_or_default();
            }
            if seen >= acknowledged {
                return Ok(());
            }
            length = nix::sys::socket::recv(self.socket.as_raw_fd(), &mut answer, nix::sys::socket::MsgFlags::empty())?;
        }
    }

    /// Asks for a list: the family and the attributes of each entry.
    pub fn dump(&mut self, message: Message) -> io::Result<Vec<(u8, Vec<u8>)>> {
        self.sequence += 1;
        let bytes = message.with_flags(NLM_F_DUMP).with_sequence(self.sequence, false);
        let mut answer = vec![0; 64 * 1024];
        let mut entries = Vec::new();
        let mut length = super::sys::exchange(self.socket.as_fd(), &bytes, &mut answer)?;
        loop {
            let mut rest = &answer[..length];
            while rest.len() >= 16 {
                let size = u32::from_ne_bytes(rest[..4].try_into().expect("4 bytes")) as usize;
                let body = rest.get(16..size).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
                match u16::from_ne_bytes(rest[4..6].try_into().expect("2 bytes")) {
                    NLMSG_DONE => return Ok(entries),
                    NLMSG_ERROR => {
                        let code = body.first_chunk().copied().map_or(0, i32::from_ne_bytes);
                        return if code == 0 { Ok(entries) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    // The header of netfilter has 4 bytes, and begins with the family.
                    _ if body.len() >= 4 => entries.push((body[0], body[4..].to_vec())),
                    _ => {}
                }
                rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
            }
            length = nix::sys::socket::recv(self.socket.as_raw_fd(), &mut answer, nix::sys::socket::MsgFlags::empty())?;
        }
    }

    pub fn add_bridge(&mut self, name: &str, mtu: u32) -> io::Result<()> {
        let info = Attributes::default().text(IFLA_INFO_KIND, "bridge");
        let message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(0, 0))
            .text(IFLA_IFNAME, name)
            .u32(IFLA_MTU, mtu)
            .nested(IFLA_LINKINFO, &info);
        self.ask(message)
    }

    /// A bridge that was not told its hardware address takes that of a port, and another one when that port goes: what its
    /// neighbours know of it is then wrong, and their answers are lost.
    pub fn fix_hardware_address(&mut self, name: &str, address: Ipv4Addr) -> io::Result<()> {
        let message = Message::new(RTM_NEWLINK, 0, &link_header(index(name)?, 0));
        self.ask(message.attribute(IFLA_ADDRESS, &hardware_address(address)))
    }

    /// A pair of interfaces: one here, on a bridge, the other, named `eth0`, in the network namespace of a process.
    pub fn add_veth(&mut self, name: &str, bridge: &str, pid: u32, mtu: u32, address: Ipv4Addr) -> io::Result<()> {
        let mtu = mtu.to_ne_bytes();
        let peer = Attributes::default()
            .raw(&link_header(0, 0))
            .text(IFLA_IFNAME, "eth0")
            .attribute(IFLA_MTU, &mtu)
            .attribute(IFLA_ADDRESS, &hardware_address(address))
            .attribute(IFLA_NET_NS_PID, &pid.to_ne_bytes());
        let data = Attributes::default().nested(VETH_INFO_PEER, &peer);
        let info = Attributes::default().text(IFLA_INFO_KIND, "veth").nested(IFLA_INFO_DATA, &data);
        let message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(0, 0))
            .text(IFLA_IFNAME, name)
            .attribute(IFLA_MTU, &mtu)
            .u32(IFLA_MASTER, index(bridge)?)
            .nested(IFLA_LINKINFO, &info);
        self.ask(message)
    }

    /// A port of a bridge that reaches the bridge itself, and no other such port.
    pub fn isolate(&mut self, name: &str) -> io::Result<()> {
        let port = Attributes::default().attribute(IFLA_BRPORT_ISOLATED, &[1]);
        let header = family_header(libc::AF_BRIDGE as u8, index(name)?, 0);
        self.ask(Message::new(RTM_SETLINK, 0, &header).nested(IFLA_PROTINFO, &port))
    }

    pub fn up(&mut self, name: &str) -> io::Result<()> {
        self.ask(Message::new(RTM_NEWLINK, 0, &link_header(index(name)?, libc::IFF_UP as u32)))
    }

    pub fn delete(&mut self, name: &str) -> io::Result<()> {
        self.ask(Message::new(RTM_DELLINK, 0, &link_header(index(name)?, 0)))
    }

    pub fn add_address(&mut self, name: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        const IFA_ADDRESS: u16 = 1;
        const IFA_LOCAL: u16 = 2;
        let mut header = vec![libc::AF_INET as u8, prefix, 0, 0];
        header.extend_from_slice(&index(name)?.to_ne_bytes());
        let message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &header)
            .attribute(IFA_LOCAL, &address.octets())
            .attribute(IFA_ADDRESS, &address.octets());
        self.ask(message)
    }

    pub fn add_default_route(&mut self, gateway: Ipv4Addr) -> io::Result<()> {
        const RTA_GATEWAY: u16 = 5;
        const RT_TABLE_MAIN: u8 = 254;
        const RTPROT_STATIC: u8 = 4;
        const RTN_UNICAST: u8 = 1;
        let header = [libc::AF_INET as u8, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
        let message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &header);
        self.ask(message.attribute(RTA_GATEWAY, &gateway.octets()))
    }
}

/// The same for the same address, so that nobody's ARP entry is wrong when a sandbox is made again.
fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0xe0, a, b, c, d]
}

/// `struct ifinfomsg`, with the flags that are to change set.
fn link_header(index: u32, flags: u32) -> Vec<u8> {
    family_header(libc::AF_UNSPEC as u8, index, flags)
}

fn family_header(family: u8, index: u32, flags: u32) -> Vec<u8> {
    let mut header = vec![family, 0, 0, 0];
    header.extend_from_slice(&index.to_ne_bytes());
    header.extend_from_slice(&flags.to_ne_bytes());
    header.extend_from_slice(&flags.to_ne_bytes());
    header
}

fn index(name: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

/// Runs a test in a network namespace of its own: the machine's interfaces and firewall are left alone.
#[cfg(test)]
pub(super) fn alone(test: impl FnOnce() + Send) {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("NOT RUN: this test needs root");
        return;
    }
    let apart = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may have a network");
        test();
    };
    std::thread::scope(|scope| scope.spawn(apart).join()).expect("the test succeeds");
}
