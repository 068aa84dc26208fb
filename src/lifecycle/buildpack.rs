//! A buildpack on disk: its descriptor, what it is made for, and how it is asked.

use std::{
    fs,
    path::{Component, Path, PathBuf},
    process::Command,
};

use super::{
    Context as _, Dirs, Error, Result,
    env::{Env, Variables},
    escape,
    phase::Target,
    read_toml,
    types::{BuildPlan, Descriptor, TargetPattern},
};

const PASSED: i32 = 0;
const NOT_FOR_ME: i32 = 100;
/// What there is instead of an exit code when a buildpack did not end with one, or wrote what is not a plan.
const NO_CODE: i32 = -1;
/// The exit code of a phase that met a buildpack which it does not understand.
const WRONG_BUILDPACK_API: i32 = 12;
/// No buildpack may have these ids: their folders in `/layers` are the lifecycle's own.
const RESERVED: [&str; 3] = ["app", "config", "sbom"];
/// The APIs that are spoken: 0.7 to 0.12.
const APIS: std::ops::RangeInclusive<u32> = 7..=12;

/// A buildpack of the builder.
#[derive(Debug, Clone)]
pub(super) struct Buildpack {
    pub folder: PathBuf,
    pub descriptor: Descriptor,
    /// Its API is 0.this.
    pub minor: u32,
}

/// What one buildpack answered when it was asked whether it takes part.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    code: i32,
    pub output: String,
    pub plan: BuildPlan,
}

impl Answer {
    pub fn failure(output: String) -> Self {
        Self { code: NO_CODE, output, plan: BuildPlan::default() }
    }

    pub fn has_passed(&self) -> bool {
        self.code == PASSED
    }

    /// What went wrong, if anything did.
    pub fn error(&self) -> Option<String> {
        match self.code {
            PASSED | NOT_FOR_ME => None,
            NO_CODE => Some(self.output.clone()),
            code => Some(format!("it ended with exit code {code}: {}", self.output)),
        }
    }
}

impl Buildpack {
    /// Refuses what is not a folder of its own: where a link leads to is not what the builder was checked for.
    pub fn open(dirs: &Dirs, id: &str, version: &str) -> Result<Self> {
        let missing = || Error::new(1, format!("buildpack {id}@{version} is not in the builder"));
        let name = escape(id);
        if !is_name(&name) || !is_name(version) || RESERVED.contains(&id) {
            return Err(Error::new(1, format!("'{id}@{version}' in order.toml names no buildpack")));
        }
        let parent = dirs.cnb.join("buildpacks").join(name);
        let folder = parent.join(version);
        for part in [&parent, &folder] {
            let metadata = fs::symlink_metadata(part).map_err(|_| missing())?;
            if !metadata.is_dir() {
                return Err(Error::new(1, format!("{} is not a folder, and no buildpack", part.display())));
            }
        }
        let descriptor: Descriptor = read_toml(&folder.join("buildpack.toml"), 1)?.ok_or_else(missing)?;
        let minor = descriptor.api.strip_prefix("0.").and_then(|minor| minor.parse().ok()).unwrap_or(0);
        if !APIS.contains(&minor) {
            let cause = format!("buildpack {id} has API '{}'; 0.7 to 0.12 are supported", descriptor.api);
            return Err(Error::new(WRONG_BUILDPACK_API, cause));
        }
        Ok(Self { folder, descriptor, minor })
    }

    pub fn is_for(&self, target: &Target) -> bool {
        let targets = &self.descriptor.targets;
        targets.is_empty() || targets.iter().any(|pattern| fits(pattern, target))
    }

    /// Runs `bin/detect`. What the buildpack does wrong is an answer, too.
    pub fn ask(&self, dirs: &Dirs, target: &Target, id: &str, variables: &Variables) -> Result<Answer> {
        let plan = dirs.scratch.join(format!("plan-{}.toml", escape(id)));
        fs::write(&plan, "").context(1, || format!("writing {}", plan.display()))?;
        let mut env = self.environment(dirs, target, Env::allowed(variables))?;
        if self.minor >= 8 {
            env.set("CNB_BUILD_PLAN_PATH", &plan);
        }
        let output = Command::new(self.folder.join("bin/detect"))
            .arg(&dirs.platform)
            .arg(&plan)
            .current_dir(&dirs.app)
            .env_clear()
            .envs(env.into_vars())
            .output();
        let output = match output {
            Ok(output) => output,
            Err(error) => return Ok(Answer::failure(format!("bin/detect of {id} cannot be started: {error}"))),
        };
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).trim_end().to_owned();
        let Some(code) = output.status.code() else {
            return Ok(Answer::failure(format!("it was ended by a signal: {text}")));
        };
        if code != PASSED {
            return Ok(Answer { code, output: text, plan: BuildPlan::default() });
        }
        Ok(match read_plan(&plan) {
            Ok(plan) => Answer { code, output: text, plan },
            Err(error) => Answer::failure(format!("{text}\n{}", error.cause).trim_start().to_owned()),
        })
    }

    /// The environment of `bin/detect` and `bin/build`: what the platform, the builder and the specification add.
    pub fn environment(&self, dirs: &Dirs, target: &Target, mut env: Env) -> Result<Env> {
        if !self.descriptor.buildpack.clear_env {
            env.add_platform(&dirs.platform)?;
        }
        env.add_build_config(&dirs.cnb)?;
        env.set("CNB_BUILDPACK_DIR", &self.folder);
        if self.minor >= 8 {
            env.set("CNB_PLATFORM_DIR", &dirs.platform);
        }
        if self.minor >= 10 {
            env.set("CNB_TARGET_OS", &target.os);
            env.set("CNB_TARGET_ARCH", &target.arch);
            env.set("CNB_TARGET_DISTRO_NAME", &target.distro_name);
            env.set("CNB_TARGET_DISTRO_VERSION", &target.distro_version);
        }
        Ok(env)
    }
}

fn read_plan(path: &Path) -> Result<BuildPlan> {
    let plan: BuildPlan = read_toml(path, 1)?.unwrap_or_default();
    let all = plan.requires.iter().chain(plan.or.iter().flat_map(|alternative| &alternative.requires));
    match all.into_iter().find(|require| require.version.is_some()) {
        Some(require) => {
            let name = &require.name;
            Err(Error::new(1, format!("the plan requires '{name}' with a 'version', which belongs into its metadata")))
        }
        None => Ok(plan),
    }
}

fn fits(pattern: &TargetPattern, target: &Target) -> bool {
    let same = |wanted: &str, there: &str| wanted.is_empty() || there.is_empty() || wanted == there;
    let distro = pattern.distros.is_empty()
        || !target.distro_name.is_empty()
            && pattern
                .distros
                .iter()
                .any(|distro| same(&distro.name, &target.distro_name) && same(&distro.version, &target.distro_version));
    same(&pattern.os, &target.os) && same(&pattern.arch, &target.arch) && distro
}

/// Whether a text names an entry of a folder: not the folder itself, nor the one above, nor something further down.
pub(super) fn is_name(text: &str) -> bool {
    let mut parts = Path::new(text).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_folder() {
        for good in ["a", "a.b", "..a", "1.2.3"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "/a", "a/", "../a"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
