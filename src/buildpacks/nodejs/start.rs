//! How a Node.js application is started.

use std::path::Path;

use super::package::Package;
use crate::buildpacks::{Error, procfile};

/// What answers requests.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Start {
    Procfile,
    /// A line for bash.
    Command {
        command: String,
        why: &'static str,
    },
    /// There is a build script and no server: its output is a site.
    BuiltSite,
    Nothing,
}

/// Files that are a server by custom, best first.
const FILES: [&str; 9] = [
    "server.js",
    "index.js",
    "app.js",
    "server.mjs",
    "index.mjs",
    "app.mjs",
    "main.js",
    "src/index.js",
    "src/server.js",
];

impl Start {
    pub(super) fn decide(app: &Path, package: &Package) -> Result<Self, Error> {
        if procfile::read(app)?.iter().any(|line| line.name == procfile::WEB) {
            return Ok(Self::Procfile);
        }
        if let Some(script) = package.script("start") {
            let command = match package.script("prestart") {
                Some(before) => format!("{before} && {script}"),
                None => script.to_owned(),
            };
            return Ok(Self::Command { command, why: "the script 'start' of package.json" });
        }
        if let Some(main) = package.main().and_then(|main| existing(app, main)) {
            return Ok(Self::node(&main, "'main' of package.json"));
        }
        if let Some(file) = FILES.into_iter().find(|file| app.join(file).is_file()) {
            return Ok(Self::node(file, "there is neither a script 'start' nor a 'main' that exists"));
        }
        Ok(if package.script("build").is_some() { Self::BuiltSite } else { Self::Nothing })
    }

    /// Whether npm itself is needed in the image.
    pub(super) fn needs_npm(&self, app: &Path) -> Result<bool, Error> {
        let calls_npm = |command: &str| {
            command.split(|c: char| c.is_whitespace() || ";&|()".contains(c)).any(|word| word == "npm" || word == "npx")
        };
        Ok(match self {
            Self::Procfile => procfile::read(app)?.iter().any(|line| calls_npm(&line.command)),
            Self::Command { command, .. } => calls_npm(command),
            Self::BuiltSite | Self::Nothing => false,
        })
    }

    fn node(file: &str, why: &'static str) -> Self {
        Self::Command { command: format!("node '{}'", file.replace('\'', r"'\''")), why }
    }
}

/// The file that `main` means: itself, with `.js`, or an `index.js` in it.
fn existing(app: &Path, main: &str) -> Option<String> {
    let main = main.trim().trim_start_matches("./").trim_end_matches('/');
    if main.is_empty() || main.starts_with('/') || main.split('/').any(|part| part == "..") {
        return None;
    }
    [main.to_owned(), format!("{main}.js"), format!("{main}/index.js")]
        .into_iter()
        .find(|name| app.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::{super::package::package, *};

    fn decide(manifest: &str, files: &[&str]) -> Start {
        let (app, package) = package(&[("package.json", manifest)]);
        for file in files {
            std::fs::write(app.path().join(file), "").unwrap();
        }
        Start::decide(app.path(), &package).unwrap()
    }

    fn command(start: &Start) -> &str {
        match start {
            Start::Command { command, .. } => command,
            _ => "",
        }
    }

    #[test]
    fn the_best_way_to_start_is_taken() {
        let init = r#"{"main":"index.js","scripts":{"test":"exit 1"}}"#;
        assert_eq!(command(&decide(init, &["index.js", "server.js"])), "node 'index.js'");
        assert_eq!(command(&decide(init, &["app.js"])), "node 'app.js'");
        assert_eq!(command(&decide(r#"{"scripts":{"start":"vite"}}"#, &["app.js"])), "vite");
        assert_eq!(command(&decide(r#"{"scripts":{"start":"b","prestart":"a"}}"#, &[])), "a && b");
        assert_eq!(command(&decide(r#"{"main":"./lib"}"#, &["lib.js"])), "node 'lib.js'");
        assert_eq!(command(&decide(r#"{"main":"../x.js"}"#, &["server.js"])), "node 'server.js'");
        assert_eq!(decide(r#"{"scripts":{"build":"vite build"}}"#, &["index.html"]), Start::BuiltSite);
        assert_eq!(decide("{}", &[]), Start::Nothing);
    }

    #[test]
    fn npm_is_in_the_image_only_where_it_is_called() {
        let app = tempfile::tempdir().unwrap();
        for (script, expected) in [("node a.js", false), ("npm run serve", true), ("a && npx b", true), ("npmx", false)]
        {
            let start = Start::Command { command: script.to_owned(), why: "" };
            assert_eq!(start.needs_npm(app.path()).unwrap(), expected, "{script}");
        }
    }
}
