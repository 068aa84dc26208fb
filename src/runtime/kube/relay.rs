//! The relay of a node, where ports of services do not answer on the node's loopback: it carries connections from there,
//! where images are pulled from, to the service of the registry.
//!
//! Bytes go through as they are, so who may pull what stays the registry's matter. It listens on loopback and nowhere else,
//! carries a bounded number of connections (more wait in the kernel's queue), and asks nobody anything before a client
//! has said something: whoever only looks whether it is there costs nothing. No connection is kept that nobody uses.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, lookup_host},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What a relay is run with.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Connections at once.
    pub most: usize,
    /// How long the registry may take to accept one.
    pub connect: Duration,
    /// How long a connection may be silent.
    pub idle: Duration,
    /// The same once the relay is to stop, which it does after the last one.
    pub last: Duration,
    /// How long it may take to stop, whoever still speaks.
    pub stop: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { most: 256, connect: seconds(10), idle: seconds(300), last: seconds(1), stop: seconds(20) }
    }
}

/// Listens on a loopback address and carries what comes to `to`, a name or address with a port, until it is to stop.
pub async fn relay(listen: SocketAddr, to: String, terms: Terms, stop: CancellationToken) -> Result<(), Error> {
    if !listen.ip().is_loopback() {
        return Err(Error::Open(listen));
    }
    let listener = TcpListener::bind(listen).await.map_err(|source| Error::Listen { listen, source })?;
    tracing::info!(%listen, to, "the relay listens");
    carry_all(listener, Arc::new(Target { name: to, last: Mutex::new(None) }), terms, stop).await;
    Ok(())
}

async fn carry_all(listener: TcpListener, target: Arc<Target>, terms: Terms, stop: CancellationToken) {
    let (places, connections) = (Arc::new(Semaphore::new(terms.most)), TaskTracker::new());
    let accept = async || {
        let place = Arc::clone(&places).acquire_owned().await;
        (place, listener.accept().await)
    };
    loop {
        let (place, accepted) = tokio::select! {
            accepted = accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((client, _)) => {
                let (target, stop) = (Arc::clone(&target), stop.clone());
                connections.spawn(async move {
                    carry(client, &target, terms, &stop).await;
                    drop(place);
                });
            }
            // It went before it was accepted, or the node is short of something.
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if timeout(terms.stop, connections.wait()).await.is_err() {
        tracing::warn!(left = connections.len(), "the relay stops while connections go on");
    }
}

/// Carries one connection to its end.
async fn carry(mut client: TcpStream, target: &Target, terms: Terms, stop: &CancellationToken) {
    let speech = Speech(Mutex::new(Instant::now()));
    let carried = async {
        if client.peek(&mut [0]).await? == 0 {
            return Ok(());
        }
        let mut server = target.connect(terms.connect).await?;
        let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        // An end of one direction is passed on, and the other goes on; an error ends both.
        let (up, down) = (pass(from_client, to_server, &speech), pass(from_server, to_client, &speech));
        tokio::try_join!(up, down).map(drop)
    };
    let ended: io::Result<()> = tokio::select! {
        ended = carried => ended,
        () = speech.fades(terms, stop) => Ok(()),
    };
    // That a client goes away is no news; a registry that cannot be reached is.
    if let Err(error) = ended.as_ref().map_err(|error| error.to_string()) {
        tracing::debug!(error, "a connection ended early");
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, speech: &Speech) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        speech.goes_on();
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        speech.goes_on();
    }
}

/// When something was last said on a connection.
struct Speech(Mutex<Instant>);

impl Speech {
    fn goes_on(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Ends when nobody has said anything for too long.
    async fn fades(&self, terms: Terms, stop: &CancellationToken) {
        loop {
            let silent = self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            let patience = if stop.is_cancelled() { terms.last } else { terms.idle };
            if silent >= patience {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(patience - silent) => {}
                () = stop.cancelled(), if !stop.is_cancelled() => {}
            }
        }
    }
}

/// Where connections go, and what its name meant when one was last made.
struct Target {
    name: String,
    last: Mutex<Option<SocketAddr>>,
}

impl Target {
    /// Tries until it is too late: while the daemon is replaced nobody is there for a moment.
    async fn connect(&self, within: Duration) -> io::Result<TcpStream> {
        let mut failure = io::Error::from(io::ErrorKind::TimedOut);
        let trying = async {
            loop {
                match self.connect_once().await {
                    Ok(stream) => return stream,
                    Err(error) => failure = error,
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let connected = timeout(within, trying).await;
        connected.map_err(|_| {
            tracing::warn!(to = self.name, error = %failure, "the registry cannot be reached");
            failure
        })
    }

    async fn connect_once(&self) -> io::Result<TcpStream> {
        let remembered = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match lookup_host(&self.name).await {
            Ok(mut found) => found.next(),
            // The address of a service outlives its name servers.
            Err(error) if remembered.is_none() => return Err(error),
            Err(_) => None,
        };
        let address = found.or(remembered).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let stream = TcpStream::connect(address).await?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
        Ok(stream)
    }
}

/// Why there is no relay.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} is not an address of the node's loopback: whoever reaches the node would reach the registry")]
    Open(SocketAddr),
    #[error("nobody can listen on {listen} of this node")]
    Listen { listen: SocketAddr, source: io::Error },
}

/// Of each direction, in bytes.
const BUFFER: usize = 16 << 10;
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
