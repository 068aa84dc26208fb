//! Connections to instances, which requests use one after the other.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::net::TcpStream;

use super::super::upstream::{CONNECT, IDLE};

pub(super) type Link = TcpStream;

/// Those that nobody uses.
#[derive(Default)]
pub(in crate::edge) struct Links {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    idle: HashMap<SocketAddr, Vec<(Link, Instant)>>,
    /// Somebody closes what is idle for too long.
    swept: bool,
}

impl Links {
    /// The one that was used last, or a new one.
    pub async fn take(&self, address: SocketAddr) -> io::Result<Link> {
        loop {
            let last =
                self.kept.lock().unwrap_or_else(PoisonError::into_inner).idle.get_mut(&address).and_then(Vec::pop);
            match last {
                Some((link, since)) if since.elapsed() < IDLE && is_open(&link) => return Ok(link),
                Some(_) => {}
                None => break,
            }
        }
        let link = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await??;
        link.set_nodelay(true)?;
        Ok(link)
    }

    pub fn give(&self, address: SocketAddr, link: Link) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.idle.entry(address).or_default().push((link, Instant::now()));
        if !kept.swept {
            kept.swept = true;
            tokio::spawn(sweep(Arc::clone(&self.kept)));
        }
    }
}

/// Nothing has come: neither an end, nor what nobody asked for.
fn is_open(link: &Link) -> bool {
    matches!(link.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

async fn sweep(kept: Arc<Mutex<Kept>>) {
    loop {
        tokio::time::sleep(IDLE / 2).await;
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.idle.retain(|_, idle| {
            idle.retain(|(link, since)| since.elapsed() < IDLE && is_open(link));
            !idle.is_empty()
        });
        if kept.idle.is_empty() {
            kept.swept = false;
            return;
        }
    }
}
