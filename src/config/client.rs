//! Whom a client talks to, and as whom: the settings file of the `epinio` CLI, and `DATA_DIR/client.yaml` in the same form.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::model::Namespace;

/// A login, as far as we use it; what else is in the file is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientSettings {
    pub api: String,
    pub wss: String,
    pub user: String,
    /// Base64 of the password.
    pub pass: String,
    pub namespace: String,
    /// PEM.
    pub certs: String,
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// The key of the token of another kind of login: the `epinio` CLI prefers it to a password.
const TOKEN: &str = "token";

impl ClientSettings {
    /// None when it is not in Base64.
    pub fn password(&self) -> Option<String> {
        String::from_utf8(STANDARD.decode(&self.pass).ok()?).ok()
    }

    pub fn set_password(&mut self, password: &str) {
        self.pass = STANDARD.encode(password);
    }

    /// The same at another address.
    pub fn at(self, api: &str) -> Self {
        Self { wss: api.replacen("http", "ws", 1), api: api.to_owned(), ..self }
    }

    /// The same, logged in nowhere.
    pub fn logged_out(mut self) -> Self {
        self.other.remove(TOKEN);
        Self { namespace: self.namespace, other: self.other, ..Self::default() }
    }

    pub fn namespace(&self) -> &str {
        if self.namespace.is_empty() { Namespace::DEFAULT } else { &self.namespace }
    }

    /// None when there is no file. One that is not understood is an error of the kind `InvalidData`.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            result => result?,
        };
        if text.trim().is_empty() {
            return Ok(Some(Self::default()));
        }
        serde_yaml_ng::from_str(&text).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// It is durable when this returns.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        let text = serde_yaml_ng::to_string(self).map_err(io::Error::other)?;
        let temporary = path.with_extension("new");
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(temporary, path)?;
        fs::File::open(folder)?.sync_all()
    }
}

/// Where the settings file is; none where there is no home.
pub fn client_settings_file() -> Option<PathBuf> {
    if let Some(path) = super::variable("EPINIO_SETTINGS") {
        return Some(path);
    }
    let folder = super::variable("XDG_CONFIG_HOME").or_else(|| Some(super::variable("HOME")?.join(".config")));
    Some(folder?.join("epinio/settings.yaml"))
}
