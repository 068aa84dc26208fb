//! What the labels and the environment of a builder say.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Error, copy::Copied};
use crate::{
    lifecycle::phase::{CnbUser, Target},
    oci::{ConfigFile, architecture},
};

const METADATA: &str = "io.buildpacks.builder.metadata";
const ORDER: &str = "io.buildpacks.buildpack.order";
const EXTENSIONS: &str = "io.buildpacks.buildpack.order-extensions";
const DISTRO_NAME: &str = "io.buildpacks.base.distro.name";
const DISTRO_VERSION: &str = "io.buildpacks.base.distro.version";
/// Sandboxes have so many ids.
const IDS: std::ops::Range<u32> = 1..65_536;

pub(super) struct Facts {
    pub user: CnbUser,
    pub order: Option<Value>,
    /// None where only a file in the image says it.
    pub run_image: Option<RunImage>,
    pub has_extensions: bool,
    /// Name and version.
    distro: (String, String),
}

/// A run image by its name, and other names for it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct RunImage {
    pub image: String,
    #[serde(default, deserialize_with = "or_none")]
    pub mirrors: Vec<String>,
}

/// `io.buildpacks.builder.metadata`, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
struct Metadata {
    /// Newer builders have these, older ones the stack.
    images: Option<Vec<RunImage>>,
    stack: Option<Stack>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stack {
    run_image: Option<RunImage>,
}

impl Facts {
    pub fn read(builder: &Copied) -> Result<Self, Error> {
        let image = builder.name.as_str();
        let missing = |missing| Error::NotABuilder { image: image.to_owned(), missing };
        let config = &builder.config;
        let metadata: Metadata =
            label(image, config, METADATA)?.ok_or_else(|| missing("label io.buildpacks.builder.metadata"))?;
        let id = |variable: &'static str| {
            let text = variable_of(config, variable).ok_or_else(|| missing(variable))?;
            let id = text.parse().ok().filter(|id| IDS.contains(id));
            let cause = || format!("its {variable} is '{text}'; a user from 1 to {} is needed", IDS.end - 1);
            id.ok_or_else(|| Error::malformed(image, cause()))
        };
        let user = CnbUser { uid: id("CNB_USER_ID")?, gid: id("CNB_GROUP_ID")? };
        let of_stack = metadata.stack.and_then(|stack| stack.run_image);
        let run_image = metadata.images.and_then(|images| images.into_iter().next()).or(of_stack);
        let extensions: Option<Vec<Value>> = label(image, config, EXTENSIONS)?;
        Ok(Self {
            user,
            order: label(image, config, ORDER)?,
            run_image: run_image.filter(|run_image| !run_image.image.is_empty()),
            has_extensions: extensions.is_some_and(|order| !order.is_empty()),
            distro: distro(config),
        })
    }

    /// What the images are for, by the run image's labels and else by the builder's; what is empty the build image says.
    pub fn target(&self, run_image: &ConfigFile) -> Target {
        let of_run_image = distro(run_image);
        let (distro_name, distro_version) = if of_run_image.0.is_empty() { self.distro.clone() } else { of_run_image };
        Target { os: "linux".to_owned(), arch: architecture().to_owned(), distro_name, distro_version }
    }
}

fn distro(config: &ConfigFile) -> (String, String) {
    let label = |name: &str| config.config.labels.as_ref().and_then(|labels| labels.get(name)).cloned();
    (label(DISTRO_NAME).unwrap_or_default(), label(DISTRO_VERSION).unwrap_or_default())
}

fn label<T: DeserializeOwned>(image: &str, config: &ConfigFile, name: &str) -> Result<Option<T>, Error> {
    let Some(text) = config.config.labels.as_ref().and_then(|labels| labels.get(name)) else { return Ok(None) };
    let wrong = |error| Error::malformed(image, format!("its label {name} cannot be read: {error}"));
    serde_json::from_str(text).map_err(wrong)
}

fn variable_of<'a>(config: &'a ConfigFile, name: &str) -> Option<&'a str> {
    let variables = config.config.env.iter().flatten().filter_map(|entry| entry.split_once('='));
    variables.filter(|(known, _)| *known == name).map(|(_, value)| value).next_back()
}

/// Go writes `null` for a list that is empty.
fn or_none<'de, D: serde::Deserializer<'de>>(json: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(json)?.unwrap_or_default())
}
