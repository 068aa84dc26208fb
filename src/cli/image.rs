//! `epiniod image`: this program as an image, for clusters that have no registry to take it from.

use std::{
    io::{BufWriter, ErrorKind, IsTerminal as _},
    process::ExitCode,
};

use clap::Args;

use super::{
    error::{self, Error},
    ui::Ui,
};
use crate::daemon::own_image;

pub const EXAMPLES: &str = "\
Examples:
  epiniod image > epiniod.tar
  ctr -n k8s.io images import epiniod.tar       each node, containerd
  k3s ctr images import epiniod.tar             each node, k3s
  kind load image-archive epiniod.tar           kind
  k3d image import epiniod.tar                  k3d
  docker load -i epiniod.tar                    Docker";

#[derive(Debug, Args)]
pub struct Image {}

impl Image {
    pub fn run(self, ui: &Ui) -> Result<ExitCode, Error> {
        let out = std::io::stdout();
        if out.is_terminal() {
            return Err(Error::Usage(
                "an image is nothing to read; write it to a file: epiniod image > epiniod.tar".into(),
            ));
        }
        match own_image::write(BufWriter::new(out.lock())) {
            Ok(size) => ui.say(&format!("{}, {}.{} MB", own_image::name(), size / 1_000_000, size / 100_000 % 10)),
            // Who read it has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(source) => return Err(Error::Write { path: "the image to stdout".into(), source }),
        }
        Ok(ExitCode::from(error::OK))
    }
}
