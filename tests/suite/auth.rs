//! Who may do what: guesses, API tokens, and the log of what was changed.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::{
    api::client::Client,
    support::{Daemon, Packages, RunBy, epiniod, request, sample, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// One that has built nothing.
fn start() -> Daemon {
    Daemon::start_with(Packages::Shared, RunBy::Caller)
}

/// A token, made with the API.
fn token(daemon: &Daemon, wanted: &Value) -> String {
    let (status, made) = Client::of(daemon).call("POST", "/daemon/tokens", &["-d", &wanted.to_string()]);
    assert_eq!(status, 201, "{made}");
    made["token"].as_str().expect("a token").to_owned()
}

fn with_token(daemon: &Daemon, token: &str) -> Client {
    Client { credential: Some(format!("token:{token}")), ..Client::without_credential(daemon) }
}

/// The lines of the audit log.
fn audit(daemon: &Daemon) -> Vec<Value> {
    let text = fs::read_to_string(daemon.data_dir().join("audit.jsonl")).expect("an audit log");
    text.lines().map(|line| serde_json::from_str(line).expect("one JSON object in each line")).collect()
}

/// The answer to a password, with its head.
fn try_password(url: &str, password: &str, from: &str) -> String {
    let credential = format!("admin:{password}");
    request(&["-i", "--max-time", "20", "--interface", from, "-u", &credential, url]).expect("an answer").body
}

#[test]
fn who_guesses_waits_and_nobody_else_does() {
    let daemon = start();
    let (api, registry) = (daemon.api("/api/v1/me"), format!("http://127.0.0.1:{}/v2/", daemon.registry_port));
    let right = daemon.password.clone();
    assert!(try_password(&api, &right, "127.0.0.1").starts_with("HTTP/1.1 200"));
    // The doors have one guard.
    for (url, guess) in [(&api, "a"), (&registry, "b"), (&api, "c"), (&registry, "d"), (&api, "e")] {
        let said = try_password(url, guess, "127.0.0.1");
        assert!(said.starts_with("HTTP/1.1 401"), "{said}");
    }
    let said = try_password(&api, &right, "127.0.0.1").to_lowercase();
    assert!(said.starts_with("http/1.1 429") && said.contains("\r\nretry-after: 1\r\n"), "{said}");
    assert!(said.contains("too many wrong credentials from this address; try again in 1 s"), "{said}");
    // A second is soon over: guesses make it longer, each by its own wait.
    for url in [&registry, &api] {
        wait_until("another guess is looked at", PATIENCE, || {
            try_password(url, "f", "127.0.0.1").starts_with("HTTP/1.1 401")
        });
    }
    let said = try_password(&registry, &right, "127.0.0.1").to_lowercase();
    assert!(
        said.starts_with("http/1.1 429") && said.contains("retry-after: ") && said.contains("toomanyrequests"),
        "{said}"
    );
    let output = daemon.output(["info"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("try again in") && said.contains("hint: wait as long as the message says"), "{said}");
    assert!(try_password(&api, &right, "127.0.0.2").starts_with("HTTP/1.1 200"), "another address");
    assert!(try_password(&registry, &right, "127.0.0.2").starts_with("HTTP/1.1 200"), "another address");
    wait_until("the wait is over", PATIENCE, || try_password(&api, &right, "127.0.0.1").starts_with("HTTP/1.1 200"));

    let failures: Vec<_> = audit(&daemon).into_iter().filter(|line| line["action"] == "login").collect();
    assert_eq!(failures.len(), 7, "what was not looked at has no line: {failures:#?}");
    assert_eq!(
        (&failures[3]["wait_seconds"], &failures[4]["wait_seconds"]),
        (&Value::Null, &json!(1)),
        "{failures:#?}"
    );
    assert!(failures.iter().all(|line| line["user"] == "admin" && line["address"] == "127.0.0.1"), "{failures:#?}");
}

#[test]
fn a_user_that_is_not_there_is_answered_as_one_that_is() {
    let daemon = start();
    let guess = |credential: &str| {
        let answer = request(&["-u", credential, &daemon.api("/api/v1/me")]).expect("an answer");
        (answer.status, answer.body)
    };
    for _ in 0..5 {
        assert_eq!(guess("admin:guess"), guess("nobody:guess"));
    }
    assert_eq!((guess("admin:guess").0, guess("nobody:guess").0), (429, 429));
    // What a stranger typed is not kept: it may be a password in the wrong field.
    let lines = audit(&daemon);
    assert_eq!(lines.iter().filter(|line| line["user"].is_null()).count(), 5, "{lines:#?}");
}

#[test]
fn a_token_reaches_as_far_as_it_says_until_it_ends() {
    let daemon = start();
    let admin = Client::of(&daemon);
    assert_eq!(admin.call("POST", "/api/v1/namespaces", &["-d", r#"{"name":"other"}"#]).0, 201);
    for (namespace, name) in [("workspace", "shop"), ("other", "blog")] {
        let apps = format!("/api/v1/namespaces/{namespace}/applications");
        let (status, made) = admin.call("POST", &apps, &["-d", &json!({ "name": name }).to_string()]);
        assert_eq!(status, 201, "{made}");
    }
    let app = |namespace: &str| {
        let name = if namespace == "other" { "blog" } else { "shop" };
        format!("/api/v1/namespaces/{namespace}/applications/{name}")
    };
    let made =
        daemon.run(["tokens", "create", "reader", "--scope", "read", "--namespace", "workspace", "--expires", "90d"]);
    let secret = made.trim();
    assert!(secret.starts_with("epiniod_") && !secret.contains(char::is_whitespace), "{made:?}");
    let reader = with_token(&daemon, secret);
    assert_eq!(reader.call("GET", &app("workspace"), &[]).1["meta"]["name"], "shop");
    for (path, names) in [("/api/v1/namespaces", "workspace"), ("/api/v1/applications", "shop")] {
        let (_, found) = reader.call("GET", path, &[]);
        let found: Vec<_> = found.as_array().unwrap().iter().map(|one| one["meta"]["name"].clone()).collect();
        assert_eq!(found, [names], "{path}");
    }
    assert_eq!(reader.call("GET", "/api/v1/me", &[]).1["token"], "reader");
    let environment = format!("{}/environment", app("workspace"));
    for (method, path, arguments) in [
        ("GET", app("other").as_str(), &[][..]),
        ("POST", environment.as_str(), &["-d", r#"{"A":"b"}"#]),
        ("DELETE", app("workspace").as_str(), &[]),
        ("DELETE", "/api/v1/namespaces/workspace", &[]),
        ("GET", "/daemon/tokens", &[]),
        ("POST", "/daemon/tokens", &["-d", r#"{"name":"more","scopes":["admin"]}"#]),
        ("GET", "/daemon/audit", &[]),
        ("POST", "/daemon/stop", &[]),
    ] {
        reader.is_refused(
            method,
            path,
            arguments,
            403,
            "token 'reader' does not reach this far: it is for read in namespace workspace",
        );
    }
    // Its websockets reach no further than it does.
    let websocket = reader.call("GET", "/api/v1/authtoken", &[]).1["token"].as_str().unwrap().to_owned();
    let exec =
        |namespace: &str| format!("/wapi/v1/namespaces/{namespace}/applications/shop/exec?authtoken={websocket}");
    Client::without_credential(&daemon).is_refused("GET", &exec("workspace"), &[], 403, "token 'reader'");

    let pusher = with_token(
        &daemon,
        &token(&daemon, &json!({ "name": "pusher", "scopes": ["push"], "namespaces": ["workspace"] })),
    );
    assert_eq!(pusher.call("POST", &environment, &["-d", r#"{"A":"b"}"#]).0, 200);
    pusher.is_refused("GET", &environment, &[], 403, "it is for push");
    pusher.is_refused("PUT", "/push/other/shop", &["-d", "x"], 403, "it is for push");
    // It comes as far as the archive.
    assert_ne!(
        request(&["-T", "/dev/null", "-u", pusher.credential.as_deref().unwrap(), &daemon.api("/push/workspace/shop")])
            .unwrap()
            .status,
        403
    );

    let short = token(&daemon, &json!({ "name": "short", "scopes": ["admin"], "expires_in_seconds": 1 }));
    let bearer = format!("Authorization: Bearer {short}");
    wait_until("it has expired", PATIENCE, || {
        let answer = request(&["-H", &bearer, &daemon.api("/api/v1/me")]).unwrap();
        assert!(answer.status == 200 || answer.body.contains("token 'short' expired at "), "{answer:?}");
        answer.status == 401
    });
    let listed: Value = serde_json::from_str(&daemon.run(["tokens", "list", "--output", "json"])).unwrap();
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|token| token["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["pusher", "reader", "short"]);
    assert!(listed[0]["lastUsedAt"].is_string() && listed[2]["expired"] == true, "{listed:#}");
    assert!(!listed.to_string().contains(secret) && !daemon.run(["tokens", "list"]).contains("epiniod_"));
    daemon.run(["tokens", "delete", "reader"]);
    reader.is_refused("GET", "/api/v1/me", &[], 401, "it was deleted");
    with_token(&daemon, &secret[..20]).is_refused("GET", "/api/v1/me", &[], 401, "no whole token");
    assert_eq!(daemon.output(["tokens", "delete", "reader"]).status.code(), Some(5));
    assert_eq!(daemon.output(["tokens", "create", "pusher"]).status.code(), Some(1), "there is one of this name");
}

#[test]
fn a_token_pushes_with_curl_and_with_the_command_line_after_a_restart() {
    let mut daemon = Daemon::start();
    let secret = daemon.run(["tokens", "create", "ci", "--scope", "push", "--scope", "read"]).trim().to_owned();
    daemon.kill();
    daemon.resume();
    let archive = daemon.dir().join("shop.tar");
    let packed = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(sample("procfile")).arg(".").status();
    assert!(packed.unwrap().success());
    let credential = format!("token:{secret}");
    let push = ["-u", &credential, "-T", archive.to_str().unwrap(), &daemon.api("/push/workspace/shop")];
    let answer = request(&push).unwrap();
    assert!(answer.status == 200 && answer.body.trim().ends_with(&daemon.url("shop")), "{answer:?}");

    let settings = daemon.dir().join("token.yaml");
    let with_login = |args: &[&str], input: &str| {
        let mut command = Command::new(epiniod());
        command.args(args).env("EPINIO_SETTINGS", &settings).env("HOME", daemon.dir()).env_remove("EPINIOD_DATA_DIR");
        let mut child = command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{args:?}: {said}");
        said
    };
    let said = with_login(&["login", &daemon.api(""), "--token"], &format!("{secret}\n"));
    assert!(said.contains("as admin by token ci") && !said.contains(&secret), "{said}");
    assert!(with_login(&["apps", "list"], "").contains("shop"));
    // By its websockets, which reach no further.
    with_login(&["apps", "logs", "shop"], "");
    assert!(daemon.output(["apps", "exec", "shop", "--", "true"]).status.success());
    let lines = audit(&daemon);
    let exec = lines.iter().find(|line| line["action"] == "app.exec").expect("a line of the command");
    assert_eq!((&exec["user"], &exec["status"]), (&json!("admin"), &json!(101)), "{exec}");
    let push = lines.iter().find(|line| line["action"] == "app.push").expect("a line of the push");
    assert_eq!(
        (&push["user"], &push["token"], &push["name"]),
        (&json!("admin"), &json!("ci"), &json!("shop")),
        "{push}"
    );
}

#[test]
fn every_change_is_in_the_audit_log_before_its_answer() {
    let daemon = start();
    let admin = Client::of(&daemon);
    let apps = "/api/v1/namespaces/blog/applications";
    let app = "/api/v1/namespaces/blog/applications/web";
    for (method, path, body, status, action, namespace, name) in [
        ("POST", "/api/v1/namespaces", r#"{"name":"blog"}"#, 201, "namespace.create", None, Some("blog")),
        ("POST", "/api/v1/namespaces", r#"{"name":"blog"}"#, 409, "namespace.create", None, None),
        ("POST", apps, r#"{"name":"web"}"#, 201, "app.create", Some("blog"), Some("web")),
        (
            "POST",
            &format!("{app}/environment"),
            r#"{"SECRET":"hidden"}"#,
            200,
            "app.env.set",
            Some("blog"),
            Some("web"),
        ),
        ("PATCH", app, r#"{"instances":2}"#, 200, "app.update", Some("blog"), Some("web")),
        ("POST", &format!("{app}/restart"), "", 400, "app.restart", Some("blog"), Some("web")),
        ("DELETE", &format!("{app}/environment/SECRET"), "", 200, "app.env.unset", Some("blog"), Some("web")),
        ("DELETE", &format!("{apps}?applications[]=web"), "", 200, "app.delete", Some("blog"), Some("web")),
        ("DELETE", "/api/v1/namespaces/blog", "", 200, "namespace.delete", Some("blog"), None),
        ("POST", "/daemon/tokens", r#"{"name":"ci","scopes":["read"]}"#, 201, "token.create", None, Some("ci")),
        ("DELETE", "/daemon/tokens/ci", "", 200, "token.delete", None, Some("ci")),
    ] {
        let before = audit(&daemon).len();
        let (found, answer) = admin.call(method, path, &["-g", "-d", body]);
        let lines = audit(&daemon);
        assert_eq!(lines.len(), before + 1, "{method} {path}: {found} {answer}");
        let line = &lines[before];
        let facts = [
            ("user", Some("admin")),
            ("action", Some(action)),
            ("namespace", namespace),
            ("name", name),
            ("address", Some("127.0.0.1")),
            ("token", None),
        ];
        for (field, expected) in facts {
            assert_eq!(line[field].as_str(), expected, "{field} of {line}");
        }
        assert_eq!((&line["status"], found), (&json!(status), status), "{line}: {answer}");
        assert!(line["time"].as_str().and_then(epiniod::model::Timestamp::parse).is_some(), "{line}");
        assert_eq!(line["request_id"].as_str().map(str::len), Some(16), "{line}");
    }
    let manifest = format!("http://127.0.0.1:{}/v2/workspace/web/manifests/latest", daemon.registry_port);
    let refused = request(&["-u", admin.credential.as_deref().unwrap(), "-X", "PUT", "-d", "{", &manifest]).unwrap();
    let line = audit(&daemon).pop().unwrap();
    assert_eq!((&line["action"], &line["name"]), (&json!("image.push"), &json!("web:latest")), "{line}");
    assert_eq!((&line["user"], &line["status"]), (&json!("admin"), &json!(refused.status)), "{line}");
    let before = audit(&daemon).len();
    assert_eq!(admin.call("GET", "/api/v1/namespaces", &[]).0, 200);
    assert_eq!(audit(&daemon).len(), before, "who reads changes nothing");
    let path = daemon.data_dir().join("audit.jsonl");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("hidden") && !text.contains("SECRET"), "{text}");
    assert_eq!(daemon.run(["audit"]), text);
    assert_eq!(daemon.run(["audit", "--lines", "1"]).lines().count(), 1);
}
