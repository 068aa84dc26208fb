//! `epiniod serve`: the daemon.

use std::process::ExitCode;

use clap::Args;

use super::error::{self, Error};
use crate::{
    config::{Config, Flags},
    daemon::{self, Mode},
    telemetry,
};

#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    pub flags: Flags,
    /// What is logged, as tracing has it (info, debug, epiniod::edge=debug)
    #[arg(long, env = "EPINIOD_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

impl Serve {
    pub fn run(self) -> Result<ExitCode, Error> {
        telemetry::init(&self.log);
        let config = Config::new(self.flags)?;
        daemon_runtime()?.block_on(daemon::run(config, Mode::Serve))?;
        Ok(ExitCode::from(error::OK))
    }
}

/// The threads of a daemon.
pub fn daemon_runtime() -> Result<tokio::runtime::Runtime, Error> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(64)
        .enable_all()
        .build()
        .map_err(Error::Runtime)
}
