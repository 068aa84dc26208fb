//! `epiniod namespaces …`

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    Output, OutputFlag, Target,
    apps::{pretty, text},
    error::{self, Error},
    ui::{Ui, print, table},
};
use crate::model::Namespace;

#[derive(Debug, Subcommand)]
pub enum Namespaces {
    /// List namespaces
    List {
        #[command(flatten)]
        output: OutputFlag,
        #[command(flatten)]
        target: Target,
    },
    /// Create a namespace
    Create {
        /// Name of the namespace
        name: Namespace,
        #[command(flatten)]
        target: Target,
    },
    /// Delete a namespace with all its applications
    Delete {
        /// Name of the namespace
        name: Namespace,
        #[command(flatten)]
        target: Target,
    },
}

impl Namespaces {
    pub async fn run(self, ui: &Ui) -> Result<ExitCode, Error> {
        match self {
            Self::List { output, target } => {
                let all = target.client()?.get("/api/v1/namespaces").await?;
                if output.output == Output::Json {
                    print(&pretty(&all));
                } else {
                    let apps = |value: &Value| value["apps"].as_array().map_or(0, Vec::len).to_string();
                    let row =
                        |value: &Value| vec![text(value, "/meta/name"), apps(value), text(value, "/meta/createdAt")];
                    let rows: Vec<_> = all.as_array().into_iter().flatten().map(row).collect();
                    table(&["NAME", "APPLICATIONS", "CREATED"], &rows);
                }
            }
            Self::Create { name, target } => {
                target.client()?.post("/api/v1/namespaces", &json!({ "name": name })).await?;
                ui.say(&format!("created namespace {name}"));
            }
            Self::Delete { name, target } => {
                target.client()?.delete(&format!("/api/v1/namespaces/{name}"), &Value::Null).await?;
                ui.say(&format!("deleted namespace {name} and all its applications"));
            }
        }
        Ok(ExitCode::from(error::OK))
    }
}
