//! What goes wrong, what to do next, and the exit code.

use std::{io, path::PathBuf};

/// Everything went well.
pub const OK: u8 = 0;
/// Something failed that has no code of its own.
pub const FAILED: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// The daemon cannot be reached, or cannot be started.
pub const UNREACHABLE: u8 = 3;
/// The credential is missing or wrong.
pub const UNAUTHORIZED: u8 = 4;
/// The application or namespace does not exist.
pub const NOT_FOUND: u8 = 5;
/// The source was refused, its build failed, or the new version did not come up.
pub const PUSH_FAILED: u8 = 6;
/// Interrupted by Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// For `--help`.
pub(super) const EXIT_CODES_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 daemon not reachable, 4 not authorized, 5 not found,
6 push failed (source refused, build failed, or new version not healthy), 130 interrupted";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the daemon at {address} cannot be reached")]
    Unreachable { address: String, source: reqwest::Error },
    #[error("the connection to the daemon ended early")]
    Broken(#[source] reqwest::Error),
    #[error("the log cannot be followed: {0}")]
    Websocket(String),
    #[error("{title}")]
    Api { status: u16, title: String, details: String },
    #[error("the daemon's answer cannot be read")]
    Malformed(#[source] serde_json::Error),
    #[error("nobody is logged in, and no daemon of this machine was found in {}", data_dir.display())]
    NoCredential { data_dir: PathBuf },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the settings file {} is not valid: {cause}", path.display())]
    Settings { path: PathBuf, cause: String },
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Push(String),
    #[error("the source cannot be packed")]
    Pack(#[from] crate::source::Error),
    #[error("the settings are not valid")]
    Config(#[from] crate::config::Error),
    #[error("the daemon cannot run")]
    Daemon(#[from] crate::daemon::Error),
    #[error("the daemon did not answer within {seconds} s")]
    NotReady { seconds: u64, log: Option<PathBuf> },
    #[error("no daemon runs with the data directory {}", .0.display())]
    NotRunning(PathBuf),
    #[error("the daemon (pid {pid}) did not stop within {seconds} s")]
    StillRunning { pid: i32, seconds: u64 },
    #[error("the process cannot be set up")]
    Runtime(#[source] io::Error),
}

impl Error {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. } | Self::NotReady { .. } | Self::Daemon(_) | Self::NotRunning(_) => UNREACHABLE,
            Self::Api { status: 401 | 403, .. } | Self::NoCredential { .. } => UNAUTHORIZED,
            Self::Api { status: 404, .. } => NOT_FOUND,
            Self::Usage(_) | Self::Config(_) => USAGE,
            Self::Push(_) | Self::Pack(_) => PUSH_FAILED,
            _ => FAILED,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::Unreachable { .. } => "start a daemon with 'epiniod serve', or name another one with 'epiniod login URL'".to_owned(),
            Self::Broken(_) | Self::Websocket(_) => "look whether the daemon still runs with 'epiniod info', then repeat the command".to_owned(),
            Self::Api { status: 401 | 403, .. } => "log in with 'epiniod login'".to_owned(),
            Self::Api { status: 404, .. } => "look at what there is with 'epiniod apps list' and 'epiniod namespaces list'".to_owned(),
            Self::Api { status: 500.., .. } => "the daemon's log says more".to_owned(),
            Self::Api { .. } => "correct what the message names, and repeat the command".to_owned(),
            Self::Malformed(_) => "is it an epiniod or Epinio API that you are logged in to? See 'epiniod info'".to_owned(),
            Self::NoCredential { .. } => "start a daemon with 'epiniod up' or 'epiniod serve', name its --data-dir, or log in with 'epiniod login URL'".to_owned(),
            Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run the command as the user that the daemon runs as, or log in with 'epiniod login'".to_owned()
            }
            Self::Read { .. } | Self::Write { .. } => "check the path and its permissions".to_owned(),
            Self::Settings { .. } => "correct the file, or delete it and log in again with 'epiniod login'".to_owned(),
            Self::Usage(_) => "see 'epiniod help'".to_owned(),
            Self::Push(_) => "correct what the log above says, and push again".to_owned(),
            Self::Pack(_) => "correct the folder, or leave the file out by naming it in .epinioignore".to_owned(),
            Self::Config(_) => "see 'epiniod serve --help'".to_owned(),
            Self::Daemon(error) => daemon_hint(error),
            Self::NotReady { log: Some(log), .. } => format!("see its log in {}", log.display()),
            Self::NotReady { log: None, .. } => "see its log above".to_owned(),
            Self::NotRunning(_) => "nothing is to be done; another daemon is named by --data-dir".to_owned(),
            Self::StillRunning { pid, .. } => format!("see its log, or end it with 'kill -9 {pid}'"),
            Self::Runtime(_) => "check the limits of this user (ulimit)".to_owned(),
        }
    }
}

fn daemon_hint(error: &crate::daemon::Error) -> String {
    use crate::daemon::Error;
    match error {
        Error::Listen { flag, source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
            format!("something listens there already; choose another address with {flag}")
        }
        Error::Listen { flag, .. } => format!("choose an address of this machine that this user may listen on with {flag}"),
        Error::DataDir { .. } | Error::Credential { .. } => "choose another directory with --data-dir".to_owned(),
        Error::Runtime(_) => "sandboxes need Linux 5.12 or newer with user namespaces, and a data directory on a plain disk (ext4, xfs, btrfs)".to_owned(),
        _ => "the message names what to correct".to_owned(),
    }
}

/// An error with its causes.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
