//! TLS 1.2 and 1.3 on a connection: which certificate, by the name that the client asks for, and which version of HTTP.

use std::{io, sync::Arc};

use rustls::{
    ServerConfig,
    server::{Acceptor, ResolvesServerCert},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use crate::acme::{self, Challenges};

/// What the listener for TLS knows.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    /// For an authority that looks whether a host is served here (RFC 8737).
    challenges: Arc<ServerConfig>,
}

/// What a client chose (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

const HTTP_2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";

impl Tls {
    pub fn new(certificates: Arc<dyn ResolvesServerCert>, challenges: Arc<Challenges>) -> Self {
        let versions: &[&[u8]] = &[HTTP_2, HTTP_1];
        Self { config: config(certificates, versions), challenges: config(challenges, &[acme::ALPN]) }
    }

    /// None for a connection that was over with its handshake.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<Option<(TlsStream<TcpStream>, Version)>> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let offered = start.client_hello().alpn();
        if offered.is_some_and(|mut offered| offered.any(|protocol| protocol == acme::ALPN)) {
            let mut stream = start.into_stream(Arc::clone(&self.challenges)).await?;
            stream.shutdown().await?;
            return Ok(None);
        }
        let stream = start.into_stream(Arc::clone(&self.config)).await?;
        let version = match stream.get_ref().1.alpn_protocol() {
            Some(HTTP_2) => Version::Http2,
            _ => Version::Http1,
        };
        Ok(Some((stream, version)))
    }
}

fn config(certificates: Arc<dyn ResolvesServerCert>, protocols: &[&[u8]]) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(certificates);
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}
