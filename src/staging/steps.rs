//! The steps of a staging as the runtime gets them: what each sees, and what it does not.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::{
    Settings,
    ground::{self, Ground},
};
use crate::{
    lifecycle::{
        PLATFORM_API,
        phase::{self, Buildpacks, CnbUser, RegistryAccess},
    },
    model::{ImageName, Staging},
    oci::Compression,
    runtime::{Access, Limits, Step, StepBlob, StepFile, StepImage, StepNetwork, StepUser, Trust, VolumeMount},
};

/// Where `prepare` finds the uploaded archive.
const SOURCE: &str = "/run/epiniod/source";
const ROOTS: &str = "/run/epiniod/roots.pem";
/// How long our own steps may take.
const OWN_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// How long those may take that move whole applications: 16 GiB on a slow disk.
const MOVING_DEADLINE: Duration = Duration::from_secs(3600);
/// What our own steps may use: they work in streams.
const OWN_LIMITS: Limits =
    Limits { memory_bytes: Some(1 << 30), millicpus: None, pids: Some(256), scratch_bytes: None };

type Result<T> = std::result::Result<T, serde_json::Error>;

/// Lays out the volumes. The only step that sees the archive. The ground is given where it is known before detection.
pub(super) fn prepare(
    settings: &Settings,
    staging: &Staging,
    token: &[u8],
    previous: Option<&ImageName>,
    cache: Option<ImageName>,
    ground: Option<&Ground>,
) -> Result<Step> {
    let (buildpacks, user) =
        ground.map_or((Buildpacks::Embedded, CnbUser::EMBEDDED), |ground| (ground.buildpacks, ground.user));
    let mut environment = settings.build_environment.clone();
    environment.extend(staging.environment.iter().map(|(name, value)| (name.to_string(), value.clone())));
    let input = phase::Prepare {
        source: SOURCE.to_owned(),
        max_bytes: settings.max_source_bytes,
        max_entries: settings.max_source_entries,
        environment,
        ca_bundle: settings.ca_bundle.clone(),
        registry: RegistryAccess { address: settings.registry_address.clone() },
        previous: previous.cloned(),
        cache,
        buildpacks,
        user,
    };
    Ok(Step {
        files: vec![input_file(&input)?, token_file(token), roots_file()],
        env: registry_environment(),
        blobs: vec![StepBlob { digest: staging.source, path: SOURCE.to_owned(), token: phase::TOKEN.to_owned() }],
        volumes: volumes(["rw workspace", "rw layers", "rw platform", "rw cnb"], buildpacks),
        network: StepNetwork::Daemon,
        user: StepUser::Root,
        deadline: MOVING_DEADLINE,
        ..own_step("prepare")
    })
}

/// Asks the buildpacks. No network, nothing to write but its results.
pub(super) fn detect() -> Result<Step> {
    let input = phase::Detect { target: ground::debian(), builder: None, order: None };
    Ok(Step {
        files: vec![input_file(&input)?],
        volumes: volumes(["ro workspace", "rw layers", "ro platform", "ro cnb"], Buildpacks::Embedded),
        limits: Limits { pids: Some(1024), ..OWN_LIMITS },
        ..own_step("detect")
    })
}

/// Runs the buildpacks: foreign code, on the build base or in a builder's image, with no credential in reach.
pub(super) fn build(settings: &Settings, ground: &Ground) -> Result<Step> {
    let input = phase::Build {
        target: ground.target.clone(),
        build_environment: settings.build_environment.clone(),
        detect: ground.detect.clone(),
    };
    Ok(Step {
        image: StepImage::Image(ground.build.clone()),
        user: ground.step_user(),
        files: vec![input_file(&input)?],
        // Compilers and package managers put gigabytes there, which no memory should hold.
        volumes: volumes(["rw workspace", "rw layers", "ro platform", "ro cnb", "rw tmp"], ground.buildpacks),
        network: StepNetwork::Outbound,
        trust: Trust::BuildCa,
        limits: settings.limits.clone(),
        deadline: settings.deadline,
        ..own_step("build")
    })
}

/// Writes the image to the registry.
pub(super) fn export(
    settings: &Settings,
    staging: &Staging,
    token: &[u8],
    ground: &Ground,
    previous: Option<&ImageName>,
) -> Result<Step> {
    let input = phase::Export {
        registry: RegistryAccess { address: settings.registry_address.clone() },
        repository: ImageName::app_repository(&staging.namespace, &staging.app),
        tag: staging.id.to_string(),
        run_image: ground.run.clone(),
        run_image_name: ground.run_name.clone(),
        run_user: ground.run_user.clone(),
        user: ground.user,
        previous: previous.cloned(),
        cache_repository: ImageName::cache_repository(&staging.namespace, &staging.app),
        compression: Compression::Zstd,
        max_bytes: settings.max_source_bytes.saturating_mul(2),
        project: serde_json::json!({}),
    };
    Ok(Step {
        files: vec![input_file(&input)?, token_file(token), roots_file()],
        env: registry_environment(),
        volumes: volumes(["ro workspace", "rw layers", "ro platform", "ro cnb"], ground.buildpacks),
        network: StepNetwork::Daemon,
        user: StepUser::Root,
        deadline: MOVING_DEADLINE,
        ..own_step("export")
    })
}

/// A step of our own code as the CNB user, with nothing in reach.
fn own_step(name: &'static str) -> Step {
    Step {
        name,
        image: StepImage::Own,
        args: vec!["lifecycle".to_owned(), name.to_owned()],
        env: BTreeMap::from([("CNB_PLATFORM_API".to_owned(), PLATFORM_API.to_owned())]),
        files: Vec::new(),
        blobs: Vec::new(),
        volumes: Vec::new(),
        network: StepNetwork::None,
        user: StepUser::Cnb,
        trust: Trust::Image,
        limits: OWN_LIMITS,
        report: Some(phase::REPORT.to_owned()),
        deadline: OWN_DEADLINE,
    }
}

/// Where the image has the buildpacks, nothing may hide them.
fn volumes<const N: usize>(mounts: [&str; N], buildpacks: Buildpacks) -> Vec<VolumeMount> {
    let mount = |text: &str| {
        let (access, volume) = text.split_once(' ').expect("an access and a volume");
        let access = if access == "rw" { Access::ReadWrite } else { Access::ReadOnly };
        VolumeMount { volume: volume.to_owned(), path: format!("/{volume}"), access }
    };
    let all = mounts.into_iter().map(mount);
    all.filter(|mount| buildpacks == Buildpacks::Embedded || mount.volume != "cnb").collect()
}

fn input_file(input: &impl Serialize) -> Result<StepFile> {
    Ok(StepFile { path: phase::INPUT.to_owned(), contents: serde_json::to_vec(input)?, secret: false })
}

fn token_file(token: &[u8]) -> StepFile {
    StepFile { path: phase::TOKEN.to_owned(), contents: token.to_vec(), secret: true }
}

/// The registry is reached without TLS, but its client does not start without some certificate authority, and the
/// sandboxes of our own steps have none.
fn roots_file() -> StepFile {
    let der = webpki_root_certs::TLS_SERVER_ROOT_CERTS.first().map(|der| STANDARD.encode(der)).unwrap_or_default();
    let pem = format!("-----BEGIN CERTIFICATE-----\n{der}\n-----END CERTIFICATE-----\n");
    StepFile { path: ROOTS.to_owned(), contents: pem.into_bytes(), secret: false }
}

fn registry_environment() -> BTreeMap<String, String> {
    let platform = ("CNB_PLATFORM_API".to_owned(), PLATFORM_API.to_owned());
    BTreeMap::from([platform, ("SSL_CERT_FILE".to_owned(), ROOTS.to_owned())])
}
