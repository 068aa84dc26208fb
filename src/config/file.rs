//! The file of settings (`--config`), TOML.
//!
//! It is read key by key, and not by a derived deserialiser, which would stop at the first thing that is wrong.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use toml::Table;

use super::{
    Builds, S3Flags,
    acme::{self, AcmeFile},
    edge,
    section::Section,
};
use crate::{edge::Settings, runtime::Limits, source, telemetry};

const GIB: u64 = 1 << 30;
/// Less memory than this runs nothing, in bytes.
const LEAST_MEMORY: u64 = 16 << 20;
/// Less disk than this is of no use, in bytes.
const LEAST_SCRATCH: u64 = 1 << 20;

/// Everything that the file may say. Names are those of the flags, with `_`.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    pub data_dir: Option<PathBuf>,
    pub listen: Option<String>,
    pub listen_tls: Option<String>,
    pub registry_listen: Option<String>,
    pub system_domain: Option<String>,
    pub debian_mirror: Option<String>,
    pub debian_security_mirror: Option<String>,
    pub build_ca_file: Option<PathBuf>,
    pub s3: S3Flags,
    /// `[acme]`: how public certificates are come by.
    pub acme: AcmeFile,
    pub log: Option<String>,
    pub log_format: Option<telemetry::Format>,
    /// `[edge]`: what is chosen about listeners.
    pub edge: Settings,
    /// `[sources]`: `max_archive_bytes`, `max_unpacked_bytes`, `max_entries`.
    pub sources: source::Limits,
    /// `[builds]`: `at_once`, `deadline_seconds`, and limits.
    pub builds: Builds,
    /// `[instances]`: limits of each.
    pub instances: Limits,
}

impl Default for ConfigFile {
    fn default() -> Self {
        let mut problems = Vec::new();
        Self::of_table(Table::new(), Path::new(""), &mut problems)
    }
}

impl ConfigFile {
    /// What is wrong with its keys and values is added to `problems`; only a file that is no TOML is an error.
    pub fn read(path: &Path, problems: &mut Vec<String>) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        // Whoever reads the file, wherever it is started.
        let folder = path.parent().unwrap_or(Path::new(""));
        let file = Self::parse(&text, folder, problems)
            .map_err(|source| Error::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let from_here = |path: Option<PathBuf>| path.map(|path| folder.join(path));
        let s3 = S3Flags {
            s3_ca_file: from_here(file.s3.s3_ca_file),
            s3_credentials_file: from_here(file.s3.s3_credentials_file),
            ..file.s3
        };
        Ok(Self { data_dir: from_here(file.data_dir), build_ca_file: from_here(file.build_ca_file), s3, ..file })
    }

    fn parse(text: &str, folder: &Path, problems: &mut Vec<String>) -> Result<Self, toml::de::Error> {
        Ok(Self::of_table(text.parse()?, folder, problems))
    }

    fn of_table(table: Table, folder: &Path, problems: &mut Vec<String>) -> Self {
        let mut top = Section::new("", table, problems);
        let (sources, builds, instances) = (top.table("sources"), top.table("builds"), top.table("instances"));
        let (acme, edge) = (top.table("acme"), top.table("edge"));
        let file = Self {
            data_dir: top.take("data_dir"),
            listen: top.take("listen"),
            listen_tls: top.take("listen_tls"),
            registry_listen: top.take("registry_listen"),
            system_domain: top.take("system_domain"),
            debian_mirror: top.take("debian_mirror"),
            debian_security_mirror: top.take("debian_security_mirror"),
            build_ca_file: top.take("build_ca_file"),
            s3: S3Flags {
                s3_endpoint: top.take("s3_endpoint"),
                s3_bucket: top.take("s3_bucket"),
                s3_region: top.take("s3_region"),
                s3_ca_file: top.take("s3_ca_file"),
                s3_credentials_file: top.take("s3_credentials_file"),
            },
            acme: AcmeFile::default(),
            log: top.take("log"),
            log_format: top.take("log_format"),
            edge: Settings::default(),
            sources: source::Limits::default(),
            builds: Builds::default(),
            instances: default_instances(),
        };
        top.finish();
        Self {
            acme: acme::read(acme, folder, problems),
            edge: edge::read(edge, problems),
            sources: read_sources(Section::new("sources.", sources, problems)),
            builds: read_builds(Section::new("builds.", builds, problems)),
            instances: read_instances(Section::new("instances.", instances, problems)),
            ..file
        }
    }
}

impl Default for Builds {
    fn default() -> Self {
        let limits = Limits {
            memory_bytes: Some(4 * GIB),
            millicpus: None,
            pids: Some(4096),
            // What a build may write outside of its volumes.
            scratch_bytes: Some(GIB),
        };
        Self { at_once: 2, limits, deadline: Duration::from_secs(1800) }
    }
}

fn default_instances() -> Limits {
    // What an instance writes is gone with the instance.
    Limits { memory_bytes: Some(GIB), millicpus: None, pids: Some(1024), scratch_bytes: Some(GIB / 2) }
}

fn read_sources(mut section: Section<'_>) -> source::Limits {
    let default = source::Limits::default();
    let limits = source::Limits {
        max_archive_bytes: section.at_least("max_archive_bytes", 1).unwrap_or(default.max_archive_bytes),
        max_unpacked_bytes: section.at_least("max_unpacked_bytes", 1).unwrap_or(default.max_unpacked_bytes),
        max_entries: section.at_least("max_entries", 1).unwrap_or(default.max_entries),
    };
    section.finish();
    limits
}

fn read_builds(mut section: Section<'_>) -> Builds {
    let default = Builds::default();
    let builds = Builds {
        at_once: section.at_least("at_once", 1).unwrap_or(default.at_once),
        deadline: section.at_least("deadline_seconds", 1).map_or(default.deadline, Duration::from_secs),
        limits: read_limits(&mut section, default.limits),
    };
    section.finish();
    builds
}

fn read_instances(mut section: Section<'_>) -> Limits {
    let limits = read_limits(&mut section, default_instances());
    section.finish();
    limits
}

fn read_limits(section: &mut Section<'_>, default: Limits) -> Limits {
    Limits {
        memory_bytes: section.at_least("memory_bytes", LEAST_MEMORY).or(default.memory_bytes),
        millicpus: section.at_least("millicpus", 10).or(default.millicpus),
        pids: section.at_least("pids", 8).or(default.pids),
        scratch_bytes: section.at_least("scratch_bytes", LEAST_SCRATCH).or(default.scratch_bytes),
    }
}

/// What is wrong with settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the settings {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the settings {} are not TOML", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    /// Each with the name of the setting.
    #[error("{}", list(.0))]
    Invalid(Vec<String>),
    #[error("neither --data-dir nor HOME says where data is to be kept")]
    NoHome,
}

fn list(problems: &[String]) -> String {
    match problems {
        [problem] => format!("a setting is not valid: {problem}"),
        problems => format!("{} settings are not valid:\n  - {}", problems.len(), problems.join("\n  - ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (ConfigFile, Vec<String>) {
        let mut problems = Vec::new();
        (ConfigFile::parse(text, Path::new(""), &mut problems).unwrap(), problems)
    }

    #[test]
    fn what_the_file_does_not_say_has_defaults() {
        let (file, problems) =
            parse("system_domain = 'example.com'\n[sources]\nmax_entries = 7\n[builds]\ndeadline_seconds = 60");
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!((file.system_domain.as_deref(), file.sources.max_entries), (Some("example.com"), 7));
        assert_eq!(file.sources.max_archive_bytes, source::Limits::default().max_archive_bytes);
        assert_eq!((file.builds.deadline, file.builds.at_once), (Duration::from_secs(60), 2));
        assert_eq!(file.builds.limits.memory_bytes, Some(4 * GIB));
    }

    #[test]
    fn everything_that_is_wrong_is_reported_at_once() {
        let (_, problems) = parse(
            "lisen = '127.0.0.1:80'\ndata_dir = 7\ninstances = 3\nlog_format = 'xml'\n\
             [builds]\nmemory = 1\nat_once = 0\nmemory_bytes = -1\n\
             [edge]\nhead_seconds = 0\n[[edge.route]]\nmax_body_bytes = 1\n[[edge.route]]\nhost = 'a b'\nbody = 1\n",
        );
        let expected = [
            ("instances:", "[instances]"),
            ("data_dir:", "expected"),
            ("log_format:", "xml"),
            ("lisen is not known", "listen"),
            ("edge.head_seconds:", "at least 1"),
            ("edge.route.host:", "missing"),
            ("edge.route.host:", "no name"),
            ("edge.route.body is not known", "max_body_bytes"),
            ("builds.at_once:", "at least 1"),
            ("builds.memory_bytes:", "-1"),
            ("builds.memory is not known", "deadline_seconds"),
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, (start, part)) in problems.iter().zip(expected) {
            assert!(problem.starts_with(start) && problem.contains(part), "{problem}: {start} … {part}");
        }
    }
}
