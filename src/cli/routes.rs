//! `epiniod routes`

use std::process::ExitCode;

use serde_json::Value;

use super::{
    Output, OutputFlag, Target,
    apps::{pretty, text},
    error::{self, Error},
    ui::{print, table},
};

#[derive(Debug, clap::Args)]
pub struct Routes {
    #[command(flatten)]
    output: OutputFlag,
    #[command(flatten)]
    target: Target,
}

impl Routes {
    pub async fn run(self) -> Result<ExitCode, Error> {
        let all = self.target.client()?.get("/daemon/routes").await?;
        if self.output.output == Output::Json {
            print(&pretty(&all));
        } else {
            let rows: Vec<_> = all.as_array().into_iter().flatten().map(row).collect();
            table(&["ROUTE", "APPLICATION", "INSTANCES", "CERTIFICATE", "EXPIRES", "DETAILS"], &rows);
        }
        Ok(ExitCode::from(error::OK))
    }
}

fn row(line: &Value) -> Vec<String> {
    let app = match text(line, "/app").as_str() {
        "" => "(API)".to_owned(),
        app => format!("{}/{app}", text(line, "/namespace")),
    };
    let instances = if line["app"] == "" { String::new() } else { line["instances"].to_string() };
    let issuer = match (text(line, "/certificate/state"), text(line, "/certificate/issuer")) {
        (state, _) if state.is_empty() => "none".to_owned(),
        (state, issuer) if issuer.is_empty() => state,
        (state, issuer) => format!("{state}, {}", host(&issuer)),
    };
    let details = [text(line, "/certificate/message"), text(line, "/reason")];
    let details: Vec<_> = details.into_iter().filter(|part| !part.is_empty()).collect();
    let route = format!("{}{}", text(line, "/host"), text(line, "/path"));
    vec![route, app, instances, issuer, text(line, "/certificate/expires"), details.join("; ")]
}

/// Of the URL of a directory.
fn host(issuer: &str) -> &str {
    issuer.strip_prefix("https://").and_then(|rest| rest.split('/').next()).unwrap_or(issuer)
}
