//! `epiniod/debian`: provides Debian packages to the other buildpacks, and to the application by its `Aptfile`.
//!
//! The packages are in the bases before the build begins; what is left to do is to say so.

use std::path::Path;

use libcnb::data::launch::{Launch, LaunchBuilder};

use super::{Context, Failure, Packages, Result, Wants, read, say};

/// One package a line; `#` begins a comment.
const APTFILE: &str = "Aptfile";

pub(super) fn detect(app: &Path) -> Result<Option<Wants>> {
    let mut wants = Wants { provides_debian: true, ..Wants::default() };
    if let Some(text) = read(app, APTFILE) {
        let names: Vec<&str> = text
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default().trim())
            .filter(|name| !name.is_empty())
            .collect();
        let plain =
            |name: &&str| name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"+-.".contains(&c));
        if let Some(wrong) = names.iter().find(|name| !plain(name)) {
            return Err(Failure::new(format!(
                "'{wrong}' in {APTFILE} is not the name of a Debian package; write one name a line"
            )));
        }
        if !names.is_empty() {
            wants.packages.push(Packages::everywhere(&names));
        }
    }
    Ok(Some(wants))
}

pub(super) fn build(context: &Context) -> Launch {
    for entry in &context.buildpack_plan.entries {
        let names = entry.metadata.get("packages").and_then(|packages| packages.as_array()).into_iter().flatten();
        let names: Vec<&str> = names.filter_map(|name| name.as_str()).collect();
        say(&format!("Debian packages: {}", names.join(", ")));
    }
    LaunchBuilder::new().build()
}
