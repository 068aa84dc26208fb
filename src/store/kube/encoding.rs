//! An object of ours as one of Kubernetes.
//!
//! What the store knows of an object (uid, version, schema) is in annotations; the body is the `spec` of an application,
//! an annotation of a namespace, and JSON text in a Secret or ConfigMap. The version is a counter of our own: Kubernetes'
//! resource version also changes with the status, and does not change with a write of what is there already. It begins
//! at the time, so that an object that takes the place of another has no version that the other had.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube::api::{DynamicObject, ObjectMeta};
use serde_json::{Value, json};

use super::places::{self, Form, Places};
use crate::store::{Error, Key, Kind, Object};

/// What is found in the cluster of one object.
#[derive(Debug)]
pub(super) struct Found {
    pub object: Object,
    /// Who wrote it last: one random word for each write.
    pub write: String,
    /// The Secret with an application's environment; then the body has none.
    pub environment: Option<String>,
}

/// What a write adds to an object.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    pub write: String,
    pub environment: Option<String>,
}

/// A Kubernetes object that is not there yet.
pub(super) fn new(places: &Places, object: &Object, mark: &Mark) -> Result<DynamicObject, Error> {
    let form = Form::of(object.key.kind);
    let mut target = DynamicObject::new(&places::name(&object.key), &form.resource());
    target.data = json!({});
    if form == Form::App {
        target.metadata.namespace = Some(object.key.namespace.clone());
    }
    if form == Form::Secret {
        target.data["type"] = json!(SECRET_TYPE);
    }
    take(&mut target, places, object, mark)?;
    Ok(target)
}

/// Makes an object one of this installation.
pub(super) fn take(target: &mut DynamicObject, places: &Places, object: &Object, mark: &Mark) -> Result<(), Error> {
    let labels = target.metadata.labels.get_or_insert_default();
    labels.extend(places.labels(object.key.kind.as_str(), &object.key.namespace));
    if object.key.kind == Kind::Namespace {
        labels.entry(POD_SECURITY.to_owned()).or_insert_with(|| "restricted".to_owned());
    }
    fill(target, object, mark)
}

/// Writes an object over what is there; what others added to it stays.
pub(super) fn fill(target: &mut DynamicObject, object: &Object, mark: &Mark) -> Result<(), Error> {
    let annotations = target.metadata.annotations.get_or_insert_default();
    let mut note = |name: &str, value: String| drop(annotations.insert(name.to_owned(), value));
    note(UID, object.uid.clone());
    note(VERSION, object.version.to_string());
    note(SCHEMA, object.schema.to_string());
    note(WRITE, mark.write.clone());
    note(NAMESPACE, object.key.namespace.clone());
    note(NAME, object.key.name.clone());
    match Form::of(object.key.kind) {
        Form::Namespace => note(BODY, object.body.to_string()),
        Form::Secret => {
            target.data["data"] = json!({});
            target.data["stringData"] = json!({ "body": object.body.to_string() });
        }
        Form::ConfigMap => target.data["data"] = json!({ "body": object.body.to_string() }),
        Form::App => {
            match &mark.environment {
                Some(secret) => note(ENVIRONMENT, secret.clone()),
                None => drop(annotations.remove(ENVIRONMENT)),
            }
            if !object.body.is_object() {
                let cause = "its body is not a JSON object".to_owned();
                return Err(Error::Backend { doing: format!("writing {}", object.key), cause });
            }
            target.data["spec"] = object.body.clone();
        }
    }
    // The main resource ignores it, and it may be large.
    if let Some(data) = target.data.as_object_mut() {
        data.remove("status");
    }
    target.metadata.managed_fields = None;
    Ok(())
}

pub(super) fn read(kind: Kind, found: &DynamicObject) -> Result<Found, Error> {
    let name = found.metadata.name.clone().unwrap_or_default();
    let doing = || format!("reading the {} '{name}' of the cluster", Form::of(kind).resource().kind);
    let damaged = |what: &str| Error::Backend {
        doing: doing(),
        cause: format!("{what} is missing or damaged; was it changed by hand?"),
    };
    let note = |name: &str| found.metadata.annotations.as_ref().and_then(|all| all.get(name).cloned());
    let required = |name: &str| note(name).ok_or_else(|| damaged(&format!("its annotation {name}")));
    let number = |name: &str| required(name)?.parse::<u64>().map_err(|_| damaged(&format!("its annotation {name}")));
    let key = key(kind, found).ok_or_else(|| damaged("the annotation with its name"))?;
    let text = |text: &str| serde_json::from_str::<Value>(text).map_err(|_| damaged("its body"));
    let body = match Form::of(kind) {
        Form::App => found.data.get("spec").cloned().ok_or_else(|| damaged("its spec"))?,
        Form::Namespace => text(&required(BODY)?)?,
        Form::ConfigMap => text(found.data["data"]["body"].as_str().ok_or_else(|| damaged("its body"))?)?,
        Form::Secret => text(&secret_text(found, "body").ok_or_else(|| damaged("its body"))?)?,
    };
    let schema = u32::try_from(number(SCHEMA)?).map_err(|_| damaged("its schema"))?;
    let object = Object { key, uid: required(UID)?, version: number(VERSION)?, schema, body };
    Ok(Found { object, write: note(WRITE).unwrap_or_default(), environment: environment(&found.metadata) })
}

/// What it is called by us.
pub(super) fn key(kind: Kind, found: &DynamicObject) -> Option<Key> {
    let annotations = found.metadata.annotations.as_ref()?;
    Some(Key { kind, namespace: annotations.get(NAMESPACE)?.clone(), name: annotations.get(NAME)?.clone() })
}

/// Which write it is of.
pub(super) fn version(found: &DynamicObject) -> Option<String> {
    found.metadata.annotations.as_ref()?.get(VERSION).cloned()
}

/// The Secret with an application's environment.
pub(super) fn environment(metadata: &ObjectMeta) -> Option<String> {
    metadata.annotations.as_ref()?.get(ENVIRONMENT).cloned()
}

/// One entry of a Secret.
pub(super) fn secret_text(secret: &DynamicObject, entry: &str) -> Option<String> {
    let encoded = secret.data.get("data")?.get(entry)?.as_str()?;
    String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
}

/// The version after this one.
pub(super) fn next_version(current: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    u64::try_from(now).unwrap_or_default().max(current + 1)
}

pub(super) const SECRET_TYPE: &str = "epiniod.dev/object";
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";
const UID: &str = "epiniod.dev/uid";
const VERSION: &str = "epiniod.dev/version";
const SCHEMA: &str = "epiniod.dev/schema";
const WRITE: &str = "epiniod.dev/write";
const NAMESPACE: &str = "epiniod.dev/namespace";
const NAME: &str = "epiniod.dev/name";
const BODY: &str = "epiniod.dev/body";
const ENVIRONMENT: &str = "epiniod.dev/environment";
