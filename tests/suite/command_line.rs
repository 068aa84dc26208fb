//! What the command line says and returns: exit codes, messages with a next step, one line on stdout.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::{
    pty::openpty,
    sys::{
        signal::Signal,
        termios::{LocalFlags, tcgetattr},
    },
};

use serde_json::json;
use tempfile::TempDir;

use self::fake_api::{Answer, End, FakeApi};
use crate::support::{epiniod, send, wait_until};

mod fake_api;

/// A user who has nothing but a home.
struct User {
    home: TempDir,
    api: Option<String>,
}

impl User {
    fn new() -> Self {
        Self { home: tempfile::tempdir().expect("a temporary folder"), api: None }
    }

    fn of(api: &FakeApi) -> Self {
        Self { api: Some(api.url.clone()), ..Self::new() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(epiniod());
        command.args(args).env_clear().current_dir(self.home.path()).env("HOME", self.home.path());
        command.env("EPINIO_SETTINGS", self.home.path().join("settings.yaml"));
        if let Some(api) = &self.api {
            command.env("EPINIO_API", api).env("EPINIO_USER", "admin").env("EPINIO_PASS", "c2VjcmV0");
        }
        command
    }

    fn run(&self, args: &[&str]) -> Ended {
        self.command(args).output().expect("the command runs").into()
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.home.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    /// A folder that can be pushed.
    fn source(&self) -> &'static str {
        self.write("shop/Procfile", "web: ./serve\n");
        "shop"
    }
}

/// What came of a command.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ended {
    /// It failed with this code, said all of this, and what to do next; nothing that could be taken for data.
    fn has_failed(&self, code: i32, said: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(said.iter().all(|part| self.stderr.contains(part)), "expected {said:?} in {self:?}");
        assert!(self.stderr.contains("hint: ") || self.stderr.contains("try '--help'"), "no next step: {self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
    }
}

#[test]
fn a_daemon_that_is_not_there_is_named_with_its_address() {
    let gone = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address");
    let user = User { api: Some(format!("http://epinio.localhost:{}", gone.port())), ..User::new() };
    let address = format!("http://epinio.localhost:{}", gone.port());
    for args in [&["apps", "list"][..], &["info"], &["push", "--path", user.source()]] {
        user.run(args).has_failed(3, &["cannot be reached", &address, "Connection refused", "epiniod serve"]);
    }
    // A proxy has another loopback.
    let output = user.command(&["info"]).env("HTTP_PROXY", "http://192.0.2.1:9").output().expect("it runs");
    Ended::from(output).has_failed(3, &["Connection refused"]);
}

#[test]
fn who_has_no_credential_is_told_how_to_get_one() {
    let user = User::new();
    let dir = user.home.path().join("data");
    let dir = dir.to_str().expect("a path in UTF-8");
    user.run(&["apps", "list", "--data-dir", dir]).has_failed(4, &["nobody is logged in", dir, "epiniod login"]);
    user.run(&["stop", "--data-dir", dir]).has_failed(3, &["no daemon runs", dir]);
}

#[test]
fn a_wrong_command_line_is_refused_before_anything_is_done() {
    let user = User::new();
    for (args, said) in [
        (&["aps"][..], "unrecognized subcommand 'aps'"),
        (&["apps", "list", "--nonsense"], "'--nonsense'"),
        (&["apps", "list", "--output", "yaml"], "[possible values: text, json]"),
        (&["push", "--name", "My_App"], "use 1 to 63 lower-case letters"),
        (&["push", "--env", "NOVALUE"], "expected NAME=VALUE"),
        (&["push", "--env", "1A=x"], "not starting with a digit"),
        (&["push", "--route", "http://x.example.com"], "without 'http://'"),
        (&["push", "--instances", "-1"], "'-1'"),
        (&["apps", "scale", "shop", "many"], "'many'"),
        (&["namespaces", "create", "kube-system"], "keep"),
        (&[], "Usage: epiniod"),
    ] {
        let ended = user.run(args);
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(said) && ended.stdout.is_empty(), "{args:?}: {ended:?}");
    }
    let user = User { api: Some("localhost:8080".to_owned()), ..User::new() };
    user.run(&["info"]).has_failed(2, &["'localhost:8080' is not an http or https URL"]);
    let api = FakeApi::start(|_| Answer::Json(200, "{}"));
    User::of(&api).run(&["apps", "list", "--namespace", "a.b"]).has_failed(2, &["namespace 'a.b' is not valid"]);
    User::of(&api).run(&["push", "--path", "/nonexistent"]).has_failed(1, &["cannot read /nonexistent"]);
}

#[test]
fn broken_settings_are_named_with_what_is_wrong() {
    let user = User::new();
    user.write("settings.yaml", "api: [this is\n");
    user.run(&["info"]).has_failed(2, &["settings.yaml is not valid", "epiniod login"]);
    user.write("settings.yaml", "api: http://127.0.0.1:1\nuser: admin\npass: '%%%'\n");
    user.run(&["info"]).has_failed(2, &["'pass'", "base64"]);

    user.write("daemon.toml", "lisen = 'x'\nregistry_listen = 'y'\n[builds]\nat_once = 0\n");
    let serve = user.run(&["serve", "--config", "daemon.toml", "--listen", "z"]);
    serve.has_failed(2, &["lisen is not known", "registry_listen: 'y'", "builds.at_once: 0", "listen: 'z'"]);
    user.write("daemon.toml", "listen = \n");
    user.run(&["serve", "--config", "daemon.toml"]).has_failed(2, &["daemon.toml are not TOML", "line 1"]);
    user.run(&["up", "--config", "missing.toml"]).has_failed(2, &["cannot read the settings missing.toml"]);
}

#[test]
fn login_tries_the_credential_and_logout_forgets_it() {
    let api = FakeApi::start(|path| match path {
        "GET /api/v1/me" | "GET /api/v1/namespaces/workspace" => Answer::Json(200, "{}"),
        _ => Answer::Json(200, "[]"),
    });
    let user = User::new();
    let settings = "api: https://elsewhere\npass: eA==\ncerts: theirs\nappchart: standard\ntoken: {accesstoken: old}\n";
    user.write("settings.yaml", settings);
    let ended = user.run(&["login", &api.url, "-u", "admin", "-p", "secret"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{ended:?}");
    // The base64 of admin:secret.
    assert_eq!(api.requests()[0].authorization, "Basic YWRtaW46c2VjcmV0");
    let path = user.home.path().join("settings.yaml");
    let written = fs::read_to_string(&path).unwrap();
    assert!(written.contains(&api.url) && written.contains("appchart: standard"), "{written}");
    assert!(!written.contains("theirs") && !written.contains("accesstoken"), "kept from elsewhere: {written}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(user.run(&["apps", "list", "--output", "json"]).stdout, "[]\n");

    assert_eq!(user.run(&["logout"]).code, Some(0));
    let written = fs::read_to_string(&path).unwrap();
    assert!(!written.contains("c2VjcmV0") && written.contains("appchart: standard"), "{written}");
}

#[test]
fn a_terminal_shows_what_is_typed_again_after_ctrl_c_at_the_password() {
    let terminal = openpty(None, None).expect("a terminal");
    let shows = || tcgetattr(&terminal.slave).expect("its settings").local_flags.contains(LocalFlags::ECHO);
    let user = User::new();
    let mut login = user
        .command(&["login", "http://127.0.0.1:1", "-u", "admin"])
        .stdin(terminal.slave.try_clone().expect("a descriptor"))
        .stderr(Stdio::null())
        .spawn()
        .expect("the command runs");
    wait_until("a password is asked for", Duration::from_secs(10), || !shows());
    send(&login, Signal::SIGINT);
    assert_eq!(login.wait().expect("it ends").code(), Some(130));
    assert!(shows());
}

#[test]
fn a_wrong_password_is_not_stored_and_stops_a_push_before_it_sends() {
    let denied = r#"{"errors":[{"status":401,"title":"wrong user or password"}]}"#;
    let api = FakeApi::start(move |_| Answer::Json(401, denied));
    let user = User::of(&api);
    user.run(&["login", &api.url, "-u", "admin", "-p", "x"])
        .has_failed(4, &["wrong user or password", "epiniod login"]);
    assert!(!user.home.path().join("settings.yaml").exists(), "a wrong password was stored");
    user.run(&["push", "--path", user.source()]).has_failed(4, &["wrong user or password"]);
    assert!(api.requests().iter().all(|request| !request.line.starts_with("PUT")), "{:?}", api.requests());
}

fn api_with_push(push: fn() -> Answer) -> FakeApi {
    FakeApi::start(move |path| match path {
        "GET /api/v1/namespaces/workspace" | "GET /api/v1/info" => Answer::Json(200, "{}"),
        "PUT /push/workspace/shop" => push(),
        _ => Answer::Json(404, r#"{"errors":[{"status":404,"title":"there is nothing at this path"}]}"#),
    })
}

#[test]
fn a_push_prints_the_url_on_stdout_and_the_log_on_stderr() {
    const LOG: &[&str] =
        &["staging 0123456789abcdef\n===> BUI", "LDING\nphases: upload 0.01 s\nhttp://shop.local", "host:8080\n"];
    let api = api_with_push(|| Answer::Text(LOG, End::Whole));
    let user = User::of(&api);
    let args = ["push", "--path", user.source(), "--env", "A=b c&d", "--instances", "2", "--route", "x.example.com/y"];
    let ended = user.run(&args);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "http://shop.localhost:8080\n"), "{ended:?}");
    for said in ["===> BUILDING\n", "phases: upload", "pushed in "] {
        assert!(ended.stderr.contains(said), "{said} in {ended:?}");
    }
    assert!(!ended.stderr.contains("http://shop.localhost"), "the URL is data: {ended:?}");
    let sent = api.requests().pop().unwrap();
    for part in ["instances=2", "env=A%3Db%20c%26d", "route=x.example.com/y", "path=/"] {
        assert!(sent.line.contains(part), "{part} in {}", sent.line);
    }
    assert!(sent.body.starts_with(b"\x28\xb5\x2f\xfd"), "a tar archive in zstd is sent");

    let quiet = user.run(&["--quiet", "push", "--path", "shop"]);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("http://shop.localhost:8080\n", ""));
}

#[test]
fn a_push_that_fails_says_where_by_its_exit_code() {
    for (push, code, said) in [
        (
            (|| Answer::Text(&["===> BUILDING\npip failed\nerror: the build failed with exit code 1\n"], End::CutOff))
                as fn() -> Answer,
            6,
            "error: the build failed with exit code 1\n",
        ),
        (
            || Answer::Text(&["===> DEPLOYING\n| last words\nerror: the new version did not come up\n"], End::CutOff),
            7,
            "error: the new version did not come up\n",
        ),
        (|| Answer::Text(&["===> BUILDING\ninstalling\n"], End::CutOff), 1, "ended early"),
        (|| Answer::Json(413, "error: the archive has more than 10 bytes\n"), 6, "more than 10 bytes"),
        (|| Answer::Early(415, "error: this is no archive\n"), 6, "this is no archive"),
        (|| Answer::Json(422, "error: the archive has no files in it\n"), 6, "no files in it"),
        (|| Answer::Json(400, "error: 1000 instances are too many\n"), 1, "too many"),
        (|| Answer::Json(500, "error: the store failed\n"), 1, "the daemon's log says more"),
        // As an ingress controller answers that has nobody behind it.
        (|| Answer::Json(404, "404 page not found\n"), 3, "no daemon serves at"),
    ] {
        let api = api_with_push(push);
        let user = User::of(&api);
        user.run(&["push", "--path", user.source()]).has_failed(code, &[said]);
    }
}

#[test]
fn a_namespace_that_does_not_exist_is_said_before_anything_is_sent() {
    let api = api_with_push(|| Answer::Json(200, "{}"));
    let user = User::of(&api);
    user.run(&["push", "--namespace", "other", "--path", user.source()]).has_failed(5, &["namespaces list"]);
    user.run(&["apps", "show", "shop"]).has_failed(5, &["there is nothing at this path"]);
}

#[test]
fn a_folder_that_cannot_be_packed_is_the_cause_and_not_the_connection() {
    let api = api_with_push(|| Answer::Json(400, "error: the archive is cut off\n"));
    let user = User::of(&api);
    fs::create_dir(user.home.path().join("empty")).unwrap();
    let ended = user.run(&["push", "--name", "shop", "--path", "empty"]);
    ended.has_failed(6, &["the source cannot be packed"]);
    user.write("leaky/x", "");
    std::os::unix::fs::symlink("/etc/passwd", user.home.path().join("leaky/y")).unwrap();
    user.run(&["push", "--name", "shop", "--path", "leaky"]).has_failed(6, &["'y'", "absolute path", ".epinioignore"]);
}

#[test]
fn what_is_shown_is_text_or_json() {
    let app = r#"{"meta":{"name":"shop","namespace":"workspace","createdAt":"2026-11-24T12:00:00Z"},"configuration":{"instances":1,"routes":["shop.localhost"]},"deployment":{"status":"1/1","replicas":{"shop-1-0":{"name":"shop-1-0","ready":true,"memoryBytes":1048576,"restarts":0}}},"status":"running","statusmessage":"","image_url":"x"}"#;
    let all: &'static str = format!("[{app}]").leak();
    let api = FakeApi::start(move |path| match path {
        "GET /api/v1/namespaces/workspace/applications" => Answer::Json(200, all),
        "GET /api/v1/namespaces/workspace/applications/shop" => Answer::Json(200, app),
        "GET /api/v1/namespaces/workspace/applications/shop/environment" => Answer::Json(200, r#"{"A":"b"}"#),
        "GET /api/v1/namespaces/workspace/applications/shop/environment/NONE" => {
            Answer::Json(200, r#"{"name":"","value":""}"#)
        }
        "GET /api/v1/namespaces" => Answer::Json(200, r#"[{"meta":{"name":"workspace"},"apps":["shop"]}]"#),
        _ => Answer::Json(404, ""),
    });
    let user = User::of(&api);
    let list = user.run(&["apps", "list"]).stdout;
    assert_eq!(
        list.lines().map(|line| line.split_whitespace().collect()).collect::<Vec<Vec<_>>>(),
        [
            vec!["NAMESPACE", "NAME", "STATUS", "INSTANCES", "ROUTES", "DETAILS"],
            vec!["workspace", "shop", "running", "1/1", "shop.localhost"],
        ]
    );
    assert!(user.run(&["apps", "show", "shop"]).stdout.contains("instance   shop-1-0 ready, 1 MiB, 0 restarts"));
    for args in
        [&["apps", "list"][..], &["apps", "show", "shop"], &["apps", "env", "list", "shop"], &["namespaces", "list"]]
    {
        let json = user.run(&[args, &["--output", "json"]].concat()).stdout;
        assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{args:?}: {json}");
    }
    assert_eq!(user.run(&["apps", "env", "list", "shop"]).stdout, "A=b\n");
    user.run(&["apps", "env", "show", "shop", "NONE"]).has_failed(5, &["no variable 'NONE'"]);
}

#[test]
fn logs_are_the_texts_of_a_websocket() {
    let api = FakeApi::start(|path| match path {
        "GET /api/v1/authtoken" => Answer::Json(200, r#"{"token":"t0ken"}"#),
        "GET /wapi/v1/namespaces/workspace/applications/shop/logs" => Answer::WebSocket(&[
            r#"{"PodName":"shop-1-0","Message":"first"}"#,
            r#"{"PodName":"shop-1-0","Message":""}"#,
        ]),
        _ => Answer::Json(400, r#"{"errors":[{"status":400,"title":"No logs available"}]}"#),
    });
    let user = User::of(&api);
    let logs = user.run(&["apps", "logs", "shop", "--tail", "5"]);
    assert_eq!((logs.code, logs.stdout.as_str()), (Some(0), "[shop-1-0] first\n[shop-1-0] \n"), "{logs:?}");
    let asked = api.requests().pop().unwrap().line;
    assert!(asked.contains("follow=false&tail=5&authtoken=t0ken"), "{asked}");
    user.run(&["apps", "logs", "other"]).has_failed(1, &["No logs available"]);
}

#[test]
fn variables_win_over_the_settings_file_and_that_over_the_daemon_of_this_machine() {
    let user = User::new();
    user.write(".local/share/epiniod/client.yaml", "api: http://127.0.0.1:1\nuser: admin\npass: c2VjcmV0\n");
    let data_dir = user.home.path().join(".local/share/epiniod");
    user.run(&["info", "--data-dir", data_dir.to_str().unwrap()]).has_failed(3, &["http://127.0.0.1:1"]);
    user.write("settings.yaml", "api: http://127.0.0.1:2\nuser: admin\npass: c2VjcmV0\n");
    user.run(&["info"]).has_failed(3, &["http://127.0.0.1:2"]);
    let output = user.command(&["info"]).env("EPINIO_API", "http://127.0.0.1:3").output().expect("it runs");
    Ended::from(output).has_failed(3, &["http://127.0.0.1:3"]);
}

#[test]
fn stop_all_reaches_the_daemon_of_its_data_directory_whatever_variables_say() {
    let daemon = Arc::new(Mutex::new(Command::new("sleep").arg("600").spawn().expect("sleep")));
    let pid = daemon.lock().unwrap().id();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // proc(5): the 22nd field, of which two are before the name's end.
    let start_ticks: u64 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
    let stopped = Arc::clone(&daemon);
    let own = FakeApi::start(move |path| {
        if path == "POST /daemon/stop" {
            stopped.lock().unwrap().kill().expect("it can be killed");
        }
        Answer::Json(202, "")
    });
    let other = FakeApi::start(|_| Answer::Json(202, ""));
    let user = User::of(&other);
    user.write("data/client.yaml", &format!("api: {}\nuser: admin\npass: c2VjcmV0\n", own.url));
    let run_file = json!({ "pid": pid, "start_ticks": start_ticks, "api": "127.0.0.1:1", "registry": "127.0.0.1:2" });
    user.write("data/daemon.json", &run_file.to_string());
    let ended = user.run(&["stop", "--all", "--data-dir", "data"]);
    // Not reached: the process must not outlive the test.
    let _ = daemon.lock().unwrap().kill();
    daemon.lock().unwrap().wait().expect("it can be reaped");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("stopped the daemon and all applications"), "{ended:?}");
    assert_eq!((own.requests().len(), other.requests().len()), (1, 0));
}

#[test]
fn the_credential_of_a_data_directory_goes_nowhere_else() {
    let other = FakeApi::start(|_| Answer::Json(200, "[]"));
    let user = User::of(&other);
    user.write("settings.yaml", &format!("api: {}\nuser: admin\npass: c2VjcmV0\n", other.url));
    // A directory without a credential is no reason to ask somebody else.
    user.run(&["apps", "list", "--data-dir", "data"]).has_failed(4, &["nobody is logged in", "data"]);
    user.write("data/client.yaml", "api: http://127.0.0.1:1\nuser: admin\npass: bG9jYWw=\n");
    user.run(&["apps", "list", "--data-dir", "data"]).has_failed(3, &["http://127.0.0.1:1"]);
    assert_eq!(other.requests().len(), 0, "{:?}", other.requests());
}

#[test]
fn stop_says_what_becomes_of_applications() {
    let mut daemon = Command::new("sleep").arg("600").spawn().expect("sleep");
    let pid = daemon.id();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start_ticks: u64 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
    let user = User::new();
    let run_file = json!({ "pid": pid, "start_ticks": start_ticks, "api": "127.0.0.1:1", "registry": "127.0.0.1:2", "mode": "up" });
    user.write("data/daemon.json", &run_file.to_string());
    let ended = user.run(&["stop", "--data-dir", "data"]);
    let _ = daemon.kill();
    daemon.wait().expect("it can be reaped");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    // 'up' takes its applications with it.
    assert!(ended.stderr.contains("stopped the daemon and all applications"), "{ended:?}");
}
