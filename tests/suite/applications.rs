//! The main job, as a user does it: folders of source become running URLs.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use crate::support::{Daemon, copy, get, request, sample, wait_until, write};

/// The body of a page that has to be there.
fn page(url: &str) -> String {
    let response = get(url).unwrap_or_else(|error| panic!("{url}: {error}"));
    assert_eq!(response.status, 200, "{url}: {}", response.body);
    response.body
}

#[test]
fn the_samples_answer_at_their_urls_and_serve_what_was_edited() {
    let daemon = Daemon::start();
    let samples = [("python", "app.py"), ("node", "server.js"), ("static", "index.html"), ("procfile", "answer.sh")];
    for (name, file) in samples {
        let source = daemon.dir().join("src").join(name);
        copy(&sample(name), &source);
        let url = daemon.push(name, &source);
        assert_eq!(url, daemon.url(name));
        assert!(page(&url).contains("Hello from the"), "{name}: {}", page(&url));
        let text = fs::read_to_string(source.join(file)).unwrap();
        write(&source, file, &text.replace("Hello from", "Edited:"));
        daemon.push(name, &source);
        assert!(page(&url).contains("Edited: the"), "{name} serves the old text: {}", page(&url));
    }
    let listed = daemon.run(["apps", "list", "--output", "json"]);
    let apps: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let running = |app: &serde_json::Value| app["status"] == "running" && app["deployment"]["status"] == "1/1";
    assert!(apps.as_array().is_some_and(|apps| apps.len() == 4 && apps.iter().all(running)), "{listed}");
}

#[test]
fn a_push_without_a_change_takes_over_the_image_and_says_so() {
    let daemon = Daemon::start();
    daemon.push("same", &sample("procfile"));
    let output = daemon.output(["push", "--name", "same", "--path", sample("procfile").to_str().unwrap()]);
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{talk}");
    assert!(talk.contains("nothing changed since staging"), "{talk}");
    assert!(talk.contains("phases: upload"), "{talk}");
    page(&daemon.url("same"));
}

#[test]
fn plain_curl_pushes_and_fails_with_the_cause_as_the_last_line() {
    let daemon = Daemon::start();
    let credential = format!("admin:{}", daemon.password);
    let archive = daemon.dir().join("app.tar.gz");
    let packed =
        Command::new("tar").args(["-czf"]).arg(&archive).arg("-C").arg(sample("procfile")).arg(".").status().unwrap();
    assert!(packed.success());
    let push = |app: &str, archive: &PathBuf| {
        let url = daemon.api(&format!("/push/workspace/{app}"));
        let output =
            Command::new("curl").args(["-sS", "-u", &credential, "-T"]).arg(archive).arg(url).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = push("curled", &archive);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text.lines().last(), Some(daemon.url("curled").as_str()), "{text}");
    page(&daemon.url("curled"));

    let empty = daemon.dir().join("empty");
    write(&empty, "README", "nothing to build");
    let archive = daemon.dir().join("empty.tar");
    assert!(Command::new("tar").args(["-cf"]).arg(&archive).arg("-C").arg(&empty).arg(".").status().unwrap().success());
    let (code, text) = push("nothing", &archive);
    assert_eq!(code, Some(18), "curl exits with 18 when a body is cut off: {text}");
    assert!(
        text.lines().last().is_some_and(|line| line.starts_with("error: no buildpack takes this source")),
        "{text}"
    );

    let url = daemon.api("/push/workspace/curled");
    let refused = request(&["-T", archive.to_str().unwrap(), &url]).unwrap();
    assert_eq!(refused.status, 401, "without a credential: {}", refused.body);
}

#[test]
fn a_version_that_does_not_come_up_leaves_the_old_one_serving() {
    let daemon = Daemon::start();
    let url = daemon.push("steady", &sample("procfile"));
    let broken = daemon.dir().join("broken");
    copy(&sample("procfile"), &broken);
    write(&broken, "serve.sh", "#!/bin/bash\necho 'these are my last words' >&2\nexit 3\n");
    let output = daemon.output(["push", "--name", "steady", "--path", broken.to_str().unwrap()]);
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(7), "{talk}");
    assert!(talk.contains("these are my last words") && talk.contains("exit code 3"), "{talk}");
    assert!(page(&url).contains("Hello from the Procfile sample"));
}

#[test]
fn scale_environment_restart_and_delete_do_what_they_say() {
    let daemon = Daemon::start();
    let source = daemon.dir().join("src");
    copy(&sample("procfile"), &source);
    let text = fs::read_to_string(source.join("answer.sh")).unwrap();
    write(&source, "answer.sh", &text.replace("Hello from the Procfile sample", "greeting ${GREETING:-none}"));
    let url = daemon.push("knobs", &source);
    assert!(page(&url).contains("greeting none"));
    daemon.run(["apps", "env", "set", "knobs", "GREETING", "moin"]);
    assert!(page(&url).contains("greeting moin"), "a new environment restarts the application");
    assert_eq!(daemon.run(["apps", "env", "list", "knobs"]).trim(), "GREETING=moin");
    daemon.run(["apps", "scale", "knobs", "3"]);
    wait_until("three instances are ready", Duration::from_secs(20), || {
        daemon.run(["apps", "show", "knobs", "--output", "json"]).contains("\"status\": \"3/3\"")
    });
    daemon.run(["apps", "restart", "knobs"]);
    page(&url);
    daemon.run(["apps", "scale", "knobs", "0"]);
    assert_eq!(get(&url).unwrap().status, 503);
    daemon.run(["apps", "delete", "knobs"]);
    assert_eq!(get(&url).unwrap().status, 404);
    assert_eq!(daemon.output(["apps", "show", "knobs"]).status.code(), Some(5));
}

#[test]
fn applications_outlive_a_daemon_that_is_killed() {
    let mut daemon = Daemon::start();
    let url = daemon.push("lasting", &sample("procfile"));
    let before = daemon.run(["apps", "show", "lasting", "--output", "json"]);
    daemon.kill();
    daemon.resume();
    wait_until("the route is back", Duration::from_secs(10), || get(&url).is_ok_and(|response| response.status == 200));
    let after = daemon.run(["apps", "show", "lasting", "--output", "json"]);
    let started = |text: &str| {
        let app: serde_json::Value = serde_json::from_str(text).unwrap();
        app["deployment"]["replicas"]["lasting-1-0"]["createdAt"].clone()
    };
    assert_eq!(started(&before), started(&after), "the instance was started again");
    daemon.push("lasting", &sample("procfile"));
}

#[test]
fn an_application_that_ignores_port_gets_its_traffic_and_a_note() {
    let daemon = Daemon::start();
    let source = daemon.dir().join("src");
    copy(&sample("procfile"), &source);
    let text = fs::read_to_string(source.join("serve.sh")).unwrap();
    write(&source, "serve.sh", &text.replace("${PORT:-8080}", "3000"));
    let url = daemon.push("stubborn", &source);
    assert!(page(&url).contains("Hello from the Procfile sample"));
    let log = daemon.run(["apps", "logs", "stubborn"]);
    assert!(log.contains("listens on port 3000 instead of PORT=8080"), "{log}");
}

#[test]
fn a_folder_with_a_link_that_leaves_it_is_refused_before_anything_is_sent() {
    let daemon = Daemon::start();
    let source = daemon.dir().join("src");
    write(&source, "Procfile", "web: true\n");
    symlink("/etc/passwd", source.join("secret")).unwrap();
    let output = daemon.output(["push", "--name", "leaky", "--path", source.to_str().unwrap()]);
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{talk}");
    assert!(talk.contains("'secret'") && talk.contains("absolute path"), "{talk}");
}

#[test]
fn a_push_changes_an_application_when_its_new_version_serves_and_not_before() {
    let daemon = Daemon::start();
    let source = daemon.dir().join("src");
    copy(&sample("procfile"), &source);
    let text = fs::read_to_string(source.join("answer.sh")).unwrap();
    write(&source, "answer.sh", &text.replace("Hello from the Procfile sample", "greeting ${GREETING:-none}"));
    let url = daemon.push("steady", &source);
    let other = format!("http://other.localhost:{}", daemon.port);
    let empty = daemon.dir().join("empty");
    write(&empty, "README", "nothing to build");
    let push = |path: &PathBuf, more: &[&str]| {
        let mut command = daemon.command(["push", "--name", "steady", "--path", path.to_str().unwrap()]);
        let output = command.args(more).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let shown = || {
        let app: serde_json::Value =
            serde_json::from_str(&daemon.run(["apps", "show", "steady", "--output", "json"])).unwrap();
        (app["configuration"].clone(), app["deployment"]["status"].clone())
    };
    let before = shown();
    let wishes = ["--instances", "2", "--env", "GREETING=moin", "--route", "other.localhost"];
    let (code, talk) = push(&empty, &wishes);
    assert_eq!(code, Some(6), "{talk}");
    write(&empty, "Procfile", "web: exit 3\n");
    let (code, talk) = push(&empty, &wishes);
    assert_eq!(code, Some(7), "{talk}");
    assert_eq!(shown(), before, "a push that failed has changed the application");
    assert!(page(&url).contains("greeting none"));
    assert_eq!(get(&other).unwrap().status, 404);
    // A wish that cannot be is refused before anything is sent, and is not the fault of the source.
    for (wish, said) in [(["--instances", "1000"], "too many"), (["--route", "epinio.localhost"], "a host of the API")]
    {
        let (code, talk) = push(&source, &wish);
        assert!(code == Some(1) && talk.contains(said), "{code:?} {talk}");
    }
    let (code, talk) = push(&source, &wishes);
    assert_eq!(code, Some(0), "{talk}");
    assert!(page(&other).contains("greeting moin"));
    assert_eq!(get(&url).unwrap().status, 404, "the route is another one now");
    assert_eq!(shown().1, "2/2");
}

#[test]
fn an_environment_a_restage_and_a_log_are_what_they_say() {
    let daemon = Daemon::start();
    let source = daemon.dir().join("src");
    copy(&sample("procfile"), &source);
    let text = fs::read_to_string(source.join("serve.sh")).unwrap();
    write(&source, "serve.sh", &text.replace("exec socat", "echo \"begins with ${GREETING:-none}\"\nexec socat"));
    let url = daemon.push("talker", &source);
    let mut follower =
        daemon.command(["apps", "logs", "--follow", "talker"]).stdout(Stdio::piped()).spawn().expect("a follower");
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("begins with none")));
    daemon.run(["apps", "env", "set", "talker", "GREETING", "moin"]);
    assert!(lines.any(|line| line.contains("begins with moin")));
    assert_eq!(daemon.run(["apps", "env", "show", "talker", "GREETING"]), "moin\n");
    let stage = || {
        let shown = daemon.run(["apps", "show", "talker", "--output", "json"]);
        let app: serde_json::Value = serde_json::from_str(&shown).unwrap();
        (app["stage_id"].clone(), app["deployment"]["stage_id"].clone())
    };
    let before = stage();
    daemon.run(["apps", "restage", "talker"]);
    let after = stage();
    assert!(after.0 != before.0 && after.1 == after.0, "{before:?} {after:?}");
    assert!(daemon.run(["apps", "logs", "talker", "--staging"]).contains("===> EXPORTING"));
    assert_eq!(daemon.run(["apps", "logs", "talker", "--staging", "--tail", "2"]).lines().count(), 2);
    daemon.run(["apps", "env", "unset", "talker", "GREETING"]);
    assert_eq!(daemon.run(["apps", "env", "list", "talker"]), "");
    page(&url);
    daemon.run(["apps", "delete", "talker"]);
    // The log ends with its application.
    drop(lines);
    assert!(follower.wait().unwrap().success());
}

#[test]
fn a_namespace_is_deleted_with_its_applications() {
    let daemon = Daemon::start();
    daemon.run(["namespaces", "create", "other"]);
    let source = sample("procfile");
    daemon.run(["push", "--namespace", "other", "--name", "shop", "--path", source.to_str().unwrap()]);
    page(&daemon.url("shop"));
    daemon.run(["namespaces", "delete", "other"]);
    assert_eq!(get(&daemon.url("shop")).unwrap().status, 404);
    assert_eq!(daemon.run(["apps", "list", "--all", "--output", "json"]).trim(), "[]");
    let gone = daemon.output(["apps", "list", "--namespace", "other"]);
    assert_eq!(gone.status.code(), Some(5));
}
