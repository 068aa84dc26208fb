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
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    process::ExitCode,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
        stat::{Mode as FileMode, umask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Gid, Pid, Uid, chdir, execve, pipe2, sethostname, setresgid, setresuid, setsid},
};

use super::{
    harden, join,
    netlink::Netlink,
    root,
    spec::{Ids, Network, RANGE, Spec},
    sys::{Forked, Parent, fork, pidfd_open},
};

/// The program could not be started: what a shell answers then.
pub(super) const CANNOT_START: u8 = 126;
/// The file system has no idmapped mounts: the caller may try without.
pub(super) const NO_IDMAP: u8 = 125;

/// How the process that is called stays with the sandbox.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// It waits for the program, ends as it does, and kills it when its own stdin ends (the daemon is gone).
    Step,
    /// It writes the pid of the program to stdout and ends; its parent reaps the program.
    Instance,
}

impl Mode {
    /// The kernel drops a signal that the first process of a namespace has no handler for yet, unless it is blocked. Who waits in
    /// front of an instance reads what came before; a step is never asked to end.
    fn blocked(self) -> SigSet {
        match self {
            Self::Step => SigSet::empty(),
            Self::Instance => Signal::SIGTERM.into(),
        }
    }
}

/// Runs the role, when the arguments name it.
pub(super) fn run(args: &[String]) -> Option<ExitCode> {
    let [role, mode, spec] = args else { return None };
    if role != "sandbox-init" {
        return None;
    }
    let result = match mode.as_str() {
        "step" => enter(Mode::Step, Path::new(spec)),
        "instance" => enter(Mode::Instance, Path::new(spec)),
        "join" => join::run(Path::new(spec)),
        // What a probe runs inside: it came so far.
        "probe" => Ok(ExitCode::SUCCESS),
        _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
    };
    Some(result.unwrap_or_else(|error| ExitCode::from(say(&error))))
}

/// Tells the reader of the log why there is no sandbox; the exit code for it.
pub(super) fn say(error: &io::Error) -> u8 {
    let _ = writeln!(io::stderr(), "epiniod: the sandbox cannot be set up: {error}");
    if error.kind() == io::ErrorKind::Unsupported { NO_IDMAP } else { CANNOT_START }
}

fn enter(mode: Mode, path: &Path) -> io::Result<ExitCode> {
    umask(FileMode::from_bits_truncate(0o022));
    let spec: Spec = serde_json::from_slice(&fs::read(path)?)?;
    if mode == Mode::Step {
        // A step is started once, and its secrets are read by now.
        fs::remove_file(path)?;
    }
    join_cgroups(&spec)?;
    let user_namespace = match spec.ids {
        Ids::Range { first } => Some(user_namespace(first)?),
        Ids::Caller => {
            enter_own_user_namespace(&spec)?;
            None
        }
    };
    let (ready, go) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(|error| context("making a pid namespace", error))?;
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mode.blocked()), None)?;
    let parent = if mode == Mode::Instance { Parent::Grandparent } else { Parent::Caller };
    match fork(parent)? {
        Forked::Child => {
            drop(go);
            match inside(mode, &spec, user_namespace, ready) {
                Ok(never) => match never {},
                Err(error) => std::process::exit(i32::from(say(&error))),
            }
        }
        Forked::Parent(pid) => {
            drop(ready);
            if mode == Mode::Instance {
                println!("{pid}");
            }
            if let Err(error) = connect(&spec, pid) {
                let _ = kill(pid, Signal::SIGKILL);
                say(&context("connecting it", error));
            }
            // The child waits for this, and later sees by it that this process still lives.
            let mut go = fs::File::from(go);
            let _ = go.write_all(b"go");
            match mode {
                Mode::Instance => Ok(ExitCode::SUCCESS),
                Mode::Step => wait(pid, io::stdin().as_fd()),
            }
        }
    }
}

pub(super) fn join_cgroups(spec: &Spec) -> io::Result<()> {
    let mut groups = spec.cgroups.iter().map(|group| group.join("cgroup.procs"));
    groups.try_for_each(|processes| fs::write(processes, "0")).map_err(|error| context("joining a cgroup", error))
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
fn inside(
    mode: Mode,
    spec: &Spec,
    user_namespace: Option<OwnedFd>,
    ready: OwnedFd,
) -> io::Result<std::convert::Infallible> {
    setsid()?;
    harden::go_first();
    let mut namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    if !matches!(spec.network, Network::Host) {
        namespaces |= CloneFlags::CLONE_NEWNET;
    }
    unshare(namespaces).map_err(|error| context("making namespaces", error))?;
    // Old kernels have no cgroup namespace; without one the sandbox sees its path, and no more.
    let _ = unshare(CloneFlags::CLONE_NEWCGROUP);
    let mut go = [0; 2];
    let mut parent = fs::File::from(ready);
    parent.read_exact(&mut go).map_err(|error| context("waiting for the network", error))?;
    sethostname(&spec.hostname)?;
    configure_network(&spec.network).map_err(|error| context("configuring the network", error))?;
    nix::unistd::dup2_stdin(fs::File::open("/dev/null")?)?;
    give(spec, &[io::stdout().as_fd(), io::stderr().as_fd()])?;
    root::enter(spec, user_namespace.as_ref())?;
    chdir(spec.cwd.as_str()).or_else(|_| chdir("/"))?;
    if let Some(user_namespace) = user_namespace {
        setns(user_namespace, CloneFlags::CLONE_NEWUSER)
            .map_err(|error| context("entering the user namespace", error))?;
        become_root()?;
    }
    let program = Program::of(spec)?;
    harden::drop_privileges(spec, &mode.blocked())?;
    if mode == Mode::Step {
        harden::die_with(&parent)?;
    }
    harden::filter_calls()?;
    program.start()
}

/// As root of the user namespace first: what follows needs its capabilities.
pub(super) fn become_root() -> io::Result<()> {
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))?;
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))?;
    Ok(nix::unistd::setgroups(&[])?)
}

/// Pipes belong to the program's user: it may open `/dev/stdout`, as some servers do.
pub(super) fn give(spec: &Spec, pipes: &[BorrowedFd<'_>]) -> io::Result<()> {
    let Some(user) = spec.ids.outside(spec.user) else { return Ok(()) };
    for pipe in pipes {
        if nix::sys::stat::fstat(pipe)?.st_mode & libc::S_IFMT == libc::S_IFIFO {
            std::os::unix::fs::fchown(pipe, Some(user.uid), Some(user.gid))?;
        }
    }
    Ok(())
}

/// What is started, with nothing left to do that could need memory or files.
pub(super) struct Program {
    args: Vec<CString>,
    env: Vec<CString>,
    /// Where it is looked for, in this order.
    places: Vec<CString>,
}

impl Program {
    pub fn of(spec: &Spec) -> io::Result<Self> {
        let strings = |texts: &mut dyn Iterator<Item = String>| {
            texts.map(CString::new).collect::<Result<Vec<_>, _>>().map_err(io::Error::other)
        };
        if spec.program.is_empty() {
            return Err(io::Error::other("the image names no program to start"));
        }
        let mut env = spec.env.clone();
        env.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
        if let Some(home) = home(spec.user.uid) {
            env.entry("HOME".to_owned()).or_insert(home);
        }
        let places = places(&spec.program[0], &env["PATH"]);
        Ok(Self {
            args: strings(&mut spec.program.iter().cloned())?,
            places: strings(&mut places.into_iter())?,
            env: strings(&mut env.iter().map(|(name, value)| format!("{name}={value}")))?,
        })
    }

    pub fn start(&self) -> io::Result<std::convert::Infallible> {
        let mut missed = Errno::ENOENT;
        for place in &self.places {
            match execve(place, &self.args, &self.env) {
                Ok(never) => return Ok(never),
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error) => missed = error,
            }
        }
        Err(context(&format!("starting {}", self.args[0].to_string_lossy()), missed))
    }
}

/// A name without a slash is looked up.
fn places(program: &str, path: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let folders = path.split(':').map(|folder| if folder.is_empty() { "." } else { folder });
    folders.map(|folder| format!("{folder}/{program}")).collect()
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A larger `/etc/passwd` is nobody's.
const MAX_PASSWD_BYTES: u64 = 1 << 20;

/// The home of a user, by the image's own file.
fn home(uid: u32) -> Option<String> {
    let mut text = String::new();
    fs::File::open("/etc/passwd").ok()?.take(MAX_PASSWD_BYTES).read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2)?.parse() == Ok(uid)).then(|| fields.get(5).map(|home| (*home).to_owned()))?
    })
}

fn configure_network(network: &Network) -> io::Result<()> {
    if matches!(network, Network::Host) {
        return Ok(());
    }
    // Every port is as good as another here. Kernels without IPv6 have no such file, and there is no way out by it:
    // without addresses programs do not try.
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    let mut netlink = Netlink::route()?;
    netlink.up("lo")?;
    if let Network::Bridge { address, prefix, gateway, .. } = network {
        let _ = fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1");
        netlink.add_address("eth0", *address, *prefix)?;
        netlink.up("eth0")?;
        netlink.add_default_route(*gateway)?;
    }
    Ok(())
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
    let hint = "making a user namespace (it has to be allowed: kernel.unprivileged_userns_clone, \
                kernel.apparmor_restrict_unprivileged_userns, user.max_user_namespaces)";
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| context(hint, error))?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{} {uid} 1\n", spec.user.uid))
        .and_then(|()| fs::write("/proc/self/gid_map", format!("{} {gid} 1\n", spec.user.gid)))
        .map_err(|error| context(hint, error))
}

/// Waits for the program of a step. When the lifeline ends, the daemon is gone, and so is the step.
pub(super) fn wait(pid: Pid, lifeline: BorrowedFd<'_>) -> io::Result<ExitCode> {
    let child = pidfd_open(pid)?;
    loop {
        let mut fds = [
            PollFd::new(child.as_fd(), PollFlags::POLLIN),
            PollFd::new(lifeline, PollFlags::POLLIN | PollFlags::POLLHUP),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        if fds[1].any().unwrap_or(false) {
            let _ = kill(pid, Signal::SIGKILL);
            // It leads a group, and has left that of this process.
            let _ = kill(Pid::from_raw(-pid.as_raw()), Signal::SIGKILL);
        }
        match waitpid(pid, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, code) => return Ok(ExitCode::from(u8::try_from(code).unwrap_or(255))),
            WaitStatus::Signaled(_, signal, _) => {
                // Ends the same way, so that who waits for us sees how.
                harden::end_by(signal);
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

pub(super) fn context(doing: &str, error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    io::Error::new(error.kind(), format!("{doing}: {error}"))
}
