//! npm, in a version of our own: Debian's is old and brings 400 packages.
//!
//! corepack, which Debian's nodejs brings, fetches it from the registry that the application uses, or else its own, and
//! checks it against the hash that is pinned here.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Context, Failure, LayerKey, Result, key, keyed_layer, read, run, say};

/// Version, and SHA-512 of the archive (`dist.integrity` of the registry).
const PINNED: &str = "npm@11.21.2+sha512.ec73c0a64f807e53146af4ac78bd4f9ba0a762a3081e4e77c7e2a6ba1aa64c3a8f9233cc8312294cf713aac13dd4428dc3880504957d7e75e249d1a6d435eaf4";

/// The layer with npm; returns the path of its command line.
pub(super) fn install(context: &Context, launch: bool) -> Result<PathBuf> {
    let key = key(&[PINNED.as_bytes()]);
    let (layer, stale) = keyed_layer(context, libcnb::data::layer_name!("npm"), &key, false, launch)?;
    let home = layer.path();
    let version = PINNED.split(['@', '+']).nth(1).unwrap_or_default();
    if stale {
        say(&format!("fetching npm {version}"));
        let mut corepack = Command::new("/usr/bin/corepack");
        corepack.args([PINNED, "--version"]).current_dir(&home);
        corepack
            .env("COREPACK_HOME", &home)
            .env("COREPACK_ENABLE_STRICT", "0")
            .env("COREPACK_ENABLE_PROJECT_SPEC", "0");
        corepack.env("COREPACK_ENABLE_DOWNLOAD_PROMPT", "0").env("COREPACK_ENABLE_AUTO_PIN", "0");
        if let Some(registry) = registry(&context.app_dir) {
            corepack.env("COREPACK_NPM_REGISTRY", registry);
        }
        run(
            &mut corepack,
            "Can the npm registry be reached, and does it serve packages as they are? NPM_CONFIG_REGISTRY names another one.",
        )?;
        let folder = unpacked(&home, version)?;
        write_shims(&home, &folder).map_err(|error| Failure::new(format!("writing npm: {error}")))?;
        layer.write_metadata(LayerKey { key })?;
    }
    Ok(unpacked(&home, version)?.join("npm-cli.js"))
}

/// Where corepack put it: newer ones have a folder more.
fn unpacked(home: &Path, version: &str) -> Result<PathBuf> {
    let places = ["v1/npm", "npm"].map(|place| home.join(place).join(version).join("bin"));
    let found = places.into_iter().find(|place| place.join("npm-cli.js").is_file());
    found.ok_or_else(|| Failure::new("corepack left no npm where it is expected"))
}

/// Where the application gets its packages from, when it says so.
fn registry(app: &Path) -> Option<String> {
    let of_env = ["NPM_CONFIG_REGISTRY", "npm_config_registry"].into_iter().find_map(|name| std::env::var(name).ok());
    let of_file = || {
        let text = read(app, ".npmrc")?;
        let value =
            |line: &str| Some(line.trim().strip_prefix("registry")?.trim_start().strip_prefix('=')?.trim().to_owned());
        text.lines().find_map(value)
    };
    let url = of_env.filter(|url| !url.is_empty()).or_else(of_file)?;
    Some(url.trim_end_matches('/').to_owned())
}

/// `npm` and `npx` for start scripts that use them.
fn write_shims(home: &Path, folder: &Path) -> io::Result<()> {
    // When it was fetched is not what it is.
    let _ = fs::remove_file(home.join("lastKnownGood.json"));
    fs::create_dir_all(home.join("bin"))?;
    for name in ["npm", "npx"] {
        let path = home.join("bin").join(name);
        let cli = folder.join(format!("{name}-cli.js"));
        fs::write(&path, format!("#!/bin/sh\nexec /usr/bin/node {} \"$@\"\n", cli.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}
