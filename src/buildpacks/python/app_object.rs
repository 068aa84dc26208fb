//! Finds the application object without running any code: the module-level name that a framework's own quickstart
//! binds, or a factory of that object.

use std::{fmt, fs, path::Path};

use crate::buildpacks::{Error, error::At};

/// What a server calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interface {
    Wsgi,
    Asgi,
}

impl fmt::Display for Interface {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Wsgi => "WSGI, served by gunicorn",
            Self::Asgi => "ASGI, served by uvicorn",
        })
    }
}

/// An application object and where it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AppObject {
    pub file: String,
    /// Directory that has to be on the search path, if not the application's own.
    pub directory: Option<String>,
    pub module: String,
    /// Name of the object, or of the function that makes it.
    pub name: String,
    pub factory: bool,
    pub interface: Interface,
}

impl AppObject {
    /// As the server wants it: uvicorn is told of a factory by a flag, gunicorn by a call.
    pub(super) fn target(&self) -> String {
        let call = if self.factory && self.interface == Interface::Wsgi { "()" } else { "" };
        format!("{}:{}{call}", self.module, self.name)
    }
}

/// Files that are looked at, best first; `src/` is looked at likewise.
const FILES: [&str; 9] =
    ["wsgi.py", "asgi.py", "app.py", "main.py", "application.py", "server.py", "api.py", "run.py", "index.py"];
/// Files of a package that are looked at.
const PACKAGE_FILES: [&str; 6] = ["__init__.py", "wsgi.py", "asgi.py", "app.py", "main.py", "server.py"];
const WSGI_CALLS: [&str; 9] = [
    "Flask",
    "Bottle",
    "default_app",
    "get_wsgi_application",
    "APIFlask",
    "OpenAPI",
    "make_wsgi_app",
    "WSGIApplication",
    "Eve",
];
const ASGI_CALLS: [&str; 9] = [
    "FastAPI",
    "Starlette",
    "Quart",
    "Litestar",
    "get_asgi_application",
    "BlackSheep",
    "Esmerald",
    "Sanic",
    "FastHTML",
];
const ASGI_MODULES: [&str; 6] = ["fastapi", "starlette", "quart", "litestar", "blacksheep", "sanic"];
/// A larger file holds data, not an application.
const MAX_BYTES: u64 = 1024 * 1024;

/// The application object of the source in `app`.
pub(super) fn find(app: &Path) -> Result<Option<AppObject>, Error> {
    if let Some(django) = django(app)? {
        return Ok(Some(django));
    }
    let mut candidates = Vec::new();
    for directory in [None, Some("src")] {
        let root = directory.map_or_else(|| app.to_owned(), |name| app.join(name));
        candidates.extend(FILES.iter().map(|file| (directory, (*file).to_owned())));
        for package in packages(&root)? {
            candidates.extend(PACKAGE_FILES.iter().map(|file| (directory, format!("{package}/{file}"))));
        }
    }
    let mut factory = None;
    for (directory, file) in candidates {
        let path = directory.map_or_else(|| app.join(&file), |name| app.join(name).join(&file));
        let Some(text) = read(&path)? else { continue };
        let Some((name, interface, is_factory)) = scan(&text) else { continue };
        let object = AppObject {
            file: directory.map_or_else(|| file.clone(), |directory| format!("{directory}/{file}")),
            directory: directory.map(str::to_owned),
            module: module(&file),
            name,
            factory: is_factory,
            interface,
        };
        if !is_factory {
            return Ok(Some(object));
        }
        factory = factory.or(Some(object));
    }
    Ok(factory)
}

/// `manage.py` names the settings module; `wsgi.py` is beside it.
fn django(app: &Path) -> Result<Option<AppObject>, Error> {
    let Some(text) = read(&app.join("manage.py"))? else { return Ok(None) };
    let Some((_, rest)) = text.split_once("DJANGO_SETTINGS_MODULE") else { return Ok(None) };
    let Some(settings) = rest.split(['"', '\'']).find(|part| part.contains("settings")) else { return Ok(None) };
    let package = settings.split(".settings").next().unwrap_or(settings);
    for (file, interface) in [("wsgi", Interface::Wsgi), ("asgi", Interface::Asgi)] {
        let path = format!("{}/{file}.py", package.replace('.', "/"));
        if app.join(&path).is_file() {
            return Ok(Some(AppObject {
                file: path,
                directory: None,
                module: format!("{package}.{file}"),
                name: "application".to_owned(),
                factory: false,
                interface,
            }));
        }
    }
    Ok(None)
}

/// Names of the packages in `root`, sorted; tests and environments are none of them.
fn packages(root: &Path) -> Result<Vec<String>, Error> {
    if !root.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(root).at(root)? {
        let entry = entry.at(root)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let identifier = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if identifier
            && !["src", "tests", "test", "venv", "env", "node_modules"].contains(&name.as_str())
            && entry.path().is_dir()
        {
            names.push(name);
        }
    }
    names.sort_by_key(|name| (name != "app", name.clone()));
    Ok(names)
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match path.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.len() <= MAX_BYTES => {
            Ok(Some(String::from_utf8_lossy(&fs::read(path).at(path)?).into_owned()))
        }
        _ => Ok(None),
    }
}

fn module(file: &str) -> String {
    let module = file.trim_end_matches(".py").replace('/', ".");
    module.strip_suffix(".__init__").map_or(module.clone(), str::to_owned)
}

/// Name, interface and whether it is a factory, of the best object at the top level of `text`.
fn scan(text: &str) -> Option<(String, Interface, bool)> {
    let imports_asgi = text.lines().any(|line| {
        let line = line.trim_start();
        (line.starts_with("import ") || line.starts_with("from "))
            && line.split([' ', '.', ',']).any(|word| ASGI_MODULES.contains(&word))
    });
    let by_import = if imports_asgi { Interface::Asgi } else { Interface::Wsgi };
    let mut found: Vec<(String, Interface, bool)> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with([' ', '\t', '#'])) {
        if let Some(object) = assigned(line, by_import).or_else(|| defined(line, by_import)) {
            found.push(object);
        }
    }
    let rank = |(name, _, factory): &(String, Interface, bool)| (*factory, name != "app" && name != "application");
    found.sort_by_key(rank);
    found.into_iter().next()
}

/// `NAME = CALL(…)` with a known call.
fn assigned(line: &str, by_import: Interface) -> Option<(String, Interface, bool)> {
    let (left, right) = line.split_once('=')?;
    let name = left.split(':').next()?.trim();
    let callee = right.trim_start().split('(').next()?.trim();
    if !is_identifier(name) || !right.contains('(') || !callee.split('.').all(is_identifier) {
        return None;
    }
    let call = callee.rsplit('.').next()?;
    let interface = match call {
        _ if callee.contains("asgi") || ASGI_CALLS.contains(&call) => Interface::Asgi,
        _ if callee == "falcon.App" || callee == "falcon.API" || WSGI_CALLS.contains(&call) => Interface::Wsgi,
        "create_app" | "make_app" | "build_app" | "create_application" => by_import,
        _ => return None,
    };
    Some((name.to_owned(), interface, false))
}

/// A factory, or the application as a function.
fn defined(line: &str, by_import: Interface) -> Option<(String, Interface, bool)> {
    let (asynchronous, line) = line.strip_prefix("async ").map_or((false, line), |rest| (true, rest));
    let (name, arguments) = line.strip_prefix("def ")?.split_once('(')?;
    let name = name.trim();
    if ["create_app", "make_app", "build_app", "create_application"].contains(&name) && !asynchronous {
        return Some((name.to_owned(), by_import, true));
    }
    if asynchronous && arguments.replace(' ', "").starts_with("scope,receive,send") {
        return Some((name.to_owned(), Interface::Asgi, false));
    }
    if arguments.replace(' ', "").starts_with("environ,start_response") {
        return Some((name.to_owned(), Interface::Wsgi, false));
    }
    None
}

fn is_identifier(text: &str) -> bool {
    let mut characters = text.chars();
    characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && characters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_quickstarts_are_found() {
        use Interface::{Asgi, Wsgi};
        let table = [
            ("from flask import Flask\napp = Flask(__name__)\n", Some(("app", Wsgi, false))),
            ("app: Flask = flask.Flask(__name__)", Some(("app", Wsgi, false))),
            ("from fastapi import FastAPI\nrouter = FastAPI()\napp = FastAPI()", Some(("app", Asgi, false))),
            ("server = FastAPI(\n  title='x')", Some(("server", Asgi, false))),
            ("application = get_wsgi_application()", Some(("application", Wsgi, false))),
            ("def create_app(config=None):\n    app = Flask(__name__)", Some(("create_app", Wsgi, true))),
            ("from fastapi import FastAPI\ndef create_app() -> FastAPI:", Some(("create_app", Asgi, true))),
            ("from app import create_app\napp = create_app()", Some(("app", Wsgi, false))),
            ("def application(environ, start_response):", Some(("application", Wsgi, false))),
            ("async def app(scope, receive, send):", Some(("app", Asgi, false))),
            ("app = falcon.asgi.App()", Some(("app", Asgi, false))),
            ("# app = Flask(__name__)\ndef main():\n    app = Flask(__name__)", None),
            ("print('a = Flask()')", None),
            ("", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|(name, interface, factory)| (name.to_owned(), interface, factory));
            assert_eq!(scan(text), expected, "{text:?}");
        }
    }

    #[test]
    fn places_are_looked_at_in_order() {
        let app = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = app.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let target = || find(app.path()).unwrap().map(|found| (found.target(), found.directory));
        assert_eq!(target(), None);
        write("src/shop/main.py", "app = FastAPI()");
        assert_eq!(target(), Some(("shop.main:app".into(), Some("src".into()))));
        write("flaskr/__init__.py", "def create_app():\n    pass");
        assert_eq!(target(), Some(("shop.main:app".into(), Some("src".into()))));
        fs::remove_dir_all(app.path().join("src")).unwrap();
        assert_eq!(target(), Some(("flaskr:create_app()".into(), None)));
        write("main.py", "app = Flask(__name__)");
        assert_eq!(target(), Some(("main:app".into(), None)));
        write("manage.py", "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'site1.settings')");
        write("site1/wsgi.py", "application = get_wsgi_application()");
        assert_eq!(target(), Some(("site1.wsgi:application".into(), None)));
    }
}
