//! Whom commands talk to, as whom: variables, the settings file of the `epinio` CLI, the daemon of this machine.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::{Target, error::Error};
use crate::{config, model::Namespace};

/// The settings file, as far as we use it; what else is in it is kept.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
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

impl Settings {
    pub fn password(&self) -> Result<String, Error> {
        let wrong =
            || Error::Usage("'pass' in the settings, or EPINIO_PASS, is not the base64 of a password".to_owned());
        let bytes = STANDARD.decode(&self.pass).map_err(|_| wrong())?;
        String::from_utf8(bytes).map_err(|_| wrong())
    }

    pub fn set_password(&mut self, password: &str) {
        self.pass = STANDARD.encode(password);
    }

    /// The same, logged in nowhere.
    pub fn logged_out(mut self) -> Self {
        self.other.remove(TOKEN);
        Self { namespace: self.namespace, other: self.other, ..Self::default() }
    }

    pub fn namespace(&self) -> &str {
        if self.namespace.is_empty() { Namespace::DEFAULT } else { &self.namespace }
    }

    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        let text = match fs::read_to_string(path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(Error::Denied { path: path.to_owned() });
            }
            result => result.map_err(|source| Error::Read { path: path.to_owned(), source })?,
        };
        if text.trim().is_empty() {
            return Ok(Some(Self::default()));
        }
        let settings = serde_yaml_ng::from_str(&text);
        Ok(Some(settings.map_err(|error| Error::Settings { path: path.to_owned(), cause: error.to_string() })?))
    }

    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let write = || -> io::Result<()> {
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            let text = serde_yaml_ng::to_string(self).map_err(io::Error::other)?;
            let temporary = path.with_extension("new");
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(temporary, path)
        };
        write().map_err(|source| Error::Write { path: path.to_owned(), source })
    }
}

/// Where the settings file is.
pub fn place(target: &Target) -> Result<PathBuf, Error> {
    if let Some(path) = &target.settings_file {
        return Ok(path.clone());
    }
    let folder = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| format!("{home}/.config")));
    let nowhere = || Error::Usage("neither --settings-file nor HOME says where the settings are".to_owned());
    Ok(PathBuf::from(folder.ok_or_else(nowhere)?).join("epinio/settings.yaml"))
}

/// Variables win over the file. Who names a data directory means its daemon; who never logged in means the one of this machine.
pub fn find(target: &Target) -> Result<Settings, Error> {
    let data_dir = config::data_dir(target.data_dir.clone())?;
    let own = if target.data_dir.is_some() { of_data_dir(&data_dir)? } else { None };
    let found = match own {
        Some(settings) => Some(settings),
        None => match Settings::read(&place(target)?)?.filter(|settings| !settings.api.is_empty()) {
            Some(settings) => Some(settings),
            // Who says everything with variables needs no file.
            None if variable("EPINIO_API").is_some() => Some(Settings::default()),
            None => of_data_dir(&data_dir)?,
        },
    };
    let mut settings = found.ok_or(Error::NoCredential { data_dir })?;
    for (name, field) in [
        ("EPINIO_API", &mut settings.api),
        ("EPINIO_WSS", &mut settings.wss),
        ("EPINIO_USER", &mut settings.user),
        ("EPINIO_PASS", &mut settings.pass),
        ("EPINIO_CERTS", &mut settings.certs),
    ] {
        if let Some(value) = variable(name) {
            *field = value;
        }
    }
    if variable("EPINIO_API").is_some() && variable("EPINIO_WSS").is_none() {
        // That of the file belongs to another address.
        settings.wss.clear();
    }
    Ok(settings)
}

/// The credential of the daemon of a data directory, whatever variables say; none when there never was one.
pub fn of_data_dir(data_dir: &Path) -> Result<Option<Settings>, Error> {
    Settings::read(&data_dir.join("client.yaml"))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
