//! The platform side of Cloud Native Buildpacks: analyze, detect, restore, build, export.
//!
//! Each phase is a step of a job: a process of its own, in a sandbox, told by one JSON file what to
//! do. The types of those files and of the reports that steps leave are in [`phase`]. The rules are those of
//! the buildpack API 0.7 to 0.12 and the platform API 0.14; what a build leaves is never trusted: links are not
//! followed, files and layers have a limit, owners are ours.
//!
//! It does as the real lifecycle does, down to the bytes of layers, but for what is better for an application: integers
//! in metadata stay integers; a cached layer that is broken goes with its metadata, and is written anew; the folders
//! above a layer have one mode, whatever they have on disk; there is no layer for bills of materials that nobody wrote.

mod build;
mod buildpack;
mod cache;
mod detect;
mod env;
mod export;
mod image;
mod layers;
mod metadata;
mod patience;
pub mod phase;
mod plan;
mod prepare;
mod processes;
mod sbom;
mod slices;
mod tar;
mod types;
mod writer;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::{Serialize, de::DeserializeOwned};

use self::phase::{CnbUser, Failure};
pub use self::{
    build::{Built, build},
    detect::detect,
    env::Variables,
    export::export_to,
    prepare::restore,
};
use crate::runtime::MAX_REPORT_BYTES;

/// The version of the platform API that is spoken.
pub const PLATFORM_API: &str = "0.14";
/// The variable in which the platform says which one it speaks.
const PLATFORM_API_VARIABLE: &str = "CNB_PLATFORM_API";
const WRONG_PLATFORM_API: i32 = 11;
/// A TOML or JSON file of a build is at most so large, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// The cause of a failure is cut here, in characters: foreign output may be in it, and a report has a limit.
const MAX_CAUSE: usize = 8 << 10;

/// Unpacks an archive into a folder of the CNB user, within limits of bytes and entries; returns how many entries and
/// bytes there were.
pub type Unpack = fn(archive: &Path, dest: &Path, max_bytes: u64, max_entries: u64, owner: CnbUser) -> Unpacked;
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
    /// For files that one program writes for another.
    pub scratch: PathBuf,
}

impl Default for Dirs {
    fn default() -> Self {
        Self {
            app: "/workspace".into(),
            layers: "/layers".into(),
            platform: "/platform".into(),
            cnb: "/cnb".into(),
            scratch: std::env::temp_dir(),
        }
    }
}

impl Dirs {
    /// The specification's places, below a folder: for phases that run without a sandbox.
    fn below(root: &Path) -> Self {
        let Self { app, layers, platform, cnb, scratch } = Self::default();
        let below = |path: PathBuf| rooted(root, &path);
        Self { app: below(app), layers: below(layers), platform: below(platform), cnb: below(cnb), scratch }
    }
}

/// A path of the sandbox; below another root where there is none.
fn rooted(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Runs one phase in this process, from its input to its report. `root` is `/` in a sandbox.
pub fn run(phase: &str, root: &Path, hooks: &Hooks) -> ExitCode {
    match check_platform_api(std::env::var(PLATFORM_API_VARIABLE).ok().as_deref())
        .and_then(|()| run_phase(phase, root, hooks))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ERROR: {}", error.cause);
            let code = error.code;
            let cause = error.cause.chars().take(MAX_CAUSE).collect();
            // The exit code says that it failed, also when the reason cannot be written.
            let _ = report(root, &Failure { cause, code, buildpack: error.buildpack });
            ExitCode::from(u8::try_from(code).unwrap_or(1))
        }
    }
}

fn run_phase(phase: &str, root: &Path, hooks: &Hooks) -> Result<()> {
    let (dirs, variables) = (Dirs::below(root), std::env::vars_os().collect());
    match phase {
        "prepare" => report(root, &prepare::prepare(&dirs, root, &input(root)?, hooks)?),
        "detect" => report(root, &detect(&dirs, &input(root)?, &variables)?),
        "build" => report(root, &build(&dirs, &input(root)?, &variables)?),
        "export" => report(root, &export::export(&dirs, &input(root)?)?),
        other => Err(Error::new(FAILED, format!("'{other}' is no phase; there are prepare, detect, build and export"))),
    }
}

/// Refuses a platform that speaks another version, or does not say which.
pub fn check_platform_api(given: Option<&str>) -> Result<()> {
    match given {
        Some(PLATFORM_API) => Ok(()),
        given => {
            let given = given.unwrap_or_default();
            let cause = format!("{PLATFORM_API_VARIABLE} is '{given}'; platform API {PLATFORM_API} is supported");
            Err(Error::new(WRONG_PLATFORM_API, cause))
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

type Result<T, E = Error> = std::result::Result<T, E>;

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

fn input<T: DeserializeOwned>(root: &Path) -> Result<T> {
    let text =
        fs::read(rooted(root, Path::new(phase::INPUT))).context(FAILED, || format!("reading {}", phase::INPUT))?;
    serde_json::from_slice(&text).context(FAILED, || format!("reading {}", phase::INPUT))
}

fn report(root: &Path, report: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(report).context(FAILED, || "writing the report".to_owned())?;
    if text.len() as u64 > MAX_REPORT_BYTES {
        let cause = format!(
            "the report has {} bytes, {MAX_REPORT_BYTES} are the most: what the buildpacks ask for is too much",
            text.len()
        );
        return Err(Error::new(FAILED, cause));
    }
    fs::write(rooted(root, Path::new(phase::REPORT)), text).context(FAILED, || format!("writing {}", phase::REPORT))
}

fn token() -> Result<String> {
    fs::read_to_string(phase::TOKEN).context(FAILED, || "reading the token".to_owned())
}

/// A file that foreign code may have written: no link, no device; none when it is not there.
fn open_foreign(path: &Path, code: i32) -> Result<Option<fs::File>> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let doing = || format!("reading {}", path.display());
    let open = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match open {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.context(code, doing)?,
    };
    if !file.metadata().context(code, doing)?.is_file() {
        return Err(Error::new(code, format!("{} is not a plain file", path.display())));
    }
    Ok(Some(file))
}

/// The text of such a file, if it is not too large. `code` is the exit code of the phase when it cannot be read.
fn read_foreign(path: &Path, code: i32) -> Result<Option<String>> {
    use std::io::Read as _;
    let Some(file) = open_foreign(path, code)? else { return Ok(None) };
    let mut text = String::new();
    let read = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text);
    if read.context(code, || format!("reading {}", path.display()))? as u64 > MAX_FILE_BYTES {
        return Err(Error::new(code, format!("{} is larger than 4 MiB", path.display())));
    }
    Ok(Some(text))
}

fn read_toml<T: DeserializeOwned>(path: &Path, code: i32) -> Result<Option<T>> {
    let Some(text) = read_foreign(path, code)? else { return Ok(None) };
    let parsed = toml::from_str(&text);
    parsed.map(Some).map_err(|error| Error::new(code, format!("{} is not valid: {error}", path.display())))
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
