//! What is secret: made in the cluster, kept there from then on, and no manifest, so that it is in nobody's repository.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    ADMIN_SECRET, BUCKET_SECRET, Connection, Error, Installation, Keys, MANAGER, SETTINGS_SECRET, SYSTEM, failed,
};
use crate::runtime::kube::names;

/// The first password, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Password {
    New(String),
    /// It was there: the one of an installation before.
    Kept(String),
}

/// Puts the keys of the bucket where the daemon finds them; without new ones those that are there stay.
pub async fn provide_keys(cluster: &Connection, installation: &Installation, keys: Option<Keys>) -> Result<(), Error> {
    let doing = || format!("writing secret {BUCKET_SECRET} in namespace {}", installation.namespace);
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &installation.namespace);
    let Some(keys) = keys else {
        let there = secrets.get_opt(BUCKET_SECRET).await.map_err(failed(doing()))?;
        return there.map(drop).ok_or_else(|| Error::Undecided {
            problem: "nobody says which keys open the bucket".to_owned(),
            choices: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and repeat the command".to_owned(),
        });
    };
    let data = json!({ "AWS_ACCESS_KEY_ID": keys.id, "AWS_SECRET_ACCESS_KEY": keys.secret });
    let secret = secret(installation, BUCKET_SECRET, data);
    let params = PatchParams::apply(MANAGER).force();
    secrets.patch(BUCKET_SECRET, &params, &Patch::Apply(secret)).await.map_err(failed(doing()))?;
    Ok(())
}

/// Puts the settings of the daemon, and what they name, where its pod has them as a folder; replaces those of before.
pub async fn provide_settings(
    cluster: &Connection,
    installation: &Installation,
    files: &BTreeMap<String, Vec<u8>>,
) -> Result<(), Error> {
    let doing = || format!("writing secret {SETTINGS_SECRET} in namespace {}", installation.namespace);
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &installation.namespace);
    let data: BTreeMap<_, _> = files.iter().map(|(name, bytes)| (name, STANDARD.encode(bytes))).collect();
    let mut secret = secret(installation, SETTINGS_SECRET, json!({}));
    secret["data"] = json!(data);
    let params = PatchParams::apply(MANAGER).force();
    secrets.patch(SETTINGS_SECRET, &params, &Patch::Apply(secret)).await.map_err(failed(doing()))?;
    Ok(())
}

fn secret(installation: &Installation, name: &str, data: Value) -> Value {
    let labels = json!({ names::MANAGED_BY: names::MANAGER, SYSTEM: installation.namespace });
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "labels": labels }, "stringData": data })
}

/// Keeps the password that is there, or makes a secret of the one that is given.
pub async fn provide_password(
    cluster: &Connection,
    installation: &Installation,
    new: String,
) -> Result<Password, Error> {
    let doing = || format!("writing secret {ADMIN_SECRET} in namespace {}", installation.namespace);
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &installation.namespace);
    if let Some(there) = secrets.get_opt(ADMIN_SECRET).await.map_err(failed(doing()))? {
        let bytes = there.data.and_then(|mut data| data.remove("password"));
        let text = bytes.and_then(|bytes| String::from_utf8(bytes.0).ok());
        let missing = || Error::Failed {
            doing: doing(),
            cause: "it is there, and has no key 'password'; delete it, or add the key".to_owned(),
        };
        return text.map(Password::Kept).ok_or_else(missing);
    }
    let secret = secret(installation, ADMIN_SECRET, json!({ "username": "admin", "password": new }));
    let secret =
        serde_json::from_value(secret).map_err(|error| Error::Failed { doing: doing(), cause: error.to_string() })?;
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => Ok(Password::New(new)),
        Err(error) => Err(failed(doing())(error)),
    }
}
