//! `epiniod up`: everything, with one command.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use clap::Args;

use super::{
    authorities,
    client::Client,
    error::{self, Error},
    logs,
    push::{Wishes, push, wait_until_ready},
    serve::daemon_runtime,
    settings,
    ui::{Ui, print},
};
use crate::{
    config::{self, Config, Flags, RunFile},
    daemon::{self, Mode},
    telemetry,
};

/// The name of this program.
const NAME: &str = "epiniod";
/// How long a daemon may take to answer. It waits for object storage for half a minute.
const START: Duration = Duration::from_secs(45);

#[derive(Debug, Args)]
pub struct Up {
    /// Folder or archive to push
    #[arg(default_value = ".", value_name = "PATH")]
    path: PathBuf,
    #[command(flatten)]
    wishes: Wishes,
    /// Leave the daemon running in the background instead of following the log
    #[arg(long, short)]
    detach: bool,
    #[command(flatten)]
    flags: Flags,
}

/// For `--help`.
pub(super) const EXAMPLES: &str = "\
Examples:
  epiniod up                           the folder you are in
  epiniod up ./shop --env STAGE=test   with a variable
  epiniod up --detach ./shop           and leave the daemon running";

/// What a daemon in the foreground logs unless somebody says otherwise.
const LOG: &str = "warn";

impl Up {
    pub fn run(self, ui: &Ui) -> Result<ExitCode, Error> {
        let config = Config::new(self.flags.clone())?;
        let data_dir = config.data_dir.clone();
        let runs = running(&data_dir)?;
        // A password that is made up now is shown once.
        let password = if config.admin_password.is_none() && settings::of_data_dir(&data_dir)?.is_none() {
            Password::MadeUp
        } else {
            Password::Known
        };
        if !runs && !self.detach {
            return self.in_foreground(config, password, ui);
        }
        let runtime = super::client_runtime()?;
        let started = if runs { None } else { Some(self.start_in_background(ui, &data_dir)?) };
        runtime.block_on(async {
            if let Some(mut started) = started {
                started.wait(&data_dir).await?;
            }
            let client = local_client(&data_dir)?;
            password.show(&client, &data_dir, ui);
            let pushed = push(&client, ui, &self.wishes, &self.path).await?;
            print(&pushed.url);
            if self.detach {
                ui.say(&format!("the daemon runs on; stop it with all applications: {}", stop_command(&data_dir)));
                return Ok(ExitCode::from(error::OK));
            }
            logs::follow(&client, ui, &pushed.namespace, &pushed.name).await?;
            Ok(ExitCode::from(error::OK))
        })
    }

    /// The daemon is this process: Ctrl-C stops it, and what it runs.
    fn in_foreground(self, config: Config, password: Password, ui: &Ui) -> Result<ExitCode, Error> {
        authorities::ensure(&config.data_dir)?;
        telemetry::init(config.log.filter.as_deref().unwrap_or(LOG), config.log.format);
        let data_dir = config.data_dir.clone();
        let daemon_failed = |error: tokio::task::JoinError| Error::Runtime(std::io::Error::other(error));
        daemon_runtime()?.block_on(async {
            let mut daemon = tokio::spawn(daemon::run(config, Mode::Up));
            let work = async {
                let deadline = tokio::time::Instant::now() + START;
                while !running(&data_dir)? {
                    if tokio::time::Instant::now() > deadline {
                        return Err(Error::NotReady { seconds: START.as_secs(), log: None });
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let client = local_client(&data_dir)?;
                password.show(&client, &data_dir, ui);
                let pushed = push(&client, ui, &self.wishes, &self.path).await?;
                print(&pushed.url);
                ui.say("following the log; Ctrl-C stops the daemon and its applications");
                logs::follow(&client, ui, &pushed.namespace, &pushed.name).await
            };
            tokio::select! {
                result = &mut daemon => {
                    result.map_err(daemon_failed)??;
                    Ok(ExitCode::from(error::INTERRUPTED))
                }
                result = work => {
                    // The push has failed, or the log has ended: the daemon goes as well.
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGTERM);
                    daemon.await.map_err(daemon_failed)??;
                    result.map(|()| ExitCode::from(error::OK))
                }
            }
        })
    }

    fn start_in_background(&self, ui: &Ui, data_dir: &Path) -> Result<Started, Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Write { path, source }
        };
        fs::create_dir_all(data_dir).map_err(failed(data_dir))?;
        let path = data_dir.join("daemon.log");
        // The password of the first user is shown there.
        let log = fs::File::options().create(true).append(true).mode(0o600).open(&path).map_err(failed(&path))?;
        let before = log.metadata().map_err(failed(&path))?.len();
        let mut command = Command::new(std::env::current_exe().map_err(Error::Runtime)?);
        command.arg("serve").arg("--own-session").args(self.flags.to_args());
        // Who manages this process does not manage that one.
        for name in daemon::MANAGER_VARIABLES {
            command.env_remove(name);
        }
        let errors = log.try_clone().map_err(Error::Runtime)?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors).current_dir("/");
        let child = command.spawn().map_err(Error::Runtime)?;
        ui.say(&format!("started the daemon (pid {}); its log is {}", child.id(), path.display()));
        Ok(Started { child, log: path, before })
    }
}

/// Whether the password of the first user is news.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Password {
    MadeUp,
    Known,
}

impl Password {
    fn show(self, client: &Client, data_dir: &Path, ui: &Ui) {
        if let (Self::MadeUp, Some(password)) = (self, client.settings.password()) {
            let kept = data_dir.join("client.yaml");
            let user = &client.settings.user;
            ui.say(&format!("the password of user {user} is {password}; it is kept in {}", kept.display()));
        }
    }
}

/// A daemon in the background.
struct Started {
    child: Child,
    log: PathBuf,
    /// How long the log was before, in bytes.
    before: u64,
}

impl Started {
    /// Waits until it answers.
    async fn wait(&mut self, data_dir: &Path) -> Result<(), Error> {
        let not_ready = Error::NotReady { seconds: START.as_secs(), log: Some(self.log.clone()) };
        let deadline = tokio::time::Instant::now() + START;
        while !running(data_dir)? {
            if let Some(status) = self.child.try_wait().map_err(Error::Runtime)? {
                return Err(Error::DaemonEnded { status, last_words: self.last_words(), log: self.log.clone() });
            }
            if tokio::time::Instant::now() > deadline {
                return Err(not_ready);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let child = std::cell::RefCell::new(&mut self.child);
        let alive = || child.borrow_mut().try_wait().is_ok_and(|ended| ended.is_none());
        if wait_until_ready(&local_client(data_dir)?, START, alive).await { Ok(()) } else { Err(not_ready) }
    }

    /// What it said why, else the last line that it wrote.
    fn last_words(&self) -> String {
        let mut text = String::new();
        let read = fs::File::open(&self.log).and_then(|mut log| {
            log.seek(SeekFrom::Start(self.before))?;
            log.read_to_string(&mut text)
        });
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let why = lines.iter().rev().find_map(|line| line.strip_prefix("error: "));
        match (read, why.or(lines.last().copied())) {
            (Ok(_), Some(line)) => line.to_owned(),
            _ => "it wrote nothing".to_owned(),
        }
    }
}

fn running(data_dir: &Path) -> Result<bool, Error> {
    let denied = |_| Error::Denied { path: data_dir.to_owned() };
    Ok(RunFile::read(data_dir).map_err(denied)?.is_some())
}

/// What stops a daemon, as it can be typed here.
fn stop_command(data_dir: &Path) -> String {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::current_exe().unwrap_or_else(|_| NAME.into());
    let is_own = |folder: PathBuf| folder.join(NAME).canonicalize().is_ok_and(|found| found == own);
    // The first that is found counts.
    let found = std::env::split_paths(&on_path).find(|folder| folder.join(NAME).is_file());
    let program = if found.is_some_and(is_own) { NAME.to_owned() } else { quoted(&own) };
    // Where a variable names the directory, it may not be set where this is typed.
    let is_default = config::default_data_dir().is_ok_and(|default| default == data_dir);
    let place = if is_default { String::new() } else { format!(" --data-dir {}", quoted(data_dir)) };
    format!("{program} stop --all{place}")
}

/// As a word of the shell.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:,".contains(c);
    if text.chars().all(plain) { text.into_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A client with the credential of the daemon of a data directory.
fn local_client(data_dir: &Path) -> Result<Client, Error> {
    let settings = settings::of_data_dir(data_dir)?;
    Client::new(settings.ok_or_else(|| Error::NoCredential { data_dir: data_dir.to_owned() })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_typed_as_it_is_shown() {
        assert_eq!(quoted(Path::new("/a/b-c.d")), "/a/b-c.d");
        assert_eq!(quoted(Path::new("/it's here")), r"'/it'\''s here'");
    }
}
