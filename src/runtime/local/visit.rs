//! Into an instance: commands beside its program, connections to its ports.
//!
//! The daemon has threads, and namespaces are entered by a process with one: each visit has its own (see `join`), which
//! is told what to do by a socket, and gives what comes of it back by the same. As long as the daemon has the other end of that
//! socket, the command may run.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
        unix::process::ExitStatusExt as _,
    },
    path::Path,
    process::{Output, Stdio},
};

use futures::FutureExt as _;
use nix::{
    fcntl::OFlag,
    sys::{
        socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt::ReceiveTimeout},
        time::{TimeVal, TimeValLike as _},
    },
    unistd::pipe2,
};
use tokio::{
    net::{TcpStream, unix::pipe},
    sync::oneshot,
};

use super::{
    Host, io_error,
    join::{CONNECT, MAX_REQUEST_BYTES, Request, Wish},
    network, observe, ports, sys,
    terminal::Terminal as Pty,
};
use crate::runtime::{Command, Connection, Error, Exit, Session, Terminal};

/// How long a process that enters an instance may take to say what came of it.
const ANSWER_SECONDS: i64 = 20;
/// The longest answer, in bytes.
const ANSWER_BYTES: usize = 64;

pub(super) async fn exec(host: &Host, folder: &Path, name: &str, command: Command) -> Result<Session, Error> {
    let process = observe::program(folder).ok_or_else(|| Error::NotRunning(name.to_owned()))?;
    let failed = || io_error(&format!("starting a command in instance {name}"));
    let wish = Wish::Run { words: command.words, terminal: command.terminal };
    let request = Request { process, wish };
    match command.terminal {
        Terminal::None => with_pipes(host, folder, &request).map_err(failed()),
        Terminal::Own => with_terminal(host, folder, &request).await.map_err(failed()),
    }
}

fn with_pipes(host: &Host, folder: &Path, request: &Request) -> io::Result<Session> {
    let [stdin, stdout, stderr] = [pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?];
    let theirs = [&stdin.0, &stdout.1, &stderr.1].map(|end| end.as_raw_fd());
    let visitor = Visitor::start(host, folder, request, &theirs)?;
    Ok(Session {
        stdin: Box::new(pipe::Sender::from_owned_fd(stdin.1)?),
        stdout: Box::new(pipe::Receiver::from_owned_fd(stdout.0)?),
        stderr: Box::new(pipe::Receiver::from_owned_fd(stderr.0)?),
        resize: Box::new(|_| {}),
        ended: visitor.exit().boxed(),
    })
}

async fn with_terminal(host: &Host, folder: &Path, request: &Request) -> io::Result<Session> {
    let visitor = Visitor::start(host, folder, request, &[])?;
    let (visitor, master) = visitor.answer().await?;
    let terminal = Pty::new(master)?;
    let (input, output) = (terminal.clone(), terminal.clone());
    Ok(Session {
        stdin: Box::new(input),
        stdout: Box::new(output),
        stderr: Box::new(tokio::io::empty()),
        resize: Box::new(move |size| {
            // A command that has just ended has no window any more.
            let _ = terminal.resize(size);
        }),
        ended: visitor.exit().boxed(),
    })
}

/// Connects to a port that the instance listens on: by its address where others reach it, else from within.
pub(super) async fn forward(host: &Host, folder: &Path, name: &str, port: u16) -> Result<Connection, Error> {
    let process = observe::program(folder).ok_or_else(|| Error::NotRunning(name.to_owned()))?;
    let shared = matches!(host.connection, network::Connection::Host);
    let refused = |cause: String| Error::Refused { instance: name.to_owned(), port, cause };
    let listening = tokio::task::spawn_blocking(move || ports::listening(process.pid, shared)).await;
    let listening = listening.unwrap_or_default();
    let address = listening.iter().find(|address| address.port() == port).ok_or_else(|| refused(nobody(&listening)))?;
    let address = SocketAddr::new(reached_by(address.ip()), port);
    if shared {
        let connected = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
        let stream = connected.map_err(|_| refused(slow())).and_then(|c| c.map_err(|error| refused(error.to_string())));
        return Ok(Box::new(stream?));
    }
    let request = Request { process, wish: Wish::Connect(address) };
    let connected = async {
        let (_, stream) = Visitor::start(host, folder, &request, &[])?.answer().await?;
        let stream = std::net::TcpStream::from(stream);
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    };
    Ok(Box::new(connected.await.map_err(|error| refused(error.to_string()))?))
}

/// On the same network, whoever listens everywhere listens here.
fn reached_by(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        // It takes connections of both families, unless its program wants it otherwise.
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

fn nobody(listening: &[SocketAddr]) -> String {
    let mut ports: Vec<u16> = listening.iter().map(SocketAddr::port).collect();
    ports.sort_unstable();
    ports.dedup();
    if ports.is_empty() {
        return "its program listens on no port".to_owned();
    }
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!("its program does not listen there, but on {}", ports.join(", "))
}

fn slow() -> String {
    format!("its program did not accept the connection within {} s", CONNECT.as_secs())
}

/// A process that enters an instance.
struct Visitor {
    /// When this is closed, it ends, and what it began.
    control: OwnedFd,
    ended: oneshot::Receiver<io::Result<Output>>,
}

impl Visitor {
    fn start(host: &Host, folder: &Path, request: &Request, fds: &[RawFd]) -> io::Result<Self> {
        let message = serde_json::to_vec(request)?;
        if message.len() > MAX_REQUEST_BYTES {
            return Err(io::Error::other(format!("a command is at most {} KiB long", MAX_REQUEST_BYTES >> 10)));
        }
        let (control, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        // It waits in the socket until it is read.
        sys::send(control.as_fd(), &message, fds)?;
        let child = tokio::process::Command::new(&host.own_binary)
            .args(["sandbox-init", "join"])
            .arg(folder.join("spec.json"))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let (tell, ended) = oneshot::channel();
        // Whoever does not ask any more has closed the control: it ends soon, and is collected here.
        tokio::spawn(async move { tell.send(child.wait_with_output().await) });
        Ok(Self { control, ended })
    }

    /// The descriptor that it answers with; else what it says went wrong.
    async fn answer(self) -> io::Result<(Self, OwnedFd)> {
        let Self { control, ended } = self;
        let received = tokio::task::spawn_blocking(move || {
            setsockopt(&control, ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))?;
            let (_, fds) = sys::receive(control.as_fd(), &mut [0; ANSWER_BYTES])?;
            io::Result::Ok((control, fds))
        });
        let (control, fds) = received.await.map_err(io::Error::other)?.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::other("the instance was not entered in time"),
            _ => error,
        })?;
        match fds.into_iter().next() {
            Some(fd) => Ok((Self { control, ended }, fd)),
            None => {
                drop(control);
                let output = ended.await.map_err(io::Error::other)??;
                let said = last_words(&output).unwrap_or_else(|| "it ended without a word".to_owned());
                Err(io::Error::other(said))
            }
        }
    }

    async fn exit(self) -> Result<Exit, Error> {
        let Self { control, ended } = self;
        let output = ended.await.map_err(io::Error::other).and_then(|output| output);
        drop(control);
        let output = output.map_err(io_error("waiting for a command in an instance"))?;
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default());
        Ok(Exit { code, message: last_words(&output) })
    }
}

/// What it said before it gave its output to the command.
fn last_words(output: &Output) -> Option<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("epiniod: ");
    let said = said.trim_start_matches("the sandbox cannot be set up: ");
    (!said.is_empty()).then(|| said.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_elsewhere_is_told() {
        let listening = ["0.0.0.0:8080", "[::]:8080", "127.0.0.1:9229"].map(|address| address.parse().unwrap());
        assert_eq!(nobody(&listening), "its program does not listen there, but on 8080, 9229");
        assert_eq!(nobody(&[]), "its program listens on no port");
        assert_eq!(reached_by(listening[0].ip()).to_string(), "127.0.0.1");
        assert_eq!(reached_by(listening[1].ip()).to_string(), "::1");
    }
}
