//! The API, seen from the command line.
//!
//! HTTP/1.1 only: websockets are upgrades of it, and one connection is all that a command needs.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use reqwest::{
    Certificate, ClientBuilder, Method, RequestBuilder, Response, StatusCode, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header,
};
use serde_json::Value;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::Role,
    },
};

use super::{error::Error, settings::Settings};

/// Providers of names that say their address.
const MAGIC_DNS: [&str; 2] = [".sslip.io", ".nip.io"];
/// How long a daemon may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a daemon may take to answer: a restart waits until the new instances are ready. As the `epinio` CLI has it.
const ANSWER: Duration = Duration::from_secs(15 * 60);
/// How long a daemon may take to begin a log, or a connection.
const UPGRADE: Duration = Duration::from_secs(30);
/// A connection whose other end is gone is noticed after some of these.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVES: u32 = 3;

/// What ingress controllers and load balancers answer while nobody is behind them.
const ELSE: [StatusCode; 4] =
    [StatusCode::NOT_FOUND, StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
/// A header of every answer of an API, Epinio's or ours.
const OF_AN_API: &str = "epinio-version";

/// A daemon, and who we are to it.
pub struct Client {
    pub settings: Settings,
    password: String,
    http: reqwest::Client,
}

/// Whose certificates are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    Known,
    Anybody,
}

impl Client {
    pub fn new(settings: Settings) -> Result<Self, Error> {
        Self::with(settings, Trust::Known)
    }

    /// One that knows nobody's certificate: it sends no password.
    pub fn trusting_anybody(settings: Settings) -> Result<Self, Error> {
        let nobody = Settings { user: String::new(), pass: String::new(), ..settings };
        Self::with(nobody, Trust::Anybody)
    }

    fn with(settings: Settings, trust: Trust) -> Result<Self, Error> {
        let url = parse_address(&settings.api)?;
        let wrong =
            || Error::Usage("'pass' in the settings, or EPINIO_PASS, is not the base64 of a password".to_owned());
        let password = settings.password().ok_or_else(wrong)?;
        let mut builder = reqwest::Client::builder()
            .dns_resolver(Arc::new(Resolver))
            .connect_timeout(CONNECT)
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE)
            .tcp_keepalive_retries(KEEPALIVES)
            .http1_only();
        if is_this_machine(&url) {
            builder = builder.no_proxy();
        }
        let builder = match trust {
            Trust::Known => trusting(builder, &url, &settings.certs)?,
            Trust::Anybody => builder.tls_danger_accept_invalid_certs(true),
        };
        let http = builder.build().map_err(|error| unreachable(&settings, &error))?;
        Ok(Self { settings, password, http })
    }

    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        self.json(self.request(Method::GET, path)).await
    }

    pub async fn text(&self, path: &str) -> Result<String, Error> {
        self.send(self.request(Method::GET, path).timeout(ANSWER)).await?.text().await.map_err(broken)
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.json(self.request(Method::PATCH, path).json(body)).await
    }

    pub async fn delete(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.json(self.request(Method::DELETE, path).json(body)).await
    }

    /// The answer to a request whose body is a stream.
    pub async fn put_stream(&self, path: &str, body: reqwest::Body) -> Result<Response, Error> {
        self.send(self.request(Method::PUT, path).body(body)).await
    }

    /// An answer that is not JSON, or an error.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        let response = request.send().await.map_err(|error| self.failed(error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let named = response.headers().contains_key(OF_AN_API);
        let text = response.text().await.map_err(broken)?;
        if ELSE.contains(&status) && !named && !is_of_an_api(&text) {
            return Err(Error::NotServed { address: self.settings.api.clone(), status: status.as_u16() });
        }
        Err(api_error(status.as_u16(), &text))
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.settings.api.trim_end_matches('/')))
            .basic_auth(&self.settings.user, Some(&self.password))
    }

    async fn json(&self, request: RequestBuilder) -> Result<Value, Error> {
        let text = self.send(request.timeout(ANSWER)).await?.text().await.map_err(broken)?;
        if text.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text).map_err(Error::Malformed) }
    }

    /// The texts of a websocket, one after the other, until it ends.
    pub async fn websocket(&self, path: &str, mut each: impl FnMut(&str)) -> Result<(), Error> {
        let mut socket = self.open_websocket(path, None).await?;
        while let Some(message) = socket.next().await {
            match message {
                Ok(Message::Text(text)) => each(text.as_str()),
                Ok(Message::Close(_)) => break,
                Ok(_) => {}
                Err(error) => return Err(Error::Websocket(error.to_string())),
            }
        }
        // The other side may have closed it already.
        let _ = socket.close(None).await;
        Ok(())
    }

    /// A websocket, perhaps of a protocol that is spoken in it.
    pub async fn open_websocket(
        &self,
        path: &str,
        protocol: Option<&'static str>,
    ) -> Result<WebSocketStream<reqwest::Upgraded>, Error> {
        let stream = self.upgrade(path, protocol).await?;
        Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
    }

    /// What begins as a websocket, and is nothing but bytes then.
    pub async fn open_stream(&self, path: &str) -> Result<reqwest::Upgraded, Error> {
        self.upgrade(path, None).await
    }

    async fn upgrade(&self, path: &str, protocol: Option<&'static str>) -> Result<reqwest::Upgraded, Error> {
        let late = |_| Error::Websocket(format!("the daemon did not answer within {} s", UPGRADE.as_secs()));
        tokio::time::timeout(UPGRADE, self.ask_for_upgrade(path, protocol)).await.map_err(late)?
    }

    async fn ask_for_upgrade(&self, path: &str, protocol: Option<&'static str>) -> Result<reqwest::Upgraded, Error> {
        let token = self.get("/api/v1/authtoken").await?;
        let token = token.get("token").and_then(Value::as_str).unwrap_or_default();
        let base = match self.settings.wss.as_str() {
            "" => self.settings.api.clone(),
            wss => wss.replacen("ws", "http", 1),
        };
        let separator = if path.contains('?') { '&' } else { '?' };
        let url = format!("{}/wapi/v1{path}{separator}authtoken={token}", base.trim_end_matches('/'));
        let key = generate_key();
        let mut request = self
            .http
            .get(url)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key);
        if let Some(protocol) = protocol {
            request = request.header(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        let response = self.send(request).await?;
        // RFC 6455, 4.1: another accept key, or none, is no websocket; nor is one of another protocol.
        let is = |name, wanted: &str| response.headers().get(name).is_some_and(|value| value == wanted);
        if response.status() != StatusCode::SWITCHING_PROTOCOLS
            || !is(header::SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes()))
            || protocol.is_some_and(|protocol| !is(header::SEC_WEBSOCKET_PROTOCOL, protocol))
        {
            return Err(Error::Websocket("what answers there does not speak this protocol".to_owned()));
        }
        response.upgrade().await.map_err(broken)
    }

    fn failed(&self, error: reqwest::Error) -> Error {
        if error.is_connect() { unreachable(&self.settings, &error) } else { broken(error) }
    }
}

/// Without its URL: those of websockets have their token in them.
pub(super) fn broken(error: reqwest::Error) -> Error {
    Error::Broken(error.without_url())
}

/// Resolves `*.localhost` to this machine, as RFC 6761 wants it and many resolvers do not.
struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let host = name.as_str().to_owned();
            if is_localhost(&host) {
                let local: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
                return Ok(Box::new(std::iter::once(local)) as Addrs);
            }
            match (tokio::net::lookup_host((host.as_str(), 0)).await, magic_address(&host)) {
                (Ok(found), _) => Ok(Box::new(found.collect::<Vec<_>>().into_iter()) as Addrs),
                // Many resolvers refuse names that lead to private addresses; this one says its address itself.
                (Err(_), Some(address)) => Ok(Box::new(std::iter::once(SocketAddr::from((address, 0)))) as Addrs),
                (Err(error), None) => Err(error.into()),
            }
        })
    }
}

/// Parameters as they stand in a path, behind the question mark.
pub(super) fn query(parameters: &[(&str, &str)]) -> String {
    let any = Url::parse_with_params("http://any", parameters);
    any.ok().and_then(|url| url.query().map(str::to_owned)).unwrap_or_default()
}

/// The address of an API.
pub(super) fn parse_address(text: &str) -> Result<Url, Error> {
    let wrong = || Error::Usage(format!("the API address '{text}' is not an http or https URL"));
    let url = Url::parse(text).map_err(|_| wrong())?;
    if matches!(url.scheme(), "http" | "https") && url.has_host() { Ok(url) } else { Err(wrong()) }
}

/// A proxy has another loopback than we have.
pub(super) fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    is_localhost(host) || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The address in a name of magic DNS, such as `epinio.192.0.2.7.sslip.io`.
fn magic_address(host: &str) -> Option<Ipv4Addr> {
    let rest = MAGIC_DNS.iter().find_map(|provider| host.strip_suffix(provider))?;
    let labels: Vec<&str> = rest.rsplit('.').take(4).collect();
    labels.into_iter().rev().collect::<Vec<_>>().join(".").parse().ok()
}

fn is_localhost(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}

/// Authorities: those of this machine (or ours, where it has none), and those of the settings.
fn trusting(builder: ClientBuilder, url: &Url, certs: &str) -> Result<ClientBuilder, Error> {
    if url.scheme() == "http" {
        // Reading the machine's authorities would take longer than the request.
        return Ok(builder.tls_certs_only(Vec::new()));
    }
    let wrong =
        |error: reqwest::Error| Error::Usage(format!("the certificates in the settings are not valid: {error}"));
    let own = Certificate::from_pem_bundle(certs.as_bytes()).map_err(wrong)?;
    if !rustls_native_certs::load_native_certs().certs.is_empty() {
        return Ok(builder.tls_certs_merge(own));
    }
    let embedded = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().filter_map(|der| Certificate::from_der(der).ok());
    Ok(builder.tls_certs_only(embedded.chain(own)))
}

fn unreachable(settings: &Settings, error: &reqwest::Error) -> Error {
    // What lies between says the address again.
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    Error::Unreachable { address: settings.api.clone(), cause: cause.to_string() }
}

/// Whether an error is in one of the forms that [`api_error`] reads.
fn is_of_an_api(text: &str) -> bool {
    let json: Option<Value> = serde_json::from_str(text).ok();
    text.starts_with("error: ") || json.is_some_and(|json| json.get("errors").is_some())
}

/// The first error of an answer, which is JSON, or `error: TEXT`.
fn api_error(status: u16, text: &str) -> Error {
    let json: Option<Value> = serde_json::from_str(text).ok();
    let field = |name: &str| {
        let error = json.as_ref()?.get("errors")?.get(0)?;
        Some(error.get(name)?.as_str()?.to_owned())
    };
    let plain = text.trim().trim_start_matches("error: ");
    let plain =
        if plain.is_empty() { format!("the daemon answers {status}") } else { plain.chars().take(500).collect() };
    Error::Api { status, title: field("title").unwrap_or(plain), details: field("details").unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_magic_dns_says_its_address() {
        assert_eq!(magic_address("epinio.192.0.2.7.sslip.io"), Some(Ipv4Addr::new(192, 0, 2, 7)));
        assert_eq!(magic_address("192.0.2.7.nip.io"), Some(Ipv4Addr::new(192, 0, 2, 7)));
        for other in ["epinio.sslip.io", "192.0.2.7.example.com", "0.2.7.sslip.io", "a.192.0.2.sslip.io"] {
            assert_eq!(magic_address(other), None, "{other}");
        }
    }

    #[test]
    fn loopback_is_told_from_other_hosts() {
        for (url, local) in [
            ("http://epinio.localhost:8080", true),
            ("http://127.0.0.2", true),
            ("http://[::1]:80", true),
            ("https://localhost.example.com", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(is_this_machine(&parse_address(url).unwrap()), local, "{url}");
        }
    }

    #[test]
    fn addresses_are_urls() {
        for bad in ["", "localhost:8080", "ftp://x", "http://", "/x"] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn errors_are_read_from_json_and_from_text() {
        let title = |text: &str| match api_error(500, text) {
            Error::Api { title, details, .. } => (title, details),
            other => panic!("{other}"),
        };
        let json = r#"{"errors":[{"status":500,"title":"broken","details":"why"}]}"#;
        assert_eq!(title(json), ("broken".to_owned(), "why".to_owned()));
        assert_eq!(title("error: no such thing\n").0, "no such thing");
        assert_eq!(title("").0, "the daemon answers 500");
    }
}
