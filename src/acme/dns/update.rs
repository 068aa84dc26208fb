//! Updates of a zone (RFC 2136), signed with a key that its server knows (TSIG, RFC 8945).

use std::{fmt, net::SocketAddr};

use hickory_proto::{
    op::{ResponseCode, update_message},
    rr::{
        Name, RData, Record, RecordSet, TSigner,
        rdata::{TXT, tsig::TsigAlgorithm},
    },
};

use super::{Action, Settings, TextRecord, message};

/// A key of TSIG.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct UpdateKey {
    pub name: String,
    pub algorithm: Algorithm,
    pub secret: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    HmacSha256,
    HmacSha384,
    HmacSha512,
}

impl fmt::Debug for UpdateKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("UpdateKey").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The record goes when the certificate is there, and may be asked for anew at once: nobody is to keep it.
const TTL: u32 = 30;
/// By how many seconds clocks may differ (RFC 8945, section 10).
const FUDGE: u16 = 300;

pub(super) async fn change(
    action: Action,
    record: &TextRecord,
    server: &str,
    key: Option<&UpdateKey>,
    settings: &Settings,
) -> Result<(), String> {
    let address = address_of(server).await?;
    // The server knows its zones, whoever else does.
    let zone = match message::zone_of(&record.name, &[address]).await {
        Ok((zone, _)) => zone,
        Err(_) => message::zone_of(&record.name, &settings.resolvers()?).await?.0,
    };
    let name = message::parse(&record.name)?;
    let text = Record::from_rdata(name, TTL, RData::TXT(TXT::new(vec![record.value.clone()])));
    let mut update = match action {
        Action::Present => update_message::append(RecordSet::from(text), zone.clone(), false, false),
        Action::Remove => update_message::delete_by_rdata(RecordSet::from(text), zone.clone(), false),
    };
    if let Some(key) = key {
        let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
        update.finalize(&signer(key)?, now).map_err(|error| error.to_string())?;
    }
    let bytes = update.to_vec().map_err(|error| error.to_string())?;
    let answer = message::exchange(&bytes, update.metadata.id, address).await?;
    match answer.metadata.response_code {
        ResponseCode::NoError => Ok(()),
        code => Err(refused(server, &zone, code, key)),
    }
}

fn signer(key: &UpdateKey) -> Result<TSigner, String> {
    let algorithm = match key.algorithm {
        Algorithm::HmacSha256 => TsigAlgorithm::HmacSha256,
        Algorithm::HmacSha384 => TsigAlgorithm::HmacSha384,
        Algorithm::HmacSha512 => TsigAlgorithm::HmacSha512,
    };
    let name = message::parse(&key.name)?;
    TSigner::new(key.secret.clone(), algorithm, name, FUDGE).map_err(|error| error.to_string())
}

fn refused(server: &str, zone: &Name, code: ResponseCode, key: Option<&UpdateKey>) -> String {
    let hint = match (code, key) {
        (ResponseCode::NotAuth, Some(key)) => {
            format!("; does it know the key {}, and is the clock here right?", key.name)
        }
        (ResponseCode::Refused, None) => "; does it want updates to be signed with a key?".to_owned(),
        (ResponseCode::Refused, Some(key)) => format!("; may the key {} change the zone?", key.name),
        _ => String::new(),
    };
    format!("DNS server {server} answers {code} to an update of the zone {zone}{hint}")
}

/// `HOST`, `HOST:PORT`, or the same with an address.
async fn address_of(server: &str) -> Result<SocketAddr, String> {
    let with_port = if server.parse::<std::net::Ipv6Addr>().is_ok() {
        format!("[{server}]:53")
    } else if server.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        server.to_owned()
    } else {
        format!("{server}:53")
    };
    let found = tokio::net::lookup_host(&with_port).await;
    let mut found = found.map_err(|error| format!("the DNS server {server} is not found: {error}"))?;
    found.next().ok_or_else(|| format!("the DNS server {server} has no address"))
}
