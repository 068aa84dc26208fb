//! `/cnb/lifecycle/launcher`, and by links `/cnb/process/TYPE`: starts a process of a buildpack-built image.
//!
//! Buildpacks platform specification, "Launch". The process replaces the launcher: signals reach it.

use std::{
    convert::Infallible,
    env,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

mod environment;
mod exec_d;
mod metadata;
mod shell;
mod toml;

use environment::Environment;
use metadata::{Metadata, Process};

const CANNOT_LAUNCH: i32 = 82;
const WRONG_PLATFORM_API: i32 = 11;
const WRONG_BUILDPACK_API: i32 = 12;
/// Variables that are for the launcher only.
const OWN: [&str; 5] =
    ["CNB_LAYERS_DIR", "CNB_APP_DIR", "CNB_PROCESS_TYPE", "CNB_PLATFORM_API", "CNB_DEPRECATION_MODE"];

/// What ends the launcher, and with which code.
pub struct Failure {
    code: i32,
    text: String,
}

impl Failure {
    pub fn new(text: impl Into<String>) -> Self {
        Self { code: CANNOT_LAUNCH, text: text.into() }
    }
}

/// Where everything is, and what is started.
pub struct Launch {
    layers: PathBuf,
    app: PathBuf,
    metadata: Metadata,
    /// The type of the process; none for a command of the user.
    kind: Option<String>,
}

fn main() {
    let args: Vec<OsString> = env::args_os().collect();
    let failure = match launch(&args) {
        Err(failure) => failure,
        Ok(never) => match never {},
    };
    eprintln!("ERROR: failed to launch: {}", failure.text);
    std::process::exit(failure.code);
}

fn launch(args: &[OsString]) -> Result<Infallible, Failure> {
    let platform = env::var("CNB_PLATFORM_API").unwrap_or_default();
    if !supported(&platform, 15) {
        let text = format!("platform API '{platform}' (CNB_PLATFORM_API) is not supported");
        return Err(Failure { code: WRONG_PLATFORM_API, text });
    }
    let directory = |name: &str, default: &str| env::var_os(name).map_or_else(|| PathBuf::from(default), PathBuf::from);
    let (layers, app) = (directory("CNB_LAYERS_DIR", "/layers"), directory("CNB_APP_DIR", "/workspace"));
    let metadata = Metadata::read(&layers.join("config/metadata.toml"))?;
    if let Some((id, api)) = metadata.buildpacks.iter().find(|(_, api)| !supported(api, 12)) {
        let text = format!("buildpack API '{api}' of {id} is not supported");
        return Err(Failure { code: WRONG_BUILDPACK_API, text });
    }
    if env::var_os("CNB_PROCESS_TYPE").is_some() {
        eprintln!("Warning: CNB_PROCESS_TYPE is not used; start /cnb/process/TYPE instead");
    }
    let (own_name, given) =
        args.split_first().map_or((OsStr::new(""), args), |(name, given)| (name.as_os_str(), given));
    let name = Path::new(own_name).file_stem().unwrap_or_default().to_string_lossy();
    let process = match metadata.process(&name) {
        Some(process) => with_args(process, given, &metadata, &platform),
        None => from_args(given)?,
    };
    let kind = metadata.process(&name).map(|process| process.kind.clone());
    let launch = Launch { layers, app, metadata, kind };
    let app = &launch.app;
    env::set_current_dir(app).map_err(|error| Failure::new(format!("chdir to {}: {error}", app.display())))?;
    let environment = launch.environment()?;
    if process.direct { launch.start(&process, &environment) } else { shell::start(&launch, &process, &environment) }
}

/// Arguments of the user replace the default ones. They come after them when the command is one word and the buildpack API is
/// before 0.9 or the platform API before 0.10.
fn with_args(process: &Process, given: &[OsString], metadata: &Metadata, platform: &str) -> Process {
    let mut process = process.clone();
    let fixed = process.command.split_off(process.command.len().min(1));
    let old_buildpack = metadata.buildpacks.iter().any(|(id, api)| *id == process.buildpack && minor(api) < 9);
    let appends = fixed.is_empty() && (old_buildpack || minor(platform) < 10);
    let rest = match (appends, given.is_empty()) {
        (true, _) => [&process.args, given].concat(),
        (false, true) => process.args,
        (false, false) => given.to_vec(),
    };
    process.args = [fixed, rest].concat();
    process
}

/// `launcher -- COMMAND ARGS` is direct, `launcher COMMAND ARGS` goes through the shell.
fn from_args(given: &[OsString]) -> Result<Process, Failure> {
    let direct = given.first().is_some_and(|first| first == "--");
    let words = if direct { &given[1..] } else { given };
    let Some((command, args)) = words.split_first() else {
        return Err(Failure::new("there is no process of this name; start /cnb/process/TYPE or give a command"));
    };
    Ok(Process { command: vec![command.clone()], args: args.to_vec(), direct, ..Process::default() })
}

impl Launch {
    /// The environment that the layers make, and then the programs in `exec.d`.
    fn environment(&self) -> Result<Environment, Failure> {
        let mut environment = Environment::inherited(&OWN);
        let folders = self.metadata.layer_folders(&self.layers);
        for of_buildpack in &folders {
            of_buildpack.iter().for_each(|layer| environment.add_roots(layer));
            for layer in of_buildpack {
                environment.add_folder(&layer.join("env"))?;
                for folder in self.with_kind(&layer.join("env.launch")) {
                    environment.add_folder(&folder)?;
                }
            }
        }
        for layer in folders.iter().flatten() {
            for folder in self.with_kind(&layer.join("exec.d")) {
                exec_d::run(&folder, &mut environment)?;
            }
        }
        Ok(environment)
    }

    /// A folder, and the one in it that is for this type of process.
    fn with_kind(&self, folder: &Path) -> Vec<PathBuf> {
        let own = self.kind.as_ref().map(|kind| folder.join(kind));
        [Some(folder.to_owned()), own].into_iter().flatten().collect()
    }

    fn directory(&self, process: &Process) -> PathBuf {
        process.working_dir.as_ref().map_or_else(|| self.app.clone(), |dir| self.app.join(dir))
    }

    fn start(&self, process: &Process, environment: &Environment) -> Result<Infallible, Failure> {
        let Some(program) = process.command.first() else { return Err(Failure::new("the process has no command")) };
        let shown = program.to_string_lossy();
        let path = environment.find(program);
        let path = path.ok_or_else(|| Failure::new(format!("path lookup: {shown} is not in PATH")))?;
        let mut command = Command::new(path);
        command.arg0(program).args(&process.args).current_dir(self.directory(process));
        let error = command.env_clear().envs(environment.iter()).exec();
        Err(Failure::new(format!("exec {shown}: {error}")))
    }
}

/// Versions are `0.MINOR`.
fn minor(version: &str) -> u32 {
    version.strip_prefix("0.").and_then(|minor| minor.parse().ok()).unwrap_or(0)
}

/// Both APIs are supported from 0.7 on.
fn supported(version: &str, newest: u32) -> bool {
    (7..=newest).contains(&minor(version))
}
