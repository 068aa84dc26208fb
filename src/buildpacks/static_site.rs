//! `epiniod/static`: a source with an `index.html` in its root, in `public/` or in `dist/` is served as it is.

use libcnb::{
    Buildpack,
    build::{BuildContext, BuildResult, BuildResultBuilder},
    data::{build_plan::BuildPlanBuilder, launch::LaunchBuilder},
    detect::{DetectContext, DetectResult, DetectResultBuilder},
    generic::{GenericMetadata, GenericPlatform},
};

use super::{
    Error,
    debian::Packages,
    output, procfile,
    site::{self, Fallback, Site},
    switch,
};

pub(super) struct StaticSite;

impl Buildpack for StaticSite {
    type Platform = GenericPlatform;
    type Metadata = GenericMetadata;
    type Error = Error;

    fn detect(&self, context: DetectContext<Self>) -> libcnb::Result<DetectResult, Error> {
        // A Procfile says itself what answers; then nothing but its own packages are needed.
        let own_server = procfile::read(&context.app_dir)?.iter().any(|line| line.name == procfile::WEB);
        if own_server || site::find(&context.app_dir).is_none() {
            return DetectResultBuilder::fail().build();
        }
        let plan = BuildPlanBuilder::new().requires(Packages::launch_only([site::NGINX]).require()).build();
        DetectResultBuilder::pass().build_plan(plan).build()
    }

    fn build(&self, context: BuildContext<Self>) -> libcnb::Result<BuildResult, Error> {
        let directory = site::find(&context.app_dir)
            .ok_or_else(|| Error::Refused("index.html is gone since detect; push again".to_owned()))?;
        output::decided(format!(
            "static site: {}index.html is there",
            if directory.is_empty() { String::new() } else { format!("{directory}/") }
        ));
        let fallback = match switch::read(&context.platform, site::SPA_VARIABLE) {
            Some(true) => Fallback::Index,
            _ => Fallback::NotFound,
        };
        let process = site::serve(&context, &Site { directory: directory.to_owned(), fallback })?;
        BuildResultBuilder::new().launch(LaunchBuilder::new().process(process).build()).build()
    }
}
