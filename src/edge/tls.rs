//! TLS 1.2 and 1.3 on a connection: which certificate, by the name that the client asks for, and which version of HTTP.

use std::{io, sync::Arc};

use rustls::{ServerConfig, server::ResolvesServerCert};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// What the listener for TLS knows.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
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
    pub fn new(certificates: Arc<dyn ResolvesServerCert>) -> Self {
        let mut config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(certificates);
        config.alpn_protocols = vec![HTTP_2.to_vec(), HTTP_1.to_vec()];
        Self { acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Version)> {
        let stream = self.acceptor.accept(stream).await?;
        let version = match stream.get_ref().1.alpn_protocol() {
            Some(HTTP_2) => Version::Http2,
            _ => Version::Http1,
        };
        Ok((stream, version))
    }
}
