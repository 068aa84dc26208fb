//! The embedded buildpacks, run as the lifecycle runs them: through links named `detect` and `build` to the real program,
//! with the layers of one build restored for the next. What needs a registry of packages is tried with real bases by
//! the tests of a whole push; here is what holds on any machine.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::support::epiniod;

/// `bin/detect` of a buildpack that does not take part.
const NOT_FOR_ME: i32 = 100;

/// A source, and all that a buildpack is given.
struct Build {
    root: TempDir,
}

impl Build {
    fn of(files: &[(&str, &str)]) -> Self {
        let build = Self { root: tempfile::tempdir().expect("a temporary directory") };
        for directory in ["workspace", "layers", "platform/env", "home"] {
            fs::create_dir_all(build.path(directory)).expect("a directory");
        }
        epiniod::buildpacks::install(&build.path("cnb"), &epiniod()).expect("installed buildpacks");
        for (name, text) in files {
            build.write(name, text);
        }
        build
    }

    /// A sample of `tests/apps`.
    fn of_sample(name: &str) -> Self {
        let build = Self::of(&[]);
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps").join(name);
        for entry in fs::read_dir(sample).expect("the sample") {
            let entry = entry.expect("a file of the sample");
            fs::copy(entry.path(), build.path("workspace").join(entry.file_name())).expect("a copied file");
        }
        build
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path("workspace").join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("a written file");
    }

    fn environment(&self, name: &str, value: &str) -> &Self {
        fs::write(self.path("platform/env").join(name), value).expect("a written variable");
        self
    }

    /// Exit code of detect, and the build plan.
    fn detect(&self, id: &str) -> (i32, String) {
        let plan = self.path("plan.toml");
        fs::write(&plan, "").expect("an empty plan");
        let output = self.run(id, "detect", &[&self.path("platform"), &plan]);
        (output.status.code().expect("an exit code"), fs::read_to_string(plan).expect("the plan"))
    }

    /// The log of a build, and whether it succeeded.
    fn build(&self, id: &str) -> (bool, String) {
        self.build_with_plan(id, "")
    }

    fn build_with_plan(&self, id: &str, plan: &str) -> (bool, String) {
        let path = self.path("buildpack-plan.toml");
        fs::write(&path, plan).expect("a plan");
        fs::create_dir_all(self.layers(id)).expect("the layers");
        let output = self.run(id, "build", &[&self.layers(id), &self.path("platform"), &path]);
        let log = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.success(), log)
    }

    fn layers(&self, id: &str) -> PathBuf {
        self.path("layers").join(id.replace('/', "_"))
    }

    fn launch(&self, id: &str) -> toml::Table {
        let text = fs::read_to_string(self.layers(id).join("launch.toml")).expect("launch.toml");
        toml::from_str(&text).expect("valid TOML")
    }

    fn run(&self, id: &str, phase: &str, arguments: &[&Path]) -> Output {
        let folder = self.path("cnb/buildpacks").join(id.replace('/', "_"));
        let version = fs::read_dir(&folder).expect("the buildpack").next().expect("a version").expect("a version");
        Command::new(version.path().join("bin").join(phase))
            .args(arguments)
            .current_dir(self.path("workspace"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").expect("a PATH"))
            .env("HOME", self.path("home"))
            .env("CNB_BUILDPACK_DIR", version.path())
            .env("CNB_TARGET_OS", "linux")
            .env("CNB_TARGET_ARCH", "amd64")
            .env("CNB_TARGET_DISTRO_NAME", "debian")
            .env("CNB_TARGET_DISTRO_VERSION", "13")
            .output()
            .expect("a buildpack that runs")
    }
}

/// Names of all packages that a plan requires.
fn packages(plan: &str) -> Vec<String> {
    let plan: toml::Table = toml::from_str(plan).expect("a valid plan");
    let requires = plan.get("requires").and_then(toml::Value::as_array).into_iter().flatten();
    let mut names: Vec<String> = requires
        .flat_map(|require| require["metadata"]["packages"].as_array().expect("packages"))
        .map(|name| name.as_str().expect("a name").to_owned())
        .collect();
    names.sort();
    names.dedup();
    names
}

fn web(launch: &toml::Table) -> String {
    let processes = launch["processes"].as_array().expect("processes");
    let web = processes.iter().find(|process| process["type"].as_str() == Some("web")).expect("a process web");
    assert_eq!(web["default"].as_bool(), Some(true));
    let words = web["command"].as_array().expect("a command");
    words.iter().map(|word| word.as_str().expect("a word")).collect::<Vec<_>>().join(" ")
}

#[test]
fn each_sample_is_recognised_by_its_buildpack_alone() {
    for (sample, own, expected) in [
        ("python", "epiniod/python", &["python3", "python3-venv"][..]),
        ("node", "epiniod/nodejs", &["nodejs"]),
        ("static", "epiniod/static", &["nginx"]),
        ("procfile", "epiniod/procfile", &[]),
    ] {
        let build = Build::of_sample(sample);
        for id in ["epiniod/python", "epiniod/nodejs", "epiniod/static", "epiniod/procfile"] {
            let (code, plan) = build.detect(id);
            assert_eq!(code, if id == own { 0 } else { NOT_FOR_ME }, "{id} on {sample}");
            if id == own {
                assert_eq!(packages(&plan), expected, "{sample}");
            }
        }
    }
}

#[test]
fn compilers_are_required_only_where_they_are_needed() {
    let pure = Build::of(&[("requirements.txt", "flask\n")]);
    assert!(!packages(&pure.detect("epiniod/python").1).contains(&"build-tools".to_owned()));
    pure.environment("BP_BUILD_TOOLS", "true");
    assert!(packages(&pure.detect("epiniod/python").1).contains(&"build-tools".to_owned()));

    let compiled = Build::of(&[("requirements.txt", "psycopg2==2.9.10\n")]);
    let wanted = packages(&compiled.detect("epiniod/python").1);
    for name in ["build-tools", "python3-dev", "libpq-dev", "libpq5"] {
        assert!(wanted.iter().any(|one| one == name), "{name} is not in {wanted:?}");
    }
    let addon = Build::of(&[("package.json", r#"{"dependencies":{"better-sqlite3":"^12"}}"#), ("server.js", "")]);
    assert_eq!(packages(&addon.detect("epiniod/nodejs").1), ["build-tools", "libnode-dev", "nodejs", "python3"]);
}

#[test]
fn an_aptfile_adds_packages() {
    let build = Build::of_sample("procfile");
    let (code, plan) = build.detect("epiniod/debian");
    assert_eq!((code, packages(&plan)), (0, vec!["socat".to_owned()]));
    let entry = "[[entries]]\nname = \"debian\"\nmetadata = { packages = [\"socat\"], build = true, launch = true }\n";
    let (success, log) = build.build_with_plan("epiniod/debian", entry);
    assert!(success && log.contains("while building and in the image: socat"), "{log}");

    let bad = Build::of(&[("Aptfile", "socat; rm -rf /\n")]);
    assert_ne!(bad.detect("epiniod/debian").0, 0);
}

#[test]
fn a_procfile_makes_processes() {
    let build = Build::of(&[("Procfile", "worker: ./work\nweb: ./serve --port $PORT\n")]);
    let (success, log) = build.build("epiniod/procfile");
    assert!(success, "{log}");
    assert_eq!(web(&build.launch("epiniod/procfile")), "bash -c ./serve --port $PORT");
    assert_eq!(Build::of(&[("Procfile", "nothing here\n")]).detect("epiniod/procfile").0, NOT_FOR_ME);
}

#[test]
fn the_only_line_of_a_procfile_is_the_default_where_nothing_else_serves() {
    for (file, is_default) in
        [("README", true), ("requirements.txt", false), ("package.json", false), ("index.html", false)]
    {
        let build = Build::of(&[("Procfile", "release: ./migrate\n"), (file, "")]);
        let (success, log) = build.build("epiniod/procfile");
        assert!(success, "{log}");
        let launch = build.launch("epiniod/procfile");
        let default = launch["processes"][0].get("default").and_then(toml::Value::as_bool).unwrap_or(false);
        assert_eq!(default, is_default, "beside {file}");
    }
}

#[test]
fn a_development_server_is_no_way_to_start() {
    for (start, expected) in [("vite", &["nginx", "nodejs"][..]), ("node server.js", &["nodejs"])] {
        let manifest = format!(r#"{{"scripts":{{"start":"{start}","build":"vite build"}}}}"#);
        let build = Build::of(&[("package.json", &manifest), ("index.html", "")]);
        assert_eq!(packages(&build.detect("epiniod/nodejs").1), expected, "{start}");
    }
}

#[test]
fn a_site_is_served_from_where_its_index_is() {
    for directory in ["", "public/", "dist/"] {
        let build = Build::of(&[(&format!("{directory}index.html"), "<h1>one</h1>")]);
        assert_eq!(build.detect("epiniod/static").0, 0);
        let (success, log) = build.build("epiniod/static");
        assert!(success, "{log}");
        let site = build.layers("epiniod/static").join("site");
        let script = site.join("serve-site");
        assert_eq!(web(&build.launch("epiniod/static")), format!("bash {}", script.display()));
        assert_eq!(fs::metadata(&script).expect("the script").permissions().mode() & 0o777, 0o755);
        let before = fs::read_to_string(site.join("nginx.conf.in")).expect("the configuration");
        let root = build.path("workspace").join(directory);
        assert!(before.contains(&format!("root \"{}\"", root.display().to_string().trim_end_matches('/'))), "{before}");
        // As long as before: nginx's own tag, made of time and length, would be the same in an image.
        build.write(&format!("{directory}index.html"), "<h1>two</h1>");
        assert!(build.build("epiniod/static").0);
        let after = fs::read_to_string(site.join("nginx.conf.in")).expect("the configuration");
        assert_ne!(before, after, "the tag of the site has to change with its content");
    }
}

#[test]
fn what_cannot_be_started_says_what_to_do() {
    let python = Build::of(&[("requirements.txt", "flask\n"), ("tool.py", "print('no server')\n")]);
    let (success, log) = python.build("epiniod/python");
    assert!(!success);
    assert!(log.lines().last().is_some_and(|line| line.starts_with("error: no app object found")), "{log}");
    assert!(log.contains("add a Procfile with 'web: COMMAND'"), "{log}");

    let broken = Build::of(&[("package.json", "{")]);
    assert!(!matches!(broken.detect("epiniod/nodejs").0, 0 | NOT_FOR_ME));
    let tools = Build::of(&[("package.json", "{}"), ("index.html", "")]);
    assert_eq!(tools.detect("epiniod/nodejs").0, NOT_FOR_ME, "package.json only names tools");
    let bundler = Build::of(&[("package.json", r#"{"scripts":{"build":"vite build"}}"#), ("index.html", "")]);
    assert_eq!(packages(&bundler.detect("epiniod/nodejs").1), ["nginx", "nodejs"]);
}

/// Needs python3 with venv on the machine, but no network: nothing is required.
#[test]
fn a_virtual_environment_is_kept_until_the_requirements_change() {
    let files = [("requirements.txt", ""), ("Procfile", "web: python app.py\n"), ("app.py", "print('hello')\n")];
    let build = Build::of(&files);
    let (success, log) = build.build("epiniod/python");
    assert!(success && log.contains("making a virtual environment"), "{log}");
    let layer = build.layers("epiniod/python").join("venv.toml");
    let first = fs::read_to_string(&layer).expect("the layer's metadata");
    assert!(first.contains("launch = true") && first.contains("cache = true"), "{first}");

    build.write("app.py", "print('edited')\n");
    let (success, log) = build.build("epiniod/python");
    assert!(success && log.contains("the virtual environment of the last build is used"), "{log}");
    assert_eq!(fs::read_to_string(&layer).expect("the layer's metadata"), first);

    build.write("requirements.txt", "# another\n");
    let (_, log) = build.build("epiniod/python");
    assert!(log.contains("making a virtual environment"), "{log}");
}

#[test]
fn only_an_embedded_buildpack_is_run_by_its_name() {
    let build = Build::of(&[("Procfile", "web: a\n")]);
    let foreign = build.path("foreign");
    fs::create_dir_all(&foreign).expect("a directory");
    fs::write(foreign.join("buildpack.toml"), "api = \"0.10\"\n[buildpack]\nid = \"else/where\"\nversion = \"1\"\n")
        .expect("a descriptor");
    let link = foreign.join("detect");
    std::os::unix::fs::symlink(epiniod(), &link).expect("a link");
    let output = Command::new(&link).env("CNB_BUILDPACK_DIR", &foreign).output().expect("an output");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("--->"));
}
