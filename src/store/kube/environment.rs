//! Environments of applications: in Secrets, for who may see applications may not see passwords.
//!
//! An application names the Secret of its environment. A changed environment is a new Secret; then the application is
//! replaced, which changes both at once; then the old Secret is deleted. They are in the daemon's namespace, so that it
//! needs no right to Secrets of others; what a crash leaves there is swept away when a daemon starts.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ListParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    call::{PAGE, call, list},
    encoding::{self, Found},
    places::{Form, Places},
};
use crate::store::{Error, Key, Kind, Object, object::new_uid};

/// The environments of a cluster.
#[derive(Clone)]
pub(super) struct Environments {
    pub places: Places,
}

/// By name of the Secret.
pub(super) type Listed = HashMap<String, Value>;

impl Environments {
    /// Parts a body from its environment, and keeps that: in the Secret that has it already, or in a new one.
    pub async fn part(&self, object: &Object, held: Option<&str>) -> Result<(Value, Option<String>), Error> {
        let (body, Some(environment)) = split(object) else { return Ok((object.body.clone(), None)) };
        if let Some(held) = held
            && self.read(&object.key, held).await?.as_ref() == Some(&environment)
        {
            return Ok((body, Some(held.to_owned())));
        }
        let Key { namespace, name, .. } = &object.key;
        let name = format!("environment-{namespace}-{name}-{}", &new_uid()[..12]);
        let mut secret = DynamicObject::new(&name, &Form::Secret.resource());
        let labels = self.places.labels(KIND, &object.key.namespace);
        secret.metadata.labels.get_or_insert_default().extend(labels);
        secret.data = json!({
            "type": encoding::SECRET_TYPE,
            "immutable": true,
            "stringData": { ENTRY: environment.to_string() },
        });
        let (api, params) = (self.api(), PostParams::default());
        match call(|| api.create(&params, &secret)).await {
            Ok(_) => Ok((body, Some(name))),
            // The name is random: it was made by a request whose answer was lost.
            Err(failure) if failure.is_taken() && failure.may_be_done() => Ok((body, Some(name))),
            Err(failure) => Err(failure.into_error(format!("writing the environment of {}", object.key))),
        }
    }

    /// Like [`part`](Self::part), when that was done before.
    pub fn parted(&self, object: &Object, secret: &str) -> (Value, Option<String>) {
        (split(object).0, Some(secret.to_owned()))
    }

    /// Puts the environment into the body again. `None` when the Secret is no more: the application has another.
    pub async fn complete(&self, found: Found) -> Result<Option<Object>, Error> {
        let Some(secret) = &found.environment else { return Ok(Some(found.object)) };
        let environment = self.read(&found.object.key, secret).await?;
        Ok(environment.map(|environment| with(found.object, environment)))
    }

    /// All environments, of one namespace or of all.
    pub async fn list(&self, namespace: Option<&str>) -> Result<Listed, Error> {
        let secrets = self.secrets(namespace).await?;
        let named = |secret: DynamicObject| Some((secret.metadata.name.clone()?, value(&secret)?));
        Ok(secrets.into_iter().filter_map(named).collect())
    }

    /// Deletes what no application names and is older than this; of what is new, one is perhaps about to be named.
    pub async fn sweep(&self, older_than: Duration) -> Result<(), Error> {
        let named = self.named().await?;
        let before = Timestamp::now() - older_than;
        for secret in self.secrets(None).await? {
            let is_old = secret.metadata.creation_timestamp.is_some_and(|created| created.0 <= before);
            if let Some(name) = secret.metadata.name.filter(|name| is_old && !named.contains(name)) {
                tracing::info!(secret = name, "an environment that no application has is deleted");
                self.forget(Some(name)).await;
            }
        }
        Ok(())
    }

    /// What any application names, also one whose labels somebody has changed.
    async fn named(&self) -> Result<HashSet<String>, Error> {
        let api = self.places.api_of_all(Kind::App, None);
        let mut params = ListParams::default().limit(PAGE);
        let mut named = HashSet::new();
        loop {
            // A list that is begun again only adds.
            let page = match call(|| api.list_metadata(&params)).await {
                Ok(page) => page,
                Err(failure) if failure.is_expired() && params.continue_token.is_some() => {
                    params.continue_token = None;
                    continue;
                }
                Err(failure) => return Err(failure.into_error("listing apps")),
            };
            named.extend(page.items.iter().filter_map(|found| encoding::environment(&found.metadata)));
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                return Ok(named);
            }
        }
    }

    async fn secrets(&self, namespace: Option<&str>) -> Result<Vec<DynamicObject>, Error> {
        list(&self.api(), &self.places.selector(KIND, namespace), "listing environments", |found| Ok(Some(found))).await
    }

    /// Deletes a Secret that no application names any more. What stays after a failure is in nobody's way.
    pub async fn forget(&self, secret: Option<String>) {
        let Some(secret) = secret else { return };
        let (api, params) = (self.api(), DeleteParams::default());
        match call(|| api.delete(&secret, &params)).await {
            Err(failure) if !failure.is_not_found() => {
                let error = failure.into_error(format!("deleting the Secret {secret}"));
                tracing::warn!(%error, "a Secret that is not needed any more stays");
            }
            _ => {}
        }
    }

    async fn read(&self, of: &Key, secret: &str) -> Result<Option<Value>, Error> {
        let api = self.api();
        match call(|| api.get(secret)).await {
            Ok(secret) => Ok(value(&secret)),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure.into_error(format!("reading the environment of {of}"))),
        }
    }

    fn api(&self) -> Api<DynamicObject> {
        self.places.api_in(&self.places.system, Form::Secret)
    }
}

/// The whole object, when its environment is among these.
pub(super) fn join(found: Found, environments: &Listed) -> Option<Object> {
    let Some(secret) = found.environment else { return Some(found.object) };
    let environment = environments.get(&secret)?;
    Some(with(found.object, environment.clone()))
}

/// The body without its environment, and the environment when there is something in it.
fn split(object: &Object) -> (Value, Option<Value>) {
    let mut body = object.body.clone();
    let environment = match object.key.kind {
        Kind::App => body.get_mut(FIELD).filter(|value| value.as_object().is_some_and(|all| !all.is_empty())),
        _ => None,
    };
    let taken = environment.map(|environment| std::mem::replace(environment, json!({})));
    (body, taken)
}

fn with(mut object: Object, environment: Value) -> Object {
    object.body[FIELD] = environment;
    object
}

fn value(secret: &DynamicObject) -> Option<Value> {
    serde_json::from_str(&encoding::secret_text(secret, ENTRY)?).ok()
}

/// The label's kind of these Secrets.
const KIND: &str = "environment";
const ENTRY: &str = "environment";
/// Of the body of an application.
const FIELD: &str = "environment";
