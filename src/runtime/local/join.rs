//! The process that enters a sandbox that runs: `epiniod sandbox-init join SPEC`.
//!
//! What it is to do there comes as one message on its stdin, a socket, and when that ends, so does what it began: the
//! daemon, or whoever asked it, is gone. A command is put into the namespaces and groups of the instance by a
//! child, which then gives up the same things as the instance did, as the same user. The child is seen by the
//! programs inside before that: so nobody may look into it from the first moment on. This process itself stays outside.

use std::{
    fs, io,
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use nix::{
    fcntl::{OFlag, open},
    sched::{CloneFlags, setns},
    sys::{
        prctl,
        signal::SigSet,
        stat::{Mode, fstat, makedev, umask},
    },
    unistd::{Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, pipe2, setsid},
};
use serde::{Deserialize, Serialize};

use super::{
    harden,
    init::{CANNOT_START, Program, become_root, context, give, join_cgroups, wait},
    observe::Process,
    spec::{Ids, Spec},
    sys::{self, Forked, Parent, fork, pidfd_open},
};
use crate::runtime::{NOT_FOUND, Terminal};

/// What is to be done in a sandbox, and the process that it is the sandbox of.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub process: Process,
    pub wish: Wish,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Wish {
    /// Run this. Its three pipes come with the request; of a terminal, which is made inside, the other end is the answer.
    Run { words: Vec<String>, terminal: Terminal },
    /// Connect to this, on the network of the sandbox. The connection is the answer.
    Connect(SocketAddr),
}

/// The longest request, in bytes.
pub(super) const MAX_REQUEST_BYTES: usize = 128 << 10;
/// The kind of a terminal that nobody named: what all of them can do.
const TERM: &str = "xterm";
/// How long a program may take to accept a connection.
pub(super) const CONNECT: Duration = Duration::from_secs(10);

/// The namespaces of an instance, by their names in `/proc`, but for that of users, which may come last.
const NAMESPACES: [(&str, CloneFlags); 5] = [
    ("mnt", CloneFlags::CLONE_NEWNS),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
];

pub(super) fn run(path: &Path) -> io::Result<ExitCode> {
    umask(Mode::from_bits_truncate(0o022));
    let control = io::stdin().as_fd().try_clone_to_owned()?;
    let mut buffer = vec![0; MAX_REQUEST_BYTES];
    let (length, pipes) = sys::receive(control.as_fd(), &mut buffer)?;
    let Request { process, wish } = serde_json::from_slice(&buffer[..length])?;
    let target = pidfd_open(Pid::from_raw(process.pid))?;
    // Only now it is sure whose process that is.
    if !process.is_there() {
        return Err(io::Error::other("the instance has just ended"));
    }
    match wish {
        Wish::Connect(address) => connect(&target, address, &control),
        Wish::Run { words, terminal } => {
            let mut spec = Spec { program: words, ..serde_json::from_slice(&fs::read(path)?)? };
            if terminal == Terminal::Own {
                spec.env.entry("TERM".to_owned()).or_insert_with(|| TERM.to_owned());
            }
            start(Visit { spec, terminal, pipes, target, control }, process.pid)
        }
    }
}

fn connect(target: &OwnedFd, address: SocketAddr, control: &OwnedFd) -> io::Result<ExitCode> {
    setns(target, CloneFlags::CLONE_NEWNET).map_err(|error| context("entering the network of the instance", error))?;
    let stream = TcpStream::connect_timeout(&address, CONNECT)?;
    sys::send(control.as_fd(), b"connected", &[stream.as_raw_fd()])?;
    Ok(ExitCode::SUCCESS)
}

/// A command on its way in.
struct Visit {
    spec: Spec,
    terminal: Terminal,
    pipes: Vec<OwnedFd>,
    target: OwnedFd,
    control: OwnedFd,
}

fn start(visit: Visit, pid: i32) -> io::Result<ExitCode> {
    let others = namespaces(pid)?;
    harden::go_first();
    prctl::set_dumpable(false)?;
    // Without privileges the user namespace comes first, as with the instance itself.
    let first = match visit.spec.ids {
        Ids::Range { .. } => CloneFlags::CLONE_NEWPID,
        Ids::Caller => CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUSER,
    };
    setns(&visit.target, first).map_err(|error| context("entering the processes of the instance", error))?;
    let (alive, lifeline) = pipe2(OFlag::O_CLOEXEC)?;
    match fork(Parent::Caller)? {
        Forked::Child => {
            drop(lifeline);
            let failure = match visit.enter(others, &alive) {
                Ok(program) => match program.start() {
                    Ok(never) => match never {},
                    Err(error) => error,
                },
                Err(error) => {
                    eprintln!("epiniod: the instance cannot be entered: {error}");
                    std::process::exit(i32::from(CANNOT_START));
                }
            };
            eprintln!("epiniod: {failure}");
            let missing = failure.kind() == io::ErrorKind::NotFound;
            std::process::exit(if missing { NOT_FOUND } else { i32::from(CANNOT_START) });
        }
        Forked::Parent(child) => {
            drop(alive);
            drop(visit);
            let ended = wait(child, io::stdin().as_fd());
            drop(lifeline);
            ended
        }
    }
}

/// Those that the instance does not share with the machine.
fn namespaces(pid: i32) -> io::Result<CloneFlags> {
    let link = |of: &str, name: &str| fs::read_link(format!("/proc/{of}/ns/{name}"));
    let mut own = CloneFlags::empty();
    for (name, flag) in NAMESPACES {
        if link(&pid.to_string(), name)? != link("self", name)? {
            own |= flag;
        }
    }
    if own.contains(CloneFlags::CLONE_NEWNS) {
        return Ok(own);
    }
    Err(io::Error::other("the instance has no files of its own yet"))
}

impl Visit {
    /// In the new process: all but the start of the program.
    fn enter(self, others: CloneFlags, alive: &OwnedFd) -> io::Result<Program> {
        setsid()?;
        join_cgroups(&self.spec)?;
        setns(&self.target, others).map_err(|error| context("entering its namespaces", error))?;
        let pipes: Vec<BorrowedFd<'_>> = self.pipes.iter().map(|pipe| pipe.as_fd()).collect();
        give(&self.spec, &pipes)?;
        chdir(self.spec.cwd.as_str()).or_else(|_| chdir("/"))?;
        if matches!(self.spec.ids, Ids::Range { .. }) {
            setns(&self.target, CloneFlags::CLONE_NEWUSER)
                .map_err(|error| context("entering the user namespace", error))?;
            become_root()?;
        }
        let program = Program::of(&self.spec)?;
        harden::drop_privileges(&self.spec, &SigSet::empty())?;
        match (self.terminal, &self.pipes[..]) {
            (Terminal::None, [stdin, stdout, stderr]) => talk_by(stdin, stdout, stderr)?,
            (Terminal::None, _) => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
            // As the user, whose it is then.
            (Terminal::Own, _) => {
                let terminal = self.make_terminal().map_err(|error| context("making a terminal", error))?;
                talk_by(&terminal, &terminal, &terminal)?;
            }
        }
        harden::die_with(alive)?;
        harden::filter_calls()?;
        Ok(program)
    }

    /// A terminal of the instance's own, so that programs find it in their `/dev/pts`.
    fn make_terminal(&self) -> io::Result<OwnedFd> {
        // What somebody inside may have put there is no terminal, and is not waited for.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
        let master = open("/dev/pts/ptmx", flags, Mode::empty())?;
        let status = fstat(&master)?;
        if status.st_mode & libc::S_IFMT != libc::S_IFCHR || status.st_rdev != makedev(PTMX.0, PTMX.1) {
            return Err(io::Error::other("/dev/pts/ptmx of the instance is not what it should be"));
        }
        let terminal = sys::terminal_of(&master)?;
        sys::control_by(&terminal)?;
        sys::send(self.control.as_fd(), b"terminal", &[master.as_raw_fd()])?;
        Ok(terminal)
    }
}

/// The device number of the maker of terminals.
const PTMX: (u64, u64) = (5, 2);

fn talk_by(stdin: &OwnedFd, stdout: &OwnedFd, stderr: &OwnedFd) -> io::Result<()> {
    dup2_stdin(stdin)?;
    dup2_stdout(stdout)?;
    Ok(dup2_stderr(stderr)?)
}
