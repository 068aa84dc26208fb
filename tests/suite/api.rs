//! The API as clients see it that are not ours: who may ask, forms of errors, Epinio's fields, the `epinio` CLI's way of a push.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Daemon, get, request, sample};

pub mod client;

use self::client::Client;

#[test]
fn everything_but_ready_wants_a_credential() {
    let daemon = Daemon::start();
    let app = "/api/v1/namespaces/workspace/applications/shop";
    let of = |path: &str| format!("{app}/{path}");
    let anyone = Client::without_credential(&daemon);
    for (method, path) in [
        ("GET", "/api/v1/info".to_owned()),
        ("GET", "/api/v1/me".to_owned()),
        ("GET", "/api/v1/authtoken".to_owned()),
        ("GET", "/api/v1/namespaces".to_owned()),
        ("POST", "/api/v1/namespaces".to_owned()),
        ("DELETE", "/api/v1/namespaces/workspace".to_owned()),
        ("GET", "/api/v1/namespacematches/w".to_owned()),
        ("GET", "/api/v1/applications".to_owned()),
        ("POST", "/api/v1/namespaces/workspace/applications".to_owned()),
        ("GET", app.to_owned()),
        ("PATCH", app.to_owned()),
        ("DELETE", app.to_owned()),
        ("POST", of("store")),
        ("POST", of("stage")),
        ("POST", of("deploy")),
        ("POST", of("restart")),
        ("GET", of("environment")),
        ("POST", of("environment")),
        ("DELETE", of("environment/A")),
        ("GET", "/api/v1/namespaces/workspace/staging/0123456789abcdef".to_owned()),
        ("GET", "/api/v1/namespaces/workspace/staging/0123456789abcdef/complete".to_owned()),
        ("PUT", "/push/workspace/shop".to_owned()),
        ("POST", "/daemon/stop".to_owned()),
        ("GET", "/daemon/namespaces/workspace/applications/shop/releases".to_owned()),
        ("GET", "/daemon/namespaces/workspace/applications/shop/stagings".to_owned()),
        ("GET", "/wapi/v1/namespaces/workspace/applications/shop/logs".to_owned()),
        ("GET", "/wapi/v1/namespaces/workspace/staging/0123456789abcdef/logs?authtoken=e30.x".to_owned()),
        ("GET", "/wapi/v1/namespaces/workspace/staging/0123456789abcdef/complete".to_owned()),
    ] {
        anyone.is_refused(method, &path, &[], 401, "");
    }
    assert_eq!(get(&daemon.api("/ready")).unwrap().status, 200);
    let guesses = Client { credential: Some("admin:guess".to_owned()), ..anyone };
    guesses.is_refused("GET", "/api/v1/me", &[], 401, "wrong user or password");
}

#[test]
fn every_error_has_epinios_form() {
    let daemon = Daemon::start();
    let admin = Client::of(&daemon);
    let apps = "/api/v1/namespaces/workspace/applications";
    assert_eq!(admin.call("POST", apps, &["-d", r#"{"name":"shop"}"#]).0, 201);
    let app = format!("{apps}/shop");
    let token = admin.call("GET", "/api/v1/authtoken", &[]).1["token"].as_str().unwrap().to_owned();
    let logs = format!("/wapi/v1/namespaces/workspace/applications/shop/logs?authtoken={token}");
    let upgrade = [
        "-H",
        "Connection: Upgrade",
        "-H",
        "Upgrade: websocket",
        "-H",
        "Sec-WebSocket-Version: 13",
        "-H",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ];
    let large = daemon.dir().join("large");
    let mut variables = serde_json::Map::new();
    variables.insert("A".to_owned(), "x".repeat(300_000).into());
    std::fs::write(&large, Value::from(variables).to_string()).unwrap();
    let large = format!("@{}", large.display());
    let environment = format!("{app}/environment");
    for (method, path, arguments, status, title) in [
        ("PUT", "/api/v1/info", &[][..], 405, "Method not allowed"),
        ("GET", "/api/v1/nonsense", &[], 404, "route '/api/v1/nonsense' does not exist"),
        ("GET", "/nonsense", &[], 404, "route '/nonsense' does not exist"),
        ("GET", "/api/v1/namespaces/%ff", &[], 400, ""),
        ("GET", &logs, &[], 400, "upgrade"),
        ("GET", &format!("{logs}&since=yesterday"), &upgrade, 400, "'since'"),
        ("GET", &format!("{logs}&since_time=noon"), &upgrade, 400, "'since_time'"),
        ("POST", apps, &["-d", "{"], 400, "JSON"),
        ("POST", apps, &["-d", r#"{"name":"shop"}"#], 409, "already exists"),
        ("PATCH", &app, &["-d", r#"{"configurations":["db"]}"#], 404, "configuration 'db'"),
        ("PATCH", &app, &["-d", r#"{"appchart":"fancy"}"#], 404, "application chart 'fancy'"),
        ("PATCH", &app, &["-d", r#"{"settings":{"x":"y"}}"#], 400, "no setting 'x'"),
        ("POST", &environment, &["-d", r#"{"A":"a\u0000b"}"#], 400, "NUL"),
        ("POST", &environment, &["-d", large.as_str()], 413, "environment smaller"),
        ("GET", "/api/v1/me", &["-H", "Sec-Fetch-Site: same-site"], 403, "other sites"),
        ("GET", "/api/v1/me", &["-H", "Origin: http://shop.localhost"], 403, "other sites"),
    ] {
        admin.is_refused(method, path, arguments, status, title);
    }
}

#[test]
fn a_push_in_steps_works_as_the_epinio_cli_does_it_and_all_fields_are_epinios() {
    let daemon = Daemon::start();
    let admin = Client::of(&daemon);
    let archive = daemon.dir().join("shop.tar");
    let packed = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(sample("procfile")).arg(".").status();
    assert!(packed.unwrap().success());
    let apps = "/api/v1/namespaces/workspace/applications";
    let app = format!("{apps}/shop");
    let reference = json!({ "name": "shop", "namespace": "workspace" });
    let create = json!({ "name": "shop", "configuration": { "instances": 1, "environment": { "A": "b" }, "routes": ["shop.localhost"] } });
    assert_eq!(admin.call("POST", apps, &["-d", &create.to_string()]), (201, json!({ "status": "ok" })));
    let file = format!("file=@{}", archive.display());
    let (status, stored) = admin.call("POST", &format!("{app}/store"), &["-F", &file]);
    assert_eq!((status, stored["blobuid"].as_str().map(str::len)), (200, Some(36)), "{stored}");
    let stage = json!({ "app": reference, "blobuid": stored["blobuid"], "builderimage": "" });
    let (status, staged) = admin.call("POST", &format!("{app}/stage"), &["-d", &stage.to_string()]);
    let id = staged["stage"]["id"].as_str().expect("a stage id").to_owned();
    assert_eq!(status, 200);
    assert!(
        staged["image"].as_str().is_some_and(|image| image.ends_with(&format!("/workspace/shop:{id}"))),
        "{staged}"
    );
    assert_eq!(admin.call("GET", &app, &[]).1["status"], "staging");
    let complete = format!("/api/v1/namespaces/workspace/staging/{id}/complete");
    assert_eq!(admin.call("GET", &complete, &[]), (200, json!({ "status": "ok" })));
    let origin = json!({ "Kind": 1, "path": "/home/me/shop" });
    let deploy = json!({ "app": reference, "stage": { "id": id }, "image": staged["image"], "origin": origin });
    let (status, deployed) = admin.call("POST", &format!("{app}/deploy"), &["-d", &deploy.to_string()]);
    assert_eq!((status, &deployed), (200, &json!({ "routes": ["shop.localhost"] })));
    assert!(get(&daemon.url("shop")).unwrap().body.contains("Hello from"));

    let shown = admin.call("GET", &app, &[]).1;
    for (pointer, expected) in [
        ("/meta/name", json!("shop")),
        ("/meta/namespace", json!("workspace")),
        ("/configuration/instances", json!(1)),
        ("/configuration/environment", json!({ "A": "b" })),
        ("/configuration/routes", json!(["shop.localhost"])),
        ("/configuration/appchart", json!("standard")),
        ("/configuration/configurations", json!([])),
        ("/origin", json!({ "Kind": 1, "path": "/home/me/shop", "archive": false })),
        ("/staging", json!({})),
        ("/stagingstatus", json!("done")),
        ("/status", json!("running")),
        ("/statusmessage", json!("")),
        ("/stage_id", json!(id)),
        ("/deployment/desiredreplicas", json!(1)),
        ("/deployment/readyreplicas", json!(1)),
        ("/deployment/status", json!("1/1")),
        ("/deployment/username", json!("admin")),
        ("/deployment/stage_id", json!(id)),
        ("/deployment/active", json!(true)),
        ("/deployment/replicas/shop-1-0/ready", json!(true)),
        ("/deployment/replicas/shop-1-0/restarts", json!(0)),
    ] {
        assert_eq!(shown.pointer(pointer), Some(&expected), "{pointer} of {shown:#}");
    }
    for time in ["/meta/createdAt", "/deployment/createdAt", "/deployment/replicas/shop-1-0/createdAt"] {
        let text = shown.pointer(time).and_then(Value::as_str).unwrap_or_default();
        assert!(epiniod::model::Timestamp::parse(text).is_some(), "{time} of {shown:#}");
    }
    let listed = admin.call("GET", "/api/v1/namespaces", &[]).1;
    assert_eq!(listed[0]["meta"]["name"], "workspace");
    assert_eq!(listed[0]["apps"], json!(["shop"]));
    assert_eq!(admin.call("GET", "/api/v1/namespaces/workspace/appsmatches/sh", &[]).1, json!({ "names": ["shop"] }));
    assert_eq!(admin.call("GET", "/api/v1/namespacematches/", &[]).1, json!({ "names": ["workspace"] }));
    let info = admin.call("GET", "/api/v1/info", &[]).1;
    assert!(info["version"].as_str().is_some_and(|version| version.starts_with("v1.")), "{info}");
    assert_eq!(admin.call("GET", "/api/v1/me", &[]).1["user"], "admin");
    let grouped = admin.call("GET", &format!("{app}/environment?grouped=true"), &[]).1;
    assert_eq!(grouped, json!({ "user": { "A": "b" }, "service": {} }));

    // What is being built for an application that is deleted ends. Another environment is another build.
    let change = json!({ "environment": { "A": "c" }, "restart": false });
    assert_eq!(admin.call("PATCH", &app, &["-d", &change.to_string()]).0, 200);
    let (_, staged) = admin.call("POST", &format!("{app}/stage"), &["-d", &json!({ "app": reference }).to_string()]);
    let id = staged["stage"]["id"].as_str().expect("a stage id").to_owned();
    let deleted = admin.call("DELETE", &format!("{apps}?applications%5B%5D=shop"), &["-d", r#"{"deleteImage":true}"#]);
    assert_eq!(deleted, (200, json!({ "unboundconfigurations": [] })));
    let complete = format!("/api/v1/namespaces/workspace/staging/{id}/complete");
    admin.is_refused("GET", &complete, &[], 500, "the application was deleted");
    assert_eq!(request(&[&daemon.url("shop")]).unwrap().status, 404);
}
