//! Whom a load balancer speaks for: the PROXY protocol, versions 1 and 2, as HAProxy documents it
//! (`doc/proxy-protocol.txt`). It comes before everything else on a connection, TLS included.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// How long it may take to arrive: it is sent at once.
const DEADLINE: Duration = Duration::from_secs(5);
/// Version 1, with its end of line.
const LONGEST_LINE: usize = 107;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// More addresses and extensions than that nobody has, in bytes.
const LONGEST_BLOCK: usize = 2048;

/// None where the load balancer speaks for itself, as when it looks whether somebody is here.
pub(super) async fn client(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    match tokio::time::timeout(DEADLINE, read(stream)).await {
        Ok(read) => read,
        Err(_) => Err(wrong("it did not come in time")),
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    // Both versions are longer.
    let mut start = [0; SIGNATURE.len()];
    stream.read_exact(&mut start).await?;
    if start == *SIGNATURE {
        return read_block(stream).await;
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() == LONGEST_LINE || !line.starts_with(b"PROXY ") {
            return Err(wrong("what came is none"));
        }
        line.push(stream.read_u8().await?);
    }
    let text = std::str::from_utf8(&line).map_err(|_| wrong("its line is no text"))?;
    of_line(text.trim_end())
}

fn of_line(line: &str) -> io::Result<Option<SocketAddr>> {
    let mut words = line.split(' ').skip(1);
    if words.next() == Some("UNKNOWN") {
        return Ok(None);
    }
    let (source, port) = (words.next(), words.nth(1));
    let address = source.and_then(|source| source.parse::<IpAddr>().ok());
    let port = port.and_then(|port| port.parse::<u16>().ok());
    let found = address.zip(port).ok_or_else(|| wrong("its line has no address and port"))?;
    Ok(Some(SocketAddr::from(found)))
}

async fn read_block(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let (command, family) = (stream.read_u8().await?, stream.read_u8().await?);
    let mut block = vec![0; usize::from(stream.read_u16().await?).min(LONGEST_BLOCK + 1)];
    if block.len() > LONGEST_BLOCK || command >> 4 != 2 {
        return Err(wrong("its version or length is not known"));
    }
    stream.read_exact(&mut block).await?;
    let port = |at: usize| block.get(at..at + 2).map(|port| u16::from_be_bytes([port[0], port[1]]));
    let found = match (command & 0xf, family) {
        (0, _) => return Ok(None),
        (1, 0x11) => block.first_chunk::<4>().map(|bytes| IpAddr::from(Ipv4Addr::from(*bytes))).zip(port(8)),
        (1, 0x21) => block.first_chunk::<16>().map(|bytes| IpAddr::from(Ipv6Addr::from(*bytes))).zip(port(32)),
        (1, 0) => return Ok(None),
        _ => return Err(wrong("its kind of addresses is not known")),
    };
    found.map(|found| Some(SocketAddr::from(found))).ok_or_else(|| wrong("its addresses are cut off"))
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the header of the PROXY protocol: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(mut bytes: &[u8]) -> io::Result<(Option<SocketAddr>, Vec<u8>)> {
        let found = client(&mut bytes).await?;
        Ok((found, bytes.to_vec()))
    }

    fn block(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[0x20 | command, family][..], &length, addresses, b"GET"].concat()
    }

    #[tokio::test]
    async fn the_client_is_who_the_load_balancer_says_and_nothing_more_is_read() {
        let (found, rest) = read(b"PROXY TCP4 192.0.2.7 10.0.0.1 5000 80\r\nGET").await.unwrap();
        assert_eq!((found, rest.as_slice()), (Some(([192, 0, 2, 7], 5000).into()), &b"GET"[..]));
        let (found, _) = read(b"PROXY TCP6 2001:db8::7 2001:db8::1 5000 80\r\n").await.unwrap();
        assert_eq!(found, "[2001:db8::7]:5000".parse().ok());
        assert_eq!(read(b"PROXY UNKNOWN\r\nGET").await.unwrap().0, None);
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0x13, 0x88, 0, 80, 4, 0, 1, 7];
        let (found, rest) = read(&block(1, 0x11, &four)).await.unwrap();
        assert_eq!((found, rest.as_slice()), (Some(([192, 0, 2, 7], 5000).into()), &b"GET"[..]), "with an extension");
        assert_eq!(read(&block(0, 0, &[])).await.unwrap().0, None, "it looks whether somebody is here");
    }

    #[tokio::test]
    async fn what_is_none_is_refused() {
        let (long, cut) = (format!("PROXY TCP4 {}", "1".repeat(200)), block(1, 0x21, &[1; 12]));
        let bad: [&[u8]; 6] = [
            b"GET / HTTP/1.1\r\n\r\n",
            b"PROXY TCP4 x y 1 2\r\n",
            long.as_bytes(),
            b"PROXY",
            &cut,
            &block(1, 0x99, &[0; 12]),
        ];
        for bytes in bad {
            assert!(read(bytes).await.is_err(), "{}", String::from_utf8_lossy(bytes));
        }
    }
}
