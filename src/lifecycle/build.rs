//! Build: the buildpacks of the group, one after the other.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Serialize;

use super::{
    Context as _, Dirs, Error, Result,
    detect::{add_own, descriptor, folder},
    env::Env,
    escape,
    phase::{Build, BuildpackRef},
    read_toml,
    types::{
        BuildToml, BuildpackPlan, Group, GroupElement, Label, LaunchProcess, LaunchToml, LayerToml, Metadata, Plan,
        Process,
    },
    write_toml,
};

const BUILDPACK_FAILED: i32 = 51;
const BUILDPACK_WRONG: i32 = 52;
/// `*.toml` in a buildpack's layers folder that are no layers.
pub(super) const RESERVED: [&str; 3] = ["launch", "build", "store"];

/// The report of a build: nothing that is not in the layers.
#[derive(Debug, Default, Serialize)]
pub(super) struct Built {
    pub processes: Vec<String>,
}

/// Runs the group; leaves `config/metadata.toml`.
pub(super) fn build(dirs: &Dirs, input: &Build) -> Result<Built> {
    println!("===> BUILDING");
    let group: Group = read_toml(&dirs.layers.join("group.toml"))?.unwrap_or_default();
    let mut plan: Plan = read_toml(&dirs.layers.join("plan.toml"))?.unwrap_or_default();
    let mut env = Env::allowed(std::env::vars());
    let mut processes = Processes::default();
    let mut labels: Vec<Label> = Vec::new();
    forget_others(dirs, &group);
    for element in &group.group {
        run(dirs, input, element, &mut plan, &env)?;
        let own = dirs.layers.join(escape(&element.id));
        add_layers(&own, &mut env)?;
        if let Some(launch) = read_toml::<LaunchToml>(&own.join("launch.toml"))? {
            labels.extend(launch.labels);
            processes.add(element, launch.processes)?;
        }
    }
    let (processes, default) = processes.finish();
    let kinds = processes.iter().map(|process| process.r#type.clone()).collect();
    let config = dirs.layers.join("config");
    fs::create_dir_all(&config).context(1, || format!("creating {}", config.display()))?;
    let metadata = Metadata { buildpack_default_process_type: default, buildpacks: group.group, labels, processes };
    let path = config.join("metadata.toml");
    fs::write(&path, metadata.to_toml()).context(1, || format!("writing {}", path.display()))?;
    Ok(Built { processes: kinds })
}

fn run(dirs: &Dirs, input: &Build, element: &GroupElement, plan: &mut Plan, env: &Env) -> Result<()> {
    let failed = |code: i32, cause: String| Error {
        code,
        cause,
        buildpack: Some(BuildpackRef { id: element.id.clone(), version: element.version.clone() }),
    };
    let own = dirs.layers.join(escape(&element.id));
    fs::create_dir_all(&own).context(1, || format!("creating {}", own.display()))?;
    let descriptor = descriptor(dirs, &element.id, &element.version)?;
    let is_mine = |entry: &super::types::PlanEntry| entry.providers.iter().any(|provider| provider.id == element.id);
    let given: Vec<_> =
        plan.entries.iter().filter(|entry| is_mine(entry)).flat_map(|entry| entry.requires.clone()).collect();
    let plan_file = std::env::temp_dir().join(format!("buildpack-plan-{}.toml", escape(&element.id)));
    write_toml(&plan_file, &BuildpackPlan { entries: given.clone() })?;
    let mut env = env.clone();
    if !descriptor.buildpack.clear_env {
        env.add_platform(&dirs.platform);
    }
    for (name, value) in &input.build_environment {
        env.set(name, value);
    }
    let folder = folder(dirs, &element.id, &element.version);
    add_own(&mut env, dirs, &input.target, &folder);
    env.set("CNB_BP_PLAN_PATH", plan_file.to_string_lossy());
    env.set("CNB_LAYERS_DIR", own.to_string_lossy());
    let status = Command::new(folder.join("bin/build"))
        .arg(&own)
        .arg(&dirs.platform)
        .arg(&plan_file)
        .current_dir(&dirs.app)
        .env_clear()
        .envs(env.into_vars())
        .stdin(Stdio::null())
        .status()
        .context(1, || format!("starting bin/build of {}", element.id))?;
    if !status.success() {
        let code = status.code().unwrap_or(-1);
        return Err(failed(
            BUILDPACK_FAILED,
            format!("buildpack {} failed with exit code {code}; its last lines say why", element.id),
        ));
    }
    let unmet = read_toml::<BuildToml>(&own.join("build.toml"))?.unwrap_or_default().unmet;
    if let Some(unknown) = unmet.iter().find(|unmet| !given.iter().any(|require| require.name == unmet.name)) {
        return Err(failed(
            BUILDPACK_WRONG,
            format!("buildpack {} says that '{}' is unmet, which it was not asked for", element.id, unknown.name),
        ));
    }
    let met = |entry: &super::types::PlanEntry| {
        is_mine(entry) && entry.requires.iter().all(|require| !unmet.iter().any(|unmet| unmet.name == require.name))
    };
    plan.entries.retain(|entry| !met(entry));
    Ok(())
}

/// What the layers of a buildpack give to the buildpacks after it.
fn add_layers(own: &Path, env: &mut Env) -> Result<()> {
    for (name, layer) in layers(own)? {
        let place = own.join(&name);
        let types = layer.types;
        if !types.launch && !types.build && !types.cache && place.is_dir() {
            let ignored = own.join(format!("{name}.ignore"));
            fs::rename(&place, &ignored).context(1, || format!("renaming {}", place.display()))?;
        } else if types.build {
            env.add_roots(&place);
            env.add_folder(&place.join("env"));
            env.add_folder(&place.join("env.build"));
        }
    }
    Ok(())
}

/// The layers of a buildpack in order of their file names.
pub(super) fn layers(own: &Path) -> Result<Vec<(String, LayerToml)>> {
    let mut files: Vec<PathBuf> = fs::read_dir(own).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    let mut layers = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if !RESERVED.contains(&name.as_str()) {
            layers.push((name, read_toml(&file)?.unwrap_or_default()));
        }
    }
    Ok(layers)
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

/// Processes of all buildpacks: a later one replaces an earlier one of the same type.
#[derive(Default)]
struct Processes {
    all: Vec<Process>,
    default: Option<String>,
}

impl Processes {
    fn add(&mut self, element: &GroupElement, processes: Vec<LaunchProcess>) -> Result<()> {
        let wrong =
            |what: &str| Error::new(BUILDPACK_WRONG, format!("launch.toml of buildpack {}: {what}", element.id));
        if processes.iter().filter(|process| process.default).count() > 1 {
            return Err(wrong("more than one process is the default"));
        }
        let minor = element.api.strip_prefix("0.").and_then(|minor| minor.parse::<u32>().ok()).unwrap_or(0);
        for process in processes {
            let command = match (process.command, minor >= 9) {
                (toml::Value::Array(words), true) => {
                    words.into_iter().map(|word| word.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
                }
                (toml::Value::String(command), false) => Some(vec![command]),
                _ => None,
            };
            let command = command
                .filter(|command| !command.is_empty())
                .ok_or_else(|| wrong("a command is not what this API has"))?;
            if minor >= 9 && process.direct.is_some() {
                return Err(wrong("'direct' is not in this API"));
            }
            if process.r#type.is_empty() || process.r#type.contains(['/', '>', '<', ':', '|', '&', '\\']) {
                return Err(wrong(&format!("'{}' is not a process type", process.r#type)));
            }
            if process.default {
                self.default = Some(process.r#type.clone());
            } else if self.default.as_ref() == Some(&process.r#type) {
                self.default = None;
            }
            self.all.retain(|known| known.r#type != process.r#type);
            self.all.push(Process {
                r#type: process.r#type,
                command,
                args: process.args,
                direct: minor >= 9 || process.direct.unwrap_or(false),
                buildpack_id: element.id.clone(),
                working_dir: process.working_dir,
            });
        }
        Ok(())
    }

    fn finish(mut self) -> (Vec<Process>, Option<String>) {
        self.all.sort_by(|a, b| a.r#type.cmp(&b.r#type));
        (self.all, self.default)
    }
}
