//! A connection with TLS for which nothing is kept while it is idle but its keys.
//!
//! What arrives is deciphered, and what goes out is enciphered, in buffers that a thread has once. Only what could not be
//! handed on at once has a place of its own: a part of a record, what nobody has read yet, what the client does not take yet.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::{
    Error, ServerConfig,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub(in crate::edge) struct TlsStream<S> {
    below: S,
    session: UnbufferedServerConnection,
    /// From the client, as far as it is no whole record.
    incoming: Vec<u8>,
    /// Deciphered, and not read yet.
    unread: Pending,
    /// Enciphered, and not sent yet.
    unsent: Pending,
    /// The client says nothing more.
    is_ended: bool,
    /// The client was told that nothing more is said.
    is_closed: bool,
}

/// Bytes that wait for somebody.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    at: usize,
}

/// What is to be sent by a session, and where to put it.
enum Saying<'a> {
    Nothing,
    Data(&'a [u8], &'a mut [u8]),
    Close(&'a mut [u8]),
}

/// What came of it: how much was taken of what had arrived, and how much is to be sent.
struct Processed {
    taken: usize,
    said: usize,
}

/// What is read at once: more than the longest message of a handshake, and a record (RFC 8446, sections 4 and 5.1).
const READ: usize = 96 << 10;
/// What is enciphered at once: three records, with what TLS adds to them.
const WRITE: usize = 3 * RECORD;
const RECORD: usize = 16 << 10;
const ADDED: usize = 1 << 10;

thread_local! {
    static READING: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
    static WRITING: RefCell<Box<[u8]>> = RefCell::new(vec![0; WRITE + ADDED + RECORD].into());
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Ends when both sides have agreed.
    pub async fn accept(below: S, config: Arc<ServerConfig>) -> io::Result<Self> {
        let session = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        let (incoming, unread, unsent) = (Vec::new(), Pending::default(), Pending::default());
        let mut stream = Self { below, session, incoming, unread, unsent, is_ended: false, is_closed: false };
        poll_fn(|context| stream.poll_handshake(context)).await?;
        Ok(stream)
    }

    /// What was agreed on (RFC 7301).
    pub fn protocol(&self) -> Option<&[u8]> {
        self.session.alpn_protocol()
    }

    fn poll_handshake(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_send(context))?;
            if !self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if self.is_ended {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            ready!(self.poll_receive(context, &mut ReadBuf::new(&mut [])))?;
        }
    }

    /// Takes in what the client has sent: what of it is data is put into what somebody reads, as far as there is room.
    fn poll_receive(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        READING.with_borrow_mut(|buffer| {
            let kept = self.incoming.len();
            if kept == buffer.len() {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            buffer[..kept].copy_from_slice(&self.incoming);
            let mut room = ReadBuf::new(&mut buffer[kept..]);
            ready!(Pin::new(&mut self.below).poll_read(context, &mut room))?;
            let count = room.filled().len();
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let arrived = &mut buffer[..kept + count];
            match self.process(arrived, into, Saying::Nothing) {
                Ok(Processed { taken, .. }) => {
                    self.incoming = arrived[taken..].to_vec();
                    Poll::Ready(Ok(()))
                }
                Err(error) => {
                    // The client is told why, if it listens.
                    let _ = self.poll_send(context);
                    Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)))
                }
            }
        })
    }

    /// Sends what could not be sent before.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let count = ready!(Pin::new(&mut self.below).poll_write(context, self.unsent.rest()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.took(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Enciphers and sends; what of it the client does not take now waits.
    fn poll_say(&mut self, context: &mut Context<'_>, data: &[u8], room: &mut [u8]) -> Poll<io::Result<()>> {
        let mut said = self.say(Saying::Data(data, room))?;
        if self.unsent.is_empty() {
            let mut at = 0;
            while at < said {
                match Pin::new(&mut self.below).poll_write(context, &room[at..said]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(count)) => at += count,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => break,
                }
            }
            room.copy_within(at..said, 0);
            said -= at;
        }
        self.unsent.push(&room[..said]);
        Poll::Ready(Ok(()))
    }

    /// How much is to be sent.
    fn say(&mut self, saying: Saying<'_>) -> io::Result<usize> {
        let mut incoming = mem::take(&mut self.incoming);
        let processed = self.process(&mut incoming, &mut ReadBuf::new(&mut []), saying).map_err(io::Error::other)?;
        incoming.drain(..processed.taken);
        self.incoming = incoming;
        Ok(processed.said)
    }

    /// Has the session do what there is to do, and at last what is to be said, once it may be.
    fn process(
        &mut self,
        arrived: &mut [u8],
        into: &mut ReadBuf<'_>,
        mut saying: Saying<'_>,
    ) -> Result<Processed, Error> {
        let mut taken = 0;
        loop {
            let UnbufferedStatus { discard, state } = self.session.process_tls_records(&mut arrived[taken..]);
            let said = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let data = record?.payload;
                        let (now, later) = data.split_at(data.len().min(into.remaining()));
                        into.put_slice(now);
                        self.unread.push(later);
                    }
                    None
                }
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    encode(data, &mut self.unsent)?;
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    None
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.is_ended = true;
                    None
                }
                Ok(ConnectionState::WriteTraffic(traffic)) => Some(saying.by(traffic)?),
                // Nothing can be said yet, or any more.
                Ok(_) => match saying {
                    Saying::Data(..) => return Err(Error::EncryptError),
                    Saying::Nothing | Saying::Close(_) => Some(0),
                },
                Err(error) => {
                    self.keep_alert(&mut arrived[taken + discard..]);
                    return Err(error);
                }
            };
            taken += discard;
            if let Some(said) = said {
                return Ok(Processed { taken, said });
            }
        }
    }

    /// What a session that failed has still to say: an alert, if anything, which comes before it looks at more.
    fn keep_alert(&mut self, arrived: &mut [u8]) {
        if let Ok(ConnectionState::EncodeTlsData(data)) = self.session.process_tls_records(arrived).state {
            // Without it the client sees that the connection ends.
            let _ = encode(data, &mut self.unsent);
        }
    }
}

impl Saying<'_> {
    fn by(&mut self, mut traffic: WriteTraffic<'_, ServerConnectionData>) -> Result<usize, Error> {
        let said = match self {
            Self::Nothing => Ok(0),
            Self::Data(data, room) => traffic.encrypt(data, room),
            Self::Close(room) => traffic.queue_close_notify(room),
        };
        said.map_err(|error| match error {
            EncryptError::InsufficientSize(_) | EncryptError::EncryptExhausted => Error::EncryptError,
        })
    }
}

/// Puts a message of the session itself behind what waits to be sent.
fn encode(mut data: EncodeTlsData<'_, ServerConnectionData>, into: &mut Pending) -> Result<(), Error> {
    let wanted = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(error)) => error.required_size,
        Ok(_) | Err(EncodeError::AlreadyEncoded) => return Err(Error::EncryptError),
    };
    let at = into.bytes.len();
    into.bytes.resize(at + wanted, 0);
    data.encode(&mut into.bytes[at..]).map(drop).map_err(|_| Error::EncryptError)
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn took(&mut self, count: usize) {
        self.at += count;
        if self.at == self.bytes.len() {
            *self = Self::default();
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if !this.unread.is_empty() {
            let count = into.remaining().min(this.unread.rest().len());
            into.put_slice(&this.unread.rest()[..count]);
            this.unread.took(count);
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        while !this.is_ended && into.filled().len() == before {
            ready!(this.poll_receive(context, into))?;
            // What it is answered by the session itself goes out when it can.
            if let Poll::Ready(Err(error)) = this.poll_send(context) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.poll_send(context))?;
        let data = &data[..data.len().min(WRITE)];
        WRITING
            .with_borrow_mut(|buffer| self.poll_say(context, data, &mut buffer[..WRITE + ADDED]))
            .map_ok(|()| data.len())
    }

    /// What is small becomes one record.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut parts = parts.iter().filter(|part| !part.is_empty());
        let (Some(first), second) = (parts.next(), parts.next()) else { return self.poll_write(context, &[]) };
        let Some(second) = second.filter(|_| first.len() < RECORD) else { return self.poll_write(context, first) };
        ready!(self.poll_send(context))?;
        WRITING.with_borrow_mut(|buffer| {
            let (room, record) = buffer.split_at_mut(WRITE + ADDED);
            let mut count = 0;
            for part in [first, second].into_iter().chain(parts) {
                let taken = part.len().min(RECORD - count);
                record[count..count + taken].copy_from_slice(&part[..taken]);
                count += taken;
            }
            self.poll_say(context, &record[..count], room).map_ok(|()| count)
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.below).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !mem::replace(&mut self.is_closed, true) {
            let mut room = [0; ADDED];
            let said = self.say(Saying::Close(&mut room))?;
            self.unsent.push(&room[..said]);
        }
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.below).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use rustls::{
        ClientConfig, RootCertStore, SupportedProtocolVersion,
        pki_types::PrivateKeyDer,
        version::{TLS12, TLS13},
    };
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio_rustls::{TlsConnector, client};

    use super::*;

    type Client = client::TlsStream<DuplexStream>;
    type Server = TlsStream<DuplexStream>;

    /// Both sides of a connection on which `room` bytes may be under way.
    async fn connected(version: &'static SupportedProtocolVersion, room: usize) -> (Client, Server) {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let made = rcgen::generate_simple_self_signed(["app.localhost".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.der().clone(), PrivateKeyDer::try_from(made.signing_key.serialize_der()));
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[version]);
        let server = server.unwrap().with_no_client_auth().with_single_cert(vec![certificate.clone()], key.unwrap());
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let client = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
        let client = TlsConnector::from(Arc::new(client.with_root_certificates(roots).with_no_client_auth()));
        let (near, far) = duplex(room);
        let name = "app.localhost".try_into().unwrap();
        let (client, server) =
            tokio::join!(client.connect(name, near), TlsStream::accept(far, Arc::new(server.unwrap())));
        (client.unwrap(), server.unwrap())
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|index| (index % 251) as u8).collect()
    }

    #[tokio::test]
    async fn all_of_it_arrives_both_ways_however_little_is_under_way_at_once() {
        for (version, room) in [(&TLS12, 700), (&TLS13, 700), (&TLS12, 1 << 20), (&TLS13, 1 << 20)] {
            let (client, mut server) = connected(version, room).await;
            let echo = tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(&mut server);
                tokio::io::copy(&mut reader, &mut writer).await.unwrap();
                server.shutdown().await.unwrap();
            });
            let (mut reader, mut writer) = tokio::io::split(client);
            let sent = text(300_000);
            let back = tokio::spawn(async move {
                let mut back = Vec::new();
                // An end that was not said would be an error.
                reader.read_to_end(&mut back).await.unwrap();
                back
            });
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
            assert!(back.await.unwrap() == sent, "{version:?} {room}");
            echo.await.unwrap();
        }
    }

    #[tokio::test]
    async fn nothing_is_kept_of_what_was_said() {
        let (mut client, mut server) = connected(&TLS13, 1 << 20).await;
        let (mut arrived, sent) = (vec![0; 100_000], text(100_000));
        client.write_all(&sent).await.unwrap();
        client.flush().await.unwrap();
        server.read_exact(&mut arrived).await.unwrap();
        assert!(arrived == sent);
        let parts = [IoSlice::new(&sent[..300]), IoSlice::new(b""), IoSlice::new(&sent[300..40_000])];
        let written = server.write_vectored(&parts).await.unwrap();
        assert!(written == RECORD, "{written}");
        server.write_all(&sent[written..]).await.unwrap();
        client.read_exact(&mut arrived).await.unwrap();
        assert!(arrived == sent);
        let kept = [&server.incoming, &server.unread.bytes, &server.unsent.bytes].map(Vec::capacity);
        assert_eq!(kept, [0; 3]);
    }

    #[tokio::test]
    async fn a_client_may_change_its_keys_and_has_the_server_do_so() {
        let (mut client, mut server) = connected(&TLS13, 1 << 20).await;
        let mut arrived = [0; 5];
        for _ in 0..3 {
            client.get_mut().1.refresh_traffic_keys().unwrap();
            client.write_all(b"hello").await.unwrap();
            client.flush().await.unwrap();
            server.read_exact(&mut arrived).await.unwrap();
            server.write_all(&arrived).await.unwrap();
            client.read_exact(&mut arrived).await.unwrap();
            assert_eq!(&arrived, b"hello");
        }
    }

    #[tokio::test]
    async fn who_does_not_speak_tls_is_told_and_who_goes_is_missed() {
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = Arc::new(config.with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new())));
        let (mut client, server) = duplex(1024);
        client.write_all(b"GET / HTTP/1.1\r\nhost: app.localhost\r\n\r\n").await.unwrap();
        let failed = TlsStream::accept(server, Arc::clone(&config)).await.map(drop).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::InvalidData, "{failed}");
        let mut said = Vec::new();
        client.read_to_end(&mut said).await.unwrap();
        assert!(said.starts_with(&[21, 3]), "an alert: {said:?}");
        let (client, server) = duplex(1024);
        drop(client);
        let failed = TlsStream::accept(server, config).await.map(drop).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::UnexpectedEof);
        let (client, mut server) = connected(&TLS13, 1 << 20).await;
        drop(client);
        assert_eq!(server.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
