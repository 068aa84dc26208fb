//! curl, with a credential, for JSON.

use serde_json::Value;

use crate::support::{Daemon, request};

pub struct Client {
    pub base: String,
    /// `USER:PASSWORD`
    pub credential: Option<String>,
}

impl Client {
    pub fn of(daemon: &Daemon) -> Self {
        Self { credential: Some(format!("admin:{}", daemon.password)), ..Self::without_credential(daemon) }
    }

    pub fn without_credential(daemon: &Daemon) -> Self {
        Self { base: daemon.api(""), credential: None }
    }

    /// The status, and the JSON that is the body of every answer.
    pub fn call(&self, method: &str, path: &str, arguments: &[&str]) -> (u16, Value) {
        let url = format!("{}{path}", self.base);
        let mut all = vec!["--http1.1", "--max-time", "120", "-X", method];
        all.extend(self.credential.iter().flat_map(|credential| ["-u", credential.as_str()]));
        all.extend(arguments);
        all.push(&url);
        let answer = request(&all).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let json = serde_json::from_str(&answer.body);
        (answer.status, json.unwrap_or_else(|error| panic!("{method} {path}: {error}: {answer:?}")))
    }

    /// It fails in Epinio's form, with this in its title.
    pub fn is_refused(&self, method: &str, path: &str, arguments: &[&str], status: u16, title: &str) {
        let (found, body) = self.call(method, path, arguments);
        assert_eq!(found, status, "{method} {path}: {body}");
        assert_eq!(body["errors"][0]["status"], status, "{method} {path}: {body}");
        let said = body["errors"][0]["title"].as_str().unwrap_or_default();
        assert!(!said.is_empty() && said.contains(title), "{method} {path}: expected '{title}' in {body}");
    }
}
