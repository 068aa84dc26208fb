//! `node_modules`: installed in the application's directory, as install scripts expect it, then moved into a layer and
//! linked back, so that the next build with the same lock has nothing to do.

use std::{env, os::unix::fs::symlink, path::Path};

use libcnb::{
    build::BuildContext,
    data::layer_name,
    layer::UncachedLayerDefinition,
    layer_env::{LayerEnv, ModificationBehavior, Scope},
};

use super::{
    Nodejs, native,
    npm::{self, Npm},
    package::{Lock, Package},
    start::Start,
};
use crate::{
    buildpacks::{
        Error, VERSION,
        error::At,
        layer::{Layer, Use},
        output, tree,
    },
    model::Digest,
};

const MODULES: &str = "node_modules";

/// Installs, builds and prunes as `package` says.
pub(super) fn install(
    context: &BuildContext<Nodejs>,
    package: &Package,
    start: &Start,
    node: &str,
) -> libcnb::Result<(), Error> {
    explain_lock(package);
    discard_pushed(&context.app_dir)?;
    if let Some(why) = package.in_place() {
        output::decided(format!("every build installs node_modules anew: {why}"));
    }
    if matches!(start, Start::BuiltSite) {
        return build_site(context, package, node);
    }
    launch_environment(context)?;
    let npm_used = if start.needs_npm(&context.app_dir)? { Use::Launch } else { Use::Cache };
    if package.in_place().is_some() {
        let npm = Npm::open(context, npm_used)?;
        return install_in_place(&npm, package, &context.app_dir).map_err(Into::into);
    }
    let modules = Modules::open(context, package, Kind::Pruned, node)?;
    if !package.needs_full_install() {
        // npm is opened where it is not run, too: so it is kept for the build that needs it again.
        let npm = Npm::open(context, npm_used)?;
        if modules.layer.kept {
            unchanged();
        } else {
            npm.run(&install_arguments(package, &["--omit=dev"]))?;
            modules.store(&context.app_dir)?;
        }
        return modules.link(&context.app_dir).map_err(Into::into);
    }
    let full = Modules::open(context, package, Kind::Full, node)?;
    let npm = Npm::open(context, npm_used)?;
    provide_full(context, package, &npm, &full)?;
    run_build(&npm, package, &context.app_dir)?;
    if !modules.layer.kept {
        let target = context.app_dir.join(MODULES);
        tree::remove(&target)?;
        tree::copy(&full.layer.path().join(MODULES), &target)?;
        npm.run(&["prune", "--omit=dev", "--ignore-scripts", "--no-package-lock"])?;
        modules.store(&context.app_dir)?;
    }
    modules.link(&context.app_dir).map_err(Into::into)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// With what only the build needs.
    Full,
    /// What the image needs.
    Pruned,
}

/// A layer with a `node_modules`.
struct Modules {
    layer: Layer<Nodejs>,
}

impl Modules {
    fn open(context: &BuildContext<Nodejs>, package: &Package, kind: Kind, node: &str) -> libcnb::Result<Self, Error> {
        let (name, used) = match kind {
            Kind::Full => (layer_name!("full"), Use::Cache),
            Kind::Pruned => (layer_name!("modules"), Use::Launch),
        };
        let mut key = format!("{VERSION} {} {node}\n", npm::PINNED).into_bytes();
        for name in ["NPM_CONFIG_REGISTRY", "npm_config_registry"] {
            key.extend(env::var(name).unwrap_or_default().into_bytes());
        }
        key.extend(native::addons(package).join(" ").into_bytes());
        key.extend_from_slice(&package.content);
        Ok(Self { layer: Layer::open(context, name, used, &Digest::of(key).hex())? })
    }

    /// Moves the `node_modules` of the application into the layer.
    fn store(&self, app: &Path) -> libcnb::Result<(), Error> {
        let (from, to) = (app.join(MODULES), self.layer.path().join(MODULES));
        remove_left_overs(app)?;
        if from.is_dir() {
            tree::relocate(&from, &to)?;
        } else {
            std::fs::create_dir_all(&to).at(&to)?;
        }
        self.layer.complete()
    }

    /// Links the layer's `node_modules` into the application.
    fn link(&self, app: &Path) -> Result<(), Error> {
        let link = app.join(MODULES);
        tree::remove(&link)?;
        symlink(self.layer.path().join(MODULES), &link).at(&link)
    }
}

/// Everything, from the last build where nothing has changed, linked into the application.
fn provide_full(
    context: &BuildContext<Nodejs>,
    package: &Package,
    npm: &Npm,
    full: &Modules,
) -> libcnb::Result<(), Error> {
    if full.layer.kept {
        unchanged();
    } else {
        npm.run(&install_arguments(package, &["--include=dev"]))?;
        full.store(&context.app_dir)?;
    }
    full.link(&context.app_dir).map_err(Into::into)
}

/// The output of a bundler is all that the image needs.
fn build_site(context: &BuildContext<Nodejs>, package: &Package, node: &str) -> libcnb::Result<(), Error> {
    let npm = Npm::open(context, Use::Cache)?;
    if package.in_place().is_some() {
        npm.run(&install_arguments(package, &["--include=dev"]))?;
    } else {
        provide_full(context, package, &npm, &Modules::open(context, package, Kind::Full, node)?)?;
    }
    run_build(&npm, package, &context.app_dir)?;
    tree::remove(&context.app_dir.join(MODULES)).map_err(Into::into)
}

fn install_in_place(npm: &Npm, package: &Package, app: &Path) -> Result<(), Error> {
    if package.needs_full_install() {
        npm.run(&install_arguments(package, &["--include=dev"]))?;
        run_build(npm, package, app)?;
        npm.run(&["prune", "--omit=dev", "--ignore-scripts", "--no-package-lock"])?;
    } else {
        npm.run(&install_arguments(package, &["--omit=dev"]))?;
    }
    remove_left_overs(app)
}

fn run_build(npm: &Npm, package: &Package, app: &Path) -> Result<(), Error> {
    if package.script("build").is_none() {
        return Ok(());
    }
    npm.run(&["run", "build"])?;
    tree::remove(&app.join(".next/cache"))
}

/// What tools keep in node_modules for their next run.
fn remove_left_overs(app: &Path) -> Result<(), Error> {
    [".cache", ".vite", ".vite-temp"].iter().try_for_each(|name| tree::remove(&app.join(MODULES).join(name)))
}

/// A node_modules of another machine may hold programs for another system, and npm would take it as it is.
fn discard_pushed(app: &Path) -> Result<(), Error> {
    let pushed = app.join(MODULES);
    if pushed.symlink_metadata().is_err() {
        return Ok(());
    }
    output::decided(
        "node_modules came with the source and is thrown away: npm installs it for this system; a line 'node_modules' in \
         .epinioignore makes uploads small",
    );
    tree::remove(&pushed)
}

fn install_arguments<'a>(package: &Package, more: &[&'a str]) -> Vec<&'a str> {
    let first: &[&str] = match package.lock {
        Lock::Npm(_) => &["ci"],
        _ => &["install", "--no-package-lock"],
    };
    first.iter().chain(more).copied().collect()
}

fn explain_lock(package: &Package) {
    match package.lock {
        Lock::Npm(name) => output::decided(format!("versions: exactly those of {name}")),
        Lock::Yarn => output::warning(
            "yarn.lock is there and no package-lock.json: npm takes the versions of a yarn.lock of version 1 as far as \
             it can; run 'npm install --package-lock-only' and push the lock for exactly the same versions every time",
        ),
        Lock::Pnpm => output::warning(
            "pnpm-lock.yaml is not read: npm installs the newest versions that package.json allows; run \
             'npm install --package-lock-only' and push the lock for exactly the same versions every time",
        ),
        Lock::None => output::warning(
            "there is no package-lock.json: npm installs the newest versions that package.json allows; run \
             'npm install --package-lock-only' and push the lock for exactly the same versions every time",
        ),
    }
}

fn unchanged() {
    output::decided("package.json and its lock have not changed: node_modules of the last build is used");
}

fn launch_environment(context: &BuildContext<Nodejs>) -> libcnb::Result<(), Error> {
    let layer =
        context.uncached_layer(layer_name!("environment"), UncachedLayerDefinition { build: false, launch: true })?;
    let environment = LayerEnv::new()
        .chainable_insert(Scope::Launch, ModificationBehavior::Default, "NODE_ENV", "production")
        .chainable_insert(Scope::Launch, ModificationBehavior::Delimiter, "PATH", ":")
        .chainable_insert(
            Scope::Launch,
            ModificationBehavior::Prepend,
            "PATH",
            context.app_dir.join(MODULES).join(".bin"),
        );
    layer.write_env(environment)
}
