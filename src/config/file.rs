//! The file of settings (`--config`), TOML.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::Builds;
use crate::{runtime::Limits, source};

const GIB: u64 = 1 << 30;

/// Everything that the file may say. Names are those of the flags, with `_`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConfigFile {
    pub data_dir: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    pub registry_listen: Option<SocketAddr>,
    pub system_domain: Option<String>,
    pub debian_mirror: Option<String>,
    pub debian_security_mirror: Option<String>,
    pub build_ca_file: Option<PathBuf>,
    pub sources: source::Limits,
    pub builds: BuildsFile,
    pub instances: InstancesFile,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BuildsFile {
    pub at_once: usize,
    pub memory_bytes: u64,
    pub millicpus: Option<u32>,
    pub pids: u32,
    /// What a build may write outside of its volumes.
    pub scratch_bytes: u64,
    pub deadline_seconds: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InstancesFile {
    pub memory_bytes: u64,
    pub millicpus: Option<u32>,
    pub pids: u32,
    /// What an instance may write; it is gone with the instance.
    pub scratch_bytes: u64,
}

impl Default for BuildsFile {
    fn default() -> Self {
        Self {
            at_once: 2,
            memory_bytes: 4 * GIB,
            millicpus: None,
            pids: 4096,
            scratch_bytes: GIB,
            deadline_seconds: 1800,
        }
    }
}

impl Default for InstancesFile {
    fn default() -> Self {
        Self { memory_bytes: GIB, millicpus: None, pids: 1024, scratch_bytes: GIB / 2 }
    }
}

impl From<BuildsFile> for Builds {
    fn from(file: BuildsFile) -> Self {
        Self {
            at_once: file.at_once.max(1),
            limits: Limits {
                memory_bytes: Some(file.memory_bytes),
                millicpus: file.millicpus,
                pids: Some(file.pids),
                scratch_bytes: Some(file.scratch_bytes),
            },
            deadline: Duration::from_secs(file.deadline_seconds),
        }
    }
}

impl From<InstancesFile> for Limits {
    fn from(file: InstancesFile) -> Self {
        Self {
            memory_bytes: Some(file.memory_bytes),
            millicpus: file.millicpus,
            pids: Some(file.pids),
            scratch_bytes: Some(file.scratch_bytes),
        }
    }
}

impl ConfigFile {
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|source| Error::Parse { path: path.to_owned(), source: Box::new(source) })
    }
}

/// What is wrong with settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the settings {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the settings {} are not valid", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
    #[error("neither --data-dir nor HOME says where data is to be kept")]
    NoHome,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused_and_the_rest_has_defaults() {
        assert!(toml::from_str::<ConfigFile>("listn = '1.2.3.4:5'").is_err());
        assert!(toml::from_str::<ConfigFile>("[builds]\nmemory = 1").is_err());
        let file: ConfigFile = toml::from_str("system_domain = 'example.com'\n[sources]\nmax_entries = 7").unwrap();
        assert_eq!((file.system_domain.as_deref(), file.sources.max_entries), (Some("example.com"), 7));
        assert_eq!(file.sources.max_archive_bytes, source::Limits::default().max_archive_bytes);
    }
}
