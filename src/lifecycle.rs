//! The platform side of Cloud Native Buildpacks: analyze, detect, restore, build, export.
//!
//! Each phase is a step of a job: a process of its own, in a sandbox, told by one JSON file what to
//! do. The types of those files and of the reports that steps leave are in [`phase`]. The rules are those of
//! the buildpack API 0.7 to 0.12 and the platform API 0.14; what a build leaves is never trusted: links are not
//! followed, files have a limit, owners are ours.

mod build;
mod detect;
mod env;
mod export;
mod image;
mod metadata;
pub mod phase;
mod plan;
mod prepare;
mod tar;
mod types;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::{Serialize, de::DeserializeOwned};

use self::phase::Failure;

/// The version of the platform API that is spoken.
pub const PLATFORM_API: &str = "0.14";
/// A TOML or JSON file of a build is at most so large, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Unpacks an archive into a folder, within limits of bytes and entries; returns how many entries and bytes there were.
pub type Unpack = fn(archive: &Path, dest: &Path, max_bytes: u64, max_entries: u64) -> Unpacked;
/// Entries and bytes, or what is wrong with the archive.
pub type Unpacked = std::result::Result<(u64, u64), String>;

/// What phases need of rooms that they do not know.
pub struct Hooks {
    pub unpack: Unpack,
    /// Lays the embedded buildpacks out below `/cnb`.
    pub install_buildpacks: fn(cnb: &Path, own_binary: &str) -> io::Result<()>,
}

/// Where everything is. The specification's places, or those of a test.
#[derive(Debug, Clone)]
pub struct Dirs {
    pub app: PathBuf,
    pub layers: PathBuf,
    pub platform: PathBuf,
    pub cnb: PathBuf,
}

impl Default for Dirs {
    fn default() -> Self {
        Self { app: "/workspace".into(), layers: "/layers".into(), platform: "/platform".into(), cnb: "/cnb".into() }
    }
}

/// Runs one phase in this process, from its input to its report.
pub fn run(phase: &str, hooks: &Hooks) -> ExitCode {
    let dirs = Dirs::default();
    let result = match phase {
        "prepare" => input().and_then(|input| prepare::prepare(&dirs, &input, hooks)).and_then(|done| report(&done)),
        "detect" => input().and_then(|input| detect::detect(&dirs, &input)).and_then(|done| report(&done)),
        "build" => input().and_then(|input| build::build(&dirs, &input)).and_then(|done| report(&done)),
        "export" => input().and_then(|input| export::export(&dirs, &input)).and_then(|done| report(&done)),
        other => Err(Error::new(FAILED, format!("'{other}' is no phase; there are prepare, detect, build and export"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ERROR: {}", error.cause);
            let code = error.code;
            let failure = Failure { cause: error.cause, code, buildpack: error.buildpack };
            // The exit code says that it failed, also when the reason cannot be written.
            let _ = report(&failure);
            ExitCode::from(u8::try_from(code).unwrap_or(1))
        }
    }
}

const FAILED: i32 = 1;

/// Why a phase ends, with the exit code that the specification gives it.
#[derive(Debug)]
pub struct Error {
    pub code: i32,
    pub cause: String,
    pub buildpack: Option<phase::BuildpackRef>,
}

impl Error {
    fn new(code: i32, cause: impl Into<String>) -> Self {
        Self { code, cause: cause.into(), buildpack: None }
    }
}

type Result<T> = std::result::Result<T, Error>;

/// Says what was being done, in front of what went wrong.
trait Context<T> {
    fn context(self, code: i32, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: std::error::Error> Context<T> for std::result::Result<T, E> {
    fn context(self, code: i32, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| {
            let mut text = format!("{}: {error}", doing());
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            Error::new(code, text)
        })
    }
}

fn input<T: DeserializeOwned>() -> Result<T> {
    let text = fs::read(phase::INPUT).context(FAILED, || format!("reading {}", phase::INPUT))?;
    serde_json::from_slice(&text).context(FAILED, || format!("reading {}", phase::INPUT))
}

fn report(report: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(report).context(FAILED, || "writing the report".to_owned())?;
    fs::write(phase::REPORT, text).context(FAILED, || format!("writing {}", phase::REPORT))
}

fn token() -> Result<String> {
    fs::read_to_string(phase::TOKEN).context(FAILED, || "reading the token".to_owned())
}

/// A file that foreign code may have written: no link, no device, not too large; none when it is not there.
fn read_foreign(path: &Path) -> Result<Option<String>> {
    use std::{io::Read as _, os::unix::fs::OpenOptionsExt as _};
    let doing = || format!("reading {}", path.display());
    let open = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match open {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.context(FAILED, doing)?,
    };
    if !file.metadata().context(FAILED, doing)?.is_file() {
        return Err(Error::new(FAILED, format!("{} is not a plain file", path.display())));
    }
    let mut text = String::new();
    let read = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).context(FAILED, doing)?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(Error::new(FAILED, format!("{} is larger than 4 MiB", path.display())));
    }
    Ok(Some(text))
}

fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(text) = read_foreign(path)? else { return Ok(None) };
    let parsed = toml::from_str(&text)
        .map_err(|error| Error::new(FAILED, format!("{} is not valid: {error}", path.display())))?;
    Ok(Some(parsed))
}

/// A file of our own.
fn write_toml(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = toml::to_string(value).context(FAILED, || format!("writing {}", path.display()))?;
    fs::write(path, text).context(FAILED, || format!("writing {}", path.display()))
}

/// `a/b` in the names of folders.
fn escape(id: &str) -> String {
    id.replace('/', "_")
}
