//! TLS 1.2 and 1.3 on a connection: which certificate, by the name that the client asks for, and which version of HTTP.

mod stream;

use std::{io, sync::Arc};

use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

pub(super) use self::stream::TlsStream;
use crate::acme::{self, Challenges};

/// What the listener for TLS knows.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
}

/// Which certificate a client is shown.
#[derive(Debug)]
struct Certificates {
    of_hosts: Arc<dyn ResolvesServerCert>,
    /// For an authority that looks whether a host is served here (RFC 8737).
    of_challenges: Arc<Challenges>,
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
        let resolver = Certificates { of_hosts: certificates, of_challenges: challenges };
        let mut config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = [HTTP_2, HTTP_1, acme::ALPN].map(<[u8]>::to_vec).into();
        Self { config: Arc::new(config) }
    }

    /// None for a connection that was over with its handshake.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<Option<(TlsStream<TcpStream>, Version)>> {
        let mut stream = TlsStream::accept(stream, Arc::clone(&self.config)).await?;
        let version = match stream.protocol() {
            Some(HTTP_2) => Version::Http2,
            Some(acme::ALPN) => {
                stream.shutdown().await?;
                return Ok(None);
            }
            _ => Version::Http1,
        };
        Ok(Some((stream, version)))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // An authority that looks offers nothing else (RFC 8737, section 3).
        if hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == acme::ALPN)) {
            return self.of_challenges.resolve(hello);
        }
        self.of_hosts.resolve(hello)
    }
}
