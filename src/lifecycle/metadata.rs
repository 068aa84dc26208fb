//! The labels of images: what was built, from what, by which buildpacks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::types::{GroupElement, LayerTypes, Metadata, Process};
use crate::model::Digest;

pub(super) const LIFECYCLE: &str = "io.buildpacks.lifecycle.metadata";
pub(super) const BUILD: &str = "io.buildpacks.build.metadata";
pub(super) const PROJECT: &str = "io.buildpacks.project.metadata";
pub(super) const CACHE: &str = "io.buildpacks.lifecycle.cache.metadata";

/// `io.buildpacks.lifecycle.metadata`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LifecycleMetadata {
    pub app: Vec<Sha>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sbom: Option<Sha>,
    #[serde(default)]
    pub buildpacks: Vec<BuildpackLayers>,
    #[serde(default)]
    pub config: Option<Sha>,
    #[serde(default)]
    pub launcher: Option<Sha>,
    #[serde(rename = "process-types", default, skip_serializing_if = "Option::is_none")]
    pub process_types: Option<Sha>,
    #[serde(default)]
    pub run_image: RunImage,
    #[serde(default)]
    pub stack: Stack,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sha {
    pub sha: Digest,
}

/// `io.buildpacks.lifecycle.cache.metadata`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct CacheMetadata {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sbom: Option<Sha>,
    pub buildpacks: Vec<BuildpackLayers>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct BuildpackLayers {
    pub key: String,
    pub version: String,
    pub layers: BTreeMap<String, LayerMetadata>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LayerMetadata {
    pub sha: Digest,
    pub data: Option<serde_json::Value>,
    #[serde(flatten)]
    pub types: LayerTypes,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RunImage {
    pub top_layer: String,
    pub reference: String,
    pub image: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Stack {
    pub run_image: StackImage,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct StackImage {
    pub image: String,
}

/// A layer of a buildpack, as a label has it.
pub(super) fn find<'a>(all: &'a [BuildpackLayers], id: &str, name: &str) -> Option<&'a LayerMetadata> {
    all.iter().find(|buildpack| buildpack.key == id)?.layers.get(name)
}

/// Free-form metadata as labels have it. JSON has no dates: they become text.
pub(super) fn json(value: &toml::Value) -> serde_json::Value {
    match value {
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(list) => list.iter().map(json).collect(),
        toml::Value::Table(table) => table.iter().map(|(key, value)| (key.clone(), json(value))).collect(),
        toml::Value::String(text) => text.as_str().into(),
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Float(number) => (*number).into(),
        toml::Value::Boolean(flag) => (*flag).into(),
    }
}

/// `io.buildpacks.build.metadata`
#[derive(Debug, Serialize)]
pub(super) struct BuildLabel<'a> {
    buildpacks: Vec<BuildpackEntry<'a>>,
    launcher: Launcher,
    processes: Vec<ProcessEntry<'a>>,
    #[serde(rename = "buildpack-default-process-type", skip_serializing_if = "Option::is_none")]
    default: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct BuildpackEntry<'a> {
    id: &'a str,
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    homepage: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Launcher {
    version: &'static str,
    source: Source,
}

#[derive(Debug, Default, Serialize)]
struct Source {
    git: Git,
}

#[derive(Debug, Default, Serialize)]
struct Git {
    repository: &'static str,
    commit: &'static str,
}

#[derive(Debug, Serialize)]
struct ProcessEntry<'a> {
    r#type: &'a str,
    command: &'a [String],
    args: &'a [String],
    direct: bool,
    #[serde(rename = "buildpackID")]
    buildpack_id: &'a str,
    #[serde(rename = "working-dir", skip_serializing_if = "Option::is_none")]
    working_dir: Option<&'a str>,
}

impl<'a> BuildLabel<'a> {
    pub fn new(metadata: &'a Metadata) -> Self {
        let buildpack = |buildpack: &'a GroupElement| BuildpackEntry {
            id: &buildpack.id,
            version: &buildpack.version,
            homepage: buildpack.homepage.as_deref(),
        };
        let process = |process: &'a Process| ProcessEntry {
            r#type: &process.r#type,
            command: &process.command,
            args: &process.args,
            direct: process.direct,
            buildpack_id: &process.buildpack_id,
            working_dir: process.working_dir.as_deref(),
        };
        Self {
            buildpacks: metadata.buildpacks.iter().map(buildpack).collect(),
            launcher: Launcher { version: crate::launcher::VERSION, source: Source::default() },
            processes: metadata.processes.iter().map(process).collect(),
            default: metadata.buildpack_default_process_type.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_keeps_integers_and_writes_dates_as_text() {
        let table: toml::Value = toml::from_str("a = 1\nb = 1979-05-27T07:32:00Z\nc = [{ d = 1.5 }]").unwrap();
        let expected = serde_json::json!({ "a": 1, "b": "1979-05-27T07:32:00Z", "c": [{ "d": 1.5 }] });
        assert_eq!(json(&table), expected);
    }

    #[test]
    fn labels_have_the_keys_of_the_real_exporter_in_their_order() {
        let metadata = Metadata {
            buildpack_default_process_type: Some("web".to_owned()),
            buildpacks: vec![GroupElement {
                id: "a".to_owned(),
                version: "1".to_owned(),
                api: "0.10".to_owned(),
                homepage: None,
            }],
            ..Metadata::default()
        };
        let version = crate::launcher::VERSION;
        let expected = format!(
            r#"{{"buildpacks":[{{"id":"a","version":"1"}}],"launcher":{{"version":"{version}","source":{{"git":{{"repository":"","commit":""}}}}}},"processes":[],"buildpack-default-process-type":"web"}}"#
        );
        assert_eq!(serde_json::to_string(&BuildLabel::new(&metadata)).unwrap(), expected);
        let sha = Digest::of("");
        let layer = LayerMetadata { sha, data: None, types: LayerTypes { launch: true, ..LayerTypes::default() } };
        let expected = format!(r#"{{"sha":"{sha}","data":null,"build":false,"launch":true,"cache":false}}"#);
        assert_eq!(serde_json::to_string(&layer).unwrap(), expected);
    }
}
