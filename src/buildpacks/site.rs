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
    pub directory: String,
    pub fallback: Fallback,
}

/// Directories that hold a site, best first; the application itself comes before them.
const DIRECTORIES: [&str; 3] = ["", "public", "dist"];
/// What a bundler leaves its output in, best first; `*` is any directory. `public` comes last, as it often is what goes into
/// a build.
const BUILT: [&str; 7] = ["dist", "dist/*/browser", "dist/*", "build", "out", "_site", "public"];
/// Shown instead of what is not there.
const NOT_FOUND_PAGE: &str = "404.html";
/// What decides how a site is served.
pub(super) const RECIPE: [&str; 2] = [TEMPLATE, SCRIPT];
const TEMPLATE: &str = include_str!("../../embedded/builder/nginx.conf");
const SCRIPT: &str = include_str!("../../embedded/builder/serve-site.sh");

/// The directory of `app` that has an `index.html`.
pub(super) fn find(app: &Path) -> Option<&'static str> {
    DIRECTORIES.into_iter().find(|directory| app.join(directory).join("index.html").is_file())
}

/// The directory in which a build left an `index.html`.
pub(super) fn find_built(app: &Path) -> Option<String> {
    let mut candidates = BUILT.into_iter().flat_map(|pattern| match pattern.split_once('*') {
        None => vec![pattern.to_owned()],
        Some((parent, rest)) => {
            let names = fs::read_dir(app.join(parent)).into_iter().flatten().flatten();
            let mut names: Vec<_> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
            names.sort();
            names.into_iter().map(|name| format!("{parent}{name}{rest}")).collect()
        }
    });
    candidates.find(|directory| app.join(directory).join("index.html").is_file())
}

/// Whether a site says itself what is shown instead of a path that it does not have.
pub(super) fn has_not_found_page(app: &Path, directory: &str) -> bool {
    app.join(directory).join(NOT_FOUND_PAGE).is_file()
}

/// Writes the layer `site`; the process that serves it.
pub(super) fn serve<B: Buildpack<Error = Error>>(
    context: &BuildContext<B>,
    site: &Site,
) -> libcnb::Result<Process, Error> {
    let layer = context.uncached_layer(layer_name!("site"), UncachedLayerDefinition { build: false, launch: true })?;
    let root = if site.directory.is_empty() { context.app_dir.clone() } else { context.app_dir.join(&site.directory) };
    let tag = tree::digest(&root, &|name| name == ".git" || name == "node_modules")?.hex();
    let fallback = match site.fallback {
        Fallback::NotFound => "=404",
        Fallback::Index => "/index.html",
    };
    let own_page = has_not_found_page(&context.app_dir, &site.directory);
    let not_found = if own_page { format!("error_page 404 /{NOT_FOUND_PAGE};") } else { String::new() };
    let configuration = TEMPLATE
        .replace("@ROOT@", &root.display().to_string())
        .replace("@TAG@", &tag[..32])
        .replace("@FALLBACK@", fallback)
        .replace("@NOT_FOUND@", &not_found);
    let path = layer.path().join("nginx.conf.in");
    fs::write(&path, configuration).at(&path)?;
    let script = layer.path().join("serve-site");
    fs::write(&script, SCRIPT).at(&script)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).at(&script)?;
    output::decided(format!("start: nginx serves {}", if site.directory.is_empty() { "." } else { &site.directory }));
    if site.fallback == Fallback::Index {
        output::detail(format!("a path without a file gets index.html; {SPA_VARIABLE}=false turns that off"));
    }
    Ok(ProcessBuilder::new(process_type!("web"), ["bash".to_owned(), script.display().to_string()])
        .default(true)
        .build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_a_build_is_found_where_bundlers_leave_it() {
        for (files, expected) in [
            (&["public/index.html", "dist/index.html"][..], Some("dist")),
            (&["dist/shop/browser/index.html", "dist/shop/index.html"], Some("dist/shop/browser")),
            (&["dist/b/index.html", "dist/a/index.html", "public/index.html"], Some("dist/a")),
            (&["public/index.html", "build/index.html"], Some("build")),
            (&["dist/assets/main.js"], None),
        ] {
            let app = tempfile::tempdir().unwrap();
            for file in files {
                fs::create_dir_all(app.path().join(file).parent().unwrap()).unwrap();
                fs::write(app.path().join(file), "").unwrap();
            }
            assert_eq!(find_built(app.path()).as_deref(), expected, "{files:?}");
        }
    }
}
