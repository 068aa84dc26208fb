//! Questions to servers of DNS: by UDP, and by TCP where the answer is too long for it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};

/// For one answer; a question is asked twice.
const DEADLINE: Duration = Duration::from_secs(5);
const PORT: u16 = 53;
/// No server has to answer to more than this, in bytes, by UDP.
const DATAGRAM: usize = 4096;
const RESOLVERS: &str = "/etc/resolv.conf";

/// The resolvers of this machine.
pub(super) fn own_resolvers() -> Result<Vec<SocketAddr>, String> {
    let text = std::fs::read_to_string(RESOLVERS).map_err(|error| format!("{RESOLVERS} cannot be read: {error}"))?;
    let found: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, PORT))
        .collect();
    // As resolv.conf(5) has it where there is none.
    Ok(if found.is_empty() { vec![SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))] } else { found })
}

/// The zone that a name is in, and its servers.
pub(super) async fn zone_of(name: &str, resolvers: &[SocketAddr]) -> Result<(Name, Vec<Name>), String> {
    let mut zone = parse(name)?;
    while !zone.is_root() {
        let answer = ask_any(&zone, RecordType::NS, resolvers).await?;
        let servers: Vec<Name> = answer
            .answers
            .iter()
            .filter_map(|record| match &record.data {
                RData::NS(server) if record.name == zone => Some(server.0.clone()),
                _ => None,
            })
            .collect();
        if !servers.is_empty() {
            return Ok((zone, servers));
        }
        zone = zone.base_name();
    }
    Err(format!("no zone of {name} is known to {}", list(resolvers)))
}

/// Who is asked about a name: all servers of its zone, else whoever answers here.
pub(super) async fn servers_of(name: &str, resolvers: &[SocketAddr]) -> Result<Vec<SocketAddr>, String> {
    let Ok((_, names)) = zone_of(name, resolvers).await else { return Ok(resolvers.iter().copied().take(1).collect()) };
    let mut servers = Vec::new();
    for name in names {
        servers.extend(addresses(&name, resolvers).await?.into_iter().take(1));
    }
    if servers.is_empty() {
        return Err(format!("the servers of the zone of {name} have no addresses"));
    }
    Ok(servers)
}

/// Where a server of DNS is.
pub(super) async fn addresses(name: &Name, resolvers: &[SocketAddr]) -> Result<Vec<SocketAddr>, String> {
    let mut found = Vec::new();
    for kind in [RecordType::A, RecordType::AAAA] {
        let answer = ask_any(name, kind, resolvers).await?;
        found.extend(answer.answers.iter().filter_map(|record| match &record.data {
            RData::A(address) => Some(SocketAddr::from((address.0, PORT))),
            RData::AAAA(address) => Some(SocketAddr::from((address.0, PORT))),
            _ => None,
        }));
    }
    Ok(found)
}

/// The records of text that a server has for a name.
pub(super) async fn texts(name: &str, server: SocketAddr) -> Result<Vec<String>, String> {
    let answer = ask(&parse(name)?, RecordType::TXT, server).await?;
    let text = |data: &RData| match data {
        RData::TXT(text) => Some(String::from_utf8_lossy(&text.txt_data.concat()).into_owned()),
        _ => None,
    };
    Ok(answer.answers.iter().filter_map(|record| text(&record.data)).collect())
}

pub(super) fn parse(name: &str) -> Result<Name, String> {
    let mut name = Name::from_ascii(name).map_err(|error| format!("'{name}' is not a name of DNS: {error}"))?;
    name.set_fqdn(true);
    Ok(name)
}

async fn ask_any(name: &Name, kind: RecordType, resolvers: &[SocketAddr]) -> Result<Message, String> {
    let mut failed = "there is no resolver".to_owned();
    for resolver in resolvers {
        match ask(name, kind, *resolver).await {
            Ok(answer) => return Ok(answer),
            Err(cause) => failed = cause,
        }
    }
    Err(failed)
}

/// An answer that a name is not there is one.
async fn ask(name: &Name, kind: RecordType, server: SocketAddr) -> Result<Message, String> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), kind));
    let bytes = question.to_vec().map_err(|error| error.to_string())?;
    let answer = exchange(&bytes, question.metadata.id, server).await?;
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
        code => Err(format!("{server} answers {code} to a question for {name}")),
    }
}

/// Sends what is encoded already, and has the answer with the same number.
pub(super) async fn exchange(bytes: &[u8], id: u16, server: SocketAddr) -> Result<Message, String> {
    let failed = |error: std::io::Error| format!("DNS server {server} does not answer: {error}");
    let late = || format!("DNS server {server} does not answer within {} s", DEADLINE.as_secs());
    for _ in 0..2 {
        let answer = match tokio::time::timeout(DEADLINE, by_datagram(bytes, id, server)).await {
            Ok(answer) => answer.map_err(failed)?,
            Err(_) => continue,
        };
        if !answer.metadata.truncation {
            return Ok(answer);
        }
        let whole = tokio::time::timeout(DEADLINE, by_stream(bytes, server)).await.map_err(|_| late())?;
        return whole.map_err(failed);
    }
    Err(late())
}

async fn by_datagram(bytes: &[u8], id: u16, server: SocketAddr) -> std::io::Result<Message> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What is no answer to this question is none of ours.
        if let Ok(answer) = Message::from_vec(&buffer[..length])
            && answer.metadata.id == id
        {
            return Ok(answer);
        }
    }
}

async fn by_stream(bytes: &[u8], server: SocketAddr) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    Message::from_vec(&buffer).map_err(std::io::Error::other)
}

fn list(resolvers: &[SocketAddr]) -> String {
    resolvers.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
}
