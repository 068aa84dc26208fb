//! Switches in the application's environment.

use libcnb::{Platform, generic::GenericPlatform};

/// `true` gives the build a compiler, `false` keeps it away.
pub(super) const BUILD_TOOLS: &str = "BP_BUILD_TOOLS";

/// What the application's environment says about `name`; `None` when it says nothing.
pub(super) fn read(platform: &GenericPlatform, name: &str) -> Option<bool> {
    let value = platform.env().get_string_lossy(name)?;
    match value.trim().to_ascii_lowercase().as_str() {
        "" => None,
        "0" | "false" | "no" | "off" => Some(false),
        _ => Some(true),
    }
}
