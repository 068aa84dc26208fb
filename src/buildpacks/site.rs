//! A tree of files served by Debian's nginx, as the CNB user and on `$PORT`.
//!
//! The port is known only at launch, so the layer holds a template of the configuration and a small script that
//! fills it in. File times in an image are all the same, which makes nginx's own `ETag` and `Last-Modified` wrong:
//! a change that keeps the length of a file would never reach a browser. The digest of the whole site takes their place.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use libcnb::{
    Buildpack,
    build::BuildContext,
    data::{
        launch::{Process, ProcessBuilder},
        layer_name, process_type,
    },
    layer::UncachedLayerDefinition,
};

use super::{Error, error::At, output, tree};

/// Debian package that serves.
pub(super) const NGINX: &str = "nginx";
/// Switches the fallback on or off by the application's environment.
pub(super) const SPA_VARIABLE: &str = "BP_STATIC_SPA";

/// What a path without a file gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fallback {
    /// 404, with `404.html` where there is one.
    NotFound,
    /// `index.html`, for applications that route in the browser.
    Index,
}

/// Where a site is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Site {
    /// Directory below the application; empty for the application itself.
    pub directory: &'static str,
    pub fallback: Fallback,
}

/// Directories that hold a site, best first; the application itself comes before them.
const DIRECTORIES: [&str; 3] = ["", "public", "dist"];
/// What a bundler leaves its output in.
const BUILT: [&str; 5] = ["dist", "build", "out", "_site", "public"];
const TEMPLATE: &str = include_str!("../../embedded/builder/nginx.conf");
const SCRIPT: &str = include_str!("../../embedded/builder/serve-site.sh");

/// The directory of `app` that has an `index.html`.
pub(super) fn find(app: &Path) -> Option<&'static str> {
    DIRECTORIES.into_iter().find(|directory| app.join(directory).join("index.html").is_file())
}

/// The directory in which a build left an `index.html`.
pub(super) fn find_built(app: &Path) -> Option<&'static str> {
    BUILT.into_iter().find(|directory| app.join(directory).join("index.html").is_file())
}

/// Writes the layer `site`; the process that serves it.
pub(super) fn serve<B: Buildpack<Error = Error>>(
    context: &BuildContext<B>,
    site: &Site,
) -> libcnb::Result<Process, Error> {
    let layer = context.uncached_layer(layer_name!("site"), UncachedLayerDefinition { build: false, launch: true })?;
    let root = if site.directory.is_empty() { context.app_dir.clone() } else { context.app_dir.join(site.directory) };
    let tag = tree::digest(&root, &|name| name == ".git" || name == "node_modules")?.hex();
    let fallback = match site.fallback {
        Fallback::NotFound => "=404",
        Fallback::Index => "/index.html",
    };
    let not_found = if root.join("404.html").is_file() { "error_page 404 /404.html;" } else { "" };
    let configuration = TEMPLATE
        .replace("@ROOT@", &root.display().to_string())
        .replace("@TAG@", &tag[..32])
        .replace("@FALLBACK@", fallback)
        .replace("@NOT_FOUND@", not_found);
    let path = layer.path().join("nginx.conf.in");
    fs::write(&path, configuration).at(&path)?;
    let script = layer.path().join("serve-site");
    fs::write(&script, SCRIPT).at(&script)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).at(&script)?;
    output::decided(format!("start: nginx serves {}", if site.directory.is_empty() { "." } else { site.directory }));
    if site.fallback == Fallback::Index {
        output::detail(format!("a path without a file gets index.html; {SPA_VARIABLE}=false turns that off"));
    }
    Ok(ProcessBuilder::new(process_type!("web"), ["bash".to_owned(), script.display().to_string()])
        .default(true)
        .build())
}
