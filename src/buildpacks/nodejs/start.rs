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
    /// There is a build script and no server but one for development: its output is a site.
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

/// Those that run in the browser where a build script and an index.html are beside them.
const ENTRIES: [&str; 4] = ["index.js", "index.mjs", "main.js", "src/index.js"];
/// Programs that serve while somebody develops, each with the first words that make it do so; `""` is none.
const DEVELOPMENT_SERVERS: [(&str, &[&str]); 12] = [
    ("astro", &["dev", "preview"]),
    ("craco", &["start"]),
    ("docusaurus", &["start"]),
    ("gatsby", &["develop"]),
    ("ng", &["serve", "s", "dev"]),
    ("parcel", &["", "serve", "index.html", "src/index.html"]),
    ("react-app-rewired", &["start"]),
    ("react-scripts", &["start"]),
    ("vite", &["", "dev", "serve", "preview"]),
    ("vue-cli-service", &["serve"]),
    ("webpack", &["serve"]),
    ("webpack-dev-server", &[""]),
];

impl Start {
    pub(super) fn decide(app: &Path, package: &Package) -> Result<Self, Error> {
        if procfile::read(app)?.iter().any(|line| line.name == procfile::WEB) {
            return Ok(Self::Procfile);
        }
        let builds = package.script("build").is_some();
        if let Some(script) = package.script("start") {
            if builds && is_development_server(script) {
                return Ok(Self::BuiltSite);
            }
            let command = match package.script("prestart") {
                Some(before) => format!("{before} && {script}"),
                None => script.to_owned(),
            };
            return Ok(Self::Command { command, why: "the script 'start' of package.json" });
        }
        if let Some(main) = package.main().and_then(|main| existing(app, main)) {
            return Ok(Self::node(&main, "'main' of package.json"));
        }
        let is_bundled = builds && app.join("index.html").is_file();
        let is_server = |file: &&str| app.join(file).is_file() && !(is_bundled && ENTRIES.contains(file));
        if let Some(file) = FILES.into_iter().find(is_server) {
            return Ok(Self::node(file, "there is neither a script 'start' nor a 'main' that exists"));
        }
        Ok(if builds { Self::BuiltSite } else { Self::Nothing })
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

/// Whether a script ends in a development server.
fn is_development_server(script: &str) -> bool {
    let last = script.rsplit(['&', ';', '|']).next().unwrap_or(script);
    let is_prefix = |word: &&str| word.contains('=') || ["npx", "cross-env", "exec"].contains(word);
    let mut words = last.split_whitespace().skip_while(is_prefix);
    let program = words.next().unwrap_or_default();
    let first = words.next().filter(|word| !word.starts_with('-')).unwrap_or_default();
    DEVELOPMENT_SERVERS.iter().any(|(name, firsts)| *name == program && firsts.contains(&first))
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
        let bundler = r#"{"scripts":{"build":"vite build"}}"#;
        assert_eq!(decide(bundler, &["index.html", "main.js"]), Start::BuiltSite);
        assert_eq!(command(&decide(bundler, &["index.html", "main.js", "server.js"])), "node 'server.js'");
        assert_eq!(decide("{}", &[]), Start::Nothing);
    }

    #[test]
    fn a_development_server_gives_way_to_what_is_built() {
        for (start, expected) in [
            ("ng serve", true),
            ("react-scripts start", true),
            ("vite --host", true),
            ("npx vite", true),
            ("PORT=3000 react-scripts start", true),
            ("set PORT=3000 && vue-cli-service serve --open", true),
            ("parcel src/index.html", true),
            ("vite build && node server.js", false),
            ("node vite.js", false),
            ("webpack --mode production", false),
            ("next start", false),
        ] {
            let manifest = format!(r#"{{"scripts":{{"start":"{start}","build":"b"}}}}"#);
            assert_eq!(decide(&manifest, &[]) == Start::BuiltSite, expected, "{start}");
        }
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
