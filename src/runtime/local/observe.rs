//! One look at an instance: what its monitor says, and whether it answers.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use nix::unistd::Pid;

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
#[derive(Clone, Copy)]
struct Process {
    pid: i32,
    ticks: u64,
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
    usage(&mut local);
    local.instance.restarts = said.restarts;
    match said.state {
        SaidState::Starting | SaidState::Stopped => local.instance.state = InstanceState::Starting,
        SaidState::BackOff { ended, retry_at } => {
            if !matches!(local.instance.state, InstanceState::BackOff { .. }) {
                let out_of_memory = ended != Ended::Exit(0) && local.cgroup.out_of_memory() > local.killed_before;
                let ended = if out_of_memory { Ended::OutOfMemory } else { ended };
                let last_words = logs::last_words(&local.folder, LAST_WORDS);
                local.instance.state = InstanceState::BackOff { ended, retry_at, last_words };
            }
            local.pid = None;
        }
        SaidState::Running { process: Process { pid, .. }, since } => {
            if local.pid != Some(pid) {
                local.pid = Some(pid);
                local.noted = false;
                local.killed_before = local.cgroup.out_of_memory();
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

/// What the instance uses. Where no cgroup counts, memory is that of its processes.
fn usage(local: &mut Local) {
    let counted = local.cgroup.memory_bytes();
    local.instance.memory_bytes = counted.or_else(|| local.pid.map(processes::resident_with));
    let Some(micros) = local.cgroup.cpu_micros() else { return };
    let now = Instant::now();
    if let Some((at, before)) = local.cpu.replace((now, micros)) {
        let passed = now.duration_since(at).as_micros().max(1);
        let used = u128::from(micros.saturating_sub(before));
        local.instance.millicpus = u32::try_from(used * 1000 / passed).ok();
    }
}

/// Where the instance accepts connections: on the port that it was told, or on the only other one.
async fn answers(local: &mut Local, pid: i32) -> Option<SocketAddr> {
    let told = local.address;
    // On a shared network somebody else may answer: there the socket has to be one of the instance's.
    if !local.shared_network && accepts(told).await {
        return Some(told);
    }
    let listening = ports::listening(pid, local.shared_network);
    if listening.iter().any(|address| address.port() == told.port()) && accepts(told).await {
        return Some(told);
    }
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
        SaidState::Running { process: Process { pid, ticks }, .. } => {
            (processes::start_ticks(pid) == Some(ticks)).then_some(pid)
        }
        _ => None,
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
