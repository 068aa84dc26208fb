//! The credential of who works on this machine: `DATA_DIR/client.yaml`, in the form of the `epinio` CLI's settings.

use std::{
    io::IsTerminal as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use super::{Error, Mode};
use crate::{
    auth::{self, Auth, Password},
    config::{ClientSettings, Config, Kubernetes, client_settings_file},
    model::Namespace,
};

/// Is this the first start of a data directory?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    First,
    Later,
}

/// Creates the first user where there is none, and says where the API is now: it may be elsewhere at each start.
///
/// The file is there before the user is. A daemon that is killed in between finds the password in it, and
/// nobody is locked out.
pub(super) async fn provide(config: &Config, mode: Mode, api: SocketAddr, auth: &Auth) -> Result<(), Error> {
    let path = config.data_dir.join("client.yaml");
    let failed = |source| Error::Credential { path: path.clone(), source };
    let before = ClientSettings::read(&path).map_err(failed)?;
    let start = if auth.has_users().await? { Start::Later } else { Start::First };
    if before.is_none() && start == Start::Later {
        // Somebody did not want it to be here.
        return Ok(());
    }
    let mut settings = before.clone().unwrap_or_default().at(&format!("http://{}", reachable(api)));
    if start == Start::First {
        let kept = before.as_ref().filter(|known| known.user == auth::ADMIN).and_then(ClientSettings::password);
        let password = match config.admin_password.clone().or(kept) {
            Some(password) => Password::Chosen(password),
            None => Password::Made(auth::new_password()),
        };
        let (Password::Chosen(text) | Password::Made(text)) = &password;
        settings.user = auth::ADMIN.to_owned();
        settings.namespace = Namespace::DEFAULT.to_owned();
        settings.set_password(text);
        settings.write(&path).map_err(failed)?;
        show(&password, mode, &path);
        auth.create_admin(password).await?;
    } else if before.as_ref() != Some(&settings) {
        settings.write(&path).map_err(failed)?;
    }
    // Nobody works in a pod.
    if !config.kubernetes.as_ref().is_some_and(Kubernetes::is_inside) {
        share(config, before.as_ref(), &settings, start);
    }
    Ok(())
}

/// Says where the password is; logs are kept and collected, so that it is shown only to who sits in front of a terminal.
fn show(password: &Password, mode: Mode, path: &Path) {
    let Password::Made(password) = password else { return };
    // 'up' says it itself.
    if mode == Mode::Serve && std::io::stderr().is_terminal() {
        eprintln!("the password of the first user, '{}', is {password}; it is shown once", auth::ADMIN);
    }
    tracing::info!(user = auth::ADMIN, "created the first user; its password is in {}", path.display());
}

/// Where this machine reaches a listener, without asking a name server.
fn reachable(listener: SocketAddr) -> SocketAddr {
    let address = match listener.ip() {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    SocketAddr::new(address, listener.port())
}

/// Writes the settings file that all clients share: at the first start where there is none, later only where it
/// names this API. A login to another one stays.
fn share(config: &Config, before: Option<&ClientSettings>, own: &ClientSettings, start: Start) {
    let Some(path) = client_settings_file() else { return };
    let port = own.api.rsplit_once(':').map_or("", |(_, port)| port);
    let host = format!("http://epinio.{}", config.system_domain);
    let names = [own.api.clone(), format!("{host}:{port}"), if port == "80" { host } else { String::new() }];
    let is_ours = |known: &ClientSettings| {
        !known.api.is_empty() && (names.contains(&known.api) || before.is_some_and(|before| before.api == known.api))
    };
    let result = ClientSettings::read(&path).and_then(|known| {
        let mut shared = match (&known, start) {
            (None, Start::First) => own.clone(),
            (Some(settings), _) if is_ours(settings) => settings.clone().at(&own.api),
            _ => return Ok(()),
        };
        if start == Start::First {
            (shared.user, shared.pass) = (own.user.clone(), own.pass.clone());
        }
        if known.as_ref() == Some(&shared) { Ok(()) } else { shared.write(&path) }
    });
    if let Err(error) = result {
        // Our own command line does without it.
        tracing::warn!(path = %path.display(), %error, "the settings file of the epinio CLI cannot be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_reached_on_loopback() {
        for (listener, expected) in [
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:8080", "[::1]:8080"),
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("192.0.2.7:1", "192.0.2.7:1"),
        ] {
            assert_eq!(reachable(listener.parse().unwrap()), expected.parse().unwrap());
        }
    }
}
