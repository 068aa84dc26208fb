//! Whom commands talk to, as whom: variables, the settings file of the `epinio` CLI, the daemon of this machine.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{Target, error::Error};
use crate::config;

pub use crate::config::ClientSettings as Settings;

/// The settings of a file; none where there is none.
pub fn read(path: &Path) -> Result<Option<Settings>, Error> {
    Settings::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => Error::Denied { path: path.to_owned() },
        io::ErrorKind::InvalidData => Error::Settings { path: path.to_owned(), cause: source.to_string() },
        _ => Error::Read { path: path.to_owned(), source },
    })
}

pub fn write(settings: &Settings, path: &Path) -> Result<(), Error> {
    settings.write(path).map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// Where the settings file is.
pub fn place(target: &Target) -> Result<PathBuf, Error> {
    if let Some(path) = &target.settings_file {
        return Ok(path.clone());
    }
    let nowhere = || Error::Usage("neither --settings-file nor HOME says where the settings are".to_owned());
    config::client_settings_file().ok_or_else(nowhere)
}

/// Who names a data directory means its daemon, and nothing else. Otherwise variables win over the file, and who never
/// logged in means the daemon of this machine.
pub fn find(target: &Target) -> Result<Settings, Error> {
    let data_dir = config::data_dir(target.data_dir.clone())?;
    if target.data_dir.is_some() {
        // No variable sends the credential of this machine to another one.
        return of_data_dir(&data_dir)?.ok_or(Error::NoCredential { data_dir });
    }
    let found = match read(&place(target)?)?.filter(|settings| !settings.api.is_empty()) {
        Some(settings) => Some(settings),
        // Who says everything with variables needs no file.
        None if variable("EPINIO_API").is_some() => Some(Settings::default()),
        None => of_data_dir(&data_dir)?,
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
    read(&data_dir.join("client.yaml"))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
