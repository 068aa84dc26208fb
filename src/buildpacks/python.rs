//! `epiniod/python`: installs what `requirements.txt` or `pyproject.toml` name into a virtual environment, and serves
//! the application object with gunicorn (WSGI) or uvicorn (ASGI) where no Procfile says what to run.
//!
//! Layers: `venv` (in the image; kept as long as the requirements, the interpreter and this recipe are the
//! same), `project` (the application itself, when it is a package), `pip` (pip's downloads, never in an image).
//! pip is not installed: it runs from the wheel that Debian's python3-venv brings.

mod app_object;
mod install;
mod requirements;

use std::path::Path;

use libcnb::{
    Buildpack,
    build::{BuildContext, BuildResult, BuildResultBuilder},
    data::{
        build_plan::BuildPlanBuilder,
        launch::{LaunchBuilder, Process},
        process_type,
    },
    detect::{DetectContext, DetectResult, DetectResultBuilder},
    generic::{GenericMetadata, GenericPlatform},
};

use self::{
    app_object::{AppObject, Interface},
    requirements::Requirements,
};
use super::{
    Error,
    debian::{BUILD_TOOLS, Packages},
    output, procfile, switch,
};

pub(super) struct Python;

impl Buildpack for Python {
    type Platform = GenericPlatform;
    type Metadata = GenericMetadata;
    type Error = Error;

    fn detect(&self, context: DetectContext<Self>) -> libcnb::Result<DetectResult, Error> {
        let Some(requirements) = Requirements::find(&context.app_dir)? else {
            return DetectResultBuilder::fail().build();
        };
        let mut plan = BuildPlanBuilder::new()
            .requires(Packages::build_only(["python3", "python3-venv"]).require())
            .requires(Packages::launch_only(["python3"]).require());
        for packages in compiler_packages(&requirements, &context.platform) {
            plan = plan.requires(packages.require());
        }
        DetectResultBuilder::pass().build_plan(plan.build()).build()
    }

    fn build(&self, context: BuildContext<Self>) -> libcnb::Result<BuildResult, Error> {
        let app = context.app_dir.clone();
        let requirements = Requirements::find(&app)?
            .ok_or_else(|| Error::Refused("requirements.txt is gone since detect; push again".to_owned()))?;
        output::decided(format!("Python: {}", requirements.reason()));
        for warning in requirements.warnings() {
            output::warning(warning);
        }
        let start = Start::decide(&app)?;
        install::install(&context, &requirements, start.server())?;
        let mut launch = LaunchBuilder::new();
        if let Some(process) = start.process() {
            launch.process(process);
        }
        BuildResultBuilder::new().launch(launch.build()).build()
    }
}

/// Whether this buildpack takes the source.
pub(super) fn takes(app: &Path) -> Result<bool, Error> {
    Ok(Requirements::find(app)?.is_some())
}

/// What of this buildpack decides about an image, besides its version.
pub(super) fn pins() -> String {
    format!("{} {}", install::GUNICORN.join(" "), install::UVICORN.join(" "))
}

/// Compiler and headers cost 100 MB, so they are only asked for where something is known to need them.
fn compiler_packages(requirements: &Requirements, platform: &GenericPlatform) -> Vec<Packages> {
    let needs = requirements.compiled();
    let wanted = switch::read(platform, switch::BUILD_TOOLS).unwrap_or(!needs.is_empty());
    if !wanted {
        return Vec::new();
    }
    let mut build = vec![BUILD_TOOLS, "python3-dev"];
    let mut launch = Vec::new();
    for need in &needs {
        build.extend(need.headers);
        launch.extend(need.libraries);
    }
    let mut packages = vec![Packages::build_only(build)];
    if !launch.is_empty() {
        packages.push(Packages::launch_only(launch));
    }
    packages
}

/// How the application is started.
enum Start {
    Procfile,
    Served(AppObject),
}

impl Start {
    fn decide(app: &Path) -> Result<Self, Error> {
        if procfile::read(app)?.iter().any(|line| line.name == procfile::WEB) {
            output::decided("start: the line 'web' of the Procfile");
            return Ok(Self::Procfile);
        }
        let found = app_object::find(app)?.ok_or_else(|| {
            Error::Refused(
                "no app object found in app.py, main.py, wsgi.py, asgi.py, application.py, server.py or a package \
                 (such as 'app = Flask(__name__)', 'app = FastAPI()' or 'def create_app()'): add a Procfile with \
                 'web: COMMAND', where COMMAND listens on port $PORT"
                    .to_owned(),
            )
        })?;
        output::decided(format!("start: {} ({}), found in {}", found.target(), found.interface, found.file));
        Ok(Self::Served(found))
    }

    fn server(&self) -> Option<Interface> {
        match self {
            Self::Procfile => None,
            Self::Served(object) => Some(object.interface),
        }
    }

    /// Both servers are told to believe `X-Forwarded-*`: an instance is only reached through the edge.
    fn process(&self) -> Option<Process> {
        let Self::Served(object) = self else { return None };
        let directory = object.directory.as_deref().unwrap_or(".");
        let command = match object.interface {
            Interface::Wsgi => format!(
                "exec gunicorn --bind \"0.0.0.0:${{PORT:-8080}}\" --workers \"${{WEB_CONCURRENCY:-2}}\" --threads 4 \
                 --worker-tmp-dir /tmp --access-logfile - --forwarded-allow-ips '*' --pythonpath {directory} '{}'",
                object.target()
            ),
            Interface::Asgi => format!(
                "exec uvicorn --host 0.0.0.0 --port \"${{PORT:-8080}}\" --proxy-headers --forwarded-allow-ips '*' \
                 --app-dir {directory}{} '{}'",
                if object.factory { " --factory" } else { "" },
                object.target()
            ),
        };
        Some(procfile::shell(process_type!("web"), &command, true))
    }
}
