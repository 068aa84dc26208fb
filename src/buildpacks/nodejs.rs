//! `epiniod/nodejs`: installs what `package.json` names with npm, runs its build, prunes, and starts the application.
//!
//! Layers: `modules` (node_modules in the image, linked into the application), `full` (node_modules with what
//! only the build needs, never in an image), `npm` (npm itself, a pinned version), `downloads` (npm's cache). What needs a
//! node_modules that really is in the application gets one, installed by every build.

mod engines;
mod modules;
mod native;
mod npm;
mod package;
mod start;

use libcnb::{
    Buildpack,
    build::{BuildContext, BuildResult, BuildResultBuilder},
    data::{build_plan::BuildPlanBuilder, launch::LaunchBuilder, process_type},
    detect::{DetectContext, DetectResult, DetectResultBuilder},
    generic::{GenericMetadata, GenericPlatform},
};

use self::{package::Package, start::Start};
use super::{
    Error,
    debian::{BUILD_TOOLS, Packages},
    output, procfile,
    site::{self, Fallback, Site},
    switch,
};

pub(super) struct Nodejs;

impl Buildpack for Nodejs {
    type Platform = GenericPlatform;
    type Metadata = GenericMetadata;
    type Error = Error;

    fn detect(&self, context: DetectContext<Self>) -> libcnb::Result<DetectResult, Error> {
        let Some(package) = Package::read(&context.app_dir)? else {
            return DetectResultBuilder::fail().build();
        };
        let start = Start::decide(&context.app_dir, &package)?;
        if matches!(start, Start::Nothing) && site::find(&context.app_dir).is_some() {
            // package.json only names tools; the site is served as it is.
            return DetectResultBuilder::fail().build();
        }
        let mut plan = BuildPlanBuilder::new();
        plan = match start {
            Start::BuiltSite => plan
                .requires(Packages::build_only(["nodejs"]).require())
                .requires(Packages::launch_only([site::NGINX]).require()),
            _ => plan.requires(Packages::everywhere(["nodejs"]).require()),
        };
        if switch::read(&context.platform, switch::BUILD_TOOLS).unwrap_or_else(|| !native::addons(&package).is_empty())
        {
            plan = plan.requires(Packages::build_only([BUILD_TOOLS, "python3", "libnode-dev"]).require());
        }
        DetectResultBuilder::pass().build_plan(plan.build()).build()
    }

    fn build(&self, context: BuildContext<Self>) -> libcnb::Result<BuildResult, Error> {
        let app = context.app_dir.clone();
        let package = Package::read(&app)?
            .ok_or_else(|| Error::Refused("package.json is gone since detect; push again".to_owned()))?;
        let node = npm::node_version()?;
        output::decided(format!("Node.js {node}: package.json is there"));
        check_engine(&package, &node);
        let start = Start::decide(&app, &package)?;
        let addons = native::addons(&package);
        if !addons.is_empty() {
            output::decided(format!("compiled at installation: {}", addons.join(", ")));
        }
        modules::install(&context, &package, &start, &node)?;
        let mut launch = LaunchBuilder::new();
        match &start {
            Start::Procfile => output::decided("start: the line 'web' of the Procfile"),
            Start::Command { command, why } => {
                output::decided(format!("start: {command} ({why})"));
                launch.process(procfile::shell(process_type!("web"), command, true));
            }
            Start::BuiltSite => {
                if let Some(script) = package.script("start") {
                    output::decided(format!("'{script}' is for development: what the build left is served instead"));
                }
                let directory = site::find_built(&app).ok_or_else(|| Error::Refused(NO_OUTPUT.to_owned()))?;
                let fallback = match switch::read(&context.platform, site::SPA_VARIABLE) {
                    Some(true) => Fallback::Index,
                    None if !site::has_not_found_page(&app, &directory) => Fallback::Index,
                    _ => Fallback::NotFound,
                };
                launch.process(site::serve(&context, &Site { directory, fallback })?);
            }
            Start::Nothing => return Err(Error::Refused(NO_START.to_owned()).into()),
        }
        BuildResultBuilder::new().launch(launch.build()).build()
    }
}

const NO_START: &str = "package.json has neither a script 'start' nor a 'main' that exists, and there is no server.js, \
    index.js or app.js: add \"scripts\": {\"start\": \"node FILE\"} to package.json, or a Procfile with 'web: COMMAND'";
const NO_OUTPUT: &str = "the build script left no index.html in dist, dist/*, build, out, _site or public: add a script 'start' \
    to package.json if the application has a server of its own, else let the bundler write to dist";

/// What of this buildpack decides about an image, besides its version.
pub(super) fn pins() -> String {
    npm::PINNED.to_owned()
}

fn check_engine(package: &Package, node: &str) {
    let Some(wanted) = package.engine() else { return };
    if engines::satisfies(wanted, node) == Some(false) {
        output::warning(format!(
            "package.json wants Node.js '{wanted}', Debian stable has {node}: the build goes on, but what needs the \
             other version will fail; widen \"engines\" when it works"
        ));
    }
}
