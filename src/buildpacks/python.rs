//! `epiniod/python`: a virtual environment of what `requirements.txt` or `pyproject.toml` names, on Debian's Python.
//!
//! The environment is a cached layer, keyed by what decides its content. Without a Procfile the application
//! object is looked for, and served by gunicorn or uvicorn.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use libcnb::{
    data::{launch::Launch, layer_name},
    layer_env::{LayerEnv, ModificationBehavior, Scope},
};

use super::{Context, Failure, LayerKey, Packages, Result, Wants, key, keyed_layer, output_of, read, run, say, web};

/// Added where the application does not bring its own.
const GUNICORN: &str = "gunicorn==23.0.0";
const UVICORN: &str = "uvicorn==0.34.0";
/// Where an application object may be, in order.
const MODULES: [&str; 9] = ["app", "main", "wsgi", "asgi", "application", "server", "api", "run", "index"];
/// Packages without wheels, or that are known to need a compiler often.
const NEED_COMPILER: [&str; 6] = ["psycopg2", "mysqlclient", "uwsgi", "python-ldap", "pycairo", "dbus-python"];

/// An application object, and how it is served.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Wsgi(String),
    Asgi(String),
}

pub(super) fn detect(app: &Path) -> Option<Wants> {
    let project =
        read(app, "pyproject.toml").is_some_and(|text| text.contains("[project]") || text.contains("[tool.poetry]"));
    if !app.join("requirements.txt").is_file() && !project {
        return None;
    }
    let mut packages = vec![Packages::for_build(&["python3-venv"]), Packages::everywhere(&["python3"])];
    if needs_compiler(app) {
        packages.push(Packages::for_build(&["build-tools", "python3-dev"]));
    }
    Some(Wants { packages, ..Wants::default() })
}

pub(super) fn build(context: &Context) -> Result<Launch> {
    let app = &context.app_dir;
    let version = output_of(Command::new("/usr/bin/python3").arg("--version"))?;
    let found = if app.join("Procfile").is_file() { None } else { Some(find_object(app)?) };
    let (layer, stale) =
        keyed_layer(context, layer_name!("venv"), &layer_key(app, &version, found.as_ref()), false, true)?;
    let venv = layer.path();
    if stale {
        install(app, &venv, &version, found.as_ref())?;
        layer.write_metadata(LayerKey { key: layer_key(app, &version, found.as_ref()) })?;
    } else {
        say(&format!("{version}: using the cached environment, nothing that it is made of has changed"));
    }
    let unbuffered =
        LayerEnv::new().chainable_insert(Scope::Launch, ModificationBehavior::Default, "PYTHONUNBUFFERED", "1");
    layer.write_env(unbuffered)?;
    Ok(match found {
        None => libcnb::data::launch::LaunchBuilder::new().build(),
        Some(Found::Wsgi(object)) => {
            say(&format!("serving {object} with gunicorn"));
            web(&format!(
                "exec gunicorn --bind \"0.0.0.0:${{PORT:-8080}}\" --workers \"${{WEB_CONCURRENCY:-1}}\" --threads 4 --worker-tmp-dir /dev/shm --access-logfile - '{object}'"
            ))
        }
        Some(Found::Asgi(object)) => {
            say(&format!("serving {object} with uvicorn"));
            web(&format!(
                "exec uvicorn --host 0.0.0.0 --port \"${{PORT:-8080}}\" --workers \"${{WEB_CONCURRENCY:-1}}\" --proxy-headers --forwarded-allow-ips '*' '{object}'"
            ))
        }
    })
}

fn install(app: &Path, venv: &Path, version: &str, found: Option<&Found>) -> Result<()> {
    say(&format!("{version}: making a virtual environment"));
    run(
        Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(venv),
        "The build base has no working python3-venv.",
    )?;
    let pip = |arguments: &[&str], why: &str| {
        let mut pip = Command::new(venv.join("bin/pip"));
        pip.args([
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--no-compile",
            "--no-cache-dir",
            "--progress-bar",
            "off",
        ]);
        run(pip.args(arguments).current_dir(app), why)
    };
    let why = "Correct what pip says above. Where it wants a compiler, set BP_BUILD_TOOLS=true in the environment of the application.";
    if app.join("requirements.txt").is_file() {
        say("installing what requirements.txt names");
        pip(&["-r", "requirements.txt"], why)?;
    } else {
        say("installing the project of pyproject.toml");
        pip(&["."], why)?;
    }
    let server = match found {
        Some(Found::Wsgi(_)) if !venv.join("bin/gunicorn").is_file() => Some(GUNICORN),
        Some(Found::Asgi(_)) if !venv.join("bin/uvicorn").is_file() => Some(UVICORN),
        _ => None,
    };
    if let Some(server) = server {
        say(&format!("adding {server}, as the application brings no server of its own"));
        pip(&[server], why)?;
    }
    // By hash, not by time: the same bytes wherever and whenever this is done.
    let mut compile = Command::new(venv.join("bin/python"));
    compile.env("PYTHONHASHSEED", "0").args(["-m", "compileall", "-q", "-j1", "--invalidation-mode", "unchecked-hash"]);
    // Files that are not valid Python (templates, tests of old versions) are none of our business.
    let _ = compile.arg(venv.join("lib")).stdout(std::process::Stdio::null()).status();
    Ok(())
}

fn layer_key(app: &Path, version: &str, found: Option<&Found>) -> String {
    let file = |name: &str| fs::read(app.join(name)).unwrap_or_default();
    let server = match found {
        Some(Found::Wsgi(_)) => GUNICORN,
        Some(Found::Asgi(_)) => UVICORN,
        None => "",
    };
    if app.join("requirements.txt").is_file() {
        let mut all = file("requirements.txt");
        // Files that it includes decide as well.
        for line in String::from_utf8_lossy(&all.clone()).lines() {
            let included = line.trim().strip_prefix("-r ").or_else(|| line.trim().strip_prefix("-c "));
            all.extend(included.map(|name| file(name.trim())).unwrap_or_default());
        }
        return key(&[version.as_bytes(), &all, server.as_bytes()]);
    }
    // The project itself is installed into the environment: all of it decides.
    let sources: Vec<Vec<u8>> = python_files(app).iter().map(|path| fs::read(path).unwrap_or_default()).collect();
    key(&[version.as_bytes(), &file("pyproject.toml"), server.as_bytes(), &sources.concat()])
}

fn python_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files.extend(python_files(&path)),
            Ok(kind) if kind.is_file() => files.push(path),
            _ => {}
        }
    }
    files
}

fn needs_compiler(app: &Path) -> bool {
    if std::env::var("BP_BUILD_TOOLS").is_ok_and(|value| value == "true" || value == "1") {
        return true;
    }
    let text = read(app, "requirements.txt").unwrap_or_default().to_lowercase();
    text.lines().map(str::trim).any(|line| {
        let name = line.split(['=', '<', '>', '~', '[', ';', ' ', '!']).next().unwrap_or_default();
        NEED_COMPILER.contains(&name) || line.contains("git+")
    })
}

/// Looks for the application object in the usual places.
fn find_object(app: &Path) -> Result<Found> {
    if app.join("manage.py").is_file()
        && let Some(package) = folders(app).into_iter().find(|name| app.join(name).join("wsgi.py").is_file())
    {
        return Ok(Found::Wsgi(format!("{package}.wsgi:application")));
    }
    let mut places: Vec<(String, PathBuf)> =
        MODULES.iter().map(|name| ((*name).to_owned(), app.join(format!("{name}.py")))).collect();
    for folder in folders(app) {
        places.push((folder.clone(), app.join(&folder).join("__init__.py")));
        places.extend(
            MODULES.iter().map(|name| (format!("{folder}.{name}"), app.join(&folder).join(format!("{name}.py")))),
        );
    }
    let found = places.iter().find_map(|(module, path)| object_in(module, &fs::read_to_string(path).ok()?));
    found.ok_or_else(|| {
        Failure::new(
            "no application object was found in app.py, main.py, wsgi.py, asgi.py or a package; \
             add a Procfile with a line such as 'web: gunicorn --bind 0.0.0.0:$PORT module:object'",
        )
    })
}

fn folders(app: &Path) -> Vec<String> {
    let entries = fs::read_dir(app)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_'));
    names.sort();
    names
}

/// A line such as `app = Flask(__name__)` or `def create_app(`.
fn object_in(module: &str, text: &str) -> Option<Found> {
    const WSGI: [&str; 5] = ["Flask(", "Bottle(", "get_wsgi_application(", "falcon.App(", "Dash("];
    const ASGI: [&str; 7] =
        ["FastAPI(", "Starlette(", "Quart(", "Litestar(", "Sanic(", "get_asgi_application(", "falcon.asgi.App("];
    for line in text.lines().filter(|line| !line.starts_with([' ', '\t', '#'])) {
        let Some((left, right)) = line.split_once('=') else { continue };
        let name = left.split(':').next().unwrap_or_default().trim();
        let is_name = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
        let made_by = |makers: &[&str]| {
            let right = right.trim();
            makers.iter().any(|maker| {
                right.strip_prefix(maker).is_some()
                    || right.split_once('.').is_some_and(|(_, rest)| rest.starts_with(maker))
            })
        };
        if is_name && made_by(&ASGI) {
            return Some(Found::Asgi(format!("{module}:{name}")));
        }
        if is_name && made_by(&WSGI) {
            return Some(Found::Wsgi(format!("{module}:{name}")));
        }
        if is_name && right.trim().starts_with("create_app(") {
            return Some(Found::Wsgi(format!("{module}:{name}")));
        }
    }
    text.lines().any(|line| line.starts_with("def create_app(")).then(|| Found::Wsgi(format!("{module}:create_app()")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn application_objects_are_found() {
        let wsgi = |object: &str| Some(Found::Wsgi(object.to_owned()));
        let asgi = |object: &str| Some(Found::Asgi(object.to_owned()));
        assert_eq!(object_in("app", "from flask import Flask\n\napp = Flask(__name__)\n"), wsgi("app:app"));
        assert_eq!(
            object_in("main", "import fastapi\nservice: fastapi.FastAPI = fastapi.FastAPI()\n"),
            asgi("main:service")
        );
        assert_eq!(
            object_in("site", "def create_app(config=None):\n    app = Flask(__name__)\n"),
            wsgi("site:create_app()")
        );
        assert_eq!(object_in("x", "# app = Flask(__name__)\n    app = Flask(__name__)\nprint('app')\n"), None);
    }
}
