//! `epiniod registry-relay`: what runs on each node of a cluster whose ports of services do not answer on loopback.

use std::{net::SocketAddr, process::ExitCode};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::error::{self, Error};
use crate::{
    runtime::kube::relay::{Terms, relay},
    telemetry,
};

#[derive(Debug, Args)]
pub struct RegistryRelay {
    /// Address and port on loopback
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Host and port of the registry
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
}

impl RegistryRelay {
    pub async fn run(self) -> Result<ExitCode, Error> {
        telemetry::init("info", telemetry::Format::Text);
        let stop = CancellationToken::new();
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let mut asked = signal(kind).map_err(Error::Runtime)?;
            let stop = stop.clone();
            tokio::spawn(async move {
                asked.recv().await;
                stop.cancel();
            });
        }
        relay(self.listen, self.to, Terms::default(), stop).await?;
        Ok(ExitCode::from(error::OK))
    }
}
