//! The monitor of one instance: `monitor DIRECTORY EPINIOD`.
//!
//! A process of its own, so that applications outlive the daemon, and a small one: the standard library and a
//! few C functions. It starts the sandbox that `DIRECTORY/spec.json` describes, writes what the program says to `log`
//! (rotated), says in `state` how it is, and starts it again when it ends by itself. SIGTERM stops the program and then
//! the monitor; SIGUSR1 kills the program.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::fd::{AsRawFd, RawFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

mod c;
mod init;

/// One log file is at most so large; the one before it is kept.
const LOG_BYTES: u64 = 4 << 20;
/// Longer lines are cut in pieces.
const LINE_BYTES: usize = 16 << 10;
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);
/// What could not be said for want of room on the disk is said again after this long.
const RETRY_MILLISECONDS: i32 = 1000;
/// How a program ended that never began.
const CANNOT_START: &str = "exit:126";
/// How long somebody else may hold the lock.
const LOCK: Duration = Duration::from_secs(1);
/// A program that ran for so long is not in a loop of crashes.
const STEADY: Duration = Duration::from_secs(60);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (directory, epiniod) = match args.as_slice() {
        [role, program, args @ ..] if role == "init" => std::process::exit(init::run(program, args)),
        [directory, epiniod] => (PathBuf::from(directory), PathBuf::from(epiniod)),
        _ => {
            eprintln!("usage: monitor DIRECTORY EPINIOD, or monitor init PROGRAM ARGUMENT…");
            std::process::exit(2);
        }
    };
    if let Err(error) = Monitor::new(directory, epiniod).and_then(Monitor::run) {
        eprintln!("monitor: {error}");
        std::process::exit(1);
    }
}

struct Monitor {
    directory: PathBuf,
    epiniod: PathBuf,
    _lock: File,
    signals: RawFd,
    log: Log,
    restarts: u32,
    stopping: bool,
    /// What could not be written to `state`.
    unsaid: Option<String>,
}

/// How a program ended, as it stands in `state`.
struct Ended(String);

impl Monitor {
    fn new(directory: PathBuf, epiniod: PathBuf) -> io::Result<Self> {
        let mut lock = OpenOptions::new().write(true).create(true).truncate(false).open(directory.join("lock"))?;
        // A daemon that looks whether it is locked holds it for a moment.
        let until = Instant::now() + LOCK;
        while !c::lock(lock.as_raw_fd()) {
            if Instant::now() > until {
                return Err(io::Error::other("another monitor is there"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // On a full disk this cannot be said here; it is in `state` as well.
        let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        c::new_session();
        let signals = c::signals(&[c::SIGTERM, c::SIGUSR1, c::SIGCHLD])?;
        let log = Log::open(&directory)?;
        Ok(Self { directory, epiniod, _lock: lock, signals, log, restarts: 0, stopping: false, unsaid: None })
    }

    fn run(mut self) -> io::Result<()> {
        let mut back_off = FIRST_BACK_OFF;
        loop {
            let started = Instant::now();
            let ended = self.run_once()?;
            if self.stopping {
                self.state(&format!("stopped {}", ended.0));
                return Ok(());
            }
            if started.elapsed() >= STEADY {
                back_off = FIRST_BACK_OFF;
            }
            let retry_at = now().as_secs() + back_off.as_secs();
            self.state(&format!("backoff {} {retry_at}", ended.0));
            let text = format!("ended with {}; started again in {} s", ended.0.replace(':', " "), back_off.as_secs());
            self.log.line('n', text.as_bytes());
            if self.rest(back_off)? {
                self.state(&format!("stopped {}", ended.0));
                return Ok(());
            }
            back_off = (back_off * 2).min(LONGEST_BACK_OFF);
            self.restarts += 1;
        }
    }

    /// Starts the sandbox and stays until its program has ended.
    fn run_once(&mut self) -> io::Result<Ended> {
        let spec = self.directory.join("spec.json");
        let spawned = Command::new(&self.epiniod)
            .args(["sandbox-init", "instance"])
            .arg(spec)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                self.log.line('e', format!("epiniod: the sandbox cannot be started: {error}").as_bytes());
                return Ok(Ended(CANNOT_START.to_owned()));
            }
        };
        let (mut out, mut err) = (Lines::new('o', child.stdout.take()), Lines::new('e', child.stderr.take()));
        let program = read_pid(&mut out);
        match program {
            Some(pid) => self.state(&format!("running {pid} {} {}", start_ticks(pid), now().as_secs())),
            None => self.state("starting"),
        }
        // Until there is a program, what sets the sandbox up is what can be ended.
        let target = program.or_else(|| i32::try_from(child.id()).ok());
        let mut ended = None;
        let mut stop_sent = false;
        c::shed();
        while ended.is_none() || out.is_open() || err.is_open() {
            let mut fds = vec![self.signals];
            fds.extend([&out, &err].into_iter().filter_map(|lines| lines.fd()));
            // Whoever was started by the program may keep the pipes open: they are not waited for.
            let timeout = match (&ended, &self.unsaid) {
                (Some(_), _) => 200,
                (None, Some(_)) => RETRY_MILLISECONDS,
                (None, None) => -1,
            };
            let ready = c::wait_readable(&fds, timeout)?;
            if ready.is_empty() && ended.is_some() {
                break;
            }
            if let Some(state) = self.unsaid.take() {
                self.state(&state);
            }
            for lines in [&mut out, &mut err] {
                if lines.fd().is_some_and(|fd| ready.contains(&fd)) {
                    lines.read(&mut self.log);
                }
            }
            if ready.contains(&self.signals) {
                match c::next_signal(self.signals)? {
                    c::SIGTERM => self.stopping = true,
                    c::SIGUSR1 if ended.is_none() => target.into_iter().for_each(|pid| c::send(pid, c::SIGKILL)),
                    _ => {}
                }
                reap(&mut child, program, &mut ended);
            }
            if self.stopping && !stop_sent && ended.is_none() {
                stop_sent = true;
                target.into_iter().for_each(|pid| c::send(pid, c::SIGTERM));
            }
        }
        out.end(&mut self.log);
        err.end(&mut self.log);
        Ok(ended.unwrap_or(Ended(CANNOT_START.to_owned())))
    }

    /// Waits out the back-off; true when a stop was asked for.
    fn rest(&mut self, back_off: Duration) -> io::Result<bool> {
        let until = Instant::now() + back_off;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let ready = c::wait_readable(&[self.signals], i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1))?;
            if !ready.is_empty() && c::next_signal(self.signals)? == c::SIGTERM {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Written beside and renamed: who reads it sees a whole one. A full disk stops no program: it is tried again.
    fn state(&mut self, state: &str) {
        let temporary = self.directory.join("state.new");
        let written = fs::write(&temporary, format!("{} {} {state}\n", std::process::id(), self.restarts))
            .and_then(|()| fs::rename(temporary, self.directory.join("state")));
        self.unsaid = written.is_err().then(|| state.to_owned());
    }
}

/// The first line that the sandbox's set-up writes is the pid of the program.
fn read_pid(out: &mut Lines) -> Option<i32> {
    let pipe = out.pipe.as_mut()?;
    let mut text = String::new();
    let mut byte = [0];
    while pipe.read_exact(&mut byte).is_ok() && byte[0] != b'\n' {
        text.push(char::from(byte[0]));
    }
    text.parse().ok()
}

/// Collects every child that has ended: the set-up, and the program.
fn reap(child: &mut Child, program: Option<i32>, ended: &mut Option<Ended>) {
    while let Some((pid, status)) = c::reap() {
        let how = match status {
            // The first process of the sandbox ends as a shell does when the program was ended by a signal.
            c::Status::Exit(code @ 129..=192) => format!("signal:{}", code - 128),
            c::Status::Exit(code) => format!("exit:{code}"),
            c::Status::Signal(signal) => format!("signal:{signal}"),
        };
        let set_up_failed = u32::try_from(pid) == Ok(child.id()) && how != "exit:0";
        if Some(pid) == program || (program.is_none() && u32::try_from(pid) == Ok(child.id())) || set_up_failed {
            *ended = Some(Ended(how));
        }
    }
}

/// One of the program's outputs, cut into lines.
struct Lines {
    stream: char,
    pipe: Option<Box<dyn Pipe>>,
    line: Vec<u8>,
}

trait Pipe: Read + AsRawFd {}
impl<T: Read + AsRawFd> Pipe for T {}

impl Lines {
    fn new(stream: char, pipe: Option<impl Pipe + 'static>) -> Self {
        Self { stream, pipe: pipe.map(|pipe| Box::new(pipe) as Box<dyn Pipe>), line: Vec::new() }
    }

    fn fd(&self) -> Option<RawFd> {
        self.pipe.as_ref().map(|pipe| pipe.as_raw_fd())
    }

    fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    fn read(&mut self, log: &mut Log) {
        let Some(pipe) = &mut self.pipe else { return };
        let mut buffer = [0; 8192];
        let read = match pipe.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(_) => 0,
        };
        if read == 0 {
            self.pipe = None;
        }
        for byte in &buffer[..read] {
            if *byte == b'\n' || self.line.len() >= LINE_BYTES {
                log.line(self.stream, &self.line);
                self.line.clear();
            }
            if *byte != b'\n' {
                self.line.push(*byte);
            }
        }
    }

    fn end(&mut self, log: &mut Log) {
        if !self.line.is_empty() {
            log.line(self.stream, &self.line);
        }
    }
}

/// The log of the instance: `MILLISECONDS STREAM TEXT` a line.
struct Log {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Log {
    fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("log");
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size })
    }

    /// A full disk must not stop the program: what cannot be written is lost.
    fn line(&mut self, stream: char, text: &[u8]) {
        let mut line = format!("{} {stream} ", now().as_millis()).into_bytes();
        line.extend_from_slice(text.strip_suffix(b"\r").unwrap_or(text));
        line.push(b'\n');
        if self.size + line.len() as u64 > LOG_BYTES {
            self.rotate();
        }
        if self.file.write_all(&line).is_ok() {
            self.size += line.len() as u64;
        }
    }

    /// Where there is no room for a new file, the old one is gone on with.
    fn rotate(&mut self) {
        let _ = fs::rename(&self.path, self.path.with_extension("1"));
        if let Ok(file) = OpenOptions::new().create(true).append(true).open(&self.path) {
            self.size = file.metadata().map_or(0, |metadata| metadata.len());
            self.file = file;
        }
    }
}

/// When a process started: with the pid it names it for good.
fn start_ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let field = |rest: &str| rest.split_whitespace().nth(19)?.parse().ok();
    stat.rsplit_once(')').and_then(|(_, rest)| field(rest)).unwrap_or(0)
}

/// Since the epoch.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
