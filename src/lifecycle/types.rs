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

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct OrderElement {
    pub id: String,
    pub version: String,
    #[serde(default)]
    pub optional: bool,
}

/// `buildpack.toml`
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Descriptor {
    #[serde(default)]
    pub api: String,
    pub buildpack: DescriptorBuildpack,
    #[serde(default)]
    pub targets: Vec<TargetPattern>,
    /// Of a composite buildpack, which is nothing but this.
    #[serde(default)]
    pub order: Vec<OrderGroup>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct DescriptorBuildpack {
    pub homepage: Option<String>,
    #[serde(default)]
    pub clear_env: bool,
    /// Media types.
    #[serde(default)]
    pub sbom_formats: Vec<String>,
}

/// What a buildpack is made for; what is empty is anything. Variants of an architecture are not told apart, as images
/// that name none are not.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(super) struct TargetPattern {
    pub os: String,
    pub arch: String,
    pub distros: Vec<Distro>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(super) struct Distro {
    pub name: String,
    pub version: String,
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
    /// Old APIs had it here. It belongs into the metadata.
    #[serde(default, skip_serializing)]
    pub version: Option<toml::Value>,
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
    #[serde(default)]
    pub slices: Vec<Slice>,
}

/// Files of the application that get a layer of their own, by patterns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slice {
    #[serde(default)]
    pub paths: Vec<String>,
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
#[derive(Debug, Default, Clone, Deserialize)]
pub(super) struct LayerToml {
    #[serde(default)]
    pub types: LayerTypes,
    pub metadata: Option<toml::Value>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerTypes {
    #[serde(default)]
    pub build: bool,
    #[serde(default)]
    pub launch: bool,
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slices: Vec<Slice>,
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

impl Metadata {
    /// Every value in one line, with basic strings only: the launcher reads no more of TOML than that. A JSON string is
    /// a basic string, and a JSON array of strings an array.
    pub fn to_toml(&self) -> String {
        fn json(value: &impl Serialize) -> String {
            // The one character that JSON leaves as it is and TOML does not.
            serde_json::to_string(value).unwrap_or_default().replace('\u{7f}', "\\u007f")
        }
        let mut text = String::new();
        let mut line = |key: &str, value: String| text.push_str(&format!("{key} = {value}\n"));
        if let Some(default) = &self.buildpack_default_process_type {
            line("buildpack-default-process-type", json(default));
        }
        for buildpack in &self.buildpacks {
            text.push_str("\n[[buildpacks]]\n");
            let mut line = |key: &str, value: String| text.push_str(&format!("{key} = {value}\n"));
            line("id", json(&buildpack.id));
            line("version", json(&buildpack.version));
            line("api", json(&buildpack.api));
            if let Some(homepage) = &buildpack.homepage {
                line("homepage", json(homepage));
            }
        }
        for label in &self.labels {
            text.push_str(&format!("\n[[labels]]\nkey = {}\nvalue = {}\n", json(&label.key), json(&label.value)));
        }
        for process in &self.processes {
            text.push_str("\n[[processes]]\n");
            let mut line = |key: &str, value: String| text.push_str(&format!("{key} = {value}\n"));
            line("type", json(&process.r#type));
            line("command", json(&process.command));
            line("args", json(&process.args));
            line("direct", json(&process.direct));
            line("buildpack-id", json(&process.buildpack_id));
            if let Some(dir) = &process.working_dir {
                line("working-dir", json(dir));
            }
        }
        for slice in &self.slices {
            text.push_str(&format!("\n[[slices]]\npaths = {}\n", json(&slice.paths)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_read_back_as_it_was_written() {
        let process = Process {
            r#type: "web".to_owned(),
            command: vec!["bash".to_owned(), "-c".to_owned()],
            args: vec!["echo \"$A\"\n'two'\t\\\u{7f}".to_owned()],
            direct: true,
            buildpack_id: "a/b".to_owned(),
            working_dir: None,
        };
        let metadata = Metadata {
            buildpack_default_process_type: Some("web".to_owned()),
            processes: vec![process.clone()],
            slices: vec![Slice { paths: vec!["*.\"js".to_owned()] }],
            ..Metadata::default()
        };
        let read: Metadata = toml::from_str(&metadata.to_toml()).unwrap();
        assert_eq!((read.processes, read.slices), (vec![process], metadata.slices));
        assert_eq!(read.buildpack_default_process_type.as_deref(), Some("web"));
    }
}
