//! Fills the layers: the virtual environment, the project when it is a package, and pip's cache.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use libcnb::{
    build::BuildContext,
    data::layer_name,
    layer::UncachedLayerDefinition,
    layer_env::{LayerEnv, ModificationBehavior, Scope},
};

use super::{
    Python,
    app_object::Interface,
    requirements::{Dependencies, Requirements},
};
use crate::{
    buildpacks::{
        Error, VERSION, command,
        error::At,
        layer::{Layer, Use},
        output, switch, tree,
    },
    model::Digest,
};

/// Servers that are added where the application does not bring them, with all that they need.
pub(super) const GUNICORN: [&str; 2] = ["gunicorn==27.0.1", "packaging==26.3"];
pub(super) const UVICORN: [&str; 3] = ["uvicorn==0.54.0", "click==8.5.1", "h11==0.16.0"];
/// Layer of the wheels that pip downloaded; it is thrown away when this changes.
const PIP_CACHE_KEY: &str = "pip 1";
/// In bytes: what of them is worth keeping.
const MAX_PIP_CACHE: u64 = 500_000_000;

/// Installs the requirements and, where the application brings none, the server for `server`.
pub(super) fn install(
    context: &BuildContext<Python>,
    requirements: &Requirements,
    server: Option<Interface>,
) -> libcnb::Result<(), Error> {
    let python = find_python()?;
    let cache = Layer::open(context, layer_name!("pip"), Use::Cache, PIP_CACHE_KEY)?;
    cache.empty_over(MAX_PIP_CACHE)?;
    cache.complete()?;
    let key = key(&context.app_dir, requirements, server, &python)?;
    let venv = Layer::open(context, layer_name!("venv"), Use::Launch, &key)?;
    let pip =
        Pip { venv: venv.path(), wheel: python.pip_wheel.clone(), cache: cache.path(), app: context.app_dir.clone() };
    if venv.kept {
        output::decided("the requirements have not changed: the virtual environment of the last build is used");
    } else {
        pip.create(&python)?;
        pip.install_requirements(requirements)?;
        if let Some(server) = server {
            pip.install_server(server)?;
        }
        compile(&pip.python(), &pip.venv.join("lib"))?;
        let mut environment = LayerEnv::new();
        for (name, value) in [("PYTHONUNBUFFERED", "1"), ("PYTHONDONTWRITEBYTECODE", "1")] {
            environment.insert(Scope::Launch, ModificationBehavior::Default, name, value);
        }
        environment.insert(Scope::Launch, ModificationBehavior::Override, "VIRTUAL_ENV", venv.path());
        venv.write_env(&environment)?;
        venv.complete()?;
    }
    if let Requirements::Project { package: true, dependencies, .. } = requirements {
        install_project(context, &pip, dependencies)?;
    }
    Ok(())
}

/// The interpreter of the build base.
struct Interpreter {
    version: String,
    pip_wheel: PathBuf,
}

/// pip, run by the interpreter of a virtual environment from the wheel of ensurepip.
struct Pip {
    venv: PathBuf,
    wheel: PathBuf,
    cache: PathBuf,
    app: PathBuf,
}

impl Pip {
    fn python(&self) -> PathBuf {
        self.venv.join("bin/python")
    }

    fn create(&self, python: &Interpreter) -> Result<(), Error> {
        output::decided(format!("making a virtual environment with Python {}", python.version));
        let outcome =
            command::run(Command::new("python3").args(["-m", "venv", "--without-pip", "--clear"]).arg(&self.venv))?;
        if outcome.success {
            return Ok(());
        }
        Err(Error::Refused("python3 could not make a virtual environment; its message is above".to_owned()))
    }

    fn install_requirements(&self, requirements: &Requirements) -> Result<(), Error> {
        match requirements {
            Requirements::Txt { .. } => {
                output::decided("pip install -r requirements.txt");
                self.run(self.install().args(["-r", "requirements.txt"]))
            }
            Requirements::Project { dependencies: Dependencies::Listed(all), .. } if !all.is_empty() => {
                output::decided("pip install of the dependencies in pyproject.toml");
                self.run(self.install().args(all))
            }
            Requirements::Project { .. } => Ok(()),
        }
    }

    fn install_server(&self, server: Interface) -> Result<(), Error> {
        let (program, pins) = match server {
            Interface::Wsgi => ("gunicorn", &GUNICORN[..]),
            Interface::Asgi => ("uvicorn", &UVICORN[..]),
        };
        if self.venv.join("bin").join(program).is_file() {
            return Ok(());
        }
        output::decided(format!("the application brings no {program}: adding {}", pins[0]));
        // What the server needs is pinned only where the application has not chosen a version itself.
        let missing = pins.iter().enumerate().filter(|(index, pin)| *index == 0 || !self.has(pin));
        self.run(self.install().args(missing.map(|(_, pin)| pin)))
    }

    /// Whether the distribution of `pin` is installed.
    fn has(&self, pin: &str) -> bool {
        let name = pin.split('=').next().unwrap_or(pin);
        let code = format!("import importlib.metadata as m; m.version('{name}')");
        command::output(Command::new(self.python()).args(["-c", &code])).is_some()
    }

    /// Byte code is compiled afterwards: pip's own records time stamps.
    fn install(&self) -> Command {
        let mut command = Command::new(self.python());
        command
            .arg(self.wheel.join("pip"))
            .args(["install", "--no-compile", "--no-input", "--disable-pip-version-check", "--progress-bar=off"])
            .arg("--cache-dir")
            .arg(&self.cache)
            .current_dir(&self.app)
            .env("PIP_NO_WARN_SCRIPT_LOCATION", "1")
            .env("PYTHONHASHSEED", "0")
            .env("PYTHONDONTWRITEBYTECODE", "1");
        if env::var_os("CFLAGS").is_none() {
            // Debug information holds the path of a temporary directory.
            command.env("CFLAGS", "-g0");
        }
        command
    }

    fn run(&self, command: &mut Command) -> Result<(), Error> {
        let outcome = command::run(command)?;
        if outcome.success {
            return Ok(());
        }
        Err(Error::Refused(advice(&outcome.tail)))
    }
}

/// What to do about a failed installation.
fn advice(tail: &str) -> String {
    let tail = tail.to_ascii_lowercase();
    let any = |signs: &[&str]| signs.iter().any(|sign| tail.contains(sign));
    if any(&[
        "gcc' failed: no such file",
        "cc' failed: no such file",
        "unable to execute",
        "no such file or directory: 'gcc'",
        "no such file or directory: 'cc'",
        "unknown compiler",
        "python.h: no such file",
        "cannot find command 'git'",
        "command 'gcc' failed",
        "linker `cc` not found",
        "no c compiler",
        "no cmake_c_compiler",
    ]) {
        format!(
            "a package has no wheel for this system and has to be compiled: set {}=true in the \
             application's environment and push again; headers of further libraries go into an Aptfile (such as \
             'libpq-dev')",
            switch::BUILD_TOOLS
        )
    } else if any(&["no matching distribution found", "resolutionimpossible", "conflicting dependencies"]) {
        "pip found no versions that fit; its message above names the requirement: correct it and push again".to_owned()
    } else if any(&[
        "max retries exceeded",
        "temporary failure in name resolution",
        "certificate_verify_failed",
        "connection refused",
        "network is unreachable",
    ]) {
        "pip could not reach its index; check network, proxy and certificates, or set PIP_INDEX_URL".to_owned()
    } else {
        "pip failed; its message is above".to_owned()
    }
}

/// A package is installed anew by every build into a layer of its own, in front of the virtual environment.
fn install_project(
    context: &BuildContext<Python>,
    pip: &Pip,
    dependencies: &Dependencies,
) -> libcnb::Result<(), Error> {
    let layer =
        context.uncached_layer(layer_name!("project"), UncachedLayerDefinition { build: false, launch: true })?;
    output::decided("pip install of the application itself");
    let mut command = pip.install();
    command.args(["--no-warn-conflicts", "--target"]).arg(layer.path());
    if *dependencies != Dependencies::Dynamic {
        command.arg("--no-deps");
    }
    pip.run(command.arg("."))?;
    compile(&pip.python(), &layer.path())?;
    let environment = LayerEnv::new()
        .chainable_insert(Scope::Launch, ModificationBehavior::Delimiter, "PYTHONPATH", ":")
        .chainable_insert(Scope::Launch, ModificationBehavior::Prepend, "PYTHONPATH", layer.path());
    layer.write_env(environment)
}

fn find_python() -> Result<Interpreter, Error> {
    let code = "import sys, sysconfig, ensurepip, os; \
        print(sys.version.split()[0], sysconfig.get_config_var('SOABI')); \
        print(getattr(ensurepip, '_WHEEL_PKG_DIR', None) or ''); \
        print(os.path.join(os.path.dirname(ensurepip.__file__), '_bundled'))";
    let missing = || Error::Refused("python3 with its venv module is not in the build base".to_owned());
    let text = command::output(Command::new("python3").args(["-c", code])).ok_or_else(missing)?;
    let mut lines = text.lines();
    let version = lines.next().ok_or_else(missing)?.to_owned();
    let pip_wheel = lines.filter(|line| !line.is_empty()).find_map(|line| pip_wheel(Path::new(line)));
    Ok(Interpreter { version, pip_wheel: pip_wheel.ok_or_else(missing)? })
}

fn pip_wheel(directory: &Path) -> Option<PathBuf> {
    let mut wheels: Vec<PathBuf> = fs::read_dir(directory)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("pip-")))
        .collect();
    wheels.sort();
    wheels.pop()
}

/// What decides the content of the virtual environment.
fn key(
    app: &Path,
    requirements: &Requirements,
    server: Option<Interface>,
    python: &Interpreter,
) -> Result<String, Error> {
    let mut all = format!("{VERSION}\n{}\n{}\n", python.version, python.pip_wheel.display()).into_bytes();
    if let Some(server) = server {
        all.extend(format!("{server} {}\n", super::pins()).into_bytes());
    }
    for name in ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONSTRAINT", "PIP_NO_BINARY"] {
        if let Ok(value) = env::var(name) {
            all.extend(format!("{name}={value}\n").into_bytes());
        }
    }
    all.extend(requirements.content());
    if let Requirements::Txt { local: true, .. } = requirements {
        all.extend(tree::digest(app, &|name| name == "__pycache__")?.hex().into_bytes());
    }
    Ok(Digest::of(all).hex())
}

/// Byte code that is valid whatever the time stamps of its source are, the same on every machine: one process, a
/// fixed hash seed, no check at import.
fn compile(python: &Path, root: &Path) -> Result<(), Error> {
    // Its exit code is of no interest: packages hold files that are no valid Python on purpose.
    let mut command = Command::new(python);
    command
        .args(["-m", "compileall", "-qq", "-f", "-j1", "--invalidation-mode", "unchecked-hash"])
        .arg(root)
        .env("PYTHONHASHSEED", "0")
        .env_remove("PYTHONDONTWRITEBYTECODE");
    if root.is_dir() {
        let _exit_code = command::output(&mut command);
        return Ok(());
    }
    fs::create_dir_all(root).at(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_compiler_is_told_from_other_failures() {
        for (tail, expected) in [
            ("error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory", "BP_BUILD_TOOLS=true"),
            ("error: [Errno 2] No such file or directory: 'gcc'", "BP_BUILD_TOOLS=true"),
            ("ERROR: Cannot find command 'git' - do you have 'git' installed", "BP_BUILD_TOOLS=true"),
            ("ERROR: No matching distribution found for flaskk", "correct it"),
            ("Max retries exceeded with url: /simple/flask/", "PIP_INDEX_URL"),
            ("anything else", "its message is above"),
        ] {
            assert!(advice(tail).contains(expected), "{tail}: {}", advice(tail));
        }
    }
}
