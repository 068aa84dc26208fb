//! The credential of who works on this machine: `DATA_DIR/client.yaml`, in the form of the `epinio` CLI's settings.

use std::{fs, io, io::Write as _, net::SocketAddr, os::unix::fs::OpenOptionsExt as _, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use super::Error;
use crate::{auth::NewAdmin, config::Config, model::Namespace};

/// Writes the credential of the first user, and shows a password that was made up.
pub(super) fn announce(config: &Config, api: SocketAddr, admin: &NewAdmin) -> Result<(), Error> {
    let path = config.data_dir.join("client.yaml");
    let pass = STANDARD.encode(&admin.password);
    let settings = settings(config, api, admin.user.as_str(), &pass);
    write(&path, &settings).map_err(|source| Error::Credential { path: path.clone(), source })?;
    if config.admin_password.is_none() {
        tracing::info!(user = %admin.user, password = %admin.password, "created the first user; the password is shown once and kept in {}", path.display());
    }
    Ok(())
}

/// The address may be another one at each start.
pub(super) fn point_to(config: &Config, api: SocketAddr) -> Result<(), Error> {
    let path = config.data_dir.join("client.yaml");
    let failed = |source| Error::Credential { path: path.clone(), source };
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    let known: serde_json::Value = serde_yaml_ng::from_str(&text).map_err(io::Error::other).map_err(failed)?;
    let text = |name: &str| known.get(name).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    let settings = settings(config, api, &text("user"), &text("pass"));
    if settings == known { Ok(()) } else { write(&path, &settings).map_err(failed) }
}

fn settings(config: &Config, api: SocketAddr, user: &str, pass: &str) -> serde_json::Value {
    let port = if api.port() == 80 { String::new() } else { format!(":{}", api.port()) };
    let host = format!("epinio.{}{port}", config.system_domain);
    json!({
        "api": format!("http://{host}"),
        "wss": format!("ws://{host}"),
        "user": user,
        "pass": pass,
        "namespace": Namespace::DEFAULT,
    })
}

fn write(path: &Path, settings: &serde_json::Value) -> io::Result<()> {
    let text = serde_yaml_ng::to_string(settings).map_err(io::Error::other)?;
    let temporary = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(temporary, path)
}
