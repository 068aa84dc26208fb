//! The embedded buildpacks, written with libcnb: `python`, `nodejs`, `static`, `procfile`, `debian`.
//!
//! Their `bin/detect` and `bin/build` are links to this binary, which tells by `argv[0]` and by the id in
//! `$CNB_BUILDPACK_DIR/buildpack.toml` which one it is. A buildpack that needs a language runtime requires Debian packages of
//! the plan entry `debian`; the platform makes the build and the run base of them, so that in the build
//! they are at their real paths. Layers are the same bytes wherever they are built.

mod debian;
mod nodejs;
mod npm;
mod procfile;
mod python;
mod static_site;

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, ExitCode},
};

use libcnb::{
    Buildpack,
    build::{BuildContext, BuildResult, BuildResultBuilder},
    data::{
        build_plan::{BuildPlanBuilder, Require},
        launch::{Launch, LaunchBuilder, Process, ProcessBuilder},
    },
    detect::{DetectContext, DetectResult, DetectResultBuilder},
    generic::{GenericMetadata, GenericPlatform},
};
use sha2::{Digest as _, Sha256};

/// The version of all embedded buildpacks; it is in the key of everything that they cache.
const VERSION: &str = "1.0.0";
const IDS: [&str; 5] = ["epiniod/debian", "epiniod/nodejs", "epiniod/procfile", "epiniod/python", "epiniod/static"];
const ORDER: &str = include_str!("../embedded/builder/order.toml");
const DESCRIPTOR: &str = include_str!("../embedded/builder/buildpack.toml");
/// The plan entry that stands for Debian packages.
const DEBIAN: &str = "debian";
/// The bash in every run base; processes that need variables expanded go through it.
const SHELL: [&str; 2] = ["bash", "-c"];

/// Identifies the builder: an image of another builder is not used again.
pub fn builder_version() -> String {
    format!("embedded {VERSION}")
}

/// Lays the buildpacks out below `/cnb`, with links to a binary that is there when they are run.
pub fn install(cnb: &Path, own_binary: &str) -> io::Result<()> {
    fs::write(cnb.join("order.toml"), ORDER.replace("@VERSION@", VERSION))?;
    for id in IDS {
        let folder = cnb.join("buildpacks").join(id.replace('/', "_")).join(VERSION);
        fs::create_dir_all(folder.join("bin"))?;
        fs::write(folder.join("buildpack.toml"), DESCRIPTOR.replace("@ID@", id).replace("@VERSION@", VERSION))?;
        for phase in ["detect", "build"] {
            symlink(own_binary, folder.join("bin").join(phase))?;
        }
    }
    Ok(())
}

/// Runs a buildpack, when this process was started as one.
pub fn run_if_buildpack() -> Option<ExitCode> {
    let program = std::env::args().next()?;
    let name = Path::new(&program).file_name()?.to_str()?.to_owned();
    if !matches!(name.as_str(), "detect" | "build") || std::env::var_os("CNB_BUILDPACK_DIR").is_none() {
        return None;
    }
    // It ends the process itself, with the exit code of the specification.
    libcnb::libcnb_runtime(&Embedded);
    Some(ExitCode::FAILURE)
}

/// Any of the embedded buildpacks.
struct Embedded;

type Context = BuildContext<Embedded>;

/// Why a build does not work, in words for whose application it is.
#[derive(Debug)]
struct Failure(String);

impl Failure {
    fn new(text: impl Into<String>) -> libcnb::Error<Self> {
        libcnb::Error::BuildpackError(Self(text.into()))
    }
}

type Result<T> = libcnb::Result<T, Failure>;

/// What a buildpack wants when it takes part.
#[derive(Default)]
struct Wants {
    packages: Vec<Packages>,
    provides_debian: bool,
}

/// Debian packages, and where they are needed.
#[derive(serde::Serialize)]
struct Packages {
    packages: Vec<String>,
    build: bool,
    launch: bool,
}

impl Packages {
    fn everywhere(names: &[&str]) -> Self {
        Self { packages: names.iter().map(|name| (*name).to_owned()).collect(), build: true, launch: true }
    }

    fn for_build(names: &[&str]) -> Self {
        Self { launch: false, ..Self::everywhere(names) }
    }
}

impl Buildpack for Embedded {
    type Platform = GenericPlatform;
    type Metadata = GenericMetadata;
    type Error = Failure;

    fn detect(&self, context: DetectContext<Self>) -> Result<DetectResult> {
        let app = &context.app_dir;
        let wants = match context.buildpack_descriptor.buildpack.id.as_str() {
            "epiniod/debian" => debian::detect(app)?,
            "epiniod/python" => python::detect(app),
            "epiniod/nodejs" => nodejs::detect(app)?,
            "epiniod/static" => static_site::detect(app),
            _ => procfile::detect(app)?,
        };
        let Some(wants) = wants else { return DetectResultBuilder::fail().build() };
        let mut plan = BuildPlanBuilder::new();
        if wants.provides_debian {
            plan = plan.provides(DEBIAN);
        }
        for packages in wants.packages {
            let mut require = Require::new(DEBIAN);
            require.metadata(packages).map_err(|error| Failure::new(error.to_string()))?;
            plan = plan.requires(require);
        }
        DetectResultBuilder::pass().build_plan(plan.build()).build()
    }

    fn build(&self, context: Context) -> Result<BuildResult> {
        let launch = match context.buildpack_descriptor.buildpack.id.as_str() {
            "epiniod/debian" => debian::build(&context),
            "epiniod/python" => python::build(&context)?,
            "epiniod/nodejs" => nodejs::build(&context)?,
            "epiniod/static" => static_site::build(&context)?,
            _ => procfile::build(&context)?,
        };
        BuildResultBuilder::new().launch(launch).build()
    }

    fn on_error(&self, error: libcnb::Error<Failure>) {
        match error {
            libcnb::Error::BuildpackError(Failure(text)) => eprintln!("ERROR: {text}"),
            other => eprintln!("ERROR: {other}"),
        }
    }
}

/// One process, which is the default.
fn web(command: &str) -> Launch {
    LaunchBuilder::new().process(shell_process("web", command, true)).build()
}

fn shell_process(kind: &str, command: &str, default: bool) -> Process {
    let kind = kind.parse().unwrap_or(libcnb::data::process_type!("web"));
    ProcessBuilder::new(kind, SHELL).args([command]).default(default).build()
}

/// The same for the same parts.
fn key(parts: &[&[u8]]) -> String {
    let mut sum = Sha256::new();
    for part in parts.iter().chain(&[VERSION.as_bytes()]) {
        sum.update((part.len() as u64).to_le_bytes());
        sum.update(part);
    }
    sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs a program with its output in the log.
fn run(command: &mut Command, why: &str) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::new(format!("{name} ended with {status}. {why}"))),
        Err(error) => Err(Failure::new(format!("{name} cannot be started: {error}"))),
    }
}

/// What a program prints.
fn output_of(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .map_err(|error| Failure::new(format!("{:?} cannot be started: {error}", command.get_program())))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A file of the application; none when it is not there.
fn read(app: &Path, name: &str) -> Option<String> {
    fs::read(app.join(name)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// A decision, with its reason, in the log.
fn say(text: &str) {
    println!("     {text}");
}

/// A cached layer with a key: kept as long as the key is the same. True when it has to be filled.
fn keyed_layer(
    context: &Context,
    name: libcnb::data::layer::LayerName,
    key: &str,
    build: bool,
    launch: bool,
) -> Result<(libcnb::layer::LayerRef<Embedded, (), ()>, bool)> {
    use libcnb::layer::{CachedLayerDefinition, InvalidMetadataAction, LayerState, RestoredLayerAction};
    let layer = context.cached_layer(
        name,
        CachedLayerDefinition {
            build,
            launch,
            invalid_metadata_action: &|_| InvalidMetadataAction::<LayerKey>::DeleteLayer,
            restored_layer_action: &|known: &LayerKey, _| {
                if known.key == key { RestoredLayerAction::KeepLayer } else { RestoredLayerAction::DeleteLayer }
            },
        },
    )?;
    let fill = matches!(layer.state, LayerState::Empty { .. });
    Ok((layer, fill))
}

#[derive(serde::Serialize, serde::Deserialize)]
struct LayerKey {
    key: String,
}
