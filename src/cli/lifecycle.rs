//! `epiniod lifecycle PHASE`: what runs inside the sandboxes of a build. Here the rooms meet that must not know each other.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use crate::{
    buildpacks,
    lifecycle::{self, Hooks},
    source,
};

#[derive(Debug, Args)]
pub struct Lifecycle {
    /// prepare, detect, build or export
    phase: String,
    /// Where the places of the specification are: below this folder
    #[arg(long, default_value = "/", hide = true)]
    root: PathBuf,
}

impl Lifecycle {
    pub fn run(self) -> ExitCode {
        let hooks = Hooks {
            unpack: |archive, dest, max_unpacked_bytes, max_entries, user| {
                let limits = source::Limits { max_unpacked_bytes, max_entries, ..source::Limits::default() };
                let owner = nix::unistd::Uid::effective().is_root().then_some((user.uid, user.gid));
                source::unpack(archive, dest, limits, owner).map_err(|error| crate::telemetry::chain(&error))
            },
            install_buildpacks: buildpacks::install,
        };
        lifecycle::run(&self.phase, &self.root, &hooks)
    }
}
