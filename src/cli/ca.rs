//! `epiniod ca`: the authority that signs a daemon's certificates where no public one does.

use std::{
    fs,
    io::{IsTerminal as _, stdin},
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use clap::{Args, Subcommand};
use reqwest::Method;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::{
    Target,
    client::{Client, broken},
    error::{self, Error},
    login::{Echo, answer},
    settings::Settings,
    ui::{Ui, print},
};
use crate::model::Digest;

#[derive(Debug, Subcommand)]
pub enum Ca {
    /// Print its certificate, in PEM; its fingerprint is on stderr
    Show(Show),
    /// Have this machine trust it: curl, browsers that use the machine's authorities, and all else
    Trust(Trust),
}

#[derive(Debug, Args)]
pub struct Show {
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub struct Trust {
    #[command(flatten)]
    target: Target,
}

/// The path of the certificate, for whoever asks.
const PATH: &str = "/ca.pem";
/// Where distributions look for authorities that an administrator trusts, and what makes them look.
const ANCHORS: [(&str, &str); 3] = [
    ("/usr/local/share/ca-certificates", "update-ca-certificates"),
    ("/etc/pki/ca-trust/source/anchors", "update-ca-trust"),
    ("/etc/ca-certificates/trust-source/anchors", "update-ca-trust"),
];

impl Ca {
    pub async fn run(self, ui: &Ui) -> Result<ExitCode, Error> {
        match self {
            Self::Show(show) => {
                let (_, pem) = fetch(&show.target.client()?).await?;
                ui.say(&format!("SHA-256 {}", fingerprint(&pem)?));
                print(pem.trim_end());
            }
            Self::Trust(trust) => {
                let (api, pem) = fetch(&trust.target.client()?).await?;
                install(&api, &pem, ui)?;
            }
        }
        Ok(ExitCode::from(error::OK))
    }
}

/// The address of an API, and the certificate of its authority.
async fn fetch(client: &Client) -> Result<(String, String), Error> {
    let asked = client.send(client.request(Method::GET, PATH)).await;
    let none = || Error::Usage(format!("the daemon at {} has no authority of its own", client.settings.api));
    let response = asked.map_err(|error| match error {
        Error::Api { status: 404, .. } => none(),
        error => error,
    })?;
    let pem = response.text().await.map_err(broken)?;
    fingerprint(&pem)?;
    Ok((client.settings.api.clone(), pem))
}

/// SHA-256 of a certificate in PEM, as other tools print it.
fn fingerprint(pem: &str) -> Result<String, Error> {
    let wrong = |error| Error::Usage(format!("what the daemon has at {PATH} is no certificate: {error}"));
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(wrong)?;
    let hex = Digest::of(certificate.as_ref()).hex().to_ascii_uppercase();
    let pairs: Vec<String> = hex.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).into_owned()).collect();
    Ok(pairs.join(":"))
}

fn install(api: &str, pem: &str, ui: &Ui) -> Result<(), Error> {
    let nowhere =
        "this machine keeps authorities where epiniod does not know of: give the output of 'epiniod ca show' to it";
    let found = ANCHORS.iter().find(|(folder, _)| Path::new(folder).is_dir());
    let (folder, program) = found.ok_or_else(|| Error::Usage(nowhere.to_owned()))?;
    let host: String = api.split("//").last().unwrap_or_default().chars().map(plain).collect();
    let path = Path::new(folder).join(format!("epiniod-{host}.crt"));
    fs::write(&path, pem).map_err(|source| Error::Write { path: path.clone(), source })?;
    let status = Command::new(program).stdin(Stdio::null()).stdout(Stdio::null()).status().map_err(Error::Runtime)?;
    if !status.success() {
        return Err(Error::Usage(format!("{} was written, but {program} ended with {status}", path.display())));
    }
    ui.say(&format!(
        "this machine trusts {} ({}); to end that, delete it and run {program}",
        path.display(),
        fingerprint(pem)?
    ));
    Ok(())
}

fn plain(c: char) -> char {
    if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }
}

/// A login to an API whose authority nobody here knows: it is asked for, and trusted for this login when somebody says
/// that its fingerprint is the right one.
pub async fn pin(settings: Settings, expected: Option<&str>, ui: &Ui) -> Result<Settings, Error> {
    let (api, pem) = fetch(&Client::trusting_anybody(settings.clone())?).await?;
    let found = fingerprint(&pem)?;
    let same = |text: &str| text.replace(':', "").eq_ignore_ascii_case(&found.replace(':', ""));
    match expected {
        Some(expected) if same(expected) => {}
        Some(expected) => {
            return Err(Error::Usage(format!(
                "the authority of {api} has the fingerprint {found}, and not {expected}"
            )));
        }
        None if stdin().is_terminal() => {
            ui.say(&format!("the certificate of {api} is of an authority that nobody knows here; SHA-256"));
            ui.say(&format!("  {found}"));
            ui.say("'epiniod ca show' on the daemon's machine prints the right one");
            let said = answer("Is it that one? (yes/no)", None, Echo::On).await?;
            if !matches!(said.to_ascii_lowercase().as_str(), "y" | "yes") {
                return Err(Error::Usage("not logged in: the authority was not accepted".to_owned()));
            }
        }
        None => {
            let next = format!(
                "give --ca-fingerprint {found} if that is the one that 'epiniod ca show' prints on its machine"
            );
            return Err(Error::Usage(format!(
                "the certificate of {api} is of an authority that nobody knows here; {next}"
            )));
        }
    }
    Ok(Settings { certs: pem, ..settings })
}

/// Whether an error says that a certificate is of nobody who is trusted.
pub fn is_of_a_stranger(error: &Error) -> bool {
    matches!(error, Error::Unreachable { cause, .. } if cause.contains("invalid peer certificate"))
}
