//! Where an object lies in the cluster, and what it is called there.
//!
//! Applications lie in the namespace of their own so that `kubectl get apps -n NAMESPACE` finds them. A namespace *is* the
//! Kubernetes namespace. All else is in the daemon's namespace: in Secrets what holds environments, passwords or keys,
//! in ConfigMaps the rest. Those have names that Kubernetes would refuse (`workspace/web`, `manifest.…`, a user `A@b`):
//! their name in the cluster ends with a hash and begins so that people recognise it.

use std::collections::BTreeMap;

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
};

use super::encoding;
use crate::{
    model::Digest,
    store::{Key, Kind},
};

/// The cluster as one installation sees it.
#[derive(Clone)]
pub(super) struct Places {
    pub client: Client,
    /// The namespace of the daemon; it also tells installations in one cluster apart.
    pub system: String,
}

/// Kinds of Kubernetes that hold our objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    App,
    Namespace,
    Secret,
    ConfigMap,
}

impl Form {
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::App => Self::App,
            Kind::Namespace => Self::Namespace,
            // Stagings and releases have the environment of an application in them.
            Kind::Secret | Kind::User | Kind::Token | Kind::Staging | Kind::Release | Kind::Certificate => Self::Secret,
            Kind::Source | Kind::Repository | Kind::Base => Self::ConfigMap,
        }
    }

    pub fn resource(self) -> ApiResource {
        let (group, api_version, kind, plural) = match self {
            Self::App => (GROUP, "epiniod.dev/v1", "App", "apps"),
            Self::Namespace => ("", "v1", "Namespace", "namespaces"),
            Self::Secret => ("", "v1", "Secret", "secrets"),
            Self::ConfigMap => ("", "v1", "ConfigMap", "configmaps"),
        };
        ApiResource {
            group: group.to_owned(),
            version: "v1".to_owned(),
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        }
    }
}

impl Places {
    /// Where an object of this key is.
    pub fn api(&self, key: &Key) -> Api<DynamicObject> {
        self.api_of_all(key.kind, Some(&key.namespace))
    }

    /// Where all objects of a kind are, of one namespace of ours or of all.
    pub fn api_of_all(&self, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
        let form = Form::of(kind);
        match (form, namespace) {
            (Form::Namespace, _) | (Form::App, None) => Api::all_with(self.client.clone(), &form.resource()),
            (Form::App, Some(namespace)) => self.api_in(namespace, form),
            (Form::Secret | Form::ConfigMap, _) => self.api_in(&self.system, form),
        }
    }

    pub fn api_in(&self, namespace: &str, form: Form) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &form.resource())
    }

    /// Objects of this installation only; a namespace that is too long for a label is told by a hash.
    pub fn labels(&self, kind: &str, namespace: &str) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from([
            (MANAGED_BY.to_owned(), "epiniod".to_owned()),
            (SYSTEM.to_owned(), self.system.clone()),
            (KIND.to_owned(), kind.to_owned()),
        ]);
        if !namespace.is_empty() {
            labels.insert(NAMESPACE.to_owned(), label(namespace));
        }
        labels
    }

    pub fn selector(&self, kind: &str, namespace: Option<&str>) -> String {
        let labels = self.labels(kind, namespace.unwrap_or_default());
        labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
    }

    /// A namespace that an administrator hands over: labelled as epiniod's, and no installation has it yet.
    pub fn is_offered(&self, kind: Kind, found: &DynamicObject) -> bool {
        let labels = found.metadata.labels.as_ref();
        let label = |name: &str| labels.and_then(|all| all.get(name)).map(String::as_str);
        let name = found.metadata.name.as_deref();
        kind == Kind::Namespace
            && name != Some(&self.system)
            && (label(MANAGED_BY), label(SYSTEM)) == (Some("epiniod"), None)
    }

    /// Was it made by this installation, as this kind, under this name? Copies that people make by hand are not ours.
    pub fn is_ours(&self, kind: Kind, found: &DynamicObject) -> bool {
        let labels = found.metadata.labels.as_ref();
        let has = |name: &str, value: &str| labels.is_some_and(|all| all.get(name).is_some_and(|found| found == value));
        has(MANAGED_BY, "epiniod")
            && has(SYSTEM, &self.system)
            && has(KIND, kind.as_str())
            && encoding::key(kind, found).is_none_or(|key| {
                found.metadata.name.as_deref() == Some(&name(&key))
                    && (kind != Kind::App || found.metadata.namespace.as_deref() == Some(&key.namespace))
            })
    }
}

/// The name in the cluster: for what has a place of its own the same, for others one that fits.
pub(super) fn name(key: &Key) -> String {
    if matches!(Form::of(key.kind), Form::App | Form::Namespace) {
        return key.name.clone();
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let readable: String = [key.namespace.as_str(), key.name.as_str()].join("-").chars().map(plain).take(60).collect();
    let hash = &Digest::of([&key.namespace, "\0", &key.name].concat()).hex()[..32];
    let parts = [key.kind.as_str(), readable.trim_matches('-'), hash];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

/// A label's value has at most 63 letters, digits and `-_.`, the first and last no sign.
fn label(value: &str) -> String {
    let body = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = |value: &str| {
        value.starts_with(|c: char| c.is_ascii_alphanumeric()) && value.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    match value.len() <= 63 && value.chars().all(body) && ends(value) {
        true => value.to_owned(),
        false => Digest::of(value).hex()[..32].to_owned(),
    }
}

/// The API group of what epiniod defines, and the prefix of its labels.
pub(super) const GROUP: &str = "epiniod.dev";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const SYSTEM: &str = "epiniod.dev/system";
const KIND: &str = "epiniod.dev/kind";
const NAMESPACE: &str = "epiniod.dev/namespace";

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, name: &str) -> Key {
        Key { kind: Kind::Repository, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// RFC 1123 subdomain, as Kubernetes checks it.
    fn fits(name: &str) -> bool {
        let ends = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let bytes = name.as_bytes();
        bytes.len() <= 253
            && bytes.iter().all(|c| ends(c) || *c == b'-')
            && bytes.first().is_some_and(ends)
            && bytes.last().is_some_and(ends)
    }

    #[test]
    fn any_name_of_ours_fits_and_none_is_taken_by_another() {
        let long = "x".repeat(255);
        let keys = [
            key("", "A"),
            key("", "a"),
            key("a-b", "c"),
            key("a", "b-c"),
            key("a/b", "c"),
            key("a.b", "c"),
            key("workspace/web", "manifest.0123"),
            key("", "someone@example.com"),
            key(&long, &long),
            key("-", "_"),
        ];
        let names: std::collections::BTreeSet<_> = keys.iter().map(name).collect();
        assert_eq!(names.len(), keys.len(), "{names:?}");
        for name in &names {
            assert!(fits(name), "{name}");
        }
        assert!(name(&keys[6]).starts_with("repository-workspace-web-manifest-0123-"), "{}", name(&keys[6]));
    }

    #[test]
    fn labels_have_what_kubernetes_allows() {
        assert_eq!(label("workspace"), "workspace");
        for odd in ["workspace/web", "-a", "a-", &"x".repeat(64)] {
            assert!(fits(&label(odd)) && label(odd).len() <= 63, "{odd}");
        }
    }
}
