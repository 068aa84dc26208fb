//! The process that becomes a sandbox: `epiniod sandbox-init MODE SPEC`.
//!
//! It has one thread. As root everything but the last step is done with the privileges of the
//! machine: mounts, network, names and process ids belong to the initial user namespace, so that what runs
//! inside, whatever it is in its own user namespace, can change none of them. Only then the user
//! namespace is entered, capabilities are dropped, the system call filter is set, and the program is started.
//! Rootless the user namespace comes first, as nothing else is possible without it.

use std::{
    ffi::CString,
    fs, io,
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    process::ExitCode,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Gid, Pid, Uid, chdir, execve, pipe2, sethostname, setresgid, setresuid, setsid},
};

use super::{
    harden,
    netlink::Netlink,
    root,
    spec::{Ids, Network, RANGE, Spec},
    sys::{Forked, Parent, fork},
};

/// The program could not be started: what a shell answers then.
const CANNOT_START: u8 = 126;

/// How the process that is called stays with the sandbox.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// It waits for the program, ends as it does, and kills it when its own stdin ends (the daemon is gone).
    Step,
    /// It writes the pid of the program to stdout's place in the spec and ends; its parent reaps the program.
    Instance,
}

/// Runs the role, when the arguments name it.
pub(super) fn run(args: &[String]) -> Option<ExitCode> {
    let [role, mode, spec] = args else { return None };
    if role != "sandbox-init" {
        return None;
    }
    let mode = if mode == "instance" { Mode::Instance } else { Mode::Step };
    match enter(mode, Path::new(spec)) {
        Ok(code) => Some(code),
        Err(error) => {
            let _ = writeln!(io::stderr(), "epiniod: the sandbox cannot be set up: {error}");
            Some(ExitCode::from(CANNOT_START))
        }
    }
}

fn enter(mode: Mode, spec: &Path) -> io::Result<ExitCode> {
    let spec: Spec = serde_json::from_slice(&fs::read(spec)?)?;
    for cgroup in &spec.cgroups {
        fs::write(cgroup.join("cgroup.procs"), "0").map_err(|error| context("joining a cgroup", error))?;
    }
    let user_namespace = match spec.ids {
        Ids::Range { first } => Some(user_namespace(first)?),
        Ids::Caller => {
            enter_own_user_namespace(&spec)?;
            None
        }
    };
    let (ready, go) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(|error| context("making a pid namespace", error))?;
    let parent = if mode == Mode::Instance { Parent::Grandparent } else { Parent::Caller };
    match fork(parent)? {
        Forked::Child => {
            drop(go);
            match inside(&spec, user_namespace, ready) {
                Ok(never) => match never {},
                Err(error) => {
                    let _ = writeln!(io::stderr(), "epiniod: the sandbox cannot be set up: {error}");
                    std::process::exit(i32::from(CANNOT_START));
                }
            }
        }
        Forked::Parent(pid) => {
            drop(ready);
            if mode == Mode::Instance {
                println!("{pid}");
            }
            let connected = connect(&spec, pid);
            if let Err(error) = &connected {
                let _ = kill(pid, Signal::SIGKILL);
                let _ = writeln!(io::stderr(), "epiniod: the sandbox cannot be set up: connecting it: {error}");
            }
            // The child waits for this.
            let _ = fs::File::from(go).write_all(b"go");
            match mode {
                Mode::Instance => Ok(ExitCode::SUCCESS),
                Mode::Step => wait(pid),
            }
        }
    }
}

/// Gives the network namespace of the child its end of the wire.
fn connect(spec: &Spec, pid: Pid) -> io::Result<()> {
    let Network::Bridge { bridge, mtu, address, .. } = &spec.network else { return Ok(()) };
    // The child has its network namespace when it has a name of its own for it.
    let own = fs::read_link("/proc/self/ns/net")?;
    let theirs = format!("/proc/{pid}/ns/net");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while fs::read_link(&theirs)? == own {
        if std::time::Instant::now() > until {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        std::thread::yield_now();
    }
    let name = format!("ev{:x}", pid.as_raw());
    let mut netlink = Netlink::route()?;
    netlink.add_veth(&name, bridge, pid.as_raw().unsigned_abs(), *mtu, *address)?;
    netlink.isolate(&name)?;
    netlink.up(&name)
}

/// The rest, in the new process.
fn inside(spec: &Spec, user_namespace: Option<OwnedFd>, ready: OwnedFd) -> io::Result<std::convert::Infallible> {
    setsid()?;
    let mut namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    if !matches!(spec.network, Network::Host) {
        namespaces |= CloneFlags::CLONE_NEWNET;
    }
    unshare(namespaces).map_err(|error| context("making namespaces", error))?;
    // Old kernels have no cgroup namespace; without one the sandbox sees its path, and no more.
    let _ = unshare(CloneFlags::CLONE_NEWCGROUP);
    let mut go = [0; 2];
    fs::File::from(ready).read_exact(&mut go).map_err(|error| context("waiting for the network", error))?;
    sethostname(&spec.hostname)?;
    configure_network(&spec.network).map_err(|error| context("configuring the network", error))?;
    root::enter(spec, user_namespace.as_ref())?;
    give_output(spec)?;
    chdir(spec.cwd.as_str()).or_else(|_| chdir("/"))?;
    if let Some(user_namespace) = user_namespace {
        setns(user_namespace, CloneFlags::CLONE_NEWUSER)
            .map_err(|error| context("entering the user namespace", error))?;
        // As root of the namespace first: what follows needs its capabilities.
        setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))?;
        setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))?;
        nix::unistd::setgroups(&[])?;
    }
    harden::drop_privileges(spec)?;
    start(spec)
}

/// The pipes belong to the program's user: programs open `/dev/stdout` again.
fn give_output(spec: &Spec) -> io::Result<()> {
    if let Ids::Range { first } = spec.ids {
        let (uid, gid) = (Some(Uid::from_raw(first + spec.uid)), Some(Gid::from_raw(first + spec.gid)));
        nix::unistd::fchown(io::stdout(), uid, gid)?;
        nix::unistd::fchown(io::stderr(), uid, gid)?;
    }
    Ok(())
}

/// Becomes the program.
fn start(spec: &Spec) -> io::Result<std::convert::Infallible> {
    let strings = |texts: &mut dyn Iterator<Item = String>| {
        texts.map(CString::new).collect::<Result<Vec<_>, _>>().map_err(io::Error::other)
    };
    let args = strings(&mut spec.program.iter().cloned())?;
    let env = strings(&mut spec.env.iter().map(|(name, value)| format!("{name}={value}")))?;
    let program = args.first().ok_or_else(|| io::Error::other("no program is named"))?;
    match execve(program, &args, &env) {
        Ok(never) => Ok(never),
        Err(error) => Err(context(&format!("starting {}", spec.program[0]), error)),
    }
}

fn configure_network(network: &Network) -> io::Result<()> {
    match network {
        Network::Host => Ok(()),
        Network::None => Netlink::route()?.up("lo"),
        Network::Bridge { address, prefix, gateway, .. } => {
            // There is no way out by IPv6; without it programs do not try. Kernels without it have no such file.
            let _ = fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
            let mut netlink = Netlink::route()?;
            netlink.up("lo")?;
            netlink.add_address("eth0", *address, *prefix)?;
            netlink.up("eth0")?;
            netlink.add_default_route(*gateway)
        }
    }
}

/// A user namespace with a range of ids, made by a child that is gone when this returns.
fn user_namespace(first: u32) -> io::Result<OwnedFd> {
    let (made, is_made) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    match fork(Parent::Caller)? {
        Forked::Child => {
            let result = unshare(CloneFlags::CLONE_NEWUSER);
            let _ = fs::File::from(is_made).write_all(&[u8::from(result.is_ok())]);
            loop {
                nix::unistd::pause();
            }
        }
        Forked::Parent(child) => {
            drop(is_made);
            let namespace = map_ids(child, first, made);
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
            namespace.map_err(|error| context("making a user namespace", error))
        }
    }
}

fn map_ids(child: Pid, first: u32, made: OwnedFd) -> io::Result<OwnedFd> {
    let mut done = [0];
    fs::File::from(made).read_exact(&mut done)?;
    if done[0] != 1 {
        return Err(io::Error::other("this kernel does not allow it (user.max_user_namespaces)"));
    }
    let map = format!("0 {first} {RANGE}\n");
    fs::write(format!("/proc/{child}/uid_map"), &map)?;
    fs::write(format!("/proc/{child}/gid_map"), &map)?;
    Ok(fs::File::open(format!("/proc/{child}/ns/user"))?.into())
}

/// Rootless: the caller is the CNB user, and nobody else is anybody.
fn enter_own_user_namespace(spec: &Spec) -> io::Result<()> {
    let (uid, gid) = (Uid::current(), Gid::current());
    unshare(CloneFlags::CLONE_NEWUSER)
        .map_err(|error| context("making a user namespace (are unprivileged user namespaces allowed here?)", error))?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{} {uid} 1\n", spec.uid))?;
    fs::write("/proc/self/gid_map", format!("{} {gid} 1\n", spec.gid))
}

/// Waits for the program of a step. When stdin ends, the daemon is gone, and so is the step.
fn wait(pid: Pid) -> io::Result<ExitCode> {
    let child = nix_pidfd(pid)?;
    let stdin = io::stdin();
    loop {
        let mut fds = [
            PollFd::new(child.as_fd(), PollFlags::POLLIN),
            PollFd::new(stdin.as_fd(), PollFlags::POLLIN | PollFlags::POLLHUP),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        if fds[1].any().unwrap_or(false) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        match waitpid(pid, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, code) => return Ok(ExitCode::from(u8::try_from(code).unwrap_or(255))),
            WaitStatus::Signaled(_, signal, _) => {
                // Ends the same way, so that who waits for us sees how.
                super::harden::end_by(signal);
                return Ok(ExitCode::from(128u8.saturating_add(signal as u8)));
            }
            _ if fds[1].any().unwrap_or(false) => {
                waitpid(pid, None)?;
                return Ok(ExitCode::FAILURE);
            }
            _ => {}
        }
    }
}

fn nix_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    super::sys::pidfd_open(pid)
}

pub(super) fn context(doing: &str, error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    io::Error::new(error.kind(), format!("{doing}: {error}"))
}
