//! Detect: the buildpacks are asked, group by group.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Context as _, Dirs, Error, Result,
    env::Env,
    escape,
    phase::{BuildpackRef, Detect, Detected, PackageRequest, Target},
    plan::{Candidate, resolve},
    read_toml,
    types::{BuildPlan, Descriptor, Group, GroupElement, Order, OrderElement, Plan},
    write_toml,
};

const PASSED: i32 = 0;
const NOT_FOR_ME: i32 = 100;
/// Exit codes of the phase.
const WRONG_BUILDPACK_API: i32 = 12;
const NOBODY_DETECTED: i32 = 20;
const BUILDPACK_FAILED: i32 = 21;
/// The name under which Debian packages are required.
const DEBIAN: &str = "debian";

/// What one buildpack answered.
#[derive(Clone)]
struct Answer {
    code: i32,
    output: String,
    plan: BuildPlan,
}

/// Finds the first group whose buildpacks take part; leaves `group.toml` and `plan.toml`.
pub(super) fn detect(dirs: &Dirs, input: &Detect) -> Result<Detected> {
    println!("===> DETECTING");
    let order: Order = read_toml(&dirs.cnb.join("order.toml"))?.unwrap_or_default();
    let mut asked: HashMap<String, Answer> = HashMap::new();
    let mut failed = None;
    for group in &order.order {
        for element in &group.group {
            let key = format!("{}@{}", element.id, element.version);
            if let Entry::Vacant(place) = asked.entry(key) {
                place.insert(ask(dirs, &input.target, element)?);
            }
        }
        let answer = |element: &OrderElement| &asked[&format!("{}@{}", element.id, element.version)];
        let error = group.group.iter().find(|element| !matches!(answer(element).code, PASSED | NOT_FOR_ME));
        failed = failed.or(error.map(|element| (element.clone(), answer(element).clone())));
        if group.group.iter().any(|element| !element.optional && answer(element).code != PASSED) {
            continue;
        }
        let mut candidates = Vec::new();
        for element in group.group.iter().filter(|element| answer(element).code == PASSED) {
            let descriptor = descriptor(dirs, &element.id, &element.version)?;
            let known = GroupElement {
                id: element.id.clone(),
                version: element.version.clone(),
                api: descriptor.api,
                homepage: descriptor.buildpack.homepage,
            };
            candidates.push(Candidate::new(known, element.optional, answer(element).plan.clone()));
        }
        if let Some((group, plan)) = resolve(&candidates) {
            return found(dirs, group, &plan);
        }
    }
    Err(nobody(&asked, failed))
}

fn found(dirs: &Dirs, group: Vec<GroupElement>, plan: &Plan) -> Result<Detected> {
    for element in &group {
        println!("{} {}", element.id, element.version);
    }
    let buildpacks =
        group.iter().map(|element| BuildpackRef { id: element.id.clone(), version: element.version.clone() }).collect();
    write_toml(&dirs.layers.join("group.toml"), &Group { group })?;
    write_toml(&dirs.layers.join("plan.toml"), plan)?;
    Ok(Detected { buildpacks, packages: packages(plan) })
}

/// The Debian packages that a plan requires.
fn packages(plan: &Plan) -> Vec<PackageRequest> {
    let mut found: Vec<PackageRequest> = Vec::new();
    let requires = plan.entries.iter().flat_map(|entry| &entry.requires).filter(|require| require.name == DEBIAN);
    for require in requires {
        let flag = |name: &str| require.metadata.get(name).and_then(toml::Value::as_bool).unwrap_or(true);
        let names = require.metadata.get("packages").and_then(toml::Value::as_array).into_iter().flatten();
        for name in names.filter_map(toml::Value::as_str) {
            let request = PackageRequest { name: name.to_owned(), build: flag("build"), launch: flag("launch") };
            match found.iter_mut().find(|known| known.name == request.name) {
                Some(known) => {
                    known.build |= request.build;
                    known.launch |= request.launch;
                }
                None => found.push(request),
            }
        }
    }
    found.sort();
    found
}

fn ask(dirs: &Dirs, target: &Target, element: &OrderElement) -> Result<Answer> {
    let descriptor = descriptor(dirs, &element.id, &element.version)?;
    let folder = folder(dirs, &element.id, &element.version);
    let plan = std::env::temp_dir().join(format!("plan-{}.toml", escape(&element.id)));
    fs::write(&plan, "").context(1, || format!("writing {}", plan.display()))?;
    let mut env = Env::allowed(std::env::vars());
    if !descriptor.buildpack.clear_env {
        env.add_platform(&dirs.platform);
    }
    add_own(&mut env, dirs, target, &folder);
    env.set("CNB_BUILD_PLAN_PATH", plan.to_string_lossy());
    let output = Command::new(folder.join("bin/detect"))
        .arg(&dirs.platform)
        .arg(&plan)
        .current_dir(&dirs.app)
        .env_clear()
        .envs(env.into_vars())
        .output()
        .context(1, || format!("starting bin/detect of {}", element.id))?;
    let text = [output.stdout, output.stderr].concat();
    let code = output.status.code().unwrap_or(-1);
    let plan = if code == PASSED { read_toml(&plan)?.unwrap_or_default() } else { BuildPlan::default() };
    Ok(Answer { code, output: String::from_utf8_lossy(&text).trim_end().to_owned(), plan })
}

/// What the specification gives to both `bin/detect` and `bin/build`.
pub(super) fn add_own(env: &mut Env, dirs: &Dirs, target: &Target, folder: &Path) {
    env.set("CNB_BUILDPACK_DIR", folder.to_string_lossy());
    env.set("CNB_PLATFORM_DIR", dirs.platform.to_string_lossy());
    env.set("CNB_TARGET_OS", &target.os);
    env.set("CNB_TARGET_ARCH", &target.arch);
    env.set("CNB_TARGET_DISTRO_NAME", &target.distro_name);
    env.set("CNB_TARGET_DISTRO_VERSION", &target.distro_version);
}

pub(super) fn folder(dirs: &Dirs, id: &str, version: &str) -> PathBuf {
    dirs.cnb.join("buildpacks").join(escape(id)).join(version)
}

pub(super) fn descriptor(dirs: &Dirs, id: &str, version: &str) -> Result<Descriptor> {
    let path = folder(dirs, id, version).join("buildpack.toml");
    let missing = || Error::new(1, format!("buildpack {id}@{version} is not there"));
    let descriptor: Descriptor = read_toml(&path)?.ok_or_else(missing)?;
    let minor = descriptor.api.strip_prefix("0.").and_then(|minor| minor.parse::<u32>().ok()).unwrap_or(0);
    if (7..=12).contains(&minor) {
        return Ok(descriptor);
    }
    Err(Error::new(
        WRONG_BUILDPACK_API,
        format!("buildpack {id} has API {}; 0.7 to 0.12 are supported", descriptor.api),
    ))
}

fn nobody(asked: &HashMap<String, Answer>, failed: Option<(OrderElement, Answer)>) -> Error {
    if let Some((element, answer)) = failed {
        println!("{}", answer.output);
        let cause =
            format!("detection by buildpack {} failed with exit code {}: {}", element.id, answer.code, answer.output);
        let buildpack = Some(BuildpackRef { id: element.id, version: element.version });
        return Error { code: BUILDPACK_FAILED, cause, buildpack };
    }
    let mut said: Vec<&str> =
        asked.values().map(|answer| answer.output.as_str()).filter(|text| !text.is_empty()).collect();
    said.sort_unstable();
    said.iter().for_each(|text| println!("{text}"));
    let cause = "no buildpack takes this source: there is no requirements.txt, pyproject.toml, package.json, index.html, public/, dist/ or Procfile at its top; \
                 push the folder that has one, or add a Procfile";
    Error::new(NOBODY_DETECTED, cause)
}
