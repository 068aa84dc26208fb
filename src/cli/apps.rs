//! `epiniod apps …`

use std::{net::IpAddr, process::ExitCode};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    InNamespace, Output, OutputFlag, Target,
    client::Client,
    error::{self, Error},
    exec,
    logs::{self, Log},
    port_forward::{Forward, Ports},
    ui::{Ui, print, table},
};
use crate::model::{AppName, EnvName, Namespace};

#[derive(Debug, Subcommand)]
pub enum Apps {
    /// List applications
    List {
        /// Of all namespaces
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        output: OutputFlag,
        #[command(flatten)]
        place: Place,
    },
    /// Show everything about an application
    Show {
        /// Name of the application
        name: AppName,
        #[command(flatten)]
        output: OutputFlag,
        #[command(flatten)]
        place: Place,
    },
    /// Print the log of an application, or of its last staging
    Logs {
        /// Name of the application
        name: AppName,
        /// Go on until Ctrl-C
        #[arg(long, short)]
        follow: bool,
        /// The log of the last staging
        #[arg(long)]
        staging: bool,
        /// Only the last lines
        #[arg(long, value_name = "LINES")]
        tail: Option<u32>,
        #[command(flatten)]
        place: Place,
    },
    /// Run a command beside an application, with its files, environment and limits
    ///
    /// Without a command a shell is started. In a terminal the command has one too; elsewhere
    /// stdin, stdout and stderr are its own. The exit code is that of the command.
    #[command(verbatim_doc_comment, after_help = EXEC_EXAMPLES)]
    Exec {
        /// Name of the application
        name: AppName,
        /// Instance, as 'apps show' has it [default: the first that is ready]
        #[arg(long, short, value_name = "NAME")]
        instance: Option<String>,
        /// Command and its arguments
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Listen here for ports of an application, until Ctrl-C
    ///
    /// Every connection is carried by the daemon to the port of the instance, also to one that
    /// is open to the instance itself only.
    #[command(verbatim_doc_comment, after_help = PORT_FORWARD_EXAMPLES)]
    PortForward {
        /// Name of the application
        name: AppName,
        /// Ports: the one here (left out: the same; empty: any that is free), and the application's
        #[arg(required = true, value_name = "[LOCAL:]REMOTE")]
        ports: Vec<Ports>,
        /// Instance, as 'apps show' has it [default: the first that is ready]
        #[arg(long, short, value_name = "NAME")]
        instance: Option<String>,
        /// Address to listen on
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
        address: IpAddr,
        #[command(flatten)]
        place: Place,
    },
    /// The environment of an application
    #[command(subcommand)]
    Env(Env),
    /// Change the number of instances
    Scale {
        /// Name of the application
        name: AppName,
        /// How many; with 0 it is stopped
        instances: u32,
        #[command(flatten)]
        place: Place,
    },
    /// Start new instances and stop the old ones
    Restart {
        /// Name of the application
        name: AppName,
        #[command(flatten)]
        place: Place,
    },
    /// Build the last uploaded source again, and deploy it
    Restage {
        /// Name of the application
        name: AppName,
        #[command(flatten)]
        place: Place,
    },
    /// Stop and forget applications
    Delete {
        /// Names of the applications
        #[arg(required = true)]
        names: Vec<AppName>,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, Subcommand)]
pub enum Env {
    /// List variables
    List {
        /// Name of the application
        name: AppName,
        #[command(flatten)]
        output: OutputFlag,
        #[command(flatten)]
        place: Place,
    },
    /// Print one variable
    Show {
        /// Name of the application
        name: AppName,
        /// Name of the variable
        variable: EnvName,
        #[command(flatten)]
        output: OutputFlag,
        #[command(flatten)]
        place: Place,
    },
    /// Set a variable; a running application is restarted
    Set {
        /// Name of the application
        name: AppName,
        /// Name of the variable
        variable: EnvName,
        /// Its value
        value: String,
        #[command(flatten)]
        place: Place,
    },
    /// Remove a variable; a running application is restarted
    Unset {
        /// Name of the application
        name: AppName,
        /// Name of the variable
        variable: EnvName,
        #[command(flatten)]
        place: Place,
    },
}

const EXEC_EXAMPLES: &str = "\
Examples:
  epiniod apps exec shop
  epiniod apps exec shop -- python manage.py migrate
  epiniod apps exec shop -- sh -c 'cat >/tmp/dump' <dump";

const PORT_FORWARD_EXAMPLES: &str = "\
Examples:
  epiniod apps port-forward shop 8080
  epiniod apps port-forward shop 9000:8080 :9229";

/// Where applications are.
#[derive(Debug, Clone, Args)]
pub struct Place {
    #[command(flatten)]
    namespace: InNamespace,
    #[command(flatten)]
    target: Target,
}

/// A daemon, and a namespace in it.
struct There {
    client: Client,
    namespace: Namespace,
}

impl Place {
    fn open(&self) -> Result<There, Error> {
        let client = self.target.client()?;
        let name = self.namespace.namespace.as_deref().unwrap_or(client.settings.namespace());
        let namespace = name.parse().map_err(|error: crate::model::InvalidName| Error::Usage(error.to_string()))?;
        Ok(There { client, namespace })
    }
}

impl There {
    fn apps(&self) -> String {
        format!("/api/v1/namespaces/{}/applications", self.namespace)
    }

    fn app(&self, name: &AppName) -> String {
        format!("{}/{name}", self.apps())
    }
}

impl Apps {
    pub async fn run(self, ui: &Ui) -> Result<ExitCode, Error> {
        match self {
            Self::List { all, output, place } => list(&place.open()?, all, output.output).await?,
            Self::Show { name, output, place } => show(&place.open()?, &name, output.output).await?,
            Self::Logs { name, follow, staging, tail, place } => {
                print_log(&place.open()?, &name, follow, staging, tail).await?
            }
            Self::Exec { name, instance, command, place } => {
                let There { client, namespace } = place.open()?;
                let code = exec::run(&client, &namespace, &name, instance.as_deref(), &command).await?;
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(error::FAILED)));
            }
            Self::PortForward { name, ports, instance, address, place } => {
                let There { client, namespace } = place.open()?;
                Forward { client, namespace, name, instance }.run(ui, address, &ports).await?
            }
            Self::Env(env) => env.run(ui).await?,
            Self::Scale { name, instances, place } => {
                let there = place.open()?;
                let change = json!({ "instances": instances });
                there.client.patch(&there.app(&name), &change).await.map_err(as_deploy)?;
                ui.say(&format!("application {name} now has {instances} instances"));
            }
            Self::Restart { name, place } => {
                let there = place.open()?;
                there.client.post(&format!("{}/restart", there.app(&name)), &Value::Null).await.map_err(as_deploy)?;
                ui.say(&format!("restarted application {name}"));
            }
            Self::Restage { name, place } => restage(&place.open()?, ui, &name).await?,
            Self::Delete { names, place } => {
                let there = place.open()?;
                let query: Vec<String> = names.iter().map(|name| format!("applications%5B%5D={name}")).collect();
                let path = format!("{}?{}", there.apps(), query.join("&"));
                there.client.delete(&path, &json!({ "deleteImage": true })).await?;
                names.iter().for_each(|name| ui.say(&format!("deleted application {name}")));
            }
        }
        Ok(ExitCode::from(error::OK))
    }
}

async fn list(there: &There, all: bool, output: Output) -> Result<(), Error> {
    let path = if all { "/api/v1/applications".to_owned() } else { there.apps() };
    let apps = there.client.get(&path).await?;
    if output == Output::Json {
        print(&pretty(&apps));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = apps.as_array().into_iter().flatten().map(row).collect();
    table(&["NAMESPACE", "NAME", "STATUS", "INSTANCES", "ROUTES", "DETAILS"], &rows);
    Ok(())
}

fn row(app: &Value) -> Vec<String> {
    let instances = text(app, "/deployment/status");
    vec![
        text(app, "/meta/namespace"),
        text(app, "/meta/name"),
        text(app, "/status"),
        if instances.is_empty() { "n/a".to_owned() } else { instances },
        texts(app, "/configuration/routes").join(", "),
        text(app, "/statusmessage"),
    ]
}

async fn show(there: &There, name: &AppName, output: Output) -> Result<(), Error> {
    let app = there.client.get(&there.app(name)).await?;
    if output == Output::Json {
        print(&pretty(&app));
        return Ok(());
    }
    let mut lines = vec![
        ("name", text(&app, "/meta/name")),
        ("namespace", text(&app, "/meta/namespace")),
        ("status", text(&app, "/status")),
        ("instances", text(&app, "/deployment/status")),
        ("routes", texts(&app, "/configuration/routes").join(", ")),
        ("image", text(&app, "/image_url")),
        ("builder", text(&app, "/staging/builder")),
        ("staging", text(&app, "/stage_id")),
        ("origin", text(&app, "/origin/path")),
        ("created", text(&app, "/meta/createdAt")),
        ("details", text(&app, "/statusmessage")),
    ];
    lines.retain(|(_, value)| !value.is_empty());
    for (name, value) in lines {
        print(&format!("{name:10} {value}"));
    }
    for instance in
        app.pointer("/deployment/replicas").and_then(Value::as_object).into_iter().flat_map(|all| all.values())
    {
        let ready = if instance["ready"].as_bool().unwrap_or(false) { "ready" } else { "not ready" };
        let memory = instance["memoryBytes"].as_u64().unwrap_or(0) / (1 << 20);
        print(&format!(
            "instance   {} {ready}, {memory} MiB, {} restarts",
            text(instance, "/name"),
            instance["restarts"]
        ));
    }
    Ok(())
}

async fn print_log(there: &There, name: &AppName, follow: bool, staging: bool, tail: Option<u32>) -> Result<(), Error> {
    if !staging {
        return logs::show(&there.client, &there.namespace, Log::App(name), follow, tail).await;
    }
    let app = there.client.get(&there.app(name)).await?;
    let id = text(&app, "/stage_id");
    if id.is_empty() {
        return Err(Error::Usage(format!("application {name} was never staged")));
    }
    logs::show(&there.client, &there.namespace, Log::Staging(&id), follow, tail).await
}

async fn restage(there: &There, ui: &Ui, name: &AppName) -> Result<(), Error> {
    let app = json!({ "name": name, "namespace": there.namespace });
    let staged = there.client.post(&format!("{}/stage", there.app(name)), &json!({ "app": app })).await?;
    let id = text(&staged, "/stage/id");
    let path = format!("/namespaces/{}/staging/{id}/logs?follow=true", there.namespace);
    there
        .client
        .websocket(&path, |text| {
            let line: Value = serde_json::from_str(text).unwrap_or_default();
            ui.log(line["Message"].as_str().unwrap_or_default());
        })
        .await?;
    let complete = format!("/api/v1/namespaces/{}/staging/{id}/complete", there.namespace);
    there.client.get(&complete).await.map_err(|error| match error {
        Error::Api { title, .. } => Error::Staging(title),
        error => error,
    })?;
    let deploy = json!({ "app": app, "stage": { "id": id }, "image": text(&staged, "/image"), "origin": {} });
    there.client.post(&format!("{}/deploy", there.app(name)), &deploy).await.map_err(as_deploy)?;
    ui.say(&format!("restaged application {name}"));
    Ok(())
}

/// What fails behind a change that makes a new version is that version.
fn as_deploy(error: Error) -> Error {
    match error {
        Error::Api { status: 500, title, details } if title.contains("did not come up") => {
            Error::Deploy { cause: title, details }
        }
        error => error,
    }
}

impl Env {
    async fn run(self, ui: &Ui) -> Result<(), Error> {
        match self {
            Self::List { name, output, place } => {
                let there = place.open()?;
                let all = there.client.get(&format!("{}/environment", there.app(&name))).await?;
                if output.output == Output::Json {
                    print(&pretty(&all));
                    return Ok(());
                }
                for (name, value) in all.as_object().into_iter().flatten() {
                    print(&format!("{name}={}", value.as_str().unwrap_or_default()));
                }
            }
            Self::Show { name, variable, output, place } => {
                let there = place.open()?;
                let found = there.client.get(&format!("{}/environment/{variable}", there.app(&name))).await?;
                if text(&found, "/name").is_empty() {
                    let title = format!("application '{name}' has no variable '{variable}'");
                    return Err(Error::Api { status: 404, title, details: String::new() });
                }
                print(&if output.output == Output::Json { pretty(&found) } else { text(&found, "/value") });
            }
            Self::Set { name, variable, value, place } => {
                let there = place.open()?;
                let variables = json!({ variable.as_str(): value });
                let path = format!("{}/environment", there.app(&name));
                there.client.post(&path, &variables).await.map_err(as_deploy)?;
                ui.say(&format!("set {variable} of application {name}"));
            }
            Self::Unset { name, variable, place } => {
                let there = place.open()?;
                let path = format!("{}/environment/{variable}", there.app(&name));
                there.client.delete(&path, &Value::Null).await.map_err(as_deploy)?;
                ui.say(&format!("removed {variable} of application {name}"));
            }
        }
        Ok(())
    }
}

pub(super) fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn texts(value: &Value, pointer: &str) -> Vec<String> {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

pub(super) fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}
