//! The TOML files of buildpacks and of the lifecycle. Unknown keys are ignored, as the specification wants it.

use serde::{Deserialize, Serialize};

#[derive(Debug, Default, Deserialize)]
pub(super) struct Order {
    #[serde(default)]
    pub order: Vec<OrderGroup>,
}

#[derive(Debug, Default, Clone, Deserialize)]
pub(super) struct OrderGroup {
    #[serde(default)]
    pub group: Vec<OrderElement>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct OrderElement {
    pub id: String,
    pub version: String,
    #[serde(default)]
    pub optional: bool,
}

/// `buildpack.toml`
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Descriptor {
    pub api: String,
    pub buildpack: DescriptorBuildpack,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct DescriptorBuildpack {
    pub homepage: Option<String>,
    #[serde(default)]
    pub clear_env: bool,
}

/// `group.toml`
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct Group {
    #[serde(default)]
    pub group: Vec<GroupElement>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GroupElement {
    pub id: String,
    pub version: String,
    pub api: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub homepage: Option<String>,
}

/// What `bin/detect` writes.
#[derive(Debug, Default, Clone, Deserialize)]
pub(super) struct BuildPlan {
    #[serde(default)]
    pub provides: Vec<Provide>,
    #[serde(default)]
    pub requires: Vec<Require>,
    #[serde(default)]
    pub or: Vec<Alternative>,
}

#[derive(Debug, Default, Clone, Deserialize)]
pub(super) struct Alternative {
    #[serde(default)]
    pub provides: Vec<Provide>,
    #[serde(default)]
    pub requires: Vec<Require>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Provide {
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Require {
    pub name: String,
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub metadata: toml::Table,
}

/// `plan.toml`
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    #[serde(default)]
    pub entries: Vec<PlanEntry>,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PlanEntry {
    pub providers: Vec<Provider>,
    pub requires: Vec<Require>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Provider {
    pub id: String,
    pub version: String,
}

/// The plan of one buildpack.
#[derive(Debug, Default, Serialize)]
pub(super) struct BuildpackPlan {
    pub entries: Vec<Require>,
}

/// `build.toml`
#[derive(Debug, Default, Deserialize)]
pub(super) struct BuildToml {
    #[serde(default)]
    pub unmet: Vec<Provide>,
}

/// `launch.toml`
#[derive(Debug, Default, Deserialize)]
pub(super) struct LaunchToml {
    #[serde(default)]
    pub processes: Vec<LaunchProcess>,
    #[serde(default)]
    pub labels: Vec<Label>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct LaunchProcess {
    pub r#type: String,
    pub command: toml::Value,
    #[serde(default)]
    pub args: Vec<String>,
    pub direct: Option<bool>,
    #[serde(default)]
    pub default: bool,
    pub working_dir: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Label {
    pub key: String,
    pub value: String,
}

/// `<layer>.toml`
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct LayerToml {
    #[serde(default)]
    pub types: LayerTypes,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<toml::Value>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerTypes {
    #[serde(default)]
    pub launch: bool,
    #[serde(default)]
    pub build: bool,
    #[serde(default)]
    pub cache: bool,
}

/// `store.toml`
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct StoreToml {
    pub metadata: Option<toml::Value>,
}

/// `config/metadata.toml`
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Metadata {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buildpack_default_process_type: Option<String>,
    #[serde(default)]
    pub buildpacks: Vec<GroupElement>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Label>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Process>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Process {
    pub r#type: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub direct: bool,
    pub buildpack_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
}
