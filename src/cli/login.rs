//! `epiniod login` and `logout`: the settings file that the `epinio` CLI uses as well.

use std::{
    io::{BufRead as _, Write as _, stderr, stdin},
    process::ExitCode,
};

use clap::Args;

use super::{
    Target,
    client::Client,
    error::{self, Error},
    settings::{Settings, place},
    ui::Ui,
};

#[derive(Debug, Args)]
pub struct Login {
    /// Address of the API, such as `http://epinio.localhost:8080`
    url: String,
    /// User; asked for when not given
    #[arg(long, short)]
    user: Option<String>,
    /// Password; asked for when not given
    #[arg(long, short, env = "EPINIO_PASSWORD", hide_env_values = true)]
    password: Option<String>,
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
        let path = place(&self.target)?;
        let mut settings = Settings::read(&path)?.unwrap_or_default();
        let url = self.url.trim_end_matches('/');
        let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        settings.wss = url.replacen("http", "ws", 1);
        settings.api = url;
        settings.user = answer("User: ", self.user)?;
        settings.set_password(&answer("Password: ", self.password)?);
        let client = Client::new(settings)?;
        client.get("/api/v1/me").await?;
        client.settings.write(&path)?;
        ui.say(&format!("logged in to {} as {}", client.settings.api, client.settings.user));
        Ok(ExitCode::from(error::OK))
    }
}

impl Logout {
    pub fn run(self, ui: &Ui) -> Result<ExitCode, Error> {
        let path = place(&self.target)?;
        let Some(settings) = Settings::read(&path)? else {
            ui.say("nobody was logged in");
            return Ok(ExitCode::from(error::OK));
        };
        let left = Settings { namespace: settings.namespace, other: settings.other, ..Settings::default() };
        left.write(&path)?;
        ui.say("logged out");
        Ok(ExitCode::from(error::OK))
    }
}

/// What was given, or what somebody types.
fn answer(question: &str, given: Option<String>) -> Result<String, Error> {
    if let Some(given) = given {
        return Ok(given);
    }
    let _ = write!(stderr(), "{question}");
    let mut line = String::new();
    stdin().lock().read_line(&mut line).map_err(Error::Runtime)?;
    let line = line.trim_end_matches(['\r', '\n']).to_owned();
    if line.is_empty() { Err(Error::Usage(format!("{question}is needed; give it as a flag"))) } else { Ok(line) }
}
