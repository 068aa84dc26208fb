//! npm in a pinned version. Debian's own npm is old and 55 MB of packages; corepack, which comes with Debian's
//! nodejs, fetches the pinned one from the configured registry, checks its hash, and keeps it in a layer.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use libcnb::{build::BuildContext, data::layer_name};

use super::Nodejs;
use crate::buildpacks::{
    Error, VERSION, command,
    error::At,
    layer::{Layer, Use},
    output, switch,
};

/// Version and SHA-512 of the archive (the `dist.integrity` of the registry, in hexadecimal digits).
pub(super) const PINNED: &str = "npm@11.21.2+sha512.ec73c0a64f807e53146af4ac78bd4f9ba0a762a3081e4e77c7e2a6ba1aa64c3a8f9233cc8312294cf713aac13dd4428dc3880504957d7e75e249d1a6d435eaf4";

/// In bytes: what npm downloaded for this application and is worth keeping.
const MAX_DOWNLOADS: u64 = 500_000_000;

/// npm, ready to run in the application's directory.
pub(super) struct Npm {
    program: PathBuf,
    /// The directory with `npm` and `npx`: what the launcher puts in PATH, as it is `bin` of the layer.
    shims: PathBuf,
    cache: PathBuf,
    app: PathBuf,
}

impl Npm {
    /// npm from its layer, fetched if it is not there. With [`Use::Launch`] it is in the image's PATH too.
    pub(super) fn open(context: &BuildContext<Nodejs>, used: Use) -> libcnb::Result<Self, Error> {
        let layer = Layer::open(context, layer_name!("npm"), used, &format!("{VERSION} {PINNED}"))?;
        let downloads = Layer::open(context, layer_name!("downloads"), Use::Cache, "npm 1")?;
        downloads.empty_over(MAX_DOWNLOADS)?;
        downloads.complete()?;
        let home = layer.path();
        if !layer.kept {
            fetch(&home, registry(&context.app_dir).as_deref())?;
            layer.complete()?;
        }
        let program = unpacked(&home)?.join("bin/npm-cli.js");
        Ok(Self { shims: home.join("bin"), program, cache: downloads.path(), app: context.app_dir.clone() })
    }

    /// Runs npm; its failure becomes advice.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<(), Error> {
        output::decided(format!("npm {}", arguments.join(" ")));
        let mut command = Command::new("node");
        command
            .arg(&self.program)
            .args(arguments)
            .args([
                "--no-audit",
                "--no-fund",
                "--no-update-notifier",
                "--no-progress",
                "--loglevel=warn",
                "--logs-max=0",
            ])
            .arg("--cache")
            .arg(&self.cache)
            .current_dir(&self.app)
            // What the user may have set for launch must not leave out what the build needs.
            .env_remove("NODE_ENV")
            .env_remove("NPM_CONFIG_PRODUCTION")
            .env("CI", "true")
            .env("HUSKY", "0")
            .env("NO_COLOR", "1")
            .env("NEXT_TELEMETRY_DISABLED", "1");
        if env::var_os("npm_config_nodedir").is_none() && Path::new("/usr/include/node/node.h").is_file() {
            command.env("npm_config_nodedir", "/usr");
        }
        if env::var_os("CFLAGS").is_none() && env::var_os("CXXFLAGS").is_none() {
            command.env("CFLAGS", "-g0").env("CXXFLAGS", "-g0");
        }
        // Scripts find this npm, and no other, by its name.
        let path = env::var_os("PATH").unwrap_or_default();
        let joined = env::join_paths([self.shims.clone()].into_iter().chain(env::split_paths(&path)));
        if let Ok(joined) = joined {
            command.env("PATH", joined);
        }
        let outcome = command::run(&mut command)?;
        if outcome.success { Ok(()) } else { Err(Error::Refused(advice(arguments, &outcome.tail))) }
    }
}

/// The version of the node in the build base, without the leading `v`.
pub(super) fn node_version() -> Result<String, Error> {
    let version = command::output(Command::new("node").arg("--version"))
        .ok_or_else(|| Error::Refused("node is not in the build base".to_owned()))?;
    Ok(version.trim_start_matches('v').to_owned())
}

fn version() -> &'static str {
    PINNED.trim_start_matches("npm@").split('+').next().unwrap_or_default()
}

/// Where corepack put npm: releases from 0.25 on have a directory for the layout's version in between.
fn unpacked(home: &Path) -> Result<PathBuf, Error> {
    ["npm", "v1/npm"]
        .into_iter()
        .map(|directory| home.join(directory).join(version()))
        .find(|directory| directory.join("bin/npm-cli.js").is_file())
        .ok_or_else(|| Error::Refused(format!("corepack left no npm {} in {}", version(), home.display())))
}

/// From `registry`, or else the one that corepack knows.
fn fetch(home: &Path, registry: Option<&str>) -> Result<(), Error> {
    output::decided(format!("fetching npm {} with corepack", version()));
    let mut corepack = Command::new("corepack");
    corepack
        .args([PINNED, "--version"])
        .current_dir(home)
        .env("COREPACK_HOME", home)
        .env("COREPACK_ENABLE_STRICT", "0")
        .env("COREPACK_ENABLE_PROJECT_SPEC", "0")
        .env("COREPACK_ENABLE_DOWNLOAD_PROMPT", "0")
        .env("COREPACK_ENABLE_AUTO_PIN", "0");
    if let Some(registry) = registry {
        corepack.env("COREPACK_NPM_REGISTRY", registry.trim_end_matches('/'));
    }
    let outcome = command::run(&mut corepack)?;
    if !outcome.success {
        let advice = if outcome.tail.contains("Mismatch hashes") {
            "the registry served another npm than the pinned one; use one that does not alter packages"
        } else {
            "the npm registry could not be reached; check network, proxy and certificates, or set NPM_CONFIG_REGISTRY"
        };
        return Err(Error::Refused(advice.to_owned()));
    }
    let npm = unpacked(home)?;
    let npm = Path::new("..").join(npm.strip_prefix(home).unwrap_or(&npm));
    let bin = home.join("bin");
    fs::create_dir_all(&bin).at(&bin)?;
    for (name, program) in [("npm", "npm-cli.js"), ("npx", "npx-cli.js")] {
        let link = bin.join(name);
        symlink(npm.join("bin").join(program), &link).at(&link)?;
    }
    // Which version was used last, and when: nothing that the layer needs.
    crate::buildpacks::tree::remove(&home.join("lastKnownGood.json"))
}

/// The registry that npm would be told to use: by the environment, else by the application's `.npmrc`.
fn registry(app: &Path) -> Option<String> {
    let of_environment = ["NPM_CONFIG_REGISTRY", "npm_config_registry"].iter().find_map(|name| env::var(name).ok());
    let of_file = || {
        let text = fs::read_to_string(app.join(".npmrc")).ok()?;
        text.lines()
            .filter_map(|line| line.split_once('='))
            .find(|(name, _)| name.trim() == "registry")
            .map(|(_, value)| value.trim().trim_matches('"').to_owned())
    };
    of_environment.filter(|value| !value.is_empty()).or_else(of_file)
}

/// What to do about a failure of npm.
fn advice(arguments: &[&str], tail: &str) -> String {
    let any = |signs: &[&str]| signs.iter().any(|sign| tail.contains(sign));
    if any(&["can only install packages when your package.json and package-lock.json", "EUSAGE"]) {
        "package.json and its lock do not fit together: run 'npm install', and push with the new lock".to_owned()
    } else if any(&["EUNSUPPORTEDPROTOCOL"]) {
        "package.json uses a protocol that only pnpm or yarn know (such as 'workspace:'): push the built application, \
         or use npm's workspaces"
            .to_owned()
    } else if any(&["ERESOLVE"]) {
        "the dependencies contradict each other; npm's message above names them: correct package.json, or put \
         'legacy-peer-deps=true' into .npmrc"
            .to_owned()
    } else if any(&["E404", "ETARGET"]) {
        "a dependency does not exist in the registry; npm's message above names it: correct package.json".to_owned()
    } else if any(&[
        "gyp ERR!",
        "not found: make",
        "g++: not found",
        "node-gyp: not found",
        "node-gyp: command not found",
    ]) {
        format!(
            "a package has to be compiled and could not be: set {}=true in the application's environment and push \
             again; headers of further libraries go into an Aptfile",
            switch::BUILD_TOOLS
        )
    } else if arguments.first() == Some(&"run") {
        format!("the script '{}' of package.json failed; its output is above", arguments.get(1).unwrap_or(&""))
    } else if any(&["ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN", "SELF_SIGNED", "UNABLE_TO_"]) {
        "npm could not reach its registry; check network, proxy and certificates, or set NPM_CONFIG_REGISTRY".to_owned()
    } else {
        "npm failed; its message is above".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_become_advice() {
        for (arguments, tail, expected) in [
            (["ci"].as_slice(), "npm error gyp ERR! find Python", "BP_BUILD_TOOLS=true"),
            (&["ci"], "npm error code EUSAGE", "with the new lock"),
            (&["install"], "npm error code E404", "correct package.json"),
            (&["install"], "getaddrinfo EAI_AGAIN", "NPM_CONFIG_REGISTRY"),
            (
                &["install"],
                "npm error code E404\nnpm error 404 node-gyp-x is not in this registry",
                "correct package.json",
            ),
            (&["install"], "sh: 1: node-gyp: not found", "BP_BUILD_TOOLS=true"),
            (&["run", "build"], "TypeError", "script 'build'"),
            (&["run", "build"], "getaddrinfo ENOTFOUND fonts.example", "script 'build'"),
        ] {
            assert!(advice(arguments, tail).contains(expected), "{tail}");
        }
    }

    #[test]
    fn the_pin_is_a_version_and_a_sha512() {
        assert_eq!(version().split('.').count(), 3);
        assert_eq!(PINNED.split("sha512.").nth(1).map(str::len), Some(128));
    }
}
