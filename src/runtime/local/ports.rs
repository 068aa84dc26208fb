//! Which TCP ports a sandbox listens on, as the kernel says it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::processes;

/// `TCP_LISTEN` in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// What processes in the network namespace of a process listen on. Where the namespace is the
/// machine's, only sockets of processes in the same pid namespace count.
pub(super) fn listening(pid: i32, shared_network: bool) -> Vec<SocketAddr> {
    let own = shared_network.then(|| processes::sockets_with(pid));
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let Some((address, inode)) = parse(line) else { continue };
            if own.as_ref().is_none_or(|own| own.contains(&inode)) && !found.contains(&address) {
                found.push(address);
            }
        }
    }
    found
}

/// `  0: 0100007F:1F90 00000000:0000 0A … inode …`
fn parse(line: &str) -> Option<(SocketAddr, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    if *state != LISTEN {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Vec<u32> = (0..address.len() / 8)
        .map(|word| u32::from_str_radix(&address[word * 8..word * 8 + 8], 16).map(u32::swap_bytes))
        .collect::<Result<_, _>>()
        .ok()?;
    let ip: IpAddr = match words.as_slice() {
        [word] => Ipv4Addr::from_bits(*word).into(),
        [a, b, c, d] => {
            let bits = [a, b, c, d].into_iter().fold(0u128, |bits, word| (bits << 32) | u128::from(*word));
            Ipv6Addr::from_bits(bits).into()
        }
        _ => return None,
    };
    Some((SocketAddr::new(ip, port), inode.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_net_tcp_are_understood() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0";
        assert_eq!(parse(line), Some(("127.0.0.1:8080".parse().unwrap(), 4711)));
        let six =
            "   0: 00000000000000000000000000000000:0BB8 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 12 1";
        assert_eq!(parse(six), Some(("[::]:3000".parse().unwrap(), 12)));
        assert_eq!(parse(&line.replace(" 0A ", " 01 ")), None);
    }

    #[test]
    fn a_listener_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(listening(pid, true).contains(&listener.local_addr().unwrap()));
    }
}
