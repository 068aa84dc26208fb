//! A daemon that a test may push to, kill and start again.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// What a failed wait says it waited for.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// A user who is nobody on this machine.
const NOBODY: u32 = 12_345;

/// Whose packages a daemon uses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Packages {
    /// Those that all tests have downloaded.
    Shared,
    /// None: everything is downloaded.
    Own,
}

/// Who runs a daemon.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum RunBy {
    /// Who runs the tests.
    Caller,
    /// A user without rights, where root runs the tests.
    Nobody,
}

/// What a daemon finds around it.
#[derive(Default)]
pub struct Surroundings {
    pub environment: Vec<(&'static str, String)>,
    /// Of the API and of applications; else any that is free.
    pub port: Option<u16>,
    /// Octal, as the shell has it.
    pub umask: Option<&'static str>,
    /// Of the user admin, where it is to be no other daemon's.
    pub password: Option<String>,
}

pub struct Daemon {
    dir: TempDir,
    program: PathBuf,
    run_by: RunBy,
    surroundings: Surroundings,
    pub port: u16,
    pub registry_port: u16,
    pub password: String,
    child: Option<Child>,
    /// Ends what is left when this process does, however it does.
    reaper: Option<Child>,
}

impl Daemon {
    /// A daemon with an empty data directory.
    pub fn start() -> Self {
        // The first one fetches the packages that all need; the others find them.
        static WARM: std::sync::Once = std::sync::Once::new();
        WARM.call_once(|| {
            let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps/procfile");
            Self::start_with(Packages::Shared, RunBy::Caller).push("warm", &sample);
        });
        Self::start_with(Packages::Shared, RunBy::Caller)
    }

    /// A daemon with an empty data directory, and perhaps no packages or no rights.
    pub fn start_with(packages: Packages, run_by: RunBy) -> Self {
        Self::start_in(Surroundings::default(), packages, run_by)
    }

    /// The same, in other surroundings than those of the tests.
    pub fn start_in(surroundings: Surroundings, packages: Packages, run_by: RunBy) -> Self {
        let mut daemon = Self::idle_in(surroundings, packages, run_by);
        daemon.resume();
        daemon
    }

    /// A place for a daemon that the test starts itself.
    pub fn idle() -> Self {
        Self::idle_in(Surroundings::default(), Packages::Shared, RunBy::Caller)
    }

    /// The same, in other surroundings.
    pub fn idle_in(surroundings: Surroundings, packages: Packages, run_by: RunBy) -> Self {
        let dir = tempfile::Builder::new().prefix("epiniod-test-").tempdir_in(scratch()).expect("a temporary folder");
        let run_by = if nix::unistd::Uid::effective().is_root() { run_by } else { RunBy::Caller };
        let mut daemon = Self {
            program: program(&dir, run_by),
            run_by,
            port: surroundings.port.unwrap_or_else(free_port),
            password: surroundings.password.clone().unwrap_or_else(|| "the-password-of-tests".to_owned()),
            surroundings,
            registry_port: free_port(),
            child: None,
            reaper: None,
            dir,
        };
        if packages == Packages::Shared {
            daemon.share_package_cache();
        }
        daemon.reaper = Some(daemon.start_reaper());
        daemon
    }

    /// Starts the daemon again, on the same ports and data.
    pub fn resume(&mut self) {
        let log =
            fs::File::options().create(true).append(true).open(self.dir.path().join("daemon.log")).expect("a log");
        let child = self
            .serve()
            .env("EPINIOD_ADMIN_PASSWORD", &self.password)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the daemon starts");
        self.child = Some(child);
        self.wait_until_ready();
    }

    fn serve(&self) -> Command {
        let mut command = self.command(["serve"]);
        command.envs(self.surroundings.environment.iter().cloned());
        let Some(umask) = self.surroundings.umask else { return command };
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "umask \"$1\"; exec \"$0\" serve"]).arg(&self.program).arg(umask);
        for (name, value) in command.get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        shell
    }

    /// Waits for the end of a daemon that was told to stop.
    pub fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running daemon");
        let mut status = None;
        super::wait_until("the daemon has ended", START_DEADLINE, || {
            status = child.try_wait().expect("its status");
            status.is_some()
        });
        status.expect("it was waited for")
    }

    pub fn signal(&self, signal: Signal) {
        send(self.child.as_ref().expect("a running daemon"), signal);
    }

    /// SIGKILL: what a crash is.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a running daemon");
        child.kill().expect("the daemon can be killed");
        child.wait().expect("the daemon can be reaped");
    }

    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running daemon").id()
    }

    /// Stops the daemon and all applications, as a user does.
    pub fn stop(&mut self) {
        self.run(["stop", "--all"]);
        self.ended();
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The command line, told where this daemon is.
    pub fn command<const N: usize>(&self, args: [&str; N]) -> Command {
        let mut command = Command::new(&self.program);
        if self.run_by == RunBy::Nobody {
            command.uid(NOBODY).gid(NOBODY).env("HOME", self.dir.path());
        }
        command
            .args(args)
            .env("EPINIOD_DATA_DIR", self.data_dir())
            .env("EPINIOD_LISTEN", format!("127.0.0.1:{}", self.port))
            .env("EPINIOD_REGISTRY_LISTEN", format!("127.0.0.1:{}", self.registry_port))
            .env("EPINIO_SETTINGS", self.dir.path().join("settings.yaml"))
            .env("NO_COLOR", "1");
        command
    }

    /// Runs a command that has to succeed; its stdout.
    pub fn run<const N: usize>(&self, args: [&str; N]) -> String {
        let output = self.output(args);
        assert!(
            output.status.success(),
            "epiniod {args:?} failed with {}:\n{}{}\n--- daemon\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log_tail(),
        );
        String::from_utf8(output.stdout).expect("text")
    }

    pub fn output<const N: usize>(&self, args: [&str; N]) -> Output {
        self.command(args).output().expect("the command runs")
    }

    /// Pushes a folder; the URL.
    pub fn push(&self, name: &str, path: &Path) -> String {
        let stdout = self.run(["push", "--name", name, "--path", path.to_str().expect("a path in UTF-8")]);
        assert_eq!(stdout.lines().count(), 1, "push prints one line, the URL: {stdout:?}");
        stdout.trim().to_owned()
    }

    pub fn api(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The URL of an application's default route.
    pub fn url(&self, app: &str) -> String {
        format!("http://{app}.localhost:{}", self.port)
    }

    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + START_DEADLINE;
        while Instant::now() < deadline {
            if super::get(&self.api("/ready")).is_ok_and(|response| response.status == 200) {
                return;
            }
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                panic!("the daemon ended with {status}:\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the daemon did not answer on /ready within {START_DEADLINE:?}:\n{}", self.log_tail());
    }

    /// All daemons of the tests use the same downloaded packages: the mirror is asked once.
    fn share_package_cache(&self) {
        let shared = scratch().join("epiniod-test-packages");
        let cache = self.data_dir().join("cache/debian");
        fs::create_dir_all(&shared).expect("a folder for packages");
        fs::create_dir_all(&cache).expect("a folder for caches");
        std::os::unix::fs::symlink(shared, cache.join("files")).expect("a link to the packages");
    }

    /// A shell whose stdin ends with this process: then it stops the daemon and every application.
    fn start_reaper(&self) -> Child {
        let script = r#"cat >/dev/null
            "$0" stop --all >/dev/null 2>&1
            rm -rf "$1""#;
        let mut command = self.command([]);
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", script]).arg(&self.program).arg(self.dir.path());
        for (name, value) in command.env("unused", "").get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a shell")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the last lines of the daemon's log:\n{}", self.log_tail());
        }
        if let Some(mut reaper) = self.reaper.take() {
            drop(reaper.stdin.take());
            let _ = reaper.wait();
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The program, where who runs it may read it; the folder is theirs.
fn program(dir: &TempDir, run_by: RunBy) -> PathBuf {
    let built = PathBuf::from(super::epiniod());
    if run_by == RunBy::Caller {
        return built;
    }
    let program = dir.path().join("epiniod");
    fs::hard_link(&built, &program).or_else(|_| fs::copy(&built, &program).map(drop)).expect("a copy");
    chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("root may give folders away");
    program
}

/// Where tests keep their files: a real disk, as overlay needs one.
pub(super) fn scratch() -> PathBuf {
    std::env::var_os("EPINIOD_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// Below those that the kernel gives to connections and rootless daemons to instances, and each only once: a daemon that is started again finds it free.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let offset = (std::process::id() * 64 + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        let port = 10_000 + u16::try_from(offset).expect("a small number");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Sends a signal to a child of this process.
pub fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    kill(pid, signal).expect("a child can be sent signals");
}

/// Writes a file of a test application.
pub fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::File::create(path).and_then(|mut file| file.write_all(text.as_bytes())).expect("a file");
}
