//! `epiniod serve`: the daemon.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{
    authorities,
    error::{self, Error},
};
use crate::{
    config::{Config, Flags},
    daemon::{self, Mode},
    telemetry,
};

#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    flags: Flags,
    /// Leave the terminal's session: for 'up --detach'
    #[arg(long, hide = true)]
    own_session: bool,
}

/// The file, for `--help`.
pub(super) const CONFIG_HELP: &str = "\
Settings file (TOML). Keys, with their defaults where they have one that is not a flag's:
  data_dir, listen, listen_tls, registry_listen, system_domain, debian_mirror, debian_security_mirror,
  build_ca_file, s3_endpoint, s3_bucket, s3_region, s3_ca_file, s3_credentials_file,
  log, log_format                    as the flags; S3 keys are in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,
                                     or in the file of credentials
  [acme]                             directory, email, ca_file as the flags; profile, eab_key_id, eab_key_file
  [[acme.fallback]]                  directory, ca_file, eab_key_id, eab_key_file
  [acme.dns]                         program, resolvers, patience_seconds = 120
  [acme.dns.update]                  server, key_name, key_file, algorithm = hmac-sha256
  [acme.dns.webhook]                 url, token_file
  [edge]
  hsts_seconds                       what browsers are told (Strict-Transport-Security); nothing
  access_log = false                 a line for each request, with its trace (traceparent)
  load_balancers = []                addresses and networks that speak the PROXY protocol
  max_body_bytes                     of a request to an application; no limit
  connections_per_address            no limit
  head_seconds = 30                  for the first request of a connection, and for the head of each
  body_seconds = 60                  how long nothing of a body may arrive; not for gRPC
  idle_seconds = 180                 connections without a new request (websockets stay), and clients that take nothing of
                                     what is sent to them
  compression = false                zstd or gzip, for answers that are not compressed and of a kind that is worth it
  [[edge.route]]                     what holds for the routes of one host
  host                               which
  max_body_bytes, compression        in place of those above
  response_seconds                   until the head of an answer, the request's body included; no limit
  requests_in_flight                 to its application at once, websockets included; no limit
  [sources]
  max_archive_bytes = 4294967296     of an upload
  max_unpacked_bytes = 8589934592    of its files
  max_entries = 500000
  [builds]
  at_once = 2                        others wait
  deadline_seconds = 1800
  memory_bytes = 4294967296          of each
  millicpus                          no limit
  pids = 4096
  scratch_bytes = 1073741824         what it may write besides its volumes
  [instances]
  memory_bytes = 1073741824          of each
  millicpus                          no limit
  pids = 1024
  scratch_bytes = 536870912          what it may write; gone with the instance

Credentials for registries that builders come from (push --builder): registries.json in the data directory, in
the format of ~/.docker/config.json";

/// What is logged unless somebody says otherwise.
const LOG: &str = "info";

impl Serve {
    pub fn run(self) -> Result<ExitCode, Error> {
        if self.own_session {
            nix::unistd::setsid().map_err(|error| Error::Runtime(error.into()))?;
        }
        let config = Config::new(self.flags)?;
        authorities::ensure(&config.data_dir)?;
        telemetry::init(config.log.filter.as_deref().unwrap_or(LOG), config.log.format);
        daemon_runtime()?.block_on(daemon::run(config, Mode::Serve))?;
        Ok(ExitCode::from(error::OK))
    }
}

/// The threads of a daemon, which may have as many files open as its host lets it: each request, upload and instance
/// takes some. What it starts in sandboxes has limits of its own.
pub fn daemon_runtime() -> Result<tokio::runtime::Runtime, Error> {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // A host that refuses leaves it as it was.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(64)
        // Those that were many for a moment take turns, and would never go.
        .thread_keep_alive(Duration::from_secs(1))
        .enable_all()
        .build()
        .map_err(Error::Runtime)
}
