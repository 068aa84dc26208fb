//! `epiniod stop`: ends the daemon of this machine.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    client::Client,
    error::{self, Error},
    settings,
    ui::Ui,
};
use crate::config::{self, Mode, RunFile};

/// How long a daemon may take to drain.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct Stop {
    /// Stop all applications as well
    #[arg(long)]
    all: bool,
    /// Data directory of the daemon
    #[arg(long, env = "EPINIOD_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Stop {
    pub async fn run(self, ui: &Ui) -> Result<ExitCode, Error> {
        let data_dir = config::data_dir(self.data_dir)?;
        let denied = |_| Error::Denied { path: data_dir.clone() };
        let running = RunFile::read(&data_dir).map_err(denied)?;
        let daemon = running.ok_or_else(|| Error::NotRunning(data_dir.clone()))?;
        if self.all {
            // Variables may name another daemon: that one is not meant.
            let own = settings::of_data_dir(&data_dir)?.ok_or(Error::NoCredential { data_dir })?;
            Client::new(own)?.post("/daemon/stop", &Value::Null).await?;
        } else {
            match kill(Pid::from_raw(daemon.pid), Signal::SIGTERM) {
                // It has ended just now.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(Errno::EPERM) => return Err(Error::NotOurs { pid: daemon.pid }),
                Err(error) => return Err(Error::Runtime(error.into())),
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while daemon.is_alive() {
            if Instant::now() > deadline {
                return Err(Error::StillRunning { pid: daemon.pid, seconds: PATIENCE.as_secs() });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ui.say(if self.all || daemon.mode == Mode::Up {
            "stopped the daemon and all applications"
        } else {
            "stopped the daemon; applications run on"
        });
        Ok(ExitCode::from(error::OK))
    }
}
