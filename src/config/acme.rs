//! How public certificates are come by. Flags say what most need; the rest is in the table `[acme]` of the file.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE_NO_PAD};
use toml::Table;

use super::{absolute, check_ca, check_mirror, section::Section};
use crate::{
    acme::{Binding, Directory, Settings, dns},
    model::{LETS_ENCRYPT, directory_of_authority, is_mail_address, is_public_domain},
};

/// What flags and variables say of them.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AcmeFlags {
    /// Whom certificates are asked of: letsencrypt, letsencrypt-staging, the URL of an ACME directory, or off
    /// [default: letsencrypt with a system domain of the public]
    #[arg(long, env = "EPINIOD_ACME_DIRECTORY", value_name = "URL")]
    pub acme_directory: Option<String>,
    /// Whom the authority writes to
    #[arg(long, env = "EPINIOD_ACME_EMAIL", value_name = "ADDRESS")]
    pub acme_email: Option<String>,
    /// Who signed the certificate of the authority's own server, PEM [default: whom this machine trusts]
    #[arg(long, env = "EPINIOD_ACME_CA_FILE", value_name = "FILE")]
    pub acme_ca_file: Option<PathBuf>,
}

/// `[acme]` of the file.
#[derive(Debug, Clone, Default)]
pub struct AcmeFile {
    flags: AcmeFlags,
    binding: Option<Binding>,
    profile: Option<String>,
    fallbacks: Vec<Directory>,
    dns: Option<dns::Settings>,
}

/// What `--acme-directory` says for no directory.
const OFF: &str = "off";
/// How long an authority may take for an order, and servers of DNS for a record, in seconds.
const PATIENCE: u64 = 120;
const DNS_PATIENCE: u64 = 120;

impl AcmeFlags {
    fn or(self, others: Self) -> Self {
        Self {
            acme_directory: self.acme_directory.or(others.acme_directory),
            acme_email: self.acme_email.or(others.acme_email),
            acme_ca_file: self.acme_ca_file.or(others.acme_ca_file),
        }
    }

    pub(super) fn to_args(&self) -> [(&'static str, Option<OsString>); 3] {
        [
            ("--acme-directory", self.acme_directory.clone().map(Into::into)),
            ("--acme-email", self.acme_email.clone().map(Into::into)),
            ("--acme-ca-file", self.acme_ca_file.as_deref().map(absolute)),
        ]
    }

    /// None where certificates are of our own authority only.
    pub(super) fn settings(self, file: AcmeFile, domain: &str, problems: &mut Vec<String>) -> Option<Settings> {
        let flags = self.or(file.flags);
        let url = match flags.acme_directory.as_deref() {
            Some(OFF) => return None,
            None if !is_public_domain(domain) => return None,
            None => LETS_ENCRYPT.to_owned(),
            Some(named) => directory("acme_directory", named, problems),
        };
        problems.extend(check_ca("acme_ca_file", flags.acme_ca_file.as_deref()));
        if let Some(email) = flags.acme_email.as_ref().filter(|email| !is_mail_address(email)) {
            problems.push(format!("acme_email: '{email}' is not an address such as admin@example.com"));
        }
        let first = Directory { url, ca_file: flags.acme_ca_file, binding: file.binding };
        let directories = std::iter::once(first).chain(file.fallbacks).collect();
        let patience = Duration::from_secs(PATIENCE) + file.dns.as_ref().map_or(Duration::ZERO, |dns| dns.patience);
        Some(Settings { directories, email: flags.acme_email, profile: file.profile, dns: file.dns, patience })
    }
}

/// The URL of an authority that may have a name.
fn directory(setting: &str, named: &str, problems: &mut Vec<String>) -> String {
    directory_of_authority(named).unwrap_or_else(|| {
        problems.push(format!(
            "{setting}: '{named}' is neither letsencrypt, letsencrypt-staging, nor the https:// URL of a directory"
        ));
        named.to_owned()
    })
}

/// The table `[acme]`; with `[[acme.fallback]]`, and one of `[acme.dns.update]`, `[acme.dns.webhook]`, `[acme.dns.program]`.
pub(super) fn read(table: Table, folder: &Path, problems: &mut Vec<String>) -> AcmeFile {
    let mut section = Section::new("acme.", table, problems);
    let here = |path: Option<PathBuf>| path.map(|path| folder.join(path));
    let flags = AcmeFlags {
        acme_directory: section.take("directory"),
        acme_email: section.take("email"),
        acme_ca_file: here(section.take("ca_file")),
    };
    let binding = read_binding(&mut section, folder);
    let profile = section.take("profile");
    let fallbacks: Vec<Table> = section.take("fallback").unwrap_or_default();
    let dns = section.table("dns");
    section.finish();
    let fallbacks = fallbacks.into_iter().filter_map(|table| read_fallback(table, folder, problems)).collect();
    let dns = (!dns.is_empty()).then(|| read_dns(dns, folder, problems)).flatten();
    AcmeFile { flags, binding, profile, fallbacks, dns }
}

fn read_fallback(table: Table, folder: &Path, problems: &mut Vec<String>) -> Option<Directory> {
    let mut section = Section::new("acme.fallback.", table, problems);
    let named: Option<String> = section.take("directory");
    let ca_file = section.take("ca_file").map(|path: PathBuf| folder.join(path));
    let binding = read_binding(&mut section, folder);
    section.finish();
    let Some(named) = named else {
        problems.push("acme.fallback.directory: the URL of a directory is missing".to_owned());
        return None;
    };
    let url = directory("acme.fallback.directory", &named, problems);
    problems.extend(check_ca("acme.fallback.ca_file", ca_file.as_deref()));
    Some(Directory { url, ca_file, binding })
}

fn read_binding(section: &mut Section<'_>, folder: &Path) -> Option<Binding> {
    let (key_id, file): (Option<String>, Option<PathBuf>) = (section.take("eab_key_id"), section.take("eab_key_file"));
    match (key_id, file) {
        (None, None) => None,
        (Some(key_id), Some(file)) => {
            let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok();
            secret(section, "eab_key_file", &folder.join(file), decode).map(|key| Binding { key_id, key })
        }
        _ => {
            section.wrong("eab_key_id", "it and eab_key_file belong together");
            None
        }
    }
}

fn read_dns(table: Table, folder: &Path, problems: &mut Vec<String>) -> Option<dns::Settings> {
    let mut section = Section::new("acme.dns.", table, problems);
    let resolvers: Vec<SocketAddr> = section.take("resolvers").unwrap_or_default();
    let patience = Duration::from_secs(section.at_least("patience_seconds", 1).unwrap_or(DNS_PATIENCE));
    let program: Option<PathBuf> = section.take("program");
    let (update, webhook) = (section.table("update"), section.table("webhook"));
    section.finish();
    let provider = match (program, update.is_empty(), webhook.is_empty()) {
        (Some(program), true, true) => Some(dns::Provider::Program(folder.join(program))),
        (None, false, true) => read_update(update, folder, problems),
        (None, true, false) => read_webhook(webhook, folder, problems),
        _ => {
            problems.push("acme.dns: name one of program, [acme.dns.update] and [acme.dns.webhook]".to_owned());
            None
        }
    };
    Some(dns::Settings { provider: provider?, resolvers, patience })
}

fn read_update(table: Table, folder: &Path, problems: &mut Vec<String>) -> Option<dns::Provider> {
    let mut section = Section::new("acme.dns.update.", table, problems);
    let server: Option<String> = section.take("server");
    let name: Option<String> = section.take("key_name");
    let file: Option<PathBuf> = section.take("key_file");
    let algorithm = section.take("algorithm").unwrap_or(dns::Algorithm::HmacSha256);
    let key = match (name, file) {
        (Some(name), Some(file)) => {
            let decode = |text: &str| BASE64_STANDARD.decode(text).ok();
            secret(&mut section, "key_file", &folder.join(file), decode).map(|secret| dns::UpdateKey {
                name,
                algorithm,
                secret,
            })
        }
        (None, None) => None,
        _ => {
            section.wrong("key_name", "it and key_file belong together");
            None
        }
    };
    if server.is_none() {
        section.wrong("server", "the server that takes updates is missing");
    }
    section.finish();
    Some(dns::Provider::Update { server: server?, key })
}

fn read_webhook(table: Table, folder: &Path, problems: &mut Vec<String>) -> Option<dns::Provider> {
    let mut section = Section::new("acme.dns.webhook.", table, problems);
    let url: Option<String> = section.take("url");
    let file: Option<PathBuf> = section.take("token_file");
    let token =
        file.and_then(|file| secret(&mut section, "token_file", &folder.join(file), |text| Some(text.to_owned())));
    if url.is_none() {
        section.wrong("url", "it is missing");
    }
    section.finish();
    problems.extend(check_mirror("acme.dns.webhook.url", url.as_deref()));
    Some(dns::Provider::Webhook { url: url?, token })
}

/// What a file has, without white space around it.
fn secret<T>(
    section: &mut Section<'_>,
    key: &'static str,
    path: &Path,
    decode: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let found = decode(text.trim());
            if found.is_none() {
                section.wrong(key, &format!("{} has no key in base64", path.display()));
            }
            found
        }
        Err(error) => {
            section.wrong(key, &format!("{} cannot be read: {error}", path.display()));
            None
        }
    }
}
