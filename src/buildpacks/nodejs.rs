//! `epiniod/nodejs`: what `package.json` names, installed by npm, on Debian's Node.js.
//!
//! `node_modules` is a cached layer, keyed by package.json and the lock. Where there is a build script everything is
//! installed for it, and only what production needs goes into the image.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use libcnb::{
    data::{launch::Launch, layer_name},
    layer_env::{LayerEnv, ModificationBehavior, Scope},
};
use serde_json::Value;

use super::{
    Context, Failure, LayerKey, Packages, Result, Wants, key, keyed_layer, npm, output_of, read, run, say, web,
};

const LOCK: &str = "package-lock.json";
/// Files that decide what is installed.
const INPUTS: [&str; 4] = ["package.json", LOCK, "npm-shrinkwrap.json", ".npmrc"];
/// What is started when package.json does not say it, in order.
const MAINS: [&str; 3] = ["server.js", "index.js", "app.js"];
/// Packages that are compiled when no prebuilt binary fits.
const NATIVE: [&str; 8] = ["node-gyp", "bcrypt", "sqlite3", "better-sqlite3", "canvas", "node-sass", "libpq", "re2"];

pub(super) fn detect(app: &Path) -> Result<Option<Wants>> {
    if !app.join("package.json").is_file() {
        return Ok(None);
    }
    let package = package(app)?;
    let mut packages = vec![Packages::everywhere(&["nodejs"])];
    if is_native(app, &package) {
        packages.push(Packages::for_build(&["build-tools", "python3", "libnode-dev"]));
    }
    Ok(Some(Wants { packages, ..Wants::default() }))
}

pub(super) fn build(context: &Context) -> Result<Launch> {
    let app = &context.app_dir;
    let package = package(app)?;
    for (lock, tool) in [("yarn.lock", "yarn"), ("pnpm-lock.yaml", "pnpm")] {
        if app.join(lock).is_file() && !app.join(LOCK).is_file() {
            return Err(Failure::new(format!(
                "{lock} is a lock of {tool}, which is not supported; make a package-lock.json with 'npm install' and push again"
            )));
        }
    }
    let node = output_of(Command::new("/usr/bin/node").arg("--version"))?;
    say(&format!("Node.js {node}"));
    warn_of_engines(&package, &node);
    let has_procfile = app.join("Procfile").is_file();
    let command = if has_procfile { None } else { Some(start_command(app, &package)?) };
    let wants_npm = command.as_deref().is_none_or(|command| command.contains("npm ") || command.contains("npx "));
    let npm = npm::install(context, wants_npm)?;
    let modules = install(context, &package, &npm, &node)?;
    let bin = modules
        .as_ref()
        .map(|modules| modules.join("node_modules/.bin").display().to_string())
        .unwrap_or_else(|| "/workspace/node_modules/.bin".to_owned());
    Ok(match command {
        None => libcnb::data::launch::LaunchBuilder::new().build(),
        Some(command) => {
            say(&format!("start command: {command}"));
            web(&format!("export PATH=\"{bin}:$PATH\"; {command}"))
        }
    })
}

/// Installs what the application needs; returns the layer that has it, if one does.
fn install(context: &Context, package: &Value, npm: &Path, node: &str) -> Result<Option<std::path::PathBuf>> {
    let app = &context.app_dir;
    let inputs: Vec<Vec<u8>> = INPUTS.iter().map(|name| fs::read(app.join(name)).unwrap_or_default()).collect();
    let key = key(&[node.as_bytes(), npm.as_os_str().as_encoded_bytes(), &inputs.join(&b'\n')]);
    let environment =
        LayerEnv::new().chainable_insert(Scope::Launch, ModificationBehavior::Default, "NODE_ENV", "production");
    if !app.join(LOCK).is_file() && !app.join("npm-shrinkwrap.json").is_file() {
        say(
            "Warning: there is no package-lock.json; versions are those of today. Run 'npm install' and push the lock for builds that can be repeated.",
        );
    }
    let script = |name: &str| package.pointer(&format!("/scripts/{name}")).is_some();
    let (modules, stale) = keyed_layer(context, layer_name!("modules"), &key, false, true)?;
    modules.write_env(&environment)?;
    let layer = modules.path();
    let has_build = script("build");
    if is_tied_to_source(package) {
        // Scripts of the application itself need its files: it is installed in place, and not cached.
        say("installing in place, as package.json has install scripts or local packages of its own");
        npm_install(app, npm, has_build)?;
        if has_build {
            run_build(app, npm)?;
            prune(app, npm)?;
        }
        modules.write_metadata(LayerKey { key: "in place".to_owned() })?;
        return Ok(None);
    }
    if has_build {
        let (all, all_stale) = keyed_layer(context, layer_name!("all-modules"), &key, false, false)?;
        if all_stale {
            copy_inputs(app, &all.path())?;
            npm_install(&all.path(), npm, true)?;
            all.write_metadata(LayerKey { key: key.clone() })?;
        }
        link(app, &all.path())?;
        run_build(app, npm)?;
        if stale {
            copy_inputs(app, &layer)?;
            run(Command::new("cp").arg("-a").arg(all.path().join("node_modules")).arg(&layer), "")?;
            prune(&layer, npm)?;
        }
    } else if stale {
        copy_inputs(app, &layer)?;
        npm_install(&layer, npm, false)?;
    }
    if stale {
        modules.write_metadata(LayerKey { key })?;
    } else {
        say("using the cached node_modules, nothing that they are made of has changed");
    }
    link(app, &layer)?;
    Ok(Some(layer))
}

fn npm_install(folder: &Path, npm: &Path, with_dev: bool) -> Result<()> {
    let verb =
        if folder.join(LOCK).is_file() || folder.join("npm-shrinkwrap.json").is_file() { "ci" } else { "install" };
    say(&format!("npm {verb}"));
    let mut command = npm_command(npm, folder);
    command.args([verb, "--no-audit", "--no-fund", "--no-progress"]);
    if !with_dev {
        command.arg("--omit=dev");
    }
    run(
        &mut command,
        "Correct what npm says above; a lock that does not fit package.json is made again with 'npm install'.",
    )
}

fn run_build(app: &Path, npm: &Path) -> Result<()> {
    say("npm run build");
    run(npm_command(npm, app).args(["run", "build"]), "The build script of package.json failed.")
}

fn prune(folder: &Path, npm: &Path) -> Result<()> {
    run(
        npm_command(npm, folder).args(["prune", "--omit=dev", "--no-audit", "--no-fund"]),
        "npm could not remove what only the build needs.",
    )
}

fn npm_command(npm: &Path, folder: &Path) -> Command {
    let mut command = Command::new("/usr/bin/node");
    command.arg(npm).current_dir(folder);
    command
        .env("npm_config_cache", "/tmp/npm")
        .env("npm_config_update_notifier", "false")
        .env("npm_config_nodedir", "/usr");
    command
}

fn copy_inputs(app: &Path, layer: &Path) -> Result<()> {
    for name in INPUTS.iter().filter(|name| app.join(name).is_file()) {
        fs::copy(app.join(name), layer.join(name)).map_err(|error| Failure::new(format!("copying {name}: {error}")))?;
    }
    Ok(())
}

/// `node_modules` of the application is that of the layer.
fn link(app: &Path, layer: &Path) -> Result<()> {
    let place = app.join("node_modules");
    let removed = match fs::symlink_metadata(&place) {
        Ok(metadata) if metadata.is_dir() => {
            say("Warning: node_modules was uploaded; it is replaced. Name it in .epinioignore to upload less.");
            fs::remove_dir_all(&place)
        }
        Ok(_) => fs::remove_file(&place),
        Err(_) => Ok(()),
    };
    let modules = layer.join("node_modules");
    let made = removed.and_then(|()| fs::create_dir_all(&modules)).and_then(|()| symlink(modules, place));
    made.map_err(|error| Failure::new(format!("linking node_modules: {error}")))
}

/// `scripts.start`, else `main`, else what is usually there.
fn start_command(app: &Path, package: &Value) -> Result<String> {
    if let Some(start) = package.pointer("/scripts/start").and_then(Value::as_str) {
        return Ok(start.to_owned());
    }
    let main = package.get("main").and_then(Value::as_str).filter(|main| app.join(main).is_file());
    let file = main.or_else(|| MAINS.into_iter().find(|name| app.join(name).is_file()));
    let nothing = || {
        Failure::new(
            "package.json has no start script, and there is no server.js, index.js or app.js; add a script such as \"start\": \"node main.js\"",
        )
    };
    Ok(format!("exec node {}", file.ok_or_else(nothing)?))
}

fn package(app: &Path) -> Result<Value> {
    let text = read(app, "package.json").unwrap_or_default();
    serde_json::from_str(&text).map_err(|error| Failure::new(format!("package.json is not valid JSON: {error}")))
}

fn is_native(app: &Path, package: &Value) -> bool {
    let wanted = std::env::var("BP_BUILD_TOOLS").is_ok_and(|value| value == "true" || value == "1");
    let named = |name: &&str| package.pointer(&format!("/dependencies/{name}")).is_some();
    let lock = read(app, LOCK).unwrap_or_default();
    let locked = |name: &&str| lock.contains(&format!("\"node_modules/{name}\""));
    wanted || app.join("binding.gyp").is_file() || NATIVE.iter().any(|name| named(name) || locked(name))
}

fn is_tied_to_source(package: &Value) -> bool {
    let scripts = ["preinstall", "install", "postinstall", "prepare"];
    let has_script = scripts.iter().any(|name| package.pointer(&format!("/scripts/{name}")).is_some());
    let dependencies = ["dependencies", "devDependencies", "optionalDependencies"];
    let has_local =
        dependencies.iter().filter_map(|kind| package.get(kind)?.as_object()).flatten().any(|(_, version)| {
            version.as_str().is_some_and(|version| version.starts_with("file:") || version.starts_with("link:"))
        });
    has_script || has_local || package.get("workspaces").is_some()
}

fn warn_of_engines(package: &Value, node: &str) {
    let Some(wanted) = package.pointer("/engines/node").and_then(Value::as_str) else { return };
    let major = |text: &str| -> Option<u32> {
        let digits: String =
            text.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    if let (Some(wanted_major), Some(have)) = (major(wanted), major(node))
        && wanted_major > have
    {
        say(&format!("Warning: package.json wants Node.js {wanted}; Debian has {node}"));
    }
}
