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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        model::{Digest, ImageName},
        oci::{Descriptor, Manifest},
    };

    /// A builder as tools of the field write it, `null` in the places of what is empty.
    fn builder(variables: Value, labels: Value) -> Copied {
        let config = json!({
            "architecture": architecture(), "os": "linux", "history": null, "rootfs": { "type": "layers", "diff_ids": [] },
            "config": { "User": "1001:1000", "ExposedPorts": null, "Env": variables, "Cmd": null, "Labels": labels },
        });
        let digest = Digest::of("image");
        Copied {
            name: "host.example/builder".to_owned(),
            image: ImageName::new("epiniod/builders", digest),
            manifest: Manifest::image(Descriptor::new("config", digest, 1), Vec::new()),
            config: serde_json::from_value(config).unwrap(),
        }
    }

    fn ids() -> Value {
        json!(["PATH=/bin", "CNB_USER_ID=1001", "CNB_GROUP_ID=1000"])
    }

    #[test]
    fn newer_builders_have_images_and_older_ones_a_stack() {
        let new = json!({ "images": [{ "image": "a/run:1", "mirrors": ["b/run:1"] }], "stack": { "runImage": { "image": "" } } });
        let old = json!({ "images": null, "stack": { "runImage": { "image": "a/run:1", "mirrors": null } } });
        for (metadata, mirrors) in [(new, &["b/run:1"][..]), (old, &[])] {
            let labels = json!({ METADATA: metadata.to_string(), DISTRO_NAME: "ubuntu", DISTRO_VERSION: "24.04" });
            let facts = Facts::read(&builder(ids(), labels)).unwrap();
            assert_eq!(facts.user, CnbUser { uid: 1001, gid: 1000 });
            let run_image = facts.run_image.clone().unwrap();
            assert_eq!(
                (run_image.image.as_str(), run_image.mirrors),
                ("a/run:1", mirrors.iter().map(|m| (*m).to_owned()).collect())
            );
            let target = facts.target(&ConfigFile::default());
            assert_eq!((target.distro_name.as_str(), target.distro_version.as_str()), ("ubuntu", "24.04"));
        }
    }

    #[test]
    fn what_a_builder_has_to_say_is_missed_by_name() {
        let labels = || json!({ METADATA: "{}" });
        for (variables, labels, missing) in [
            (ids(), json!(null), "no label io.buildpacks.builder.metadata"),
            (json!(null), labels(), "no CNB_USER_ID"),
            (json!(["CNB_USER_ID=1001"]), labels(), "no CNB_GROUP_ID"),
            (json!(["CNB_USER_ID=0", "CNB_GROUP_ID=1"]), labels(), "CNB_USER_ID is '0'"),
            (json!(["CNB_USER_ID=1", "CNB_GROUP_ID=70000"]), labels(), "CNB_GROUP_ID is '70000'"),
            (ids(), json!({ METADATA: "no JSON" }), "its label io.buildpacks.builder.metadata cannot be read"),
        ] {
            let error = Facts::read(&builder(variables, labels)).err().unwrap().to_string();
            assert!(error.starts_with("image 'host.example/builder'") && error.contains(missing), "{error}");
        }
    }
}
