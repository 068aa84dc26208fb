//! The settings of the daemon: flags win over variables, variables over the file.
//!
//! One small struct for each concern. Unknown keys of the file are refused, and all problems are reported at once.

mod acme;
mod authorities;
mod bundle;
mod client;
mod edge;
mod file;
mod kubernetes;
mod run_file;
mod s3;
mod section;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::Uid;

pub use acme::AcmeFlags;
pub use authorities::embedded_authorities;
pub use bundle::Bundle;
pub use client::{ClientSettings, client_settings_file};
pub use file::{ConfigFile, Error};
pub use kubernetes::{Kubernetes, KubernetesFlags};
pub use run_file::{Mode, RunFile};
pub use s3::S3Flags;

use crate::{
    acme as certificates, base::Mirrors, blob::S3Settings, edge as listeners, model::Route, runtime::Limits, source,
    telemetry,
};

/// What a daemon is run with.
#[derive(Debug, Clone)]
pub struct Config {
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    /// Where API and applications are served with TLS, if they are.
    pub listen_tls: Option<SocketAddr>,
    pub registry_listen: SocketAddr,
    pub system_domain: String,
    /// Of the user `admin`, at the first start.
    pub admin_password: Option<String>,
    pub mirrors: Mirrors,
    /// Certificate authorities that builds trust.
    pub build_ca: Option<PathBuf>,
    /// Where blobs are; none is the data directory.
    pub s3: Option<S3Settings>,
    /// How public certificates are come by; none are of our own authority.
    pub acme: Option<certificates::Settings>,
    pub edge: listeners::Settings,
    pub sources: source::Limits,
    pub builds: Builds,
    /// Of each instance.
    pub instances: Limits,
    /// The cluster that everything runs in; none on one machine.
    pub kubernetes: Option<Kubernetes>,
    pub log: Log,
}

/// What the daemon logs.
#[derive(Debug, Clone)]
pub struct Log {
    /// None where nobody said: `serve` and `up` have each their own default.
    pub filter: Option<String>,
    pub format: telemetry::Format,
}

/// How builds are run.
#[derive(Debug, Clone)]
pub struct Builds {
    pub at_once: usize,
    pub limits: Limits,
    pub deadline: Duration,
}

/// What flags and variables say; `None` is left to the file, and then to the default.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// Where everything is kept [default: /var/lib/epiniod as root, else $XDG_DATA_HOME/epiniod]
    #[arg(long, env = "EPINIOD_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Settings of the daemon, TOML
    #[arg(long, env = "EPINIOD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where API and applications listen [default: 127.0.0.1:8080; 0.0.0.0:80 with a system domain]
    #[arg(long, env = "EPINIOD_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Where API and applications listen with TLS, or off; what comes without it is sent there
    /// [default: off; 0.0.0.0:443 with a system domain]
    #[arg(long, env = "EPINIOD_LISTEN_TLS", value_name = "ADDRESS")]
    pub listen_tls: Option<String>,
    /// Where the registry listens [default: 127.0.0.1:30500]
    #[arg(long, env = "EPINIOD_REGISTRY_LISTEN", value_name = "ADDRESS")]
    pub registry_listen: Option<String>,
    /// The domain of API and applications [default: localhost]
    #[arg(long, env = "EPINIOD_SYSTEM_DOMAIN", value_name = "DOMAIN")]
    pub system_domain: Option<String>,
    /// Mirror of the Debian archive [default: that of this machine, else a public one]
    #[arg(long, env = "EPINIOD_DEBIAN_MIRROR", value_name = "URL")]
    pub debian_mirror: Option<String>,
    /// Mirror of Debian's security updates [default: that of this machine, else a public one]
    #[arg(long, env = "EPINIOD_DEBIAN_SECURITY_MIRROR", value_name = "URL")]
    pub debian_security_mirror: Option<String>,
    /// Certificate authorities that builds trust, PEM [default: those of this machine]
    #[arg(long, env = "EPINIOD_BUILD_CA_FILE", value_name = "FILE")]
    pub build_ca_file: Option<PathBuf>,
    #[command(flatten)]
    pub s3: S3Flags,
    #[command(flatten)]
    pub acme: AcmeFlags,
    /// What is logged, as tracing has it (info, debug, epiniod::edge=debug) [default: info; warn with up]
    #[arg(long, env = "EPINIOD_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// How the log is written [default: text]
    #[arg(long, env = "EPINIOD_LOG_FORMAT", value_enum)]
    pub log_format: Option<telemetry::Format>,
    #[command(flatten)]
    pub kubernetes: KubernetesFlags,
}

/// Where the daemon of root keeps everything, unless told otherwise.
pub const ROOT_DATA_DIR: &str = "/var/lib/epiniod";
const LOCALHOST: &str = "localhost";
const REGISTRY: &str = "127.0.0.1:30500";
const LISTEN_TLS: &str = "0.0.0.0:443";
/// What is said for nothing.
const OFF: &str = "off";
const PEM: &[u8] = b"-----BEGIN CERTIFICATE-----";
/// Where distributions keep the bundle of certificate authorities.
const CA_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

impl Config {
    /// Puts flags, file and defaults together; all that is wrong is reported at once.
    pub fn new(flags: Flags) -> Result<Self, Error> {
        let mut problems = Vec::new();
        let file = match &flags.config {
            Some(path) => ConfigFile::read(path, &mut problems)?,
            None => ConfigFile::default(),
        };
        let system_domain = flags.system_domain.or(file.system_domain).unwrap_or_else(|| LOCALHOST.to_owned());
        // As hosts and routes are compared.
        let system_domain = system_domain.to_ascii_lowercase();
        let default = if system_domain == LOCALHOST { "127.0.0.1:8080" } else { "0.0.0.0:80" };
        let listen = address("listen", flags.listen.or(file.listen), default, &mut problems);
        let listen_tls = match flags.listen_tls.or(file.listen_tls).as_deref() {
            Some(OFF) => None,
            // In a cluster it is the manifests that say.
            None if system_domain == LOCALHOST || flags.kubernetes.is_wanted() => None,
            given => Some(address("listen_tls", given.map(str::to_owned), LISTEN_TLS, &mut problems)),
        };
        let registry_listen =
            address("registry_listen", flags.registry_listen.or(file.registry_listen), REGISTRY, &mut problems);
        let mirrors = Mirrors {
            archive: flags.debian_mirror.or(file.debian_mirror),
            security: flags.debian_security_mirror.or(file.debian_security_mirror),
        };
        let build_ca = flags.build_ca_file.or(file.build_ca_file);
        let s3 = flags.s3.or(file.s3).settings(&mut problems);
        let acme = flags.acme.settings(file.acme, &system_domain, &mut problems);
        let log =
            Log { filter: flags.log.or(file.log), format: flags.log_format.or(file.log_format).unwrap_or_default() };
        let checks = [
            check_domain(&system_domain),
            check_distinct("listen and registry_listen", listen, Some(registry_listen)),
            check_distinct("listen and listen_tls", listen, listen_tls),
            check_distinct("registry_listen and listen_tls", registry_listen, listen_tls),
            check_mirror("debian_mirror", mirrors.archive.as_deref()),
            check_mirror("debian_security_mirror", mirrors.security.as_deref()),
            check_ca("build_ca_file", build_ca.as_deref()),
            check_filter(log.filter.as_deref()),
        ];
        problems.extend(checks.into_iter().flatten());
        let kubernetes = flags.kubernetes.settle(registry_listen, &mut problems);
        let at_ingress = kubernetes.as_ref().filter(|kubernetes| kubernetes.is_behind_ingress());
        let acme = acme.filter(|_| at_ingress.map_or(listen_tls.is_some(), |at| at.tls_issuer.is_none()));
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        Ok(Self {
            data_dir: data_dir(flags.data_dir.or(file.data_dir))?,
            listen,
            listen_tls,
            registry_listen,
            system_domain,
            admin_password: std::env::var("EPINIOD_ADMIN_PASSWORD").ok().filter(|password| !password.is_empty()),
            mirrors,
            build_ca: build_ca.or_else(host_bundle),
            s3,
            acme,
            edge: file.edge,
            sources: file.sources,
            builds: file.builds,
            instances: file.instances,
            kubernetes,
            log,
        })
    }
}

/// The address that is meant; one that is wrong becomes the default, and a problem.
fn address(name: &str, given: Option<String>, default: &str, problems: &mut Vec<String>) -> SocketAddr {
    given
        .and_then(|text| {
            let wrong = |_| problems.push(format!("{name}: '{text}' is not an address and port such as {default}"));
            text.parse().map_err(wrong).ok()
        })
        .unwrap_or_else(|| default.parse().expect("a default is an address"))
}

fn check_domain(domain: &str) -> Option<String> {
    let is_host = !domain.contains('/') && format!("a.{domain}").parse::<Route>().is_ok();
    (!is_host).then(|| format!("system_domain: '{domain}' is not a DNS name such as example.com"))
}

fn check_distinct(names: &str, one: SocketAddr, other: Option<SocketAddr>) -> Option<String> {
    let same = other == Some(one) && one.port() != 0;
    same.then(|| format!("{names} are both {one}; choose two"))
}

fn check_mirror(name: &str, url: Option<&str>) -> Option<String> {
    let url = url?;
    let is_url = (url.starts_with("http://") || url.starts_with("https://"))
        && url.parse::<http::Uri>().is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty()));
    (!is_url).then(|| format!("{name}: '{url}' is not an http or https URL"))
}

fn check_ca(name: &str, path: Option<&Path>) -> Option<String> {
    let path = path?;
    match std::fs::read(path) {
        Err(error) => Some(format!("{name}: '{}' cannot be read: {error}", path.display())),
        Ok(bytes) if !bytes.windows(PEM.len()).any(|part| part == PEM) => {
            Some(format!("{name}: '{}' has no certificate in PEM", path.display()))
        }
        Ok(_) => None,
    }
}

fn check_filter(filter: Option<&str>) -> Option<String> {
    telemetry::check(filter?).err().map(|error| format!("log: {error}"))
}

/// The data directory that is meant, whether it is there or not; absolute.
pub fn data_dir(given: Option<PathBuf>) -> Result<PathBuf, Error> {
    match given {
        Some(dir) => std::path::absolute(dir).map_err(|_| Error::NoHome),
        None => default_data_dir(),
    }
}

/// The data directory where nobody names one.
pub fn default_data_dir() -> Result<PathBuf, Error> {
    if Uid::effective().is_root() {
        return Ok(PathBuf::from(ROOT_DATA_DIR));
    }
    let home = variable("XDG_DATA_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/share")));
    std::path::absolute(home.ok_or(Error::NoHome)?.join("epiniod")).map_err(|_| Error::NoHome)
}

/// For a process with another working directory.
fn absolute(path: &Path) -> std::ffi::OsString {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).into()
}

/// A path that a variable names.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The authorities that this machine trusts.
pub fn host_bundle() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    named.into_iter().chain(CA_BUNDLES.map(PathBuf::from)).find(|path| path.is_file())
}

impl Flags {
    /// The same flags for another process of ours; variables it has anyway.
    pub fn to_args(&self) -> Vec<std::ffi::OsString> {
        let text = |value: &Option<String>| value.clone().map(Into::into);
        let path = |value: &Option<PathBuf>| value.as_deref().map(absolute);
        let format = self.log_format.and_then(|format| clap::ValueEnum::to_possible_value(&format));
        let all: [(&str, Option<std::ffi::OsString>); 11] = [
            ("--data-dir", path(&self.data_dir)),
            ("--config", path(&self.config)),
            ("--listen", text(&self.listen)),
            ("--listen-tls", text(&self.listen_tls)),
            ("--registry-listen", text(&self.registry_listen)),
            ("--system-domain", text(&self.system_domain)),
            ("--debian-mirror", text(&self.debian_mirror)),
            ("--debian-security-mirror", text(&self.debian_security_mirror)),
            ("--build-ca-file", path(&self.build_ca_file)),
            ("--log", text(&self.log)),
            ("--log-format", format.map(|format| format.get_name().into())),
        ];
        let all = all.into_iter().chain(self.s3.to_args()).chain(self.acme.to_args()).chain(self.kubernetes.to_args());
        all.filter_map(|(flag, value)| value.map(|value| [flag.into(), value])).flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_wrong_settings_are_named_at_once() {
        let text = |text: &str| Some(text.to_owned());
        let flags = Flags {
            listen: text("localhost"),
            registry_listen: text("127.0.0.1:8080"),
            system_domain: text("a b"),
            debian_mirror: text("ftp://x"),
            debian_security_mirror: text("http://"),
            build_ca_file: Some("/nonexistent.pem".into()),
            log: text("epiniod=loud"),
            ..Flags::default()
        };
        let Err(Error::Invalid(problems)) = Config::new(flags) else { panic!("the settings are taken") };
        let names = problems.iter().map(|problem| problem.split([':', ' ']).next().unwrap_or_default());
        assert_eq!(
            names.collect::<Vec<_>>(),
            ["listen", "system_domain", "debian_mirror", "debian_security_mirror", "build_ca_file", "log"],
            "{problems:#?}"
        );
    }

    #[test]
    fn two_listeners_need_two_addresses() {
        let flags = |port: u16| Flags {
            listen: Some(format!("127.0.0.1:{port}")),
            registry_listen: Some(format!("127.0.0.1:{port}")),
            data_dir: Some("/nonexistent".into()),
            ..Flags::default()
        };
        assert!(Config::new(flags(8080)).is_err());
        assert!(Config::new(flags(0)).is_ok());
    }

    #[test]
    fn paths_of_the_file_begin_at_its_folder_and_domains_have_no_case() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epiniod.toml");
        std::fs::write(&path, "data_dir = 'data'\nsystem_domain = 'Example.COM'\n").unwrap();
        let config = Config::new(Flags { config: Some(path), ..Flags::default() }).unwrap();
        assert_eq!((config.data_dir, config.system_domain.as_str()), (dir.path().join("data"), "example.com"));
    }

    #[test]
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epiniod.toml");
        std::fs::write(&path, "listen = '127.0.0.1:1'\nsystem_domain = 'example.com'\ndata_dir = '/file'\n").unwrap();
        let flags = Flags { config: Some(path), data_dir: Some("/flag".into()), ..Flags::default() };
        let config = Config::new(flags).unwrap();
        assert_eq!((config.listen.port(), config.system_domain.as_str()), (1, "example.com"));
        assert_eq!(config.data_dir, PathBuf::from("/flag"));
    }

    #[test]
    fn authorities_have_names_or_urls() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epiniod.toml");
        let read = |fallback: &str| {
            let text = format!(
                "system_domain = 'example.com'\nacme.directory = 'https://ca.example.org/acme'\n\
                 [[acme.fallback]]\ndirectory = '{fallback}'\n"
            );
            std::fs::write(&path, text).unwrap();
            Config::new(Flags { config: Some(path.clone()), ..Flags::default() })
        };
        let acme = read("letsencrypt").unwrap().acme.unwrap();
        let urls: Vec<&str> = acme.directories.iter().map(|directory| directory.url.as_str()).collect();
        assert_eq!(urls, ["https://ca.example.org/acme", crate::model::LETS_ENCRYPT]);
        let Err(Error::Invalid(problems)) = read("lets-encrypt") else { panic!("there is no such authority") };
        assert!(problems[0].starts_with("acme.fallback.directory: 'lets-encrypt' is neither"), "{problems:?}");
    }
}
