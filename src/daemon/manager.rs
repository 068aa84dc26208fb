//! What the service manager is told: the protocol of sd_notify(3), on the socket that `NOTIFY_SOCKET` names.
//!
//! "Ready" is said when requests are answered, not before; "stopping" as soon as it is begun. Where a watchdog is asked
//! for, it is told again and again by a task of the reactor: a daemon whose reactor hangs falls silent, and is started
//! anew. A daemon that nobody manages says nothing, and one that is not heard goes on: it is a warning.
//!
//! What a daemon starts gets an environment of its own, so that none of it can speak in the daemon's name.

use std::{
    ffi::{OsStr, OsString},
    future::Future,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use tokio_util::task::AbortOnDropHandle;

/// Who manages this process.
#[derive(Debug, Clone)]
pub(super) struct Manager {
    socket: Option<SocketAddr>,
    /// How long it may be silent.
    watchdog: Option<Duration>,
}

/// What a process of ours that is on its own must not find.
pub const MANAGER_VARIABLES: [&str; 3] = [SOCKET, WATCHDOG, WATCHDOG_PROCESS];
const SOCKET: &str = "NOTIFY_SOCKET";
const WATCHDOG: &str = "WATCHDOG_USEC";
const WATCHDOG_PROCESS: &str = "WATCHDOG_PID";
/// A manager that does not read for so long is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who waits for something that has no deadline asks for so much time, again and again.
const EXTENSION: Duration = Duration::from_secs(30);

impl Manager {
    pub fn of_environment() -> Self {
        Self::of(|name| std::env::var_os(name), std::process::id())
    }

    fn of(variable: impl Fn(&str) -> Option<OsString>, process: u32) -> Self {
        let number = |name: &str| variable(name)?.to_str()?.parse::<u64>().ok();
        let socket = variable(SOCKET).filter(|name| !name.is_empty()).and_then(|name| match address(&name) {
            Ok(address) => Some(address),
            Err(error) => {
                tracing::warn!(socket = %name.display(), %error, "the service manager cannot be told anything");
                None
            }
        });
        // Whoever inherited the variables is not the one who is watched.
        let is_meant = number(WATCHDOG_PROCESS).is_none_or(|meant| meant == u64::from(process));
        let watchdog = number(WATCHDOG).filter(|micros| *micros > 0 && is_meant).map(Duration::from_micros);
        Self { socket, watchdog }
    }

    /// It serves.
    pub async fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}")).await;
    }

    /// It ends; the next thing is done, or given up, within this time.
    pub async fn stopping(&self, status: &str, within: Duration) {
        let micros = within.as_micros();
        self.tell(&format!("STOPPING=1\nSTATUS={status}\nEXTEND_TIMEOUT_USEC={micros}")).await;
    }

    /// Waits for what may take any time.
    pub async fn waiting<T>(&self, status: &str, what: impl Future<Output = T>) -> T {
        let mut what = std::pin::pin!(what);
        let mut again = tokio::time::interval(EXTENSION / 3);
        let micros = EXTENSION.as_micros();
        loop {
            tokio::select! {
                biased;
                done = &mut what => return done,
                _ = again.tick() => self.tell(&format!("STATUS={status}\nEXTEND_TIMEOUT_USEC={micros}")).await,
            }
        }
    }

    /// Says that the reactor lives, as long as what is returned is kept.
    pub fn keep_watchdog(&self) -> Option<AbortOnDropHandle<()>> {
        let (manager, silence) = (self.clone(), self.watchdog?);
        let task = tokio::spawn(async move {
            let mut again = tokio::time::interval(silence / 3);
            loop {
                again.tick().await;
                manager.tell("WATCHDOG=1").await;
            }
        });
        Some(AbortOnDropHandle::new(task))
    }

    async fn tell(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        let sent = tokio::time::timeout(PATIENCE, send(socket, message)).await;
        if let Err(error) = sent.map_err(io::Error::from).and_then(|sent| sent) {
            tracing::warn!(%error, message, "the service manager did not hear this");
        }
    }
}

/// A path, or after `@` a name that is no file.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "it is neither a path nor '@' and a name")),
    }
}

/// With a socket for each message, as a manager that was started anew has another one.
async fn send(address: &SocketAddr, message: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(address)?;
    socket.set_nonblocking(true)?;
    tokio::net::UnixDatagram::from_std(socket)?.send(message.as_bytes()).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(variables: &[(&str, &str)]) -> Manager {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
        Manager::of(find, 7)
    }

    #[test]
    fn the_environment_says_whom_to_tell_and_how_often() {
        let minute = Some(Duration::from_secs(60));
        for (variables, is_told, watchdog) in [
            (&[][..], false, None),
            (&[(SOCKET, "")], false, None),
            (&[(SOCKET, "/run/systemd/notify")], true, None),
            (&[(SOCKET, "@/org/notify")], true, None),
            (&[(SOCKET, "vsock:2:1")], false, None),
            (&[(SOCKET, "@a"), (WATCHDOG, "60000000")], true, minute),
            (&[(SOCKET, "@a"), (WATCHDOG, "60000000"), (WATCHDOG_PROCESS, "7")], true, minute),
            (&[(SOCKET, "@a"), (WATCHDOG, "60000000"), (WATCHDOG_PROCESS, "8")], true, None),
            (&[(SOCKET, "@a"), (WATCHDOG, "0")], true, None),
            (&[(SOCKET, "@a"), (WATCHDOG, "soon")], true, None),
        ] {
            let found = manager(variables);
            assert_eq!((found.socket.is_some(), found.watchdog), (is_told, watchdog), "{variables:?}");
        }
    }

    #[tokio::test]
    async fn who_waits_asks_for_time_and_a_manager_that_is_gone_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let theirs = tokio::net::UnixDatagram::bind(&path).unwrap();
        let manager = manager(&[(SOCKET, path.to_str().unwrap())]);
        let heard = async {
            let mut message = [0; 200];
            let length = theirs.recv(&mut message).await.unwrap();
            String::from_utf8(message[..length].to_vec()).unwrap()
        };
        let message = manager.waiting("for a turn", heard).await;
        assert_eq!(message, "STATUS=for a turn\nEXTEND_TIMEOUT_USEC=30000000");
        drop(theirs);
        manager.ready("nobody listens").await;
    }
}
