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
}
