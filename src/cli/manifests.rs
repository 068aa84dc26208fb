//! `epiniod manifests`: what `install` would apply, for those who apply it in their own way.

use std::process::ExitCode;

use clap::Args;

use super::{
    error::{self, Error},
    install::print_manifests,
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
    pub fn run(self, ui: &Ui) -> Result<ExitCode, Error> {
        let installation = install::settle(&self.wishes, &own_image::name(), None)?.without_cluster()?;
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
        Ok(ExitCode::from(error::OK))
    }
}
