//! What the daemon tells a phase, and what a phase reports back. JSON, both ways.
//!
//! A phase is run as `epiniod lifecycle PHASE`, reads [`INPUT`] and writes [`REPORT`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    model::{Digest, ImageName},
    oci::Compression,
    runtime::CNB_ID,
};

/// Where every phase finds its JSON input.
pub const INPUT: &str = "/run/epiniod/phase.json";
/// Where every phase leaves its report.
pub const REPORT: &str = "/run/epiniod/out/report.json";
/// Where a phase that talks to the registry finds its token (not the build).
pub const TOKEN: &str = "/run/epiniod/token";

/// The CNB user of a build: whose files are in its volumes and in the layers that are made of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CnbUser {
    pub uid: u32,
    pub gid: u32,
}

impl CnbUser {
    /// That of every base image of ours.
    pub const EMBEDDED: Self = Self { uid: CNB_ID, gid: CNB_ID };
}

/// Where the buildpacks of a build come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Buildpacks {
    /// `prepare` lays them out in the volume `/cnb`.
    Embedded,
    /// The image that the build runs on has them, and there is no such volume.
    OfTheImage,
}

/// `prepare`: lay out the volumes: source in `/workspace`, platform directory, embedded buildpacks
/// in `/cnb`, what was cached in `/layers`. Runs as root of its sandbox; what it writes belongs to the CNB user.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prepare {
    /// The uploaded archive, a file in the sandbox.
    pub source: String,
    /// Limits of the unpacked source.
    pub max_bytes: u64,
    pub max_entries: u64,
    /// For `/platform/env`: what builds are given, and the application's environment, which wins.
    pub environment: BTreeMap<String, String>,
    /// Where the build finds the certificate authorities that it is given, for the binding `ca-certificates`.
    pub ca_bundle: Option<String>,
    /// Where the previous image and the cache are.
    pub registry: RegistryAccess,
    /// The image of the last successful staging, for reuse of layers.
    pub previous: Option<ImageName>,
    pub cache: Option<ImageName>,
    pub buildpacks: Buildpacks,
    pub user: CnbUser,
}

/// The report of `prepare`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    pub entries: u64,
    pub bytes: u64,
    /// What could not be restored, and why; never fatal.
    pub warnings: Vec<String>,
}

/// `detect`: which buildpacks take part. Runs as the CNB user without network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Detect {
    pub target: Target,
    /// The third-party builder that is asked; none is the embedded one.
    pub builder: Option<String>,
    /// Its order as its labels have it, for an image without `/cnb/order.toml`.
    pub order: Option<serde_json::Value>,
}

/// The report of `detect`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Detected {
    pub buildpacks: Vec<BuildpackRef>,
    /// Debian packages that the plan requires of the built-in `debian` provider.
    pub packages: Vec<PackageRequest>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildpackRef {
    pub id: String,
    pub version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PackageRequest {
    pub name: String,
    /// Needed while building.
    pub build: bool,
    /// Needed in the application image.
    pub launch: bool,
}

/// `build`: run the buildpacks of the group. Runs as the CNB user in the build base.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Build {
    pub target: Target,
    /// Variables that every buildpack gets, also one that wants no `/platform/env`, which wins: proxies and
    /// certificate bundles. They reach the build and never the image.
    pub build_environment: BTreeMap<String, String>,
    /// Given when nobody was asked before: then it detects first, as the same user on the same image.
    #[serde(default)]
    pub detect: Option<Detect>,
}

/// `export`: write the image, then the cache. Runs as root of its sandbox on the daemon's network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Export {
    pub registry: RegistryAccess,
    /// Repository and tag of the image.
    pub repository: String,
    pub tag: String,
    /// What the application layers are put on.
    pub run_image: ImageName,
    /// What its builder calls the run image, if that is not its name in the registry: what later rebases look for.
    pub run_image_name: Option<String>,
    /// Whom the image runs as, if that is not as the run image's configuration has it: `UID:GID`.
    #[serde(default)]
    pub run_user: Option<String>,
    pub user: CnbUser,
    pub previous: Option<ImageName>,
    pub cache_repository: String,
    pub compression: Compression,
    /// What the layers of the application may have together, uncompressed; as much is for the cache.
    pub max_bytes: u64,
    /// For `io.buildpacks.project.metadata`.
    pub project: serde_json::Value,
}

/// The report of `export`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exported {
    pub image: ImageName,
    pub cache: Option<ImageName>,
    pub layers_added: u32,
    pub layers_reused: u32,
    pub warnings: Vec<String>,
}

/// How a phase reaches the registry; the token is in [`TOKEN`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryAccess {
    /// `host:port`, plain HTTP.
    pub address: String,
}

/// What images are built for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub os: String,
    pub arch: String,
    pub distro_name: String,
    pub distro_version: String,
}

/// Identifies a phase failure to the daemon: written to [`REPORT`] by any phase that fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// One or two sentences: what is wrong and what to do next.
    pub cause: String,
    /// The exit code of the lifecycle (Platform API, "Outputs" of each phase).
    pub code: i32,
    /// The buildpack that failed.
    pub buildpack: Option<BuildpackRef>,
}

/// The digest of everything that decides an image besides its source: makes "no change" detectable.
pub fn fingerprint(parts: &[&[u8]]) -> Digest {
    let mut all = Vec::new();
    for part in parts {
        all.extend_from_slice(&(part.len() as u64).to_le_bytes());
        all.extend_from_slice(part);
    }
    Digest::of(all)
}
