//! Which packages are compiled when they are installed. Compiler and headers cost 100 MB, so they are asked for only
//! when one of these is there; `BP_BUILD_TOOLS` overrules.

use super::package::Package;

/// A package with an install script that depends on one of these compiles, or may have to.
const COMPILING: [&str; 6] =
    ["nan", "node-addon-api", "bindings", "node-gyp", "prebuild-install", "@mapbox/node-pre-gyp"];
/// A package that depends on this brings compiled files for usual systems.
const PREBUILT: &str = "node-gyp-build";
/// Known to compile, for applications without a lock.
const KNOWN: [&str; 16] = [
    "better-sqlite3",
    "canvas",
    "cpu-features",
    "farmhash",
    "heapdump",
    "isolated-vm",
    "iconv",
    "libxmljs",
    "libxmljs2",
    "microtime",
    "node-gyp",
    "node-pty",
    "node-sass",
    "re2",
    "sqlite3",
    "zeromq",
];

/// Names of the packages that are compiled at installation, sorted.
pub(super) fn addons(package: &Package) -> Vec<String> {
    let mut found: Vec<String> = if package.locked.is_empty() {
        package
            .dependencies()
            .filter(|(name, version)| KNOWN.contains(name) || (*name == "bcrypt" && is_old_bcrypt(version)))
            .map(|(name, _)| name.to_owned())
            .collect()
    } else {
        package
            .locked
            .iter()
            .filter(|locked| {
                let depends = |name: &str| locked.dependencies.contains_key(name);
                locked.has_install_script
                    && !depends(PREBUILT)
                    && (KNOWN.contains(&locked.name.as_str()) || COMPILING.iter().any(|name| depends(name)))
            })
            .map(|locked| locked.name.clone())
            .collect()
    };
    if package.gyp {
        found.push("binding.gyp".to_owned());
    }
    found.sort();
    found.dedup();
    found
}

/// From version 6 on it brings compiled files.
fn is_old_bcrypt(version: &str) -> bool {
    let digits: String = version.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse::<u32>().is_ok_and(|major| major < 6)
}

#[cfg(test)]
mod tests {
    use super::{super::package::package, *};

    #[test]
    fn a_lock_tells_what_is_compiled() {
        let lock = |name: &str, script: bool, dependency: &str| {
            format!(
                r#"{{"packages":{{"node_modules/{name}":{{"hasInstallScript":{script},"dependencies":{{"{dependency}":"1"}}}}}}}}"#
            )
        };
        for (text, expected) in [
            (lock("better-sqlite3", true, "bindings"), 1),
            (lock("own-addon", true, "node-addon-api"), 1),
            (lock("bcrypt", true, "node-gyp-build"), 0),
            (lock("esbuild", true, "other"), 0),
            (lock("sharp", false, "node-addon-api"), 0),
        ] {
            let (_app, package) = package(&[("package.json", "{}"), ("package-lock.json", &text)]);
            assert_eq!(addons(&package).len(), expected, "{text}");
        }
    }

    #[test]
    fn without_a_lock_names_are_known() {
        for (manifest, expected) in [
            (r#"{"dependencies":{"better-sqlite3":"^12"}}"#, 1),
            (r#"{"dependencies":{"bcrypt":"^5.1.0"}}"#, 1),
            (r#"{"dependencies":{"bcrypt":"^6.0.0","express":"*"}}"#, 0),
        ] {
            assert_eq!(addons(&package(&[("package.json", manifest)]).1).len(), expected, "{manifest}");
        }
        let (_app, own) = package(&[("package.json", "{}"), ("binding.gyp", "{}")]);
        assert_eq!(addons(&own), ["binding.gyp"]);
    }
}
