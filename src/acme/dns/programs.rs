//! Programs and services of others that change a domain.

use std::{path::Path, process::Stdio, time::Duration};

use super::{Action, TextRecord};

/// For one change.
const DEADLINE: Duration = Duration::from_secs(120);
/// Of what a program or service says, in characters.
const WORDS: usize = 300;

/// `PROGRAM present|remove NAME VALUE`, with this daemon's environment; it fails with what it said on stderr.
pub(super) async fn run(action: Action, record: &TextRecord, path: &Path) -> Result<(), String> {
    let output = tokio::process::Command::new(path)
        .args([action.as_str(), &record.name, &record.value])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let name = path.display();
    let late = |_| format!("{name} has not ended after {} s", DEADLINE.as_secs());
    let output = tokio::time::timeout(DEADLINE, output).await.map_err(late)?;
    let output = output.map_err(|error| format!("{name} cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name} failed ({}): {}", output.status, words(&String::from_utf8_lossy(&output.stderr))))
}

/// `{"action", "name", "value"}`, by POST; any answer of success will do.
pub(super) async fn post(action: Action, record: &TextRecord, url: &str, token: Option<&str>) -> Result<(), String> {
    let failed =
        |error: reqwest::Error| format!("the webhook {url} failed: {}", crate::telemetry::chain(&error.without_url()));
    let client = reqwest::Client::builder().timeout(DEADLINE).build().map_err(failed)?;
    let body = serde_json::json!({"action": action.as_str(), "name": record.name, "value": record.value});
    let mut request = client.post(url).json(&body);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await.map_err(failed)?;
    if answer.status().is_success() {
        return Ok(());
    }
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    Err(format!("the webhook {url} answers {status}: {}", words(&text)))
}

fn words(text: &str) -> String {
    match text.trim() {
        "" => "it does not say why".to_owned(),
        text => text.chars().take(WORDS).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_gets_the_record_and_fails_with_its_words() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("hook");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = present ] || {{ echo \"no such zone\" >&2; exit 3; }}\necho \"$2 $3\" > {}/said\n",
            dir.path().display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let record = TextRecord::of_challenge("a.test", "digest".to_owned());
        run(Action::Present, &record, &program).await.unwrap();
        let said = std::fs::read_to_string(dir.path().join("said")).unwrap();
        assert_eq!(said, "_acme-challenge.a.test digest\n");
        let failed = run(Action::Remove, &record, &program).await.unwrap_err();
        assert!(failed.ends_with("no such zone"), "{failed}");
        let missing = run(Action::Remove, &record, Path::new("/nonexistent/hook")).await.unwrap_err();
        assert!(missing.contains("cannot be run"), "{missing}");
    }

    #[tokio::test]
    async fn a_webhook_gets_the_record_with_its_token_and_fails_with_its_words() {
        use axum::{Json, Router, http::HeaderMap, routing::post as by_post};
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (heard, mut told) = tokio::sync::mpsc::unbounded_channel();
        let hook = async move |headers: HeaderMap, Json(body): Json<serde_json::Value>| {
            let token =
                headers.get("authorization").map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            let is_known = body["action"] == "present";
            let _ = heard.send((token, body));
            if is_known { Ok("done") } else { Err((http::StatusCode::CONFLICT, "no such record\n")) }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, Router::new().route("/hook", by_post(hook))).into_future());
        let record = TextRecord::of_challenge("a.test", "digest".to_owned());
        post(Action::Present, &record, &url, Some("its-token")).await.unwrap();
        let wanted = serde_json::json!({"action": "present", "name": "_acme-challenge.a.test", "value": "digest"});
        assert_eq!(told.recv().await.unwrap(), (Some("Bearer its-token".to_owned()), wanted));
        let failed = post(Action::Remove, &record, &url, None).await.unwrap_err();
        assert_eq!(failed, format!("the webhook {url} answers 409 Conflict: no such record"));
        assert_eq!(told.recv().await.unwrap().0, None, "who has no token sends none");
        let nobody = post(Action::Present, &record, "http://127.0.0.1:1/hook", None).await.unwrap_err();
        assert!(nobody.starts_with("the webhook http://127.0.0.1:1/hook failed: "), "{nobody}");
    }
}
