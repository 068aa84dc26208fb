//! npm, in a version of our own: Debian's is old and brings 400 packages.
//!
//! The tarball comes from the registry that the application uses, and is checked against a hash that is pinned
//! here. corepack, which Debian's nodejs brings, would do the same, but its own keys are too old to check today's versions.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Context, Failure, LayerKey, Result, key, keyed_layer, read, say};

const VERSION: &str = "11.6.2";
/// `dist.integrity` of this version: SHA-512.
const INTEGRITY: &str = "7iKzNfy8lWYs3zq4oFPa8EXZz5xt9gQNKJZau3B1ErLBb6bF7sBJ00x09485DOvRT2l5Gerbl3VlZNT57MxJVA==";
const PUBLIC: &str = "https://registry.example";
const MAX_BYTES: usize = 32 << 20;

/// The layer with npm; returns the path of its command line.
pub(super) fn install(context: &Context, launch: bool) -> Result<PathBuf> {
    let (layer, stale) =
        keyed_layer(context, libcnb::data::layer_name!("npm"), &key(&[INTEGRITY.as_bytes()]), false, launch)?;
    let cli = layer.path().join("lib/bin/npm-cli.js");
    if stale {
        let url = format!("{}/npm/-/npm-{VERSION}.tgz", registry(&context.app_dir));
        say(&format!("downloading npm {VERSION}"));
        let tarball = download(&url).map_err(|cause| {
            Failure::new(format!("npm {VERSION} cannot be downloaded from the registry: {cause}. Is the registry reachable? NPM_CONFIG_REGISTRY names another one"))
        })?;
        let sum = ring::digest::digest(&ring::digest::SHA512, &tarball);
        if STANDARD.encode(sum) != INTEGRITY {
            return Err(Failure::new(format!(
                "the registry's npm {VERSION} is not the one that is known: its hash differs"
            )));
        }
        unpack(&tarball, &layer.path()).map_err(|error| Failure::new(format!("unpacking npm: {error}")))?;
        layer.write_metadata(LayerKey { key: key(&[INTEGRITY.as_bytes()]) })?;
    }
    Ok(cli)
}

/// Where the application gets its packages from.
fn registry(app: &Path) -> String {
    let of_env = ["NPM_CONFIG_REGISTRY", "npm_config_registry"].into_iter().find_map(|name| std::env::var(name).ok());
    let of_file = || {
        let text = read(app, ".npmrc")?;
        text.lines().find_map(|line| {
            line.trim().strip_prefix("registry")?.trim_start().strip_prefix('=').map(|url| url.trim().to_owned())
        })
    };
    let url = of_env.filter(|url| !url.is_empty()).or_else(of_file).unwrap_or_else(|| PUBLIC.to_owned());
    url.trim_end_matches('/').to_owned()
}

fn download(url: &str) -> std::result::Result<Vec<u8>, String> {
    // A process of its own: no provider was installed yet.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let chain = |error: reqwest::Error| crate::telemetry::chain(&error);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let client = reqwest::Client::builder().timeout(std::time::Duration::from_secs(120)).build().map_err(chain)?;
        let response = client.get(url).send().await.map_err(chain)?.error_for_status().map_err(chain)?;
        let bytes = response.bytes().await.map_err(chain)?;
        if bytes.len() > MAX_BYTES { Err("the answer is too large".to_owned()) } else { Ok(bytes.to_vec()) }
    })
}

/// `package/…` of the tarball becomes `lib/…`.
fn unpack(tarball: &[u8], layer: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(tarball));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let inside: PathBuf = path.components().skip(1).filter(|part| matches!(part, Component::Normal(_))).collect();
        let target = layer.join("lib").join(inside);
        if entry.header().entry_type().is_file() {
            fs::create_dir_all(target.parent().unwrap_or(layer))?;
            let mut file = fs::File::create(&target)?;
            io::copy(&mut entry, &mut file)?;
            // Its own node-gyp is a script that is started by name.
            let mode = if entry.header().mode()? & 0o111 == 0 { 0o644 } else { 0o755 };
            file.set_permissions(fs::Permissions::from_mode(mode))?;
        }
    }
    // `npm` and `npx` for start scripts that use them.
    fs::create_dir_all(layer.join("bin"))?;
    for name in ["npm", "npx"] {
        let path = layer.join("bin").join(name);
        let cli = layer.join(format!("lib/bin/{name}-cli.js"));
        fs::write(&path, format!("#!/bin/sh\nexec /usr/bin/node {} \"$@\"\n", cli.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}
