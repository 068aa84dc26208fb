//! `epiniod/static`: files, served by Debian's nginx.

use std::{fs, path::Path};

use libcnb::{
    data::{launch::Launch, layer_name},
    layer::UncachedLayerDefinition,
};

use super::{Context, Failure, Packages, Result, Wants, say, web};

/// Where a site may be, in order.
const ROOTS: [&str; 3] = ["public", "dist", "."];
const CONFIG: &str = include_str!("../../embedded/builder/nginx.conf");

pub(super) fn detect(app: &Path) -> Option<Wants> {
    root(app)?;
    Some(Wants { packages: vec![Packages { build: false, ..Packages::everywhere(&["nginx"]) }], ..Wants::default() })
}

pub(super) fn build(context: &Context) -> Result<Launch> {
    let root = root(&context.app_dir)
        .ok_or_else(|| Failure::new("there is no index.html in public/, dist/ or the folder itself"))?;
    let shown = if root == "." { "the folder itself" } else { root };
    say(&format!("serving {shown} with nginx, because it has an index.html"));
    let layer = context.uncached_layer(layer_name!("nginx"), UncachedLayerDefinition { build: false, launch: true })?;
    let folder = if root == "." { "/workspace".to_owned() } else { format!("/workspace/{root}") };
    let template = layer.path().join("nginx.conf");
    fs::write(&template, CONFIG.replace("@ROOT@", &folder)).map_err(|error| Failure::new(error.to_string()))?;
    let template = template.display();
    Ok(web(&format!(
        "sed \"s/@PORT@/${{PORT:-8080}}/\" {template} > /tmp/nginx.conf && mkdir -p /tmp/nginx && exec /usr/sbin/nginx -p /tmp/nginx -e stderr -c /tmp/nginx.conf"
    )))
}

fn root(app: &Path) -> Option<&'static str> {
    ROOTS.into_iter().find(|root| app.join(root).join("index.html").is_file())
}
