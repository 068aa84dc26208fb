//! What an application asks for: `requirements.txt` with what it includes, else `pyproject.toml`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Component, Path, PathBuf},
};

use crate::buildpacks::{Error, error::At};

/// The requirements of an application, and where they are from.
#[derive(Debug)]
pub(in crate::buildpacks) enum Requirements {
    /// `requirements.txt`; `files` are all that it reads, by path.
    Txt { files: BTreeMap<PathBuf, String>, local: bool, unread_lock: Option<&'static str> },
    /// `[project]` or a build system in `pyproject.toml`.
    Project { text: String, dependencies: Dependencies, package: bool, unread_lock: Option<&'static str> },
}

/// `dependencies` of `[project]`.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::buildpacks) enum Dependencies {
    Listed(Vec<String>),
    /// Only the project's build system knows them.
    Dynamic,
}

/// A Python package that is compiled on the machine where it is installed.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::buildpacks) struct Compiled {
    pub name: &'static str,
    pub headers: &'static [&'static str],
    pub libraries: &'static [&'static str],
}

/// Packages that publish no wheels for Linux, and the Debian packages they are compiled and run with.
const COMPILED: [Compiled; 15] = [
    Compiled { name: "psycopg2", headers: &["libpq-dev"], libraries: &["libpq5"] },
    Compiled { name: "mysqlclient", headers: &["libmariadb-dev"], libraries: &["libmariadb3"] },
    Compiled { name: "uwsgi", headers: &[], libraries: &[] },
    Compiled { name: "python-ldap", headers: &["libldap-dev", "libsasl2-dev"], libraries: &["libldap2"] },
    Compiled { name: "pygraphviz", headers: &["libgraphviz-dev"], libraries: &["graphviz"] },
    Compiled { name: "pycairo", headers: &["libcairo2-dev"], libraries: &["libcairo2"] },
    Compiled { name: "pycurl", headers: &["libcurl4-openssl-dev"], libraries: &["libcurl4t64"] },
    Compiled { name: "pyaudio", headers: &["portaudio19-dev"], libraries: &["libportaudio2"] },
    Compiled { name: "pylibmc", headers: &["libmemcached-dev"], libraries: &["libmemcached11t64"] },
    Compiled { name: "pyodbc", headers: &["unixodbc-dev"], libraries: &["libodbc2"] },
    Compiled { name: "gssapi", headers: &["libkrb5-dev"], libraries: &["libgssapi-krb5-2"] },
    Compiled { name: "systemd-python", headers: &["libsystemd-dev"], libraries: &["libsystemd0"] },
    Compiled { name: "dbus-python", headers: &["libdbus-1-dev", "libglib2.0-dev"], libraries: &["libdbus-1-3"] },
    Compiled { name: "dlib", headers: &["cmake"], libraries: &[] },
    Compiled { name: "pyjnius", headers: &[], libraries: &[] },
];
/// Anything fetched with git needs git, which is one of the build tools.
const GIT: Compiled = Compiled { name: "git+", headers: &[], libraries: &[] };
const TXT: &str = "requirements.txt";
const PYPROJECT: &str = "pyproject.toml";
/// Included files that are followed; more is a mistake.
const MAX_FILES: usize = 100;

impl Requirements {
    /// `None` when `app` is no Python application.
    pub(in crate::buildpacks) fn find(app: &Path) -> Result<Option<Self>, Error> {
        if app.join(TXT).is_file() {
            let mut files = BTreeMap::new();
            let local = read_txt(app, Path::new(TXT), &mut files)?;
            return Ok(Some(Self::Txt { files, local, unread_lock: unread_lock(app) }));
        }
        let path = app.join(PYPROJECT);
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).at(&path)?;
        let table: toml::Table = toml::from_str(&text)
            .map_err(|error| Error::Refused(format!("{PYPROJECT} is not valid TOML; correct it: {error}")))?;
        let poetry = table.get("tool").and_then(|tool| tool.get("poetry"));
        let package = table.contains_key("build-system")
            && poetry.and_then(|poetry| poetry.get("package-mode")).and_then(toml::Value::as_bool) != Some(false);
        let project = table.get("project").and_then(toml::Value::as_table);
        let dependencies = match project {
            Some(project) if !is_dynamic(project) => Dependencies::Listed(listed(project)),
            _ if package => Dependencies::Dynamic,
            _ if poetry.is_some() => return Err(Error::Refused(EXPORT_POETRY.to_owned())),
            // Only settings of tools: not a Python application.
            _ => return Ok(None),
        };
        Ok(Some(Self::Project { text, dependencies, package, unread_lock: unread_lock(app) }))
    }

    /// What is read, and why.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Txt { files, .. } if files.len() > 1 => format!("{TXT} and {} files that it names", files.len() - 1),
            Self::Txt { .. } => format!("{TXT} is there"),
            Self::Project { package: true, .. } => format!("{PYPROJECT} is there and describes a package"),
            Self::Project { .. } => format!(
                "{PYPROJECT} is there; it has no [build-system], so only its \
                dependencies are installed"
            ),
        }
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        match self {
            Self::Project { unread_lock: Some(lock), .. } => {
                let export = if *lock == "uv.lock" {
                    "uv export --format requirements-txt --no-emit-project -o requirements.txt"
                } else if *lock == "poetry.lock" {
                    "poetry export -o requirements.txt"
                } else {
                    "pipenv requirements > requirements.txt"
                };
                vec![format!(
                    "{lock} is not read, the newest versions that {PYPROJECT} allows are installed; for \
                    exactly those of the lock run '{export}' and push again"
                )]
            }
            Self::Txt { unread_lock: Some(lock), .. } => vec![format!("{TXT} is used and {lock} is not read")],
            _ => Vec::new(),
        }
    }

    /// Everything that decides what is installed, apart from files of the application itself.
    pub(super) fn content(&self) -> Vec<u8> {
        match self {
            Self::Txt { files, .. } => {
                files.iter().flat_map(|(path, text)| format!("{}\0{text}\0", path.display()).into_bytes()).collect()
            }
            Self::Project { text, .. } => text.clone().into_bytes(),
        }
    }

    /// What is compiled at installation as far as can be told.
    pub(super) fn compiled(&self) -> Vec<&'static Compiled> {
        let lines: Vec<&str> = match self {
            Self::Txt { files, .. } => files.values().flat_map(|text| text.lines()).collect(),
            Self::Project { dependencies: Dependencies::Listed(all), .. } => all.iter().map(String::as_str).collect(),
            Self::Project { .. } => Vec::new(),
        };
        let mut found: Vec<&'static Compiled> =
            COMPILED.iter().filter(|known| lines.iter().any(|line| distribution(line) == known.name)).collect();
        if lines.iter().any(|line| !line.trim_start().starts_with('#') && line.contains("git+")) {
            found.push(&GIT);
        }
        found
    }
}

const EXPORT_POETRY: &str = "pyproject.toml lists its dependencies for Poetry only and is no package; run \
    'poetry export -o requirements.txt' and push again";

/// Reads a requirements file and those that it includes; whether anything in them is a path of the application.
fn read_txt(app: &Path, name: &Path, files: &mut BTreeMap<PathBuf, String>) -> Result<bool, Error> {
    if files.contains_key(name) {
        return Ok(false);
    }
    if files.len() >= MAX_FILES {
        return Err(Error::Refused(format!("{TXT} includes more than {MAX_FILES} files; put them into one")));
    }
    let path = app.join(name);
    let text = String::from_utf8_lossy(&fs::read(&path).at(&path)?).into_owned();
    files.insert(name.to_owned(), text.clone());
    let mut local = false;
    for line in text.lines().map(str::trim) {
        if let Some(other) = included(line) {
            if other.contains("://") {
                continue;
            }
            let other = normal(&name.parent().unwrap_or(Path::new("")).join(other))
                .ok_or_else(|| Error::Refused(format!("{TXT} includes '{other}', which is outside the application")))?;
            local |= read_txt(app, &other, files)?;
        } else {
            local |= is_local(line);
        }
    }
    Ok(local)
}

/// The file that a line `-r FILE` or `-c FILE` names.
fn included(line: &str) -> Option<&str> {
    ["-r", "--requirement", "-c", "--constraint"].iter().find_map(|flag| {
        let rest = line.strip_prefix(flag)?;
        let rest = rest.strip_prefix('=').or_else(|| rest.strip_prefix(' ')).or((flag.len() == 2).then_some(rest))?;
        let rest = rest.split(" #").next()?.trim();
        (!rest.is_empty()).then_some(rest)
    })
}

/// Whether a requirement is a path: what is installed then depends on the application's own files.
fn is_local(line: &str) -> bool {
    let line = line.strip_prefix("-e").or_else(|| line.strip_prefix("--editable")).unwrap_or(line).trim_start();
    let line = line.trim_start_matches('=').trim_start();
    line.starts_with('.') || line.starts_with('/') || line.contains("file:")
}

/// Joins `..` away; `None` when the path leaves the application.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut result = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => result.push(name),
            Component::CurDir => {}
            Component::ParentDir if result.pop() => {}
            _ => return None,
        }
    }
    Some(result)
}

/// The normalised name of a requirement (PEP 503).
pub(super) fn distribution(requirement: &str) -> String {
    let name = requirement.trim().split(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c)).next();
    name.unwrap_or_default().to_ascii_lowercase().replace(['_', '.'], "-")
}

fn is_dynamic(project: &toml::Table) -> bool {
    let dynamic = project.get("dynamic").and_then(toml::Value::as_array);
    dynamic.is_some_and(|all| all.iter().any(|one| one.as_str() == Some("dependencies")))
}

fn listed(project: &toml::Table) -> Vec<String> {
    let all = project.get("dependencies").and_then(toml::Value::as_array);
    all.into_iter().flatten().filter_map(toml::Value::as_str).map(str::to_owned).collect()
}

fn unread_lock(app: &Path) -> Option<&'static str> {
    ["uv.lock", "poetry.lock", "Pipfile.lock"].into_iter().find(|name| app.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(files: &[(&str, &str)]) -> tempfile::TempDir {
        let app = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::create_dir_all(app.path().join(name).parent().unwrap()).unwrap();
            fs::write(app.path().join(name), text).unwrap();
        }
        app
    }

    #[test]
    fn included_files_are_part_of_the_requirements() {
        let app = app(&[
            ("requirements.txt", "-r req/base.txt # more\nflask\n"),
            ("req/base.txt", "-c../limits.txt\npsycopg2==2.9\n"),
            ("limits.txt", "click<9\n"),
        ]);
        let Some(Requirements::Txt { files, local: false, .. }) = Requirements::find(app.path()).unwrap() else {
            panic!("requirements.txt was not read");
        };
        assert_eq!(files.len(), 3);
        let found = Requirements::find(app.path()).unwrap().unwrap();
        assert_eq!(found.compiled().iter().map(|one| one.name).collect::<Vec<_>>(), ["psycopg2"]);
    }

    #[test]
    fn paths_are_told_from_names() {
        for (line, expected) in
            [("-e .", true), ("./lib", true), ("x @ file:///workspace/x", true), ("flask", false), ("# ./no", false)]
        {
            assert_eq!(is_local(line), expected, "{line}");
        }
        let outside = app(&[("requirements.txt", "-r ../other.txt\n")]);
        let error = Requirements::find(outside.path()).unwrap_err().to_string();
        assert!(error.contains("outside the application"), "{error}");
    }

    #[test]
    fn binary_wheels_need_no_compiler() {
        for (line, expected) in
            [("psycopg2-binary>=2", 0), ("psycopg2", 1), ("a @ git+https://example.com/a", 1), ("# git+https", 0)]
        {
            let app = app(&[("requirements.txt", line)]);
            assert_eq!(Requirements::find(app.path()).unwrap().unwrap().compiled().len(), expected, "{line}");
        }
    }

    #[test]
    fn pyproject_is_an_application_only_with_a_project() {
        let project = "[project]\nname = \"a\"\nversion = \"1\"\ndependencies = [\"fastapi\"]\n";
        let system = "[build-system]\nrequires = [\"hatchling\"]\n";
        let dynamic = "[project]\nname = \"a\"\ndynamic = [\"dependencies\"]\n";
        let find = |text: &str| Requirements::find(app(&[("pyproject.toml", text)]).path()).unwrap();
        assert!(matches!(
            find(project),
            Some(Requirements::Project { dependencies: Dependencies::Listed(all), package: false, .. }) if all == ["fastapi"]
        ));
        assert!(matches!(
            find(&format!("{dynamic}{system}")),
            Some(Requirements::Project { dependencies: Dependencies::Dynamic, package: true, .. })
        ));
        assert!(find("[tool.black]\nline-length = 100\n").is_none());
        let poetry = app(&[("pyproject.toml", "[tool.poetry]\npackage-mode = false\n[build-system]\n")]);
        assert!(Requirements::find(poetry.path()).unwrap_err().to_string().contains("poetry export"));
    }
}
