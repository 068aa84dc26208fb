//! What users download, as `packaging/release` makes it of the program that is tested: installed, and taken away again.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::support::{epiniod, not_run};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const ARCH: &str = std::env::consts::ARCH;
/// What the install script needs of a machine besides curl or wget.
const TOOLS: [&str; 19] = [
    "sh",
    "uname",
    "id",
    "dirname",
    "basename",
    "mktemp",
    "rm",
    "awk",
    "sha256sum",
    "cut",
    "mkdir",
    "tar",
    "gzip",
    "head",
    "cp",
    "chmod",
    "mv",
    "cat",
    "grep",
];

/// A release of this program in a folder; none where there is nothing to make it with.
fn release() -> Option<TempDir> {
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        assert!(std::env::var_os("EPINIOD_TEST_TOOLS").is_none(), "dpkg-deb is not installed");
        not_run("packages: dpkg-deb is not installed");
        return None;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let made = Command::new("bash")
        .arg(source("packaging/release"))
        .args(["--quick", "--binary"])
        .arg(epiniod())
        .arg("--out")
        .arg(dir.path())
        .env("SOURCE_DATE_EPOCH", "1800000000")
        .output();
    said(&made.unwrap());
    Some(dir)
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What a program that succeeded said.
fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{}: {text}", output.status);
    text
}

/// The files and links below a folder.
fn files(root: &Path) -> BTreeSet<String> {
    let found = Command::new("find").arg(root).args(["!", "-type", "d", "-printf", "%P\n"]).output().unwrap();
    said(&found).lines().map(str::to_owned).collect()
}

fn tarball() -> String {
    format!("epiniod-{VERSION}-{ARCH}.tar.gz")
}

/// The install script, with these tools and no others.
fn install(root: &Path, tools: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.arg(source("packaging/install.sh")).args(args).env_clear().env("DESTDIR", root).env("PATH", tools);
    command
}

/// A folder with links to programs.
fn tools(downloader: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in TOOLS.into_iter().chain(["sed", "rmdir", downloader]) {
        let found = Command::new("sh").args(["-c", "command -v \"$0\"", name]).output().unwrap();
        symlink(said(&found).trim(), dir.path().join(name)).unwrap();
    }
    dir
}

/// Serves the files of a folder, as any web server does, until this process ends; its URL.
fn serve(folder: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let folder = folder.to_owned();
    std::thread::spawn(move || listener.incoming().flatten().for_each(|client| answer(client, &folder)));
    url
}

fn answer(mut client: TcpStream, folder: &Path) {
    let lines = BufReader::new(client.try_clone().unwrap()).lines().map_while(Result::ok);
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let name = head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or("/").trim_start_matches('/');
    let (status, body) = match fs::read(folder.join(name)) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // A client that goes early has its reasons.
    let _ = client.write_all(head.as_bytes()).and_then(|()| client.write_all(&body));
}

#[test]
fn the_same_program_makes_the_same_release_and_says_what_is_in_it() {
    let (Some(one), Some(two)) = (release(), release()) else { return };
    let sums = |dir: &TempDir| fs::read_to_string(dir.path().join("SHA256SUMS")).unwrap();
    assert_eq!(sums(&one), sums(&two));
    said(&Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(&one).output().unwrap());
    let listed = Command::new("tar").arg("-tzf").arg(one.path().join(tarball())).output().unwrap();
    let listed = said(&listed);
    let names: Vec<&str> = listed.lines().filter_map(|name| name.split_once('/')).map(|(_, name)| name).collect();
    let expected = [
        "",
        "LICENSE",
        "README.md",
        "completions/",
        "completions/_epiniod",
        "completions/epiniod.bash",
        "completions/epiniod.fish",
        "epiniod",
        "epiniod.1",
        "epiniod.default",
        "epiniod.service",
        "install.sh",
    ];
    assert_eq!(names, expected);
}

#[test]
fn the_script_installs_from_a_web_server_and_takes_all_of_it_away_again() {
    let Some(release) = release() else { return };
    let url = serve(release.path());
    for downloader in ["curl", "wget"] {
        let (root, tools) = (tempfile::tempdir().unwrap(), tools(downloader));
        let root = root.path();
        fs::create_dir_all(root.join("run/systemd/system")).unwrap();
        said(&install(root, tools.path(), &[&url]).output().unwrap());
        let program = root.join("usr/local/bin/epiniod");
        let version = Command::new(&program).arg("--version").output().unwrap();
        assert_eq!(said(&version).trim(), format!("epiniod {VERSION}"));
        let unit = fs::read_to_string(root.join("etc/systemd/system/epiniod.service")).unwrap();
        assert!(unit.contains("\nExecStart=/usr/local/bin/epiniod serve\n"), "{unit}");
        let first = files(root);
        for there in ["etc/default/epiniod", "usr/local/share/bash-completion/completions/epiniod"] {
            assert!(first.contains(there), "{first:#?}");
        }
        for (path, mode) in [(&program, 0o755), (&root.join("etc/systemd/system/epiniod.service"), 0o644)] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, mode, "{}", path.display());
        }

        // A second time, from the file, over the settings of somebody.
        fs::write(root.join("etc/default/epiniod"), "EPINIOD_SYSTEM_DOMAIN=example.com\n").unwrap();
        let file = release.path().join(tarball());
        said(&install(root, tools.path(), &[file.to_str().unwrap()]).output().unwrap());
        assert_eq!(files(root), first);
        let data = root.join("var/lib/epiniod");
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("state"), "dear").unwrap();
        let talk = said(&install(root, tools.path(), &["--uninstall"]).output().unwrap());
        let kept = ["etc/default/epiniod", "var/lib/epiniod/state"].map(str::to_owned);
        assert_eq!(files(root), BTreeSet::from(kept), "{talk}");
        assert!(talk.contains("--purge"), "it says what stays: {talk}");
        said(&install(root, tools.path(), &["--purge"]).output().unwrap());
        assert_eq!(files(root), BTreeSet::new());
    }
}

#[test]
fn the_script_refuses_what_was_not_released_and_installs_nothing_of_it() {
    let Some(release) = release() else { return };
    let (root, tools) = (tempfile::tempdir().unwrap(), tools("curl"));
    let refused = |args: &[&str], why: &str| {
        let output = install(root.path(), tools.path(), args).output().unwrap();
        let talk = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && talk.contains(why), "{args:?} {why}: {talk}");
        assert_eq!(files(root.path()), BTreeSet::new(), "{args:?}");
    };
    let url = serve(release.path());
    let file = release.path().join(tarball());
    let mut tampered = fs::File::options().append(true).open(&file).unwrap();
    tampered.write_all(b"\0").unwrap();
    refused(&[&url], "is not what was released");
    refused(&[file.to_str().unwrap()], "is not what was released");
    fs::remove_file(&file).unwrap();
    refused(&[&url], "cannot be had");
    refused(&[file.to_str().unwrap()], "there is no file");
    fs::write(release.path().join("SHA256SUMS"), "0  epiniod-9.9.9-other.tar.gz\n").unwrap();
    refused(&[&url], &format!("has no epiniod  for {ARCH}"));
    refused(&["--instal"], "install.sh [TARBALL | URL]");
    refused(&[], "please name a tarball");
}

#[test]
fn the_package_is_installed_removed_and_purged_as_debian_wants_it() {
    let Some(release) = release() else { return };
    if !nix::unistd::geteuid().is_root() {
        return not_run("the Debian package in a root of its own: dpkg needs root");
    }
    let root = tempfile::tempdir_in("/var/tmp").unwrap();
    let root = root.path();
    let database = root.join("var/lib/dpkg");
    for folder in ["info", "updates", "triggers"] {
        fs::create_dir_all(database.join(folder)).unwrap();
    }
    fs::write(database.join("status"), "").unwrap();
    let debian = if ARCH == "aarch64" { "arm64" } else { "amd64" };
    let package = release.path().join(format!("epiniod_{VERSION}_{debian}.deb"));
    // Its scripts run on this machine, and are told which root is meant. What it depends on is essential: not in there.
    let dpkg = |args: &[&str]| {
        let mut command = Command::new("dpkg");
        command.arg(format!("--root={}", root.display()));
        let output = command.args(["--force-script-chrootless", "--force-depends"]).args(args).output().unwrap();
        said(&output)
    };
    let ours = || files(root).into_iter().filter(|name| !name.starts_with("var/lib/dpkg/")).collect::<BTreeSet<_>>();
    let wanted = "etc/systemd/system/multi-user.target.wants/epiniod.service";
    dpkg(&["--install", package.to_str().unwrap()]);
    let version = Command::new(root.join("usr/bin/epiniod")).arg("--version").output().unwrap();
    assert_eq!(said(&version).trim(), format!("epiniod {VERSION}"));
    for there in [
        "etc/default/epiniod",
        "usr/lib/systemd/system/epiniod.service",
        "usr/share/bash-completion/completions/epiniod",
        "usr/share/doc/epiniod/copyright",
        "usr/share/man/man1/epiniod.1.gz",
        wanted,
    ] {
        assert!(ours().contains(there), "{there}: {:#?}", ours());
    }
    said(
        &Command::new("dpkg").arg(format!("--root={}", root.display())).args(["--verify", "epiniod"]).output().unwrap(),
    );

    let data = root.join("var/lib/epiniod");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("state"), "dear").unwrap();
    // A second time, as an upgrade is one.
    dpkg(&["--install", package.to_str().unwrap()]);
    dpkg(&["--remove", "epiniod"]);
    let kept = ours();
    assert!(kept.contains("var/lib/epiniod/state") && kept.contains("etc/default/epiniod"), "{kept:#?}");
    assert!(!kept.contains("usr/bin/epiniod"), "{kept:#?}");
    dpkg(&["--purge", "epiniod"]);
    assert_eq!(ours(), BTreeSet::new(), "something was left");
}

#[test]
fn the_scripts_are_of_the_shell_that_they_name() {
    let scripts = ["install.sh", "debian/postinst", "debian/prerm", "debian/postrm", "release"];
    let paths = scripts.map(|name| source("packaging").join(name));
    // Without what they source of others.
    let Ok(checked) = Command::new("shellcheck").arg("--exclude=SC1091").args(&paths).output() else {
        assert!(std::env::var_os("EPINIOD_TEST_TOOLS").is_none(), "shellcheck is not installed");
        return not_run("shell scripts of packages: shellcheck is not installed");
    };
    said(&checked);
}
