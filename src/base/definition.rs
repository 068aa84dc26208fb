//! What bases are made of: `embedded/base/definition.toml`.

use std::{collections::BTreeMap, sync::OnceLock};

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Definition {
    /// Grows when the same packages give other layers.
    pub recipe: u32,
    pub suite: String,
    pub distro: Distro,
    pub mirrors: PublicMirrors,
    pub run: Run,
    pub aliases: BTreeMap<String, Vec<String>>,
    pub dependencies: Dependencies,
    pub strip: Strip,
    /// Links by path, each with its absolute target.
    pub links: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Distro {
    pub name: String,
    pub version: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PublicMirrors {
    pub archive: String,
    pub security: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Run {
    pub packages: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dependencies {
    pub drop: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Strip {
    pub paths: Vec<String>,
}

impl Definition {
    pub(super) fn embedded() -> &'static Self {
        static DEFINITION: OnceLock<Definition> = OnceLock::new();
        const TEXT: &str = include_str!("../../embedded/base/definition.toml");
        DEFINITION.get_or_init(|| toml::from_str(TEXT).expect("the embedded definition is well-formed"))
    }
}

impl Strip {
    /// Whether layers leave this path out. Copyright files, notices that licences want to be passed on, and links between documentation folders stay.
    pub(super) fn leaves_out(&self, path: &str, is_link: bool) -> bool {
        let below =
            |folder: &String| path.strip_prefix(folder.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('/'));
        if !self.paths.iter().any(below) {
            return false;
        }
        let Some(doc) = path.strip_prefix("usr/share/doc/") else { return true };
        match doc.split_once('/') {
            None => !is_link,
            Some((_, file)) => file != "copyright" && !file.starts_with("NOTICE"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documentation_goes_and_copyright_stays() {
        let strip = &Definition::embedded().strip;
        for (path, is_link, out) in [
            ("usr/share/doc/bash/copyright", false, false),
            ("usr/share/doc/nodejs/NOTICE.gz", false, false),
            ("usr/share/doc/libstdc++6", true, false),
            ("usr/share/doc/bash", false, true),
            ("usr/share/doc/bash/README.gz", false, true),
            ("usr/share/man/man1/ls.1.gz", false, true),
            ("usr/share/manual", false, false),
            ("usr/bin/man", false, false),
            ("usr/lib/systemd/system/nginx.service", false, true),
        ] {
            assert_eq!(strip.leaves_out(path, is_link), out, "{path}");
        }
    }
}
