//! `epiniod manifests`: what `install` would apply, for those who apply it in their own way.

use std::process::ExitCode;

use clap::Args;

use super::{
    error::{self, Error},
    install::{print_manifests, settings_of},
    ui::Ui,
};
use crate::{
    daemon::own_image,
    runtime::kube::install::{self, Wishes},
};

#[derive(Debug, Args)]
pub struct Manifests {
    #[command(flatten)]
    wishes: Wishes,
}

impl Manifests {
    pub fn run(mut self, ui: &Ui) -> Result<ExitCode, Error> {
        let settings = settings_of(&mut self.wishes)?;
        let draft = install::settle(&self.wishes, &own_image::name(), None)?.with_settings(settings.as_ref());
        let installation = draft.without_cluster()?;
        print_manifests(&installation);
        ui.say(&format!(
            "The password of the user 'admin' is no manifest. Make it before the daemon starts; otherwise it makes one and logs it once:\n  \
             kubectl -n {} create secret generic epiniod-admin --from-literal=password=PASSWORD",
            installation.namespace
        ));
        if installation.bucket.is_some() {
            ui.say(&format!(
                "Neither are the keys of the bucket, without which it does not start:\n  kubectl -n {} create secret generic epiniod-s3 \\\n    --from-literal=AWS_ACCESS_KEY_ID=ID --from-literal=AWS_SECRET_ACCESS_KEY=SECRET",
                installation.namespace
            ));
        }
        if let Some(files) = settings {
            let names: Vec<_> = files.keys().map(|name| format!("--from-file={name}=FILE")).collect();
            ui.say(&format!(
                "Nor are the settings of the daemon, and what they name:\n  kubectl -n {} create secret generic epiniod-settings {}",
                installation.namespace,
                names.join(" ")
            ));
        }
        Ok(ExitCode::from(error::OK))
    }
}
