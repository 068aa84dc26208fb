//! `epiniod uninstall`: takes an installation out of a Kubernetes cluster.

use std::{
    io::{BufRead as _, IsTerminal as _, Write as _, stderr, stdin},
    process::ExitCode,
};

use clap::Args;

use super::{
    InCluster,
    error::{self, Error},
    ui::Ui,
};
use crate::runtime::kube::install::{self, Bucket, Fate, Inventory, NAMESPACE};

#[derive(Debug, Args)]
pub struct Uninstall {
    #[command(flatten)]
    cluster: InCluster,
    /// Namespace of the daemon
    #[arg(long, env = "EPINIOD_SYSTEM_NAMESPACE", value_name = "NAME", default_value = NAMESPACE)]
    namespace: String,
    /// Delete the applications as well, with their namespaces
    #[arg(long)]
    apps: bool,
    /// Ask nothing
    #[arg(long, short)]
    yes: bool,
}

impl Uninstall {
    pub async fn run(self, ui: &Ui) -> Result<ExitCode, Error> {
        let cluster = self.cluster.connect().await?;
        let inventory = install::inventory(&cluster, &self.namespace).await?;
        let fate = if self.apps { Fate::Go } else { Fate::RunOn };
        if inventory.is_empty() && (fate == Fate::RunOn || inventory.applications.is_empty()) {
            ui.say(&format!("nothing of epiniod is installed in namespace {}", self.namespace));
            return Ok(ExitCode::from(error::OK));
        }
        describe(ui, &inventory, fate, &cluster.address);
        if !self.yes && !confirmed()? {
            ui.say("nothing was changed");
            return Ok(ExitCode::from(error::FAILED));
        }
        let waiting = ui.waiting();
        install::remove(&cluster, &inventory, fate, |text| waiting.tell(text)).await?;
        drop(waiting);
        ui.say("nothing of the installation is left");
        Ok(ExitCode::from(error::OK))
    }
}

fn describe(ui: &Ui, inventory: &Inventory, fate: Fate, cluster: &str) {
    ui.say(&format!("from the cluster of {cluster} will be deleted, with everything in them:"));
    for namespace in &inventory.namespaces {
        ui.say(&format!("  namespace {namespace}"));
    }
    let applications = inventory.applications.join(", ");
    match (fate, applications.is_empty()) {
        (_, true) => {}
        (Fate::Go, false) => ui.say(&format!("  applications: namespaces {applications}")),
        (Fate::RunOn, false) => ui.say(&format!(
            "applications in namespaces {applications} stay, as long as the nodes have their images; --apps deletes them as well"
        )),
    }
    if inventory.keeps_directory() {
        ui.say("the directory of the node that the data is in stays there: remove it by hand");
    }
    match &inventory.bucket {
        None => ui.say("images, sources, users and passwords are gone then"),
        Some(bucket) => ui.say(&format!(
            "users and passwords are gone then; images and sources stay in bucket {}, which no other installation takes until \
             it is empty. To delete them afterwards: {}",
            bucket.name,
            emptying(bucket)
        )),
    }
}

/// As people do it who have the tools of AWS.
fn emptying(bucket: &Bucket) -> String {
    let endpoint = bucket.endpoint.as_ref().map(|url| format!(" --endpoint-url {url}")).unwrap_or_default();
    format!("aws{endpoint} s3 rm --recursive s3://{}", bucket.name)
}

fn confirmed() -> Result<bool, Error> {
    if !stdin().is_terminal() {
        return Err(Error::Usage("nobody is there to be asked; say --yes".to_owned()));
    }
    let _ = write!(stderr(), "Go on? [y/N] ");
    let mut line = String::new();
    stdin().lock().read_line(&mut line).map_err(Error::Runtime)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
