//! Connections to instances that nobody uses now: each takes one request after the other, and is closed when none comes.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::net::TcpStream;

const CONNECT: Duration = Duration::from_secs(5);
/// Connections that nobody uses are closed after this long: sooner than servers usually do (gunicorn waits 2 s, node 5 s).
pub(super) const IDLE: Duration = Duration::from_millis(1500);

/// What can take another request.
pub(super) trait Link: Send + 'static {
    /// Whether it still can. What the instance did meanwhile is seen now.
    fn is_ready(&mut self) -> bool;
}

/// Those of all instances.
pub(super) struct Pool<L>(Arc<Mutex<Kept<L>>>);

struct Kept<L> {
    idle: HashMap<SocketAddr, Vec<(L, Instant)>>,
    /// Somebody closes what is idle for too long.
    swept: bool,
}

impl<L: Link> Pool<L> {
    /// The one that was used last: most likely it still can be.
    pub fn take(&self, address: SocketAddr) -> Option<L> {
        loop {
            let last = self.0.lock().unwrap_or_else(PoisonError::into_inner).idle.get_mut(&address)?.pop();
            let (mut link, since) = last?;
            if since.elapsed() < IDLE && link.is_ready() {
                return Some(link);
            }
        }
    }

    pub fn give(&self, address: SocketAddr, link: L) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.idle.entry(address).or_default().push((link, Instant::now()));
        if !kept.swept {
            kept.swept = true;
            tokio::spawn(sweep(Arc::clone(&self.0)));
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).idle.values().map(Vec::len).sum()
    }
}

/// Closes what nobody has used for too long, until nothing is left.
async fn sweep<L: Link>(kept: Arc<Mutex<Kept<L>>>) {
    loop {
        tokio::time::sleep(IDLE / 2).await;
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.idle.retain(|_, idle| {
            idle.retain_mut(|(link, since)| since.elapsed() < IDLE && link.is_ready());
            !idle.is_empty()
        });
        if kept.idle.is_empty() {
            kept.swept = false;
            return;
        }
    }
}

pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Link for TcpStream {
    /// Nothing has come: neither an end, nor what nobody asked for.
    fn is_ready(&mut self) -> bool {
        matches!(self.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl<L> Default for Pool<L> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Kept { idle: HashMap::new(), swept: false })))
    }
}

impl<L> Clone for Pool<L> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}
