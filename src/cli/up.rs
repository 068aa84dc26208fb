//! `epiniod up`: everything, with one command.

use std::{
    fs,
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
    config::{Config, Flags, RunFile},
    daemon::{self, Mode},
    telemetry,
};

/// How long a daemon may take to answer.
const START: Duration = Duration::from_secs(30);

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
        let runs = RunFile::read(&data_dir).is_some();
        if !runs && !self.detach {
            return self.in_foreground(config, ui);
        }
        let runtime = super::client_runtime()?;
        let started = if runs { None } else { Some(self.start_in_background(ui, &data_dir)?) };
        runtime.block_on(async {
            if let Some((child, log)) = started {
                wait_for(&data_dir, child, log).await?;
            }
            let client = local_client(&data_dir)?;
            let pushed = push(&client, ui, &self.wishes, &self.path).await?;
            print(&pushed.url);
            if self.detach {
                let stop = if self.flags.data_dir.is_some() {
                    format!(" --data-dir {}", data_dir.display())
                } else {
                    String::new()
                };
                ui.say(&format!("the daemon runs on; stop it with all applications: epiniod stop --all{stop}"));
                return Ok(ExitCode::from(error::OK));
            }
            logs::follow(&client, ui, &pushed.namespace, &pushed.name).await?;
            Ok(ExitCode::from(error::OK))
        })
    }

    /// The daemon is this process: Ctrl-C stops it, and what it runs.
    fn in_foreground(self, config: Config, ui: &Ui) -> Result<ExitCode, Error> {
        authorities::ensure(&config.data_dir)?;
        telemetry::init(config.log.filter.as_deref().unwrap_or(LOG), config.log.format);
        let data_dir = config.data_dir.clone();
        let daemon_failed = |error: tokio::task::JoinError| Error::Runtime(std::io::Error::other(error));
        daemon_runtime()?.block_on(async {
            let mut daemon = tokio::spawn(daemon::run(config, Mode::Up));
            let work = async {
                let deadline = tokio::time::Instant::now() + START;
                while RunFile::read(&data_dir).is_none() {
                    if tokio::time::Instant::now() > deadline {
                        return Err(Error::NotReady { seconds: START.as_secs(), log: None });
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let client = local_client(&data_dir)?;
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

    fn start_in_background(&self, ui: &Ui, data_dir: &Path) -> Result<(Child, PathBuf), Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Write { path, source }
        };
        fs::create_dir_all(data_dir).map_err(failed(data_dir))?;
        let path = data_dir.join("daemon.log");
        // The password of the first user is shown there.
        let log = fs::File::options().create(true).append(true).mode(0o600).open(&path).map_err(failed(&path))?;
        let mut command = Command::new(std::env::current_exe().map_err(Error::Runtime)?);
        command.arg("serve").arg("--own-session").args(self.flags.to_args());
        let errors = log.try_clone().map_err(Error::Runtime)?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors).current_dir("/");
        let child = command.spawn().map_err(Error::Runtime)?;
        ui.say(&format!("started the daemon (pid {}); its log is {}", child.id(), path.display()));
        Ok((child, path))
    }
}

/// Waits until the daemon of a data directory answers.
async fn wait_for(data_dir: &Path, child: Child, log: PathBuf) -> Result<(), Error> {
    let child = std::cell::RefCell::new(child);
    let alive = || child.borrow_mut().try_wait().is_ok_and(|ended| ended.is_none());
    let not_ready = || Error::NotReady { seconds: START.as_secs(), log: Some(log.clone()) };
    let deadline = tokio::time::Instant::now() + START;
    while RunFile::read(data_dir).is_none() {
        if !alive() || tokio::time::Instant::now() > deadline {
            return Err(not_ready());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if wait_until_ready(&local_client(data_dir)?, START, alive).await { Ok(()) } else { Err(not_ready()) }
}

/// A client with the credential of the daemon of a data directory.
fn local_client(data_dir: &Path) -> Result<Client, Error> {
    let settings = settings::of_data_dir(data_dir)?;
    Client::new(settings.ok_or_else(|| Error::NoCredential { data_dir: data_dir.to_owned() })?)
}
