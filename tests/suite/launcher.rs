//! The launcher as it is in images: the cases are those of the real launcher 0.21.17.

use std::{
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::support::{executable, write};

const METADATA: &str = r##"
buildpack-default-process-type = "web"

[[buildpacks]]
id = "one/a"
version = "1"
api = "0.10"

[[buildpacks]]
id = "two"
version = "1"
api = "0.7"

[[labels]]
key = "a # b"
value = '''
x'''

[[processes]]
type = "env"
command = ["env"]
args = []
direct = true
buildpack-id = "one/a"

[[processes]]
type = "web"
command = ["sh", "-c", "echo $OVR $KIND $SEEN"]
args = [
    "d1", # the first
    "d2",
]
direct = true
buildpack-id = "one/a"

[[processes]]
type = "new"
command = ["printf", "%s|"]
args = ["d1", "d2"]
direct = true
buildpack-id = "one/a"

[[processes]]
type = "new1"
command = ["echo"]
args = ["d1", "d2"]
direct = true
buildpack-id = "one/a"

[[processes]]
type = "old"
command = ["echo"]
args = ["d1", "$PROF", "a  b"]
direct = false
buildpack-id = "two"

[[processes]]
type = "script"
command = ["echo $PROF; pwd"]
args = []
direct = false
working-dir = "sub"
buildpack-id = "two"

[[processes]]
type = "olddirect"
command = ["echo"]
args = ["d1", "$PROF"]
direct = true
buildpack-id = "two"
"##;

/// What `exec.d` programs write is TOML, of any style.
const EXEC_D: &str = r#"#!/bin/sh
pwd > "$OUT/pwd"
echo "said $A_DEFAULT"
printf 'OVR = "execd"\nSEEN = """\nmany\n"""\n"KIND" = '"'plain'" >&3
"#;

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir_in("/var/tmp").unwrap() };
        place.file("layers/config/metadata.toml", METADATA);
        for folder in ["one_a/a/bin", "one_a/a-b/bin", "two/z/bin", "two/z/lib"] {
            fs::create_dir_all(place.path("layers").join(folder)).unwrap();
        }
        place.file("layers/one_a/a/env/PATH.prepend", "/from/env");
        place.file("layers/one_a/a/env/PATH.delim", ":");
        place.file("layers/one_a/a/env/A_DEFAULT.default", "default");
        place.file("layers/one_a/a/env.launch/OVR.override", "env\n");
        place.file("layers/one_a/a/env.launch/web/KIND", "web");
        place.program("layers/one_a/a/exec.d/10", EXEC_D);
        let second = "#!/bin/sh\necho \"SEEN = \\\"$OVR\\\"\" >&3\n";
        place.program("layers/one_a/a/exec.d/web/20", second);
        place.file("layers/two/z/profile.d/10.sh", "export PROF=\"from profile\"\n");
        fs::create_dir_all(place.path("app/sub")).unwrap();
        fs::create_dir_all(place.path("process")).unwrap();
        place.install();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, content: &str) {
        write(self.dir.path(), name, content);
    }

    fn program(&self, name: &str, content: &str) {
        executable(&self.path(name), content.as_bytes());
    }

    fn install(&self) {
        let launcher = self.path("launcher");
        executable(&launcher, &epiniod::launcher::program());
        for kind in ["env", "web", "new", "new1", "old", "script", "olddirect", "unknown"] {
            symlink(&launcher, self.path("process").join(kind)).unwrap();
        }
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let program = match program {
            "launcher" => self.path("launcher"),
            kind => self.path("process").join(kind),
        };
        let mut command = Command::new(program);
        let path = "/cnb/process:/cnb/lifecycle:/usr/bin:/bin";
        command.args(args).env_clear().env("PATH", path).env("HOME", "/home").env("OUT", self.path("app"));
        command.env("CNB_PLATFORM_API", "0.14").env("CNB_DEPRECATION_MODE", "quiet");
        command.env("CNB_LAYERS_DIR", self.path("layers")).env("CNB_APP_DIR", self.path("app"));
        command
    }

    fn output(&self, program: &str, args: &[&str]) -> (i32, String) {
        text(&self.command(program, args).output().unwrap())
    }

    /// Standard output without what `exec.d` programs say.
    fn lines(&self, program: &str, args: &[&str]) -> String {
        let (code, out) = self.output(program, args);
        assert_eq!(code, 0, "{program} {args:?}: {out}");
        out.strip_prefix("said default\n").expect("what exec.d/10 says is in the output").to_owned()
    }
}

fn text(output: &Output) -> (i32, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8(text).unwrap())
}

#[test]
fn the_launcher_is_small() {
    let size = epiniod::launcher::program().len();
    // A program that does nothing has 1.08 MB: so much is glibc with what the standard library needs of it.
    assert!(size <= 1_250_000, "it is in every image, and has {size} bytes");
}

#[test]
fn arguments_and_words_are_as_the_specification_says() {
    let place = Place::new();
    let cases: [(&str, &[&str], &str); 12] = [
        ("new", &[], "d1|d2|"),
        ("new", &["u1"], "u1|"),
        ("new1", &[], "d1 d2\n"),
        ("new1", &["u1"], "u1\n"),
        ("old", &[], "d1 from profile a b\n"),
        ("old", &["u1"], "d1 from profile a b u1\n"),
        ("olddirect", &["u1"], "d1 $PROF u1\n"),
        ("launcher", &["--", "echo", "x $HOME"], "x $HOME\n"),
        ("launcher", &["echo", "x $HOME"], "x /home\n"),
        ("launcher", &["echo x $HOME"], "x /home\n"),
        ("launcher", &["echo", "-n", "*"], "*"),
        ("web", &[], "execd plain execd\n"),
    ];
    for (program, args, expected) in cases {
        assert_eq!(place.lines(program, args), expected, "{program} {args:?}");
    }
    let mut old_platform = place.command("new1", &["u1"]);
    assert_eq!(text(&old_platform.env("CNB_PLATFORM_API", "0.9").output().unwrap()).1, "said default\nd1 d2 u1\n");
    let (app, sub) = (place.path("app"), place.path("app/sub"));
    assert_eq!(place.lines("script", &[]), format!("from profile\n{}\n", sub.display()));
    assert_eq!(fs::read_to_string(app.join("pwd")).unwrap(), format!("{}\n", app.display()));
}

#[test]
fn the_environment_is_made_of_the_layers() {
    let place = Place::new();
    let env = place.lines("env", &[]);
    let layers = place.path("layers");
    let folder = |name: &str| layers.join(name).display().to_string();
    let path = format!(
        "{}:/from/env:{}:{}:/usr/bin:/bin",
        folder("two/z/bin"),
        folder("one_a/a-b/bin"),
        folder("one_a/a/bin")
    );
    let mut expected = vec![
        format!("PATH={path}"),
        format!("LD_LIBRARY_PATH={}", folder("two/z/lib")),
        "A_DEFAULT=default".to_owned(),
        "HOME=/home".to_owned(),
        "KIND=plain".to_owned(),
        format!("OUT={}", place.path("app").display()),
        "OVR=execd".to_owned(),
        "SEEN=many".to_owned(),
        String::new(),
    ];
    expected.sort();
    let mut found: Vec<_> = env.split('\n').map(str::to_owned).collect();
    found.sort();
    // The value of SEEN ends with a line's end.
    found.remove(0);
    assert_eq!(found, expected);
}

#[test]
fn what_cannot_be_launched_has_its_exit_code() {
    let place = Place::new();
    let cases: [(&str, &[&str], i32, &str); 5] = [
        ("launcher", &[], 82, "no process of this name"),
        ("unknown", &[], 82, "no process of this name"),
        ("launcher", &["--", "nosuch"], 82, "nosuch is not in PATH"),
        ("launcher", &["nosuch"], 127, "nosuch"),
        ("launcher", &["web"], 127, "web"),
    ];
    for (program, args, code, message) in cases {
        let (found, text) = place.output(program, args);
        assert_eq!(found, code, "{program} {args:?}: {text}");
        assert!(text.contains(message), "{program} {args:?}: {text}");
    }
    for (name, value, code) in [("CNB_PLATFORM_API", "0.99", 11), ("CNB_PLATFORM_API", "", 11)] {
        let (found, text) = text(&place.command("web", &[]).env(name, value).output().unwrap());
        assert_eq!(found, code, "{text}");
    }
    let (code, warned) = text(&place.command("new", &[]).env("CNB_PROCESS_TYPE", "web").output().unwrap());
    assert_eq!(code, 0);
    assert!(warned.contains("d1|d2|") && warned.contains("CNB_PROCESS_TYPE is not used"), "{warned}");
    place.program("layers/one_a/a/exec.d/30", "#!/bin/sh\nexit 3\n");
    assert_failed(&place, "exec.d/30: exit status: 3");
    place.program("layers/one_a/a/exec.d/30", "#!/bin/sh\necho 'A = 1' >&3\n");
    assert_failed(&place, "'A' is not a string");
    place.file("layers/config/metadata.toml", "[[buildpacks]]\nid = \"x\"\napi = \"0.13\"\n");
    assert_eq!(place.output("launcher", &["--", "true"]).0, 12);
    place.file("layers/config/metadata.toml", "[[buildpacks]\n");
    assert_failed(&place, "metadata.toml: line 1");
}

fn assert_failed(place: &Place, message: &str) {
    let (code, text) = place.output("launcher", &["--", "true"]);
    assert_eq!(code, 82, "{text}");
    assert!(text.contains(message), "{text}");
}
