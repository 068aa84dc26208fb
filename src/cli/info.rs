//! `epiniod info`: what answers, and what it can do.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::{
    Output, OutputFlag, Target,
    apps::{pretty, text},
    error::{self, Error},
    ui::{Ui, print},
};

#[derive(Debug, Args)]
pub struct Info {
    #[command(flatten)]
    output: OutputFlag,
    #[command(flatten)]
    target: Target,
}

impl Info {
    pub async fn run(self, _ui: &Ui) -> Result<ExitCode, Error> {
        let client = self.target.client()?;
        let info = client.get("/api/v1/info").await?;
        if self.output.output == Output::Json {
            print(&pretty(&info));
            return Ok(ExitCode::from(error::OK));
        }
        print(&format!("{:16} {}", "api", client.settings.api));
        print(&format!("{:16} {}", "user", client.settings.user));
        print(&format!("{:16} {}", "epinio version", text(&info, "/version")));
        print(&format!("{:16} {}", "epiniod version", text(&info, "/epiniod/version")));
        for (name, value) in info.pointer("/epiniod/runtime").and_then(Value::as_object).into_iter().flatten() {
            print(&format!("{name:16} {}", value.as_str().unwrap_or_default()));
        }
        Ok(ExitCode::from(error::OK))
    }
}
