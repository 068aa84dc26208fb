//! `/cnb/lifecycle/launcher`, and by links `/cnb/process/TYPE`: starts a process of a buildpack-built image.
//!
//! Buildpacks platform specification, "Launch". The process replaces the launcher: signals reach it.

use std::{
    env,
    ffi::OsString,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

mod environment;
mod exec_d;
mod metadata;

use environment::Environment;
use metadata::{Metadata, Process};

const CANNOT_LAUNCH: i32 = 82;
const WRONG_PLATFORM_API: i32 = 11;
const WRONG_BUILDPACK_API: i32 = 12;
/// Variables that are for the launcher only.
const OWN: [&str; 5] = ["CNB_LAYERS_DIR", "CNB_APP_DIR", "CNB_PROCESS_TYPE", "CNB_PLATFORM_API", "CNB_DEPRECATION_MODE"];

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

fn main() {
    let args: Vec<OsString> = env::args_os().collect();
    let failure = match launch(&args) {
        Err(failure) => failure,
        Ok(never) => match never {},
    };
    eprintln!("ERROR: failed to launch: {}", failure.text);
    std::process::exit(failure.code);
}

fn launch(args: &[OsString]) -> Result<std::convert::Infallible, Failure> {
    let platform = env::var("CNB_PLATFORM_API").unwrap_or_default();
    if !supported(&platform, 3, 15) {
        let text = format!("platform API '{platform}' (CNB_PLATFORM_API) is not supported");
        return Err(Failure { code: WRONG_PLATFORM_API, text });
    }
    let directory = |name: &str, default: &str| env::var_os(name).map_or_else(|| PathBuf::from(default), PathBuf::from);
    let (layers, app) = (directory("CNB_LAYERS_DIR", "/layers"), directory("CNB_APP_DIR", "/workspace"));
    let metadata = Metadata::read(&layers.join("config/metadata.toml"))?;
    if let Some((id, api)) = metadata.buildpacks.iter().find(|(_, api)| !supported(api, 2, 12)) {
        let text = format!("buildpack API '{api}' of {id} is not supported");
        return Err(Failure { code: WRONG_BUILDPACK_API, text });
    }
    if env::var_os("CNB_PROCESS_TYPE").is_some() {
        eprintln!("Warning: CNB_PROCESS_TYPE is not used; start /cnb/process/TYPE instead");
    }
    let name = args.first().map(Path::new).and_then(Path::file_stem).unwrap_or_default().to_string_lossy().into_owned();
    let process = match metadata.processes.iter().find(|process| process.kind == name) {
        Some(process) => with_args(process, &args[1..], &metadata),
        None => from_args(args.get(1..).unwrap_or_default())?,
    };
    env::set_current_dir(&app).map_err(|error| Failure::new(format!("chdir to {}: {error}", app.display())))?;
    let kind = if metadata.processes.iter().any(|known| known.kind == name) { name.as_str() } else { "" };
    let environment = prepare(&layers, &metadata, kind)?;
    if process.direct { start(&process, &environment, &app) } else { start_in_shell(&process, &environment, &layers, &metadata, kind, &app) }
}

/// Arguments of the user replace the default ones; before buildpack API 0.9 they come after them.
fn with_args(process: &Process, given: &[OsString], metadata: &Metadata) -> Process {
    let given: Vec<String> = given.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let old = metadata.buildpacks.iter().any(|(id, api)| *id == process.buildpack && minor(api) < 9);
    let mut process = process.clone();
    let fixed = process.command.split_off(process.command.len().min(1));
    let rest = if fixed.is_empty() && old {
        [process.args, given].concat()
    } else {
        [fixed, if given.is_empty() { process.args } else { given }].concat()
    };
    process.args = rest;
    process
}

/// `launcher -- COMMAND ARGS` is direct, `launcher COMMAND ARGS` goes through the shell.
fn from_args(args: &[OsString]) -> Result<Process, Failure> {
    let mut words: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let direct = words.first().is_some_and(|first| first == "--");
    if direct {
        words.remove(0);
    }
    if words.is_empty() {
        return Err(Failure::new("when there is no default process a command is required"));
    }
    let command = vec![words.remove(0)];
    Ok(Process { command, args: words, direct, ..Process::default() })
}

/// The environment that the layers make, and then the programs in `exec.d`.
fn prepare(layers: &Path, metadata: &Metadata, kind: &str) -> Result<Environment, Failure> {
    let mut environment = Environment::inherited(&OWN);
    let folders = metadata.layer_folders(layers);
    for of_buildpack in &folders {
        of_buildpack.iter().for_each(|layer| environment.add_roots(layer));
        for layer in of_buildpack {
            for folder in ["env", "env.launch"] {
                environment.add_folder(&layer.join(folder));
            }
            if !kind.is_empty() {
                environment.add_folder(&layer.join("env.launch").join(kind));
            }
        }
    }
    for layer in folders.iter().flatten() {
        exec_d::run(&layer.join("exec.d"), &mut environment)?;
        if !kind.is_empty() {
            exec_d::run(&layer.join("exec.d").join(kind), &mut environment)?;
        }
    }
    Ok(environment)
}

fn start(process: &Process, environment: &Environment, app: &Path) -> Result<std::convert::Infallible, Failure> {
    let program = &process.command[0];
    let path = environment.find(program).ok_or_else(|| Failure::new(format!("path lookup: {program} was not found in PATH")))?;
    let directory = process.working_dir.as_ref().map_or_else(|| app.to_owned(), |dir| app.join(dir));
    let mut command = Command::new(path);
    command.arg0(program).args(&process.args).current_dir(directory).env_clear().envs(environment.iter());
    Err(Failure::new(format!("exec {program}: {}", command.exec())))
}

/// Profiles are sourced first. Without arguments the command is a script; with arguments each word is expanded.
fn start_in_shell(
    process: &Process,
    environment: &Environment,
    layers: &Path,
    metadata: &Metadata,
    kind: &str,
    app: &Path,
) -> Result<std::convert::Infallible, Failure> {
    let mut script = String::new();
    let mut profiles: Vec<PathBuf> = Vec::new();
    for layer in metadata.layer_folders(layers).into_iter().flatten() {
        profiles.extend(environment::files(&layer.join("profile.d")));
        if !kind.is_empty() {
            profiles.extend(environment::files(&layer.join("profile.d").join(kind)));
        }
    }
    profiles.extend(Some(app.join(".profile")).filter(|path| path.is_file()));
    for profile in profiles {
        script.push_str(&format!("source '{}'\n", profile.display().to_string().replace('\'', "'\\''")));
    }
    let directory = process.working_dir.as_ref().map_or_else(|| app.to_owned(), |dir| app.join(dir));
    script.push_str(&format!("cd '{}'\n", directory.display().to_string().replace('\'', "'\\''")));
    let command = process.command.join(" ");
    let words: Vec<String> = if process.args.is_empty() {
        script.push_str("exec bash -c \"$@\"");
        vec![command]
    } else {
        // "$@" are the words; each is expanded once, and stays one word.
        script.push_str("words=(); for word in \"$@\"; do words+=(\"$(eval echo \\\"\"$word\"\\\")\"); done; exec \"${words[@]}\"");
        [vec![command], process.args.clone()].concat()
    };
    let mut shell = Command::new("/bin/bash");
    shell.args(["-c", &script, "bash"]).args(words).current_dir(app).env_clear().envs(environment.iter());
    Err(Failure::new(format!("exec bash: {}", shell.exec())))
}

/// Versions are `0.MINOR`.
fn minor(version: &str) -> u32 {
    version.strip_prefix("0.").and_then(|minor| minor.parse().ok()).unwrap_or(0)
}

fn supported(version: &str, least: u32, most: u32) -> bool {
    version.starts_with("0.") && (least..=most).contains(&minor(version))
}
