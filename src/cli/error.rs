//! What goes wrong, what to do next, and the exit code.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::runtime::kube::{install, relay};

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
/// The source was refused, or its build failed.
pub const STAGING_FAILED: u8 = 6;
/// It was built, but the new version did not come up; what ran before still does.
pub const DEPLOY_FAILED: u8 = 7;
/// Interrupted by Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// For `--help`.
pub(super) const EXIT_CODES_HELP: &str = "\
Exit codes:
    0  done
    1  failed
    2  wrong usage, or settings that are not valid
    3  the daemon cannot be reached, or cannot be started
    4  not authorized
    5  the application or namespace does not exist
    6  the source was refused, or its build failed
    7  the new version did not come up; what ran before still does
  130  interrupted by Ctrl-C";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the daemon at {address} cannot be reached: {cause}")]
    Unreachable { address: String, cause: String },
    /// Somebody else answers in its place.
    #[error("no daemon serves at {address} just now; what is there answers {status}")]
    NotServed { address: String, status: u16 },
    #[error("the connection to the daemon ended early")]
    Broken(#[source] reqwest::Error),
    #[error("the connection to the daemon cannot be used: {0}")]
    Websocket(String),
    #[error("{title}")]
    Api { status: u16, title: String, details: String },
    #[error("the daemon's answer cannot be read")]
    Malformed(#[source] serde_json::Error),
    #[error("nobody is logged in, and no daemon of this machine was found in {}", data_dir.display())]
    NoCredential { data_dir: PathBuf },
    #[error("this user may not read {}", path.display())]
    Denied { path: PathBuf },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the settings file {} is not valid: {cause}", path.display())]
    Settings { path: PathBuf, cause: String },
    #[error("{0}")]
    Usage(String),
    /// The cause, as the daemon said it.
    #[error("{0}")]
    Staging(String),
    #[error("{cause}")]
    Deploy { cause: String, details: String },
    #[error("the source cannot be packed")]
    Pack(#[from] crate::source::Error),
    #[error(transparent)]
    Config(#[from] crate::config::Error),
    #[error("the daemon cannot run")]
    Daemon(#[from] crate::daemon::Error),
    #[error("the daemon did not answer within {seconds} s")]
    NotReady { seconds: u64, log: Option<PathBuf> },
    #[error("the daemon ended with {status}: {last_words}")]
    DaemonEnded { status: std::process::ExitStatus, last_words: String, log: PathBuf },
    #[error("the daemon (pid {pid}) belongs to another user")]
    NotOurs { pid: i32 },
    #[error("no daemon runs with the data directory {}", .0.display())]
    NotRunning(PathBuf),
    #[error("the daemon (pid {pid}) did not stop within {seconds} s")]
    StillRunning { pid: i32, seconds: u64 },
    #[error(transparent)]
    Cluster(#[from] install::Error),
    #[error(transparent)]
    Relay(#[from] relay::Error),
    #[error("the process cannot be set up")]
    Runtime(#[source] io::Error),
}

impl Error {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. }
            | Self::NotServed { .. }
            | Self::Cluster(install::Error::Unreachable { .. } | install::Error::NotReady { .. })
            | Self::NotReady { .. }
            | Self::Daemon(_)
            | Self::DaemonEnded { .. }
            | Self::NotRunning(_) => UNREACHABLE,
            Self::Api { status: 401 | 403, .. }
            | Self::NoCredential { .. }
            | Self::Denied { .. }
            | Self::NotOurs { .. }
            | Self::Cluster(install::Error::Forbidden { .. }) => UNAUTHORIZED,
            Self::Api { status: 404, .. } => NOT_FOUND,
            Self::Usage(_)
            | Self::Config(_)
            | Self::Settings { .. }
            | Self::Relay(relay::Error::Open(_))
            | Self::Cluster(install::Error::Undecided { .. }) => USAGE,
            Self::Staging(_) | Self::Pack(_) => STAGING_FAILED,
            Self::Deploy { .. } => DEPLOY_FAILED,
            Self::Api { .. }
            | Self::Broken(_)
            | Self::Websocket(_)
            | Self::Malformed(_)
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::StillRunning { .. }
            | Self::Cluster(_)
            | Self::Relay(relay::Error::Listen { .. })
            | Self::Runtime(_) => FAILED,
        }
    }

    /// What belongs to the message, and is longer than a line.
    pub fn details(&self) -> Option<&str> {
        match self {
            Self::Api { details, .. }
            | Self::Deploy { details, .. }
            | Self::Cluster(install::Error::NotReady { details, .. })
                if !details.is_empty() =>
            {
                Some(details)
            }
            _ => None,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> String {
        let hint = match self {
            Self::Unreachable { .. } => {
                "start a daemon with 'epiniod serve', or name another one with 'epiniod login URL'"
            }
            Self::NotServed { .. } => {
                "is it the address of a daemon? In a cluster another one takes over within half a minute"
            }
            Self::Broken(_) | Self::Websocket(_) => {
                "look whether the daemon still runs with 'epiniod info', then repeat the command"
            }
            Self::Api { status: 403, .. } => "use a token that reaches further, or log in with 'epiniod login URL'",
            Self::Api { status: 401, .. } => "log in with 'epiniod login URL'",
            Self::Api { status: 404, .. } => {
                "look at what there is with 'epiniod apps list --all' and 'epiniod namespaces list'"
            }
            Self::Api { status: 502, .. } => {
                "the message names what does not answer; see its log with 'epiniod apps logs NAME'"
            }
            Self::Api { status: 429, .. } => {
                "wait as long as the message says; tokens ('epiniod tokens create') are not held up by wrong passwords"
            }
            Self::Api { status: 500.., .. } => "the daemon's log says more",
            Self::Api { .. } => "correct what the message names, and repeat the command",
            Self::Malformed(_) => "is it an epiniod or Epinio API that you are logged in to? See 'epiniod info'",
            Self::NoCredential { data_dir } => return no_credential_hint(data_dir),
            Self::Denied { .. } => {
                "run the command as the user that the daemon runs as, or log in with 'epiniod login URL'"
            }
            Self::Read { .. } | Self::Write { .. } => "check the path and its permissions",
            Self::Settings { .. } => "correct the file, or delete it and log in again with 'epiniod login URL'",
            Self::Usage(_) => "see 'epiniod help'",
            Self::Staging(_) => "correct what the log above says, and push again",
            Self::Deploy { .. } => "see 'epiniod apps logs NAME'; correct the application, and push again",
            Self::Pack(_) => "correct the folder, or leave the file out by naming it in .epinioignore",
            Self::Config(_) => "correct them; 'epiniod serve --help' has all settings",
            Self::Daemon(error) => return daemon_hint(error),
            Self::NotReady { log: Some(log), .. } | Self::DaemonEnded { log, .. } => {
                return format!("see its log in {}", log.display());
            }
            Self::NotReady { log: None, .. } => "see its log above",
            Self::NotRunning(_) => {
                "another daemon is named by --data-dir; applications that still run are stopped by \
                 'epiniod serve' and then 'epiniod stop --all'"
            }
            Self::NotOurs { .. } => "run the command as that user, or with sudo",
            Self::StillRunning { pid, .. } => return format!("see its log, or end it with 'kill -9 {pid}'"),
            Self::Cluster(error) => return cluster_hint(error),
            Self::Relay(relay::Error::Open(_)) => "give an address such as 127.0.0.1:30500",
            Self::Relay(relay::Error::Listen { .. }) => {
                "another program has the port: 'ss -ltnp' on the node says which"
            }
            Self::Runtime(_) => "check the limits of this user (ulimit)",
        };
        hint.to_owned()
    }
}

fn no_credential_hint(data_dir: &Path) -> String {
    let of_root = Path::new(crate::config::ROOT_DATA_DIR);
    if data_dir != of_root && of_root.exists() {
        return "a daemon of root seems to be here: log in with 'epiniod login http://epinio.localhost:8080', or use sudo"
            .to_owned();
    }
    "start a daemon with 'epiniod up' or 'epiniod serve', name its --data-dir, or log in with 'epiniod login URL'"
        .to_owned()
}

fn daemon_hint(error: &crate::daemon::Error) -> String {
    use crate::daemon::Error;
    match error {
        Error::Listen { flag, source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
            format!("something listens there already; choose another address with {flag}")
        }
        Error::Listen { flag, .. } => {
            format!("choose an address of this machine that this user may listen on with {flag}")
        }
        Error::DataDir { .. } | Error::Credential { .. } => "choose another directory with --data-dir".to_owned(),
        Error::Runtime(_) => {
            "sandboxes need Linux 5.12 or newer with user namespaces, and a data directory on a plain \
                              disk (ext4, xfs, btrfs)"
                .to_owned()
        }
        _ => "the message names what to correct".to_owned(),
    }
}

fn cluster_hint(error: &install::Error) -> String {
    use install::Error;
    match error {
        Error::Unreachable { .. } => {
            "look whether 'kubectl version' answers; another cluster is named by --kubeconfig and --context"
        }
        Error::Forbidden { .. } => {
            "the one who installs has to be an administrator of the cluster (cluster-admin); epiniod itself is not one"
        }
        Error::Undecided { choices, .. } => choices,
        Error::NotReady { next, .. } => next,
        Error::Failed { .. } => "correct what the message names, and repeat the command: it goes on where it was",
        Error::Left { .. } => "look at it with 'kubectl describe', and repeat the command: it goes on where it was",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_the_help() {
        let codes =
            [OK, FAILED, USAGE, UNREACHABLE, UNAUTHORIZED, NOT_FOUND, STAGING_FAILED, DEPLOY_FAILED, INTERRUPTED];
        let documented: Vec<u8> =
            EXIT_CODES_HELP.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
        assert_eq!(documented, codes);
    }

    #[test]
    fn who_is_who_decides_the_code() {
        let api = |status| Error::Api { status, title: "x".to_owned(), details: String::new() }.exit_code();
        assert_eq!([api(401), api(403), api(404), api(409), api(500)], [4, 4, 5, 1, 1]);
        assert_eq!(Error::Staging(String::new()).exit_code(), 6);
        assert_eq!(Error::Deploy { cause: String::new(), details: String::new() }.exit_code(), 7);
    }
}
