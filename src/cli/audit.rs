//! `epiniod audit`: who changed what.

use std::process::ExitCode;

use clap::Args;

use super::{
    Target,
    error::{self, Error},
    ui::{Ui, print},
};

#[derive(Debug, Args)]
pub struct Audit {
    /// How many lines, the newest last
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    lines: usize,
    #[command(flatten)]
    target: Target,
}

impl Audit {
    pub async fn run(self, _ui: &Ui) -> Result<ExitCode, Error> {
        let text = self.target.client()?.text(&format!("/daemon/audit?lines={}", self.lines)).await?;
        text.lines().for_each(print);
        Ok(ExitCode::from(error::OK))
    }
}
