//! `epiniod login` and `logout`: the settings file that the `epinio` CLI uses as well.

use std::{
    io::{BufRead as _, Write as _, stderr, stdin},
    process::ExitCode,
};

use clap::Args;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Target,
    ca::{is_of_a_stranger, pin},
    client::{Client, is_this_machine, parse_address},
    error::{self, Error},
    settings::{self, Settings, place},
    ui::Ui,
};

#[derive(Debug, Args)]
pub struct Login {
    /// Address of the API, such as `http://epinio.localhost:8080` [default: that of the settings file, else the daemon
    /// of this machine]
    url: Option<String>,
    /// User; asked for when not given
    #[arg(long, short)]
    user: Option<String>,
    /// Password; asked for when not given
    #[arg(long, short, env = "EPINIO_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// With a token ('epiniod tokens create') in place of a password; asked for, or read from stdin
    #[arg(long, conflicts_with_all = ["user", "password"])]
    token: bool,
    /// SHA-256 of the authority of the API's certificate, which is trusted for this login ('epiniod ca show' prints it)
    #[arg(long, value_name = "SHA256")]
    ca_fingerprint: Option<String>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub struct Logout {
    #[command(flatten)]
    target: Target,
}

impl Login {
    pub async fn run(self, ui: &Ui) -> Result<ExitCode, Error> {
        // Before a terminal hides what is typed: it must not be left so.
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Runtime)?;
        tokio::select! {
            result = self.log_in(ui) => return result,
            _ = interrupt.recv() => {}
        }
        // Not by a return, as the thread that reads the terminal cannot be ended.
        std::process::exit(i32::from(error::INTERRUPTED));
    }

    async fn log_in(self, ui: &Ui) -> Result<ExitCode, Error> {
        let path = place(&self.target)?;
        let known = settings::read(&path)?.unwrap_or_default();
        let url = match &self.url {
            Some(url) => with_scheme(url.trim_end_matches('/')),
            None => settings::find(&self.target)?.api,
        };
        parse_address(&url)?;
        // Authorities that were trusted for one address are not for another.
        let certs = if known.api == url { known.certs.clone() } else { String::new() };
        let mut settings = Settings { certs, ..known.logged_out() }.at(&url);
        if self.token {
            // Any name goes with it, and both command lines know how to keep a password.
            settings.user = TOKEN_USER.to_owned();
            settings.set_password(answer(TOKEN, None, Echo::Off).await?.trim());
        } else {
            settings.user = answer("User", self.user, Echo::On).await?;
            settings.set_password(&answer("Password", self.password, Echo::Off).await?);
        }
        let mut client = Client::new(settings)?;
        let me = match client.get("/api/v1/me").await {
            Err(error) if is_of_a_stranger(&error) => {
                client = Client::new(pin(client.settings, self.ca_fingerprint.as_deref(), ui).await?)?;
                client.get("/api/v1/me").await?
            }
            answered => answered?,
        };
        settings::write(&client.settings, &path)?;
        let who = match me["token"].as_str() {
            Some(token) => format!("{} by token {token}", me["user"].as_str().unwrap_or_default()),
            None => client.settings.user.clone(),
        };
        ui.say(&format!("logged in to {} as {who}", client.settings.api));
        let namespace = client.settings.namespace();
        if let Err(Error::Api { status: 404, .. }) = client.get(&format!("/api/v1/namespaces/{namespace}")).await {
            ui.say(&format!("namespace '{namespace}' does not exist there; name another with --namespace"));
        }
        Ok(ExitCode::from(error::OK))
    }
}

impl Logout {
    pub fn run(self, ui: &Ui) -> Result<ExitCode, Error> {
        let path = place(&self.target)?;
        let Some(settings) = settings::read(&path)?.filter(|settings| !settings.api.is_empty()) else {
            ui.say("nobody was logged in");
            return Ok(ExitCode::from(error::OK));
        };
        let api = settings.api.clone();
        settings::write(&settings.logged_out(), &path)?;
        ui.say(&format!("logged out of {api}"));
        Ok(ExitCode::from(error::OK))
    }
}

const TOKEN: &str = "Token";
/// The user of a login by token.
const TOKEN_USER: &str = "token";

/// As the `epinio` CLI has it; but this machine speaks HTTP.
fn with_scheme(url: &str) -> String {
    if url.contains("://") {
        return url.to_owned();
    }
    let plain = format!("http://{url}");
    match parse_address(&plain) {
        Ok(parsed) if is_this_machine(&parsed) => plain,
        _ => format!("https://{url}"),
    }
}

/// Whether what is typed is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Echo {
    On,
    Off,
}

/// What was given, or what somebody types.
pub(super) async fn answer(what: &str, given: Option<String>, echo: Echo) -> Result<String, Error> {
    if let Some(given) = given {
        return Ok(given);
    }
    let _ = write!(stderr(), "{what}: ");
    let hidden = if echo == Echo::Off { HiddenTyping::start() } else { None };
    let typed = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        stdin().lock().read_line(&mut line).map(|_| line)
    });
    let line = typed.await.map_err(std::io::Error::other).and_then(|line| line);
    drop(hidden);
    let line = line.map_err(Error::Runtime)?;
    let line = line.trim_end_matches(['\r', '\n']).to_owned();
    if line.is_empty() {
        let name = what.to_lowercase();
        let how = if what == TOKEN { "type it".to_owned() } else { format!("type it, or give it with --{name}") };
        return Err(Error::Usage(format!("a {name} is needed; {how}")));
    }
    Ok(line)
}

/// A terminal that does not show what is typed, as long as this lives.
struct HiddenTyping(Termios);

impl HiddenTyping {
    /// None where there is no terminal.
    fn start() -> Option<Self> {
        let before = tcgetattr(stdin()).ok()?;
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(stdin(), SetArg::TCSANOW, &hidden).ok()?;
        Some(Self(before))
    }
}

impl Drop for HiddenTyping {
    fn drop(&mut self) {
        // A terminal that is gone shows nothing any more.
        let _ = tcsetattr(stdin(), SetArg::TCSANOW, &self.0);
        let _ = writeln!(stderr());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_scheme_is_https_but_for_this_machine() {
        assert_eq!(with_scheme("epinio.example.com"), "https://epinio.example.com");
        assert_eq!(with_scheme("epinio.localhost:8080"), "http://epinio.localhost:8080");
        assert_eq!(with_scheme("127.0.0.1:8080"), "http://127.0.0.1:8080");
        assert_eq!(with_scheme("http://x"), "http://x");
    }
}
