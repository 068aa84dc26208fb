//! `epiniod/debian`: provides the Debian packages that other buildpacks require, and those of an `Aptfile`.
//!
//! A requirement is a plan entry `debian` with the metadata of [`Packages`]. The daemon reads the plan after detect
//! and assembles the bases from it, so that at build the packages are there already and nothing is left to do.
//! An `Aptfile` names packages one a line (`#` starts a comment); names that end in `-dev` and the group
//! `build-tools` are for the build only, all others are in the image too.

use std::path::Path;

use libcnb::{
    Buildpack,
    build::{BuildContext, BuildResult, BuildResultBuilder},
    data::build_plan::{BuildPlanBuilder, Require},
    detect::{DetectContext, DetectResult, DetectResultBuilder},
    generic::{GenericMetadata, GenericPlatform},
};
use serde::{Deserialize, Serialize};

use super::{Error, error::At, output};

/// Name of the plan entry, known to the lifecycle's detect phase.
pub(super) const ENTRY: &str = "debian";
/// Compiler, make, git, headers: a group of packages that only builds need.
pub(super) const BUILD_TOOLS: &str = "build-tools";
/// Where an application names packages of its own.
const APTFILE: &str = "Aptfile";

/// Packages that are required, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Packages {
    pub packages: Vec<String>,
    pub build: bool,
    pub launch: bool,
}

impl Packages {
    /// In the build and in the image.
    pub(super) fn everywhere<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self { packages: owned(names), build: true, launch: true }
    }

    pub(super) fn build_only<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self { packages: owned(names), build: true, launch: false }
    }

    pub(super) fn launch_only<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self { packages: owned(names), build: false, launch: true }
    }

    /// As a requirement of a build plan.
    pub(super) fn require(&self) -> Require {
        let mut require = Require::new(ENTRY);
        require.metadata(self).expect("a table of strings and booleans is valid TOML");
        require
    }
}

pub(super) struct Debian;

impl Buildpack for Debian {
    type Platform = GenericPlatform;
    type Metadata = GenericMetadata;
    type Error = Error;

    fn detect(&self, context: DetectContext<Self>) -> libcnb::Result<DetectResult, Error> {
        let mut plan = BuildPlanBuilder::new().provides(ENTRY);
        let wanted = match aptfile(&context.app_dir)? {
            // Nothing of its own: take part with what others require, or with nothing at all.
            None => return DetectResultBuilder::pass().build_plan(plan.or().build()).build(),
            Some(wanted) => wanted,
        };
        for packages in wanted {
            plan = plan.requires(packages.require());
        }
        DetectResultBuilder::pass().build_plan(plan.build()).build()
    }

    fn build(&self, context: BuildContext<Self>) -> libcnb::Result<BuildResult, Error> {
        for entry in &context.buildpack_plan.entries {
            let packages = entry
                .metadata::<Packages>()
                .map_err(|error| Error::Refused(format!("a buildpack requires '{ENTRY}' in a wrong way: {error}")))?;
            let place = match (packages.build, packages.launch) {
                (true, true) => "while building and in the image",
                (true, false) => "while building",
                (false, true) => "in the image",
                (false, false) => continue,
            };
            output::decided(format!("Debian packages {place}: {}", packages.packages.join(", ")));
        }
        BuildResultBuilder::new().build()
    }
}

/// What the `Aptfile` asks for; `None` without one.
fn aptfile(app: &Path) -> Result<Option<Vec<Packages>>, Error> {
    let path = app.join(APTFILE);
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).at(&path)?;
    let (mut everywhere, mut build) = (Vec::new(), Vec::new());
    for (number, line) in text.lines().enumerate() {
        let name = line.split('#').next().unwrap_or_default().trim();
        if name.is_empty() {
            continue;
        }
        if !is_package_name(name) {
            return Err(Error::Refused(format!(
                "{APTFILE}, line {}: '{name}' is not the name of a Debian package; write one name a line, without \
                 versions, URLs or options",
                number + 1
            )));
        }
        if name == BUILD_TOOLS || name.ends_with("-dev") { build.push(name) } else { everywhere.push(name) }
    }
    let mut wanted = Vec::new();
    if !everywhere.is_empty() {
        wanted.push(Packages::everywhere(everywhere));
    }
    if !build.is_empty() {
        wanted.push(Packages::build_only(build));
    }
    Ok((!wanted.is_empty()).then_some(wanted))
}

/// Debian Policy, section 5.6.1: at least two of these, the first a letter or digit.
fn is_package_name(name: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"+-.".contains(&c);
    name.len() >= 2 && name.bytes().all(allowed) && name.as_bytes()[0].is_ascii_alphanumeric()
}

fn owned<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    names.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Vec<Packages>>, Error> {
        let app = tempfile::tempdir().unwrap();
        std::fs::write(app.path().join(APTFILE), text).unwrap();
        aptfile(app.path())
    }

    #[test]
    fn headers_are_for_the_build_only() {
        let wanted = read("# tools\nsocat\n\nlibpq-dev # client\nbuild-tools\n").unwrap().unwrap();
        assert_eq!(wanted, [Packages::everywhere(["socat"]), Packages::build_only(["libpq-dev", "build-tools"])]);
        assert_eq!(read("# nothing\n").unwrap(), None);
    }

    #[test]
    fn what_is_no_package_name_is_refused() {
        for bad in ["socat=1.7", "http://example.com/a.deb", "--yes", "So", "a"] {
            let error = read(&format!("busybox\n{bad}\n")).unwrap_err().to_string();
            assert!(error.contains("line 2") && error.contains(bad), "{error}");
        }
    }
}
