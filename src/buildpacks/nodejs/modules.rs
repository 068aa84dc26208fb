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
    let npm_used = if start.needs_npm(&context.app_dir)? { Use::Launch } else { Use::Cache };
    if matches!(start, Start::BuiltSite) {
        let full = Modules::open(context, package, Kind::Full, node)?;
        return build_site(context, package, &full);
    }
    launch_environment(context)?;
    if package.links_into_app() {
        output::decided("node_modules links into the application, so it stays there and is installed by every build");
        let npm = Npm::open(context, npm_used)?;
        return install_in_place(&npm, package).map_err(Into::into);
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
    run_build(&npm, package)?;
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
        if package.gyp || package.needs_full_install() && generates(package) {
            key.extend(tree::digest(&context.app_dir, &|name| name == MODULES)?.hex().into_bytes());
        }
        Ok(Self { layer: Layer::open(context, name, used, &Digest::of(key).hex())? })
    }

    /// Moves the `node_modules` of the application into the layer.
    fn store(&self, app: &Path) -> libcnb::Result<(), Error> {
        let (from, to) = (app.join(MODULES), self.layer.path().join(MODULES));
        for left_over in [".cache", ".vite", ".vite-temp"] {
            tree::remove(&from.join(left_over))?;
        }
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
fn build_site(context: &BuildContext<Nodejs>, package: &Package, full: &Modules) -> libcnb::Result<(), Error> {
    let npm = Npm::open(context, Use::Cache)?;
    if package.links_into_app() {
        npm.run(&install_arguments(package, &["--include=dev"]))?;
    } else {
        provide_full(context, package, &npm, full)?;
    }
    run_build(&npm, package)?;
    tree::remove(&context.app_dir.join(MODULES)).map_err(Into::into)
}

fn install_in_place(npm: &Npm, package: &Package) -> Result<(), Error> {
    if !package.needs_full_install() {
        return npm.run(&install_arguments(package, &["--omit=dev"]));
    }
    npm.run(&install_arguments(package, &["--include=dev"]))?;
    run_build(npm, package)?;
    npm.run(&["prune", "--omit=dev", "--ignore-scripts", "--no-package-lock"])
}

fn run_build(npm: &Npm, package: &Package) -> Result<(), Error> {
    if package.script("build").is_some() { npm.run(&["run", "build"]) } else { Ok(()) }
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

/// Whether installing writes code generated from the application's own files into node_modules.
fn generates(package: &Package) -> bool {
    package.dependencies().any(|(name, _)| name == "prisma" || name == "@prisma/client")
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
