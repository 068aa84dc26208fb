//! One look at an instance: what its monitor says, and whether it answers.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use nix::unistd::Pid;

use super::{
    instances::{Local, is_locked},
    logs, ports,
};
use crate::{
    model::Timestamp,
    runtime::{Ended, InstanceState},
};

/// How long an instance may take to accept a connection.
const CONNECT: Duration = Duration::from_millis(250);
const LAST_WORDS: usize = 20;

/// What was seen.
pub(super) struct Observed {
    pub local: Local,
    /// Nobody watches the instance any more.
    pub monitor_gone: bool,
}

/// What a monitor wrote: `MONITOR RESTARTS STATE …`.
struct Said {
    monitor: Pid,
    restarts: u32,
    state: SaidState,
}

enum SaidState {
    Starting,
    Running { pid: i32, since: Timestamp },
    BackOff { ended: Ended, retry_at: Timestamp },
    Stopped,
}

pub(super) async fn look(mut local: Local) -> Observed {
    let Some(said) = read(&local.folder) else {
        // It was started a moment ago; when it is gone by now, it never came so far.
        return Observed { local, monitor_gone: false };
    };
    if !is_locked(&local.folder) {
        if let SaidState::Running { pid, .. } = said.state {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        local.pid = None;
        local.instance.state = InstanceState::Starting;
        return Observed { local, monitor_gone: true };
    }
    local.instance.restarts = said.restarts;
    match said.state {
        SaidState::Starting | SaidState::Stopped => local.instance.state = InstanceState::Starting,
        SaidState::BackOff { ended, retry_at } => {
            if !matches!(local.instance.state, InstanceState::BackOff { .. }) {
                let out_of_memory = ended == Ended::Signal(9) && local.cgroup.out_of_memory() > 0;
                let ended = if out_of_memory { Ended::OutOfMemory } else { ended };
                let last_words = logs::last_words(&local.folder, LAST_WORDS);
                local.instance.state = InstanceState::BackOff { ended, retry_at, last_words };
            }
            local.pid = None;
        }
        SaidState::Running { pid, since } => {
            if local.pid != Some(pid) {
                local.pid = Some(pid);
                local.noted = false;
                local.instance.state = InstanceState::Starting;
            }
            local.instance.started_at = since;
            if !matches!(local.instance.state, InstanceState::Ready { .. })
                && let Some(address) = answers(&mut local, pid).await
            {
                local.instance.state = InstanceState::Ready { address };
            }
        }
    }
    Observed { local, monitor_gone: false }
}

/// Where the instance accepts connections: on the port that it was told, or on the only other one.
async fn answers(local: &mut Local, pid: i32) -> Option<SocketAddr> {
    let told = local.address;
    if accepts(told).await {
        return Some(told);
    }
    let listening = ports::listening(pid, local.shared_network);
    let mut ports: Vec<u16> = listening.iter().map(SocketAddr::port).collect();
    ports.sort_unstable();
    ports.dedup();
    match ports.as_slice() {
        [port] if *port != told.port() => {
            let address = SocketAddr::new(told.ip(), *port);
            if accepts(address).await {
                let text = format!("it listens on port {port} instead of PORT={}; its traffic goes there", told.port());
                note(local, &text);
                return Some(address);
            }
            only_loopback(local, &listening);
        }
        [_] => only_loopback(local, &listening),
        _ => {}
    }
    None
}

fn only_loopback(local: &mut Local, listening: &[SocketAddr]) {
    if !local.shared_network && listening.iter().all(|address| address.ip().is_loopback()) {
        note(local, "it listens on 127.0.0.1 only, where nobody can reach it; let it listen on 0.0.0.0");
    }
}

/// Says something in the log of the instance, once for each start.
fn note(local: &mut Local, text: &str) {
    if !local.noted {
        logs::note(&local.folder, text);
        local.noted = true;
    }
}

async fn accepts(address: SocketAddr) -> bool {
    let connect = tokio::net::TcpStream::connect(address);
    matches!(tokio::time::timeout(CONNECT, connect).await, Ok(Ok(_)))
}

/// The monitor of an instance, if there is one.
pub(super) fn monitor_pid(folder: &Path) -> Option<Pid> {
    is_locked(folder).then(|| read(folder).map(|said| said.monitor))?
}

/// The program of an instance, as far as its monitor said.
pub(super) fn program_pid(folder: &Path) -> Option<i32> {
    match read(folder)?.state {
        SaidState::Running { pid, .. } if is_sandboxed(pid) => Some(pid),
        _ => None,
    }
}

/// A pid may have been given to somebody else: a sandbox has a pid namespace of its own.
fn is_sandboxed(pid: i32) -> bool {
    let theirs = fs::read_link(format!("/proc/{pid}/ns/pid"));
    matches!((theirs, fs::read_link("/proc/self/ns/pid")), (Ok(theirs), Ok(own)) if theirs != own)
}

fn read(folder: &Path) -> Option<Said> {
    let text = fs::read_to_string(folder.join("state")).ok()?;
    let mut words = text.split_whitespace();
    let monitor = Pid::from_raw(words.next()?.parse().ok()?);
    let restarts = words.next()?.parse().ok()?;
    let state = match words.next()? {
        "running" => SaidState::Running {
            pid: words.next()?.parse().ok()?,
            since: Timestamp::from_second(words.next()?.parse().ok()?),
        },
        "backoff" => SaidState::BackOff {
            ended: ended(words.next()?)?,
            retry_at: Timestamp::from_second(words.next()?.parse().ok()?),
        },
        "stopped" => SaidState::Stopped,
        _ => SaidState::Starting,
    };
    Some(Said { monitor, restarts, state })
}

fn ended(text: &str) -> Option<Ended> {
    let (how, number) = text.split_once(':')?;
    let number = number.parse().ok()?;
    Some(if how == "exit" { Ended::Exit(number) } else { Ended::Signal(number) })
}
