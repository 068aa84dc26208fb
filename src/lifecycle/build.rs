//! Build: the buildpacks of the group, one after the other.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde::Serialize;

use super::{
    Context as _, Dirs, Error, Result,
    buildpack::Buildpack,
    detect::detect,
    env::{Env, Variables},
    escape,
    layers::{self, Layer, RESERVED},
    phase::{Build, BuildpackRef, Detected},
    processes::Processes,
    read_toml, sbom,
    types::{BuildToml, BuildpackPlan, Group, GroupElement, LaunchToml, Metadata, Plan, PlanEntry},
    write_toml,
};

const BUILDPACK_FAILED: i32 = 51;
const BUILDPACK_WRONG: i32 = 52;

/// The report of a build: nothing that is not in the layers.
#[derive(Debug, Default, Serialize)]
pub struct Built {
    pub processes: Vec<String>,
    /// What was detected, if that was asked for.
    pub detected: Option<Detected>,
}

/// Runs the group, which is found first when nobody was asked before; leaves `config/metadata.toml`.
pub fn build(dirs: &Dirs, input: &Build, variables: &Variables) -> Result<Built> {
    let detected = input.detect.as_ref().map(|input| detect(dirs, input, variables)).transpose()?;
    println!("===> BUILDING");
    let group: Group = read_toml(&dirs.layers.join("group.toml"), BUILDPACK_WRONG)?.unwrap_or_default();
    let mut plan: Plan = read_toml(&dirs.layers.join("plan.toml"), BUILDPACK_WRONG)?.unwrap_or_default();
    let mut env = Env::allowed(variables);
    for (name, value) in &input.build_environment {
        env.set(name, value);
    }
    let mut processes = Processes::default();
    let mut metadata = Metadata::default();
    let mut sboms = Vec::new();
    forget_others(dirs, &group);
    for element in &group.group {
        let buildpack = Buildpack::open(dirs, &element.id, &element.version)?;
        let own = dirs.layers.join(escape(&element.id));
        run(dirs, input, element, &buildpack, &mut plan, &env)?;
        let layers = layers::read(&own, BUILDPACK_WRONG)?;
        let declared = &buildpack.descriptor.buildpack.sbom_formats;
        sboms.extend(sbom::find(&own, element, declared, &layers, BUILDPACK_WRONG)?);
        set_aside(&own, &layers)?;
        for layer in layers.iter().filter(|layer| layer.types.build) {
            env.add_roots(&layer.place);
            env.add_folder(&layer.place.join("env"))?;
            env.add_folder(&layer.place.join("env.build"))?;
        }
        if let Some(launch) = read_toml::<LaunchToml>(&own.join("launch.toml"), BUILDPACK_WRONG)? {
            metadata.labels.extend(launch.labels);
            metadata.slices.extend(launch.slices);
            processes.add(element, buildpack.minor, launch.processes, BUILDPACK_WRONG)?;
        }
    }
    sbom::collect(dirs, &sboms, BUILDPACK_WRONG)?;
    metadata.buildpacks = group.group;
    (metadata.processes, metadata.buildpack_default_process_type) = processes.finish();
    let config = dirs.layers.join("config");
    fs::create_dir_all(&config).context(BUILDPACK_WRONG, || format!("creating {}", config.display()))?;
    let path = config.join("metadata.toml");
    fs::write(&path, metadata.to_toml()).context(BUILDPACK_WRONG, || format!("writing {}", path.display()))?;
    let processes = metadata.processes.into_iter().map(|process| process.r#type).collect();
    Ok(Built { processes, detected })
}

/// Runs one buildpack, and takes what it met out of the plan.
fn run(
    dirs: &Dirs,
    input: &Build,
    element: &GroupElement,
    buildpack: &Buildpack,
    plan: &mut Plan,
    env: &Env,
) -> Result<()> {
    let id = &element.id;
    let failed = |code: i32, cause: String| Error {
        code,
        cause,
        buildpack: Some(BuildpackRef { id: id.clone(), version: element.version.clone() }),
    };
    let own = dirs.layers.join(escape(id));
    fs::create_dir_all(&own).context(BUILDPACK_WRONG, || format!("creating {}", own.display()))?;
    let is_mine = |entry: &PlanEntry| entry.providers.iter().any(|provider| provider.id == *id);
    let given: Vec<_> =
        plan.entries.iter().filter(|entry| is_mine(entry)).flat_map(|entry| entry.requires.clone()).collect();
    let plan_file = dirs.scratch.join(format!("buildpack-plan-{}.toml", escape(id)));
    write_toml(&plan_file, &BuildpackPlan { entries: given.clone() })?;
    let mut env = buildpack.environment(dirs, &input.target, env.clone())?;
    if buildpack.minor >= 8 {
        env.set("CNB_BP_PLAN_PATH", &plan_file);
        env.set("CNB_LAYERS_DIR", &own);
    }
    let status = Command::new(buildpack.folder.join("bin/build"))
        .arg(&own)
        .arg(&dirs.platform)
        .arg(&plan_file)
        .current_dir(&dirs.app)
        .env_clear()
        .envs(env.into_vars())
        .stdin(Stdio::null())
        .status()
        .context(BUILDPACK_WRONG, || format!("starting bin/build of {id}"))?;
    if !status.success() {
        let code = status.code().unwrap_or(-1);
        let cause = format!("buildpack {id} failed with exit code {code}; its last lines say why");
        return Err(failed(BUILDPACK_FAILED, cause));
    }
    let unmet = read_toml::<BuildToml>(&own.join("build.toml"), BUILDPACK_WRONG)?.unwrap_or_default().unmet;
    if let Some(unknown) = unmet.iter().find(|unmet| !given.iter().any(|require| require.name == unmet.name)) {
        let cause = format!("buildpack {id} says that '{}' is unmet, which it was not asked for", unknown.name);
        return Err(failed(BUILDPACK_WRONG, cause));
    }
    let met = |entry: &PlanEntry| {
        is_mine(entry) && entry.requires.iter().all(|require| !unmet.iter().any(|unmet| unmet.name == require.name))
    };
    plan.entries.retain(|entry| !met(entry));
    Ok(())
}

/// Renames folders that look like layers and are none: those without a type, and those of the names that are taken.
fn set_aside(own: &Path, layers: &[Layer]) -> Result<()> {
    let untyped = layers.iter().filter(|layer| !layer.types.launch && !layer.types.build && !layer.types.cache);
    let untyped = untyped.map(|layer| layer.name.as_str());
    let taken = RESERVED.into_iter().filter(|name| own.join(format!("{name}.toml")).exists());
    for name in untyped.chain(taken) {
        let place = own.join(name);
        if fs::symlink_metadata(&place).is_ok_and(|metadata| metadata.is_dir()) {
            fs::rename(&place, own.join(format!("{name}.ignore")))
                .context(BUILDPACK_WRONG, || format!("renaming {}", place.display()))?;
        }
    }
    Ok(())
}

/// Restored layers of buildpacks that do not take part this time.
fn forget_others(dirs: &Dirs, group: &Group) {
    let known: Vec<String> = group.group.iter().map(|element| escape(&element.id)).collect();
    for entry in fs::read_dir(&dirs.layers).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !known.contains(&name) && !matches!(name.as_str(), "config" | "sbom") {
            // What cannot be removed is not exported either: it is in no group.
            let _ = crate::oci::tree::remove_tree(&entry.path());
        }
    }
}
