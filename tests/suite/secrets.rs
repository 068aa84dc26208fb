//! Secrets are where they have to be, and nowhere else: everything that is written while they pass through is searched.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::{
    api::client::Client,
    support::{Daemon, Packages, RunBy, Surroundings, copy, get, request, sample, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Something that is not to be found, in any form; and where it may be.
struct Secret {
    name: &'static str,
    forms: Vec<Vec<u8>>,
    /// Beginnings of paths below the data directory.
    allowed: &'static [&'static str],
    /// May processes of the application have it?
    of_the_application: bool,
    /// What a user runs in the application: the process that is asked for has this in its arguments, and no other has.
    command: Option<String>,
}

impl Secret {
    fn new(name: &'static str, text: &str, allowed: &'static [&'static str]) -> Self {
        // As Base64 has it at each place of a longer text.
        let encoded = |before: &str| {
            let text = STANDARD.encode(format!("{before}{text}"));
            let begin = (before.len() * 8).div_ceil(6);
            text.as_bytes()[begin..text.len() - 4].to_vec()
        };
        let forms = vec![text.as_bytes().to_vec(), encoded(""), encoded("a"), encoded("ab")];
        Self { name, forms, allowed, of_the_application: false, command: None }
    }

    /// Whether arguments have it only as the command that a user runs.
    fn is_command(&self, arguments: &[u8]) -> bool {
        let command = self.command.as_ref().map(|command| command.as_bytes());
        let mut having = arguments.split(|byte| *byte == 0).filter(|argument| self.is_in(argument));
        having.all(|argument| Some(argument) == command)
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        self.forms.iter().any(|form| bytes.windows(form.len()).any(|part| part == form))
    }
}

fn random() -> String {
    epiniod::auth::new_password()
}

/// Files below a folder, or a file, that have a secret in them.
fn search(place: &Path, secret: &Secret) -> Vec<PathBuf> {
    let mut grep = Command::new("grep");
    grep.args(["--recursive", "--files-with-matches", "--text", "--fixed-strings", "--no-messages", "--null"]);
    for form in &secret.forms {
        grep.arg("-e").arg(String::from_utf8_lossy(form).as_ref());
    }
    let found = grep.arg(place).output().expect("grep runs").stdout;
    let names = found.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| PathBuf::from(OsStr::from_bytes(name))).collect()
}

/// Processes that have a secret in their arguments or environment: but for the daemon, which was given some, and for what
/// this test itself runs.
fn look_at_processes(daemon: u32, secrets: &[Secret], found: &mut BTreeSet<String>) {
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse::<u32>() else { continue };
        let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
        let own = status.lines().any(|line| line == format!("PPid:\t{}", std::process::id()));
        if pid == daemon || pid == std::process::id() || own {
            continue;
        }
        // Between fork and exec it is the daemon still.
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if arguments == fs::read(format!("/proc/{daemon}/cmdline")).unwrap_or_default() {
            continue;
        }
        let is_inside = status.lines().any(|line| line.starts_with("NSpid:") && line.split('\t').count() > 2);
        for part in ["cmdline", "environ"] {
            let bytes = fs::read(process.path().join(part)).unwrap_or_default();
            for secret in secrets.iter().filter(|secret| secret.is_in(&bytes)) {
                let is_own = part == "environ" || secret.is_command(&bytes);
                if !(is_inside && secret.of_the_application && is_own) {
                    let command = String::from_utf8_lossy(&arguments).replace('\0', " ");
                    found.insert(format!("{} in {part} of {command}", secret.name));
                }
            }
        }
    }
}

#[test]
fn secrets_are_nowhere_but_where_they_have_to_be() {
    let [cloud_key, environment, in_source, registry, wrong] = std::array::from_fn(|_| random());
    let surroundings = Surroundings {
        environment: vec![
            ("EPINIOD_LOG", "info,epiniod=trace".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", cloud_key.clone()),
        ],
        umask: Some("0000"),
        password: Some(random()),
        ..Surroundings::default()
    };
    let daemon = Daemon::start_in(surroundings, Packages::Shared, RunBy::Caller);
    let admin = Client::of(&daemon);
    let made = admin.call("POST", "/daemon/tokens", &["-d", r#"{"name":"ci","scopes":["push","read"]}"#]);
    let token = made.1["token"].as_str().expect("a token").to_owned();
    let websocket = admin.call("GET", "/api/v1/authtoken", &[]).1["token"].as_str().expect("a token").to_owned();
    let mut of_the_application = Secret::new("the environment", &environment, ENVIRONMENT);
    of_the_application.of_the_application = true;
    of_the_application.command = Some(command_with(&environment));
    let secrets = [
        Secret::new("the admin's password", &daemon.password, &["client.yaml"]),
        Secret::new("a key of the object storage", &cloud_key, &[]),
        of_the_application,
        Secret::new("a file of the source", &in_source, SOURCE),
        Secret::new("the password of a registry", &registry, &["registries.json"]),
        Secret::new("a wrong password", &wrong, &[]),
        Secret::new("an API token", &token, &[]),
        Secret::new("the token of a websocket", &websocket, &[]),
    ];

    let (over, mut in_processes) = (AtomicBool::new(false), BTreeSet::new());
    let said = std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut found = BTreeSet::new();
            while !over.load(Ordering::Relaxed) {
                look_at_processes(daemon.pid(), &secrets, &mut found);
                std::thread::sleep(Duration::from_millis(5));
            }
            found
        });
        let said = pass_through(&daemon, &token, &websocket, [&environment, &in_source, &registry, &wrong]);
        over.store(true, Ordering::Relaxed);
        in_processes = looking.join().expect("it looks to the end");
        said
    });
    look_at_processes(daemon.pid(), &secrets, &mut in_processes);
    assert!(in_processes.is_empty(), "{in_processes:#?}");
    for secret in &secrets {
        assert!(!secret.is_in(said.as_bytes()), "{} in what the daemon answers:\n{said}", secret.name);
    }

    let shared = daemon.dir().join("settings.yaml");
    // What this test wrote itself, and the login that the first start shares with the command line.
    let ours = [daemon.dir().join("source"), shared.clone()];
    for secret in &secrets {
        let is_allowed = |path: &PathBuf| {
            let mut places = secret.allowed.iter().map(|place| daemon.data_dir().join(place));
            places.any(|place| path.starts_with(place)) || ours.iter().any(|ours| path.starts_with(ours))
        };
        let mut found = search(daemon.dir(), secret);
        // The search finds what is there.
        assert_eq!(secret.allowed.is_empty(), found.is_empty(), "{}: {found:#?}", secret.name);
        found.retain(|path| !is_allowed(path));
        assert!(found.is_empty(), "{} is in {found:#?}", secret.name);
    }
    assert!(fs::read_to_string(daemon.dir().join("daemon.log")).unwrap().contains("a command is run in an instance"));

    // Nobody else gets that far, whatever the umask.
    assert_eq!(fs::metadata(daemon.data_dir()).unwrap().permissions().mode() & 0o777, 0o700);
    for file in [daemon.data_dir().join("client.yaml"), daemon.data_dir().join("audit.jsonl"), shared] {
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
}

#[test]
fn a_password_that_is_made_up_is_in_no_log() {
    let daemon = Daemon::idle();
    let log = daemon.dir().join("serve.log");
    let mut serve = daemon.command(["serve"]);
    let mut serve = serve.stdin(Stdio::null()).stderr(fs::File::create(&log).unwrap()).spawn().expect("it starts");
    wait_until("it serves", PATIENCE, || get(&daemon.api("/ready")).is_ok_and(|answer| answer.status == 200));
    let text = fs::read_to_string(daemon.data_dir().join("client.yaml")).unwrap();
    let encoded = text.lines().find_map(|line| line.strip_prefix("pass: ")).expect("a password").trim_matches('\'');
    let password = String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap();
    let secret = Secret::new("the password", &password, &[]);
    assert_eq!(search(&log, &secret), [] as [PathBuf; 0]);
    assert_eq!(search(&daemon.data_dir().join("store"), &secret), [] as [PathBuf; 0]);
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("created the first user; its password is in") && said.contains("client.yaml"), "{said}");
    // Nobody can guess it, so that nobody keeps it out.
    let credential = |password: &str| format!("admin:{password}");
    for _ in 0..6 {
        request(&["-u", &credential("wrong"), &daemon.api("/api/v1/me")]).unwrap();
    }
    assert_eq!(request(&["-u", &credential("wrong"), &daemon.api("/api/v1/me")]).unwrap().status, 429);
    assert_eq!(request(&["-u", &credential(&password), &daemon.api("/api/v1/me")]).unwrap().status, 200);
    daemon.run(["stop", "--all"]);
    assert!(serve.wait().expect("it ends").success());
}

/// An environment is in records, and where an instance is started from.
const ENVIRONMENT: &[&str] = &["store", "workloads"];
/// A file of the source is in its archive, in layers of the image, and in what is unpacked of them.
const SOURCE: &[&str] = &["blobs", "layers", "workloads"];

/// What is run in the application, with the secret in its text.
fn command_with(environment: &str) -> String {
    format!("echo {environment} >/dev/null")
}

/// Brings secrets to every door; everything that is answered, but for what was asked for.
fn pass_through(daemon: &Daemon, token: &str, websocket: &str, secrets: [&String; 4]) -> String {
    let [environment, in_source, registry, wrong] = secrets;
    let mut said = String::new();
    let mut ask = |arguments: &[&str]| {
        let answer = request(&[&["--max-time", "120"], arguments].concat()).expect("an answer");
        said.push_str(&format!("{}\n{}\n", answer.status, answer.body));
        answer
    };
    let (me, admin) = (daemon.api("/api/v1/me"), format!("admin:{}", daemon.password));
    // A wrong password, in a header, in a URL, as a user, as a token, and at the registry.
    let in_url = me.replace("//", &format!("//admin:{wrong}@"));
    let (guess, bearer) = (format!("admin:{wrong}"), format!("Authorization: Bearer {wrong}"));
    let at_registry = format!("http://127.0.0.1:{}/v2/", daemon.registry_port);
    for arguments in [
        &["--interface", "127.0.0.2", "-u", &guess, &me][..],
        &["--interface", "127.0.0.2", &in_url],
        &["--interface", "127.0.0.2", "-u", &format!("{wrong}:x"), &me],
        &["--interface", "127.0.0.2", "-H", &bearer, &me],
        &["--interface", "127.0.0.2", "-u", &guess, &at_registry],
        &[
            "--interface",
            "127.0.0.2",
            &daemon.api(&format!("/wapi/v1/namespaces/workspace/applications/shop/logs?authtoken={wrong}")),
        ],
    ] {
        assert_eq!(ask(arguments).status, 401, "{arguments:?}");
    }
    let source = daemon.dir().join("source");
    copy(&sample("procfile"), &source);
    fs::write(source.join("secret.txt"), in_source).unwrap();
    let archive = source.with_extension("tar.gz");
    let packed = Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(&source).arg(".").status();
    assert!(packed.unwrap().success());
    let push = |more: &str| daemon.api(&format!("/push/workspace/shop?{more}"));
    let by_token = format!("token:{token}");
    let archive = archive.to_str().unwrap();
    let pushed = ask(&["-u", &by_token, "-T", archive, &push(&format!("env=SECRET={environment}"))]);
    assert!(pushed.body.trim().ends_with(&daemon.url("shop")), "{pushed:?}");
    let variables = json!({ "ANOTHER": environment }).to_string();
    let app = daemon.api("/api/v1/namespaces/workspace/applications/shop");
    assert_eq!(ask(&["-u", &admin, "-d", &variables, &format!("{app}/environment")]).status, 200);
    wait_until("it answers", PATIENCE, || get(&daemon.url("shop")).is_ok_and(|answer| answer.status == 200));
    let logs = daemon.api(&format!("/wapi/v1/namespaces/workspace/applications/shop/logs?authtoken={websocket}"));
    ask(&[&logs]);
    let logs = daemon.output(["apps", "logs", "shop"]);
    said.push_str(&String::from_utf8_lossy(&[logs.stdout, logs.stderr].concat()));
    let command = command_with(environment);
    assert!(daemon.output(["apps", "exec", "shop", "--", "sh", "-c", &command]).status.success());
    // A builder of a registry that does not know us: this daemon's own will do.
    let host = format!("127.0.0.1:{}", daemon.registry_port);
    let credentials = json!({ "auths": { &host: { "auth": STANDARD.encode(format!("somebody:{registry}")) } } });
    fs::write(daemon.data_dir().join("registries.json"), credentials.to_string()).unwrap();
    let arguments = ["-s", "-u", &admin, "-T", archive, &push(&format!("builder={host}/some/builder:1"))];
    let refused = Command::new("curl").args(arguments).output().expect("curl runs");
    let refused = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(refused.contains("error: ") && refused.contains("some/builder"), "{refused}");
    said.push_str(&refused);
    said
}
