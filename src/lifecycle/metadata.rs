//! The labels of images: what was built, from what, by which buildpacks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::types::{LayerTypes, Metadata};
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

impl LifecycleMetadata {
    pub fn layer(&self, id: &str, name: &str) -> Option<&LayerMetadata> {
        self.buildpacks.iter().find(|buildpack| buildpack.key == id)?.layers.get(name)
    }
}

/// `io.buildpacks.build.metadata`
pub(super) fn build_label(metadata: &Metadata) -> serde_json::Value {
    let buildpacks: Vec<_> = metadata
        .buildpacks
        .iter()
        .map(|buildpack| {
            let mut entry = serde_json::json!({ "id": buildpack.id, "version": buildpack.version });
            if let Some(homepage) = &buildpack.homepage {
                entry["homepage"] = homepage.as_str().into();
            }
            entry
        })
        .collect();
    let processes: Vec<_> = metadata
        .processes
        .iter()
        .map(|process| {
            let mut entry = serde_json::json!({
                "type": process.r#type,
                "command": process.command,
                "args": process.args,
                "direct": process.direct,
                "buildpackID": process.buildpack_id,
            });
            if let Some(dir) = &process.working_dir {
                entry["working-dir"] = dir.as_str().into();
            }
            entry
        })
        .collect();
    let mut label = serde_json::json!({
        "buildpacks": buildpacks,
        "launcher": { "version": crate::launcher::VERSION, "source": { "git": { "repository": "", "commit": "" } } },
        "processes": processes,
    });
    if let Some(default) = &metadata.buildpack_default_process_type {
        label["buildpack-default-process-type"] = default.as_str().into();
    }
    label
}
