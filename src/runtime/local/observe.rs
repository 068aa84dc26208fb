//! One look at an instance: what its monitor says, and whether it answers.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{
    instance::{Local, is_locked},
    logs, ports, processes,
};
use crate::{
    model::Timestamp,
    runtime::{Ended, InstanceState},
};

/// How long an instance may take to accept a connection.
const CONNECT: Duration = Duration::from_millis(250);
const LAST_WORDS: usize = 20;
/// For how long another port has to be the only one: servers open a port for debuggers or metrics, and then their own.
const ALONE: Duration = Duration::from_secs(1);
/// What an instance uses is looked at less often than whether it answers.
const USAGE_INTERVAL: Duration = Duration::from_millis(400);

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

/// A process, and when it started: a pid may have been given to somebody else.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Process {
    pub pid: i32,
    pub ticks: u64,
}

enum SaidState {
    Starting,
    Running { process: Process, since: Timestamp },
    BackOff { ended: Ended, retry_at: Timestamp },
    Stopped,
}

pub(super) async fn look(mut local: Local) -> Observed {
    if !is_locked(&local.folder) {
        if Instant::now() < local.patience {
            return Observed { local, monitor_gone: false };
        }
        if let Some(pid) = program_pid(&local.folder) {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        local.pid = None;
        local.instance.state = InstanceState::Starting;
        return Observed { local, monitor_gone: true };
    }
    // Before its first word there is nothing to know.
    let Some(said) = read(&local.folder) else { return Observed { local, monitor_gone: false } };
    usage(&mut local).await;
    guard(&mut local);
    local.instance.restarts = said.restarts;
    match said.state {
        SaidState::Starting | SaidState::Stopped => local.instance.state = InstanceState::Starting,
        SaidState::BackOff { ended, retry_at } => {
            if !matches!(local.instance.state, InstanceState::BackOff { .. }) {
                let out_of_memory = ended != Ended::Exit(0) && local.cgroup.out_of_memory() > local.killed_before;
                let ended = if out_of_memory || local.exceeded { Ended::OutOfMemory } else { ended };
                local.exceeded = false;
                let last_words = logs::last_words(&local.folder, LAST_WORDS);
                local.instance.state = InstanceState::BackOff { ended, retry_at, last_words };
            }
            local.pid = None;
        }
        SaidState::Running { process: Process { pid, .. }, since } => {
            if local.pid != Some(pid) {
                local.pid = Some(pid);
                local.noted = false;
                local.other_port = None;
                local.killed_before = local.cgroup.out_of_memory();
                local.instance.state = InstanceState::Starting;
            }
            local.instance.started_at = since;
            let address = match local.instance.state {
                InstanceState::Ready { address } if address == local.address => None,
                InstanceState::Ready { .. } => as_told_after_all(&local, pid).await,
                _ => answers(&mut local, pid).await,
            };
            if let Some(address) = address {
                local.instance.state = InstanceState::Ready { address };
            }
        }
    }
    Observed { local, monitor_gone: false }
}

/// What the instance uses. Where no cgroup counts, memory is that of its processes.
async fn usage(local: &mut Local) {
    let now = Instant::now();
    if local.used_at.is_some_and(|at| now.duration_since(at) < USAGE_INTERVAL) {
        return;
    }
    local.used_at = Some(now);
    let (cgroup, pid) = (local.cgroup.clone(), local.pid);
    let read = move || (cgroup.memory_bytes().or_else(|| pid.map(processes::resident_with)), cgroup.cpu_micros());
    let Ok((memory_bytes, micros)) = tokio::task::spawn_blocking(read).await else { return };
    local.instance.memory_bytes = memory_bytes;
    let Some(micros) = micros else { return };
    if let Some((at, before)) = local.cpu.replace((now, micros)) {
        let passed = now.duration_since(at).as_micros().max(1);
        let used = u128::from(micros.saturating_sub(before));
        local.instance.millicpus = u32::try_from(used * 1000 / passed).ok();
    }
}

/// Ends the program of an instance that holds too much, where nobody else does. Its monitor starts it again.
fn guard(local: &mut Local) {
    let (Some(limit), Some(held), Some(_)) = (local.guarded_memory, local.instance.memory_bytes, local.pid) else {
        return;
    };
    if held > limit
        && let Some(pid) = program_pid(&local.folder)
    {
        logs::note(&local.folder, "stopped: it used more memory than its limit");
        local.exceeded = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).is_ok();
        local.instance.memory_bytes = None;
    }
}

/// Where the instance accepts connections: on the port that it was told, or on another that has been the only one for a while.
async fn answers(local: &mut Local, pid: i32) -> Option<SocketAddr> {
    let listening = listening(local, pid).await;
    if let Some(told) = as_told(local, &listening).await {
        return Some(told);
    }
    let mut ports: Vec<u16> = listening.iter().map(SocketAddr::port).collect();
    ports.sort_unstable();
    ports.dedup();
    let [port] = ports[..] else {
        local.other_port = None;
        return None;
    };
    let told = local.address;
    if port == told.port() {
        only_loopback(local, &listening);
        return None;
    }
    let since = match local.other_port {
        Some((other, since)) if other == port => since,
        _ => local.other_port.insert((port, Instant::now())).1,
    };
    if since.elapsed() < ALONE {
        return None;
    }
    let address = SocketAddr::new(told.ip(), port);
    if accepts(address).await {
        note(local, &format!("it listens on port {port} instead of PORT={}; its traffic goes there", told.port()));
        return Some(address);
    }
    only_loopback(local, &listening);
    None
}

/// The port that the instance was told, when it answers there. On a shared network somebody else may answer: there the
/// socket has to be one of the instance's.
async fn as_told(local: &Local, listening: &[SocketAddr]) -> Option<SocketAddr> {
    let told = local.address;
    let may_be = !local.shared_network || listening.iter().any(|address| address.port() == told.port());
    (may_be && accepts(told).await).then_some(told)
}

/// An instance that serves elsewhere may only have needed longer for the port that it was told.
async fn as_told_after_all(local: &Local, pid: i32) -> Option<SocketAddr> {
    let told = as_told(local, &listening(local, pid).await).await?;
    logs::note(&local.folder, &format!("it listens on PORT={} now; its traffic goes there", told.port()));
    Some(told)
}

async fn listening(local: &Local, pid: i32) -> Vec<SocketAddr> {
    let shared_network = local.shared_network;
    tokio::task::spawn_blocking(move || ports::listening(pid, shared_network)).await.unwrap_or_default()
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

/// The monitor of an instance, if there is one. It writes its pid into what it locks; what it says of itself later may still be what
/// another before it said.
pub(super) fn monitor_pid(folder: &Path) -> Option<Pid> {
    if !is_locked(folder) {
        return None;
    }
    let written = fs::read_to_string(folder.join("lock")).ok().and_then(|pid| pid.trim().parse().ok());
    written.map(Pid::from_raw).or_else(|| read(folder).map(|said| said.monitor))
}

/// The program of an instance, as far as its monitor said.
pub(super) fn program_pid(folder: &Path) -> Option<i32> {
    program(folder).map(|process| process.pid)
}

/// The first process of an instance, as long as it is there.
pub(super) fn program(folder: &Path) -> Option<Process> {
    match read(folder)?.state {
        SaidState::Running { process, .. } => process.is_there().then_some(process),
        _ => None,
    }
}

impl Process {
    pub fn is_there(self) -> bool {
        processes::start_ticks(self.pid) == Some(self.ticks)
    }
}

fn read(folder: &Path) -> Option<Said> {
    let text = fs::read_to_string(folder.join("state")).ok()?;
    let mut words = text.split_whitespace();
    let monitor = Pid::from_raw(words.next()?.parse().ok()?);
    let restarts = words.next()?.parse().ok()?;
    let state = match words.next()? {
        "running" => SaidState::Running {
            process: Process { pid: words.next()?.parse().ok()?, ticks: words.next()?.parse().ok()? },
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
