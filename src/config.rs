//! The settings of the daemon: flags win over variables, variables over the file.
//!
//! One small struct for each concern. Unknown keys of the file are refused, and all problems are reported at once.

mod file;
mod run_file;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use nix::unistd::Uid;

pub use file::{ConfigFile, Error};
pub use run_file::RunFile;

use crate::{base::Mirrors, runtime::Limits, source};

/// What a daemon is run with.
#[derive(Debug, Clone)]
pub struct Config {
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub registry_listen: SocketAddr,
    pub system_domain: String,
    /// Of the user `admin`, at the first start.
    pub admin_password: Option<String>,
    pub mirrors: Mirrors,
    /// Certificate authorities that builds trust.
    pub build_ca: Option<PathBuf>,
    pub sources: source::Limits,
    pub builds: Builds,
    pub instances: Limits,
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
    pub listen: Option<SocketAddr>,
    /// Where the registry listens [default: 127.0.0.1:30500]
    #[arg(long, env = "EPINIOD_REGISTRY_LISTEN", value_name = "ADDRESS")]
    pub registry_listen: Option<SocketAddr>,
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
}

const LOCALHOST: &str = "localhost";
const REGISTRY: &str = "127.0.0.1:30500";
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
        let file = match &flags.config {
            Some(path) => ConfigFile::read(path)?,
            None => ConfigFile::default(),
        };
        let mut problems = Vec::new();
        let system_domain = flags.system_domain.or(file.system_domain).unwrap_or_else(|| LOCALHOST.to_owned());
        if format!("a.{system_domain}").parse::<crate::model::Route>().is_err() || system_domain.contains('/') {
            problems.push(format!("system domain '{system_domain}' is not a DNS name"));
        }
        let default = if system_domain == LOCALHOST { "127.0.0.1:8080" } else { "0.0.0.0:80" };
        let parse = |text: &str| text.parse().expect("a default is an address");
        let build_ca = flags.build_ca_file.or(file.build_ca_file);
        if let Some(path) = build_ca.as_ref().filter(|path| !path.is_file()) {
            problems.push(format!("build CA file '{}' cannot be read", path.display()));
        }
        let mirrors = Mirrors {
            archive: flags.debian_mirror.or(file.debian_mirror),
            security: flags.debian_security_mirror.or(file.debian_security_mirror),
        };
        for url in [&mirrors.archive, &mirrors.security].into_iter().flatten() {
            if !url.starts_with("http://") && !url.starts_with("https://") {
                problems.push(format!("mirror '{url}' is not an http or https URL"));
            }
        }
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        Ok(Self {
            data_dir: data_dir(flags.data_dir.or(file.data_dir))?,
            listen: flags.listen.or(file.listen).unwrap_or_else(|| parse(default)),
            registry_listen: flags.registry_listen.or(file.registry_listen).unwrap_or_else(|| parse(REGISTRY)),
            system_domain,
            admin_password: std::env::var("EPINIOD_ADMIN_PASSWORD").ok().filter(|password| !password.is_empty()),
            mirrors,
            build_ca: build_ca.or_else(host_bundle),
            sources: file.sources,
            builds: file.builds.into(),
            instances: file.instances.into(),
        })
    }
}

/// The data directory that is meant, whether it is there or not; absolute.
pub fn data_dir(given: Option<PathBuf>) -> Result<PathBuf, Error> {
    let chosen = match given {
        Some(dir) => dir,
        None if Uid::effective().is_root() => PathBuf::from("/var/lib/epiniod"),
        None => {
            let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
            let home = variable("XDG_DATA_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/share")));
            home.ok_or(Error::NoHome)?.join("epiniod")
        }
    };
    std::path::absolute(chosen).map_err(|_| Error::NoHome)
}

fn host_bundle() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    named.into_iter().chain(CA_BUNDLES.map(PathBuf::from)).find(|path| path.is_file())
}

impl Flags {
    /// The same flags for another process of ours; variables it has anyway.
    pub fn to_args(&self) -> Vec<std::ffi::OsString> {
        let text = |value: &Option<String>| value.clone().map(Into::into);
        let path = |value: &Option<PathBuf>| {
            value.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()).into())
        };
        let address = |value: &Option<SocketAddr>| value.map(|address| address.to_string().into());
        let all: [(&str, Option<std::ffi::OsString>); 8] = [
            ("--data-dir", path(&self.data_dir)),
            ("--config", path(&self.config)),
            ("--listen", address(&self.listen)),
            ("--registry-listen", address(&self.registry_listen)),
            ("--system-domain", text(&self.system_domain)),
            ("--debian-mirror", text(&self.debian_mirror)),
            ("--debian-security-mirror", text(&self.debian_security_mirror)),
            ("--build-ca-file", path(&self.build_ca_file)),
        ];
        all.into_iter().filter_map(|(flag, value)| value.map(|value| [flag.into(), value])).flatten().collect()
    }
}
