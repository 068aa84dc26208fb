//! The API, seen from the command line.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use reqwest::{
    Method, RequestBuilder, Response,
    dns::{Addrs, Name, Resolve, Resolving},
};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

use super::{error::Error, settings::Settings};

/// How long a daemon may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// A daemon, and who we are to it.
pub struct Client {
    pub settings: Settings,
    http: reqwest::Client,
}

/// Resolves `*.localhost` to this machine, as RFC 6761 wants it and many resolvers do not.
struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let host = name.as_str().to_owned();
            if host == "localhost" || host.ends_with(".localhost") {
                let local: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
                return Ok(Box::new(std::iter::once(local)) as Addrs);
            }
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host, 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

impl Client {
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let mut builder = reqwest::Client::builder().dns_resolver(Arc::new(Resolver)).connect_timeout(CONNECT);
        if settings.api.starts_with("http://") {
            // Nothing of TLS is needed; reading the machine's authorities would take longer than the request.
            builder = builder.tls_certs_only(Vec::new());
        } else if !settings.certs.is_empty() {
            let wrong = |error: reqwest::Error| {
                Error::Usage(format!("the certificates in the settings are not valid: {error}"))
            };
            builder = builder
                .tls_certs_merge(reqwest::Certificate::from_pem_bundle(settings.certs.as_bytes()).map_err(wrong)?);
        }
        let http = builder.build().map_err(|source| Error::Unreachable { address: settings.api.clone(), source })?;
        Ok(Self { settings, http })
    }

    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        self.json(self.request(Method::GET, path)).await
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
        let unreachable = |source: reqwest::Error| {
            if source.is_connect() {
                Error::Unreachable { address: self.settings.api.clone(), source }
            } else {
                Error::Broken(source)
            }
        };
        let response = request.send().await.map_err(unreachable)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let text = response.text().await.map_err(Error::Broken)?;
        Err(api_error(status, &text))
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.settings.api.trim_end_matches('/'));
        self.http.request(method, url).basic_auth(&self.settings.user, Some(self.settings.password()))
    }

    async fn json(&self, request: RequestBuilder) -> Result<Value, Error> {
        let text = self.send(request).await?.text().await.map_err(Error::Broken)?;
        if text.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text).map_err(Error::Malformed) }
    }

    /// The texts of a websocket, one after the other, until it ends.
    pub async fn websocket(&self, path: &str, mut each: impl FnMut(&str)) -> Result<(), Error> {
        let token = self.get("/api/v1/authtoken").await?;
        let token = token.get("token").and_then(Value::as_str).unwrap_or_default();
        let base = match self.settings.wss.as_str() {
            "" => self.settings.api.replacen("http", "ws", 1),
            wss => wss.to_owned(),
        };
        let separator = if path.contains('?') { '&' } else { '?' };
        let url = format!("{}/wapi/v1{path}{separator}authtoken={token}", base.trim_end_matches('/'));
        let failed = |error: tokio_tungstenite::tungstenite::Error| Error::Websocket(describe(error));
        let Some(rest) = url.strip_prefix("ws://") else {
            return Err(Error::Websocket("logs over TLS are not supported yet; use an http:// API address".to_owned()));
        };
        let authority = rest.split('/').next().unwrap_or_default();
        let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "80"));
        let host = if host.ends_with(".localhost") { "127.0.0.1" } else { host };
        let port: u16 = port.parse().map_err(|_| Error::Websocket(format!("'{authority}' is not an address")))?;
        let stream =
            tokio::net::TcpStream::connect((host, port)).await.map_err(|error| Error::Websocket(error.to_string()))?;
        let (mut socket, _) = tokio_tungstenite::client_async(url.as_str(), stream).await.map_err(failed)?;
        while let Some(message) = socket.next().await {
            match message {
                Ok(Message::Text(text)) => each(text.as_str()),
                Ok(Message::Close(_)) => break,
                Ok(_) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        // The other side may have closed it already.
        let _ = socket.close(None).await;
        Ok(())
    }
}

/// What the daemon answered instead of taking the websocket.
fn describe(error: tokio_tungstenite::tungstenite::Error) -> String {
    match error {
        tokio_tungstenite::tungstenite::Error::Http(response) => {
            let text =
                response.body().as_ref().map(|body| String::from_utf8_lossy(body).into_owned()).unwrap_or_default();
            match api_error(response.status().as_u16(), &text) {
                Error::Api { title, .. } => title,
                other => other.to_string(),
            }
        }
        other => other.to_string(),
    }
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
