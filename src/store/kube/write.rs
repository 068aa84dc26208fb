//! Creating, replacing and deleting: each right also when another daemon does the same, and when answers are lost.

use std::time::Duration;

use kube::api::{DeleteParams, DynamicObject, PostParams, Preconditions};
use tokio::time::{Instant, sleep};

use super::{
    KubeStore,
    call::call,
    encoding::{self, Mark, next_version},
    is_going, places,
};
use crate::store::{Error, Key, Kind, Object, object::new_uid};

/// Changes of others (of a status, of labels) that one write may meet.
const MEETINGS: usize = 50;
/// So long a namespace that was deleted may take until it can be created again.
const LEAVING: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl KubeStore {
    pub(super) async fn create(&self, mut object: Object) -> Result<Object, Error> {
        object.uid = new_uid();
        object.version = next_version(0);
        let (body, environment) = self.environments.part(&object, None).await?;
        let mark = Mark { write: new_uid(), environment };
        let created = self.create_with(&Object { body, ..object.clone() }, &mark).await;
        if matches!(created, Err(Error::Conflict(_))) {
            self.environments.forget(mark.environment).await;
        }
        created.map(|()| object)
    }

    async fn create_with(&self, object: &Object, mark: &Mark) -> Result<(), Error> {
        let key = &object.key;
        let (api, form) = (self.places.api(key), encoding::new(&self.places, object, mark)?);
        let params = PostParams::default();
        let patience = Instant::now() + LEAVING;
        loop {
            match call(|| api.create(&params, &form)).await {
                Ok(_) => return Ok(()),
                Err(failure) if failure.is_taken() => {}
                Err(failure) => return Err(Error::from((failure, key))),
            }
            let Some(found) = self.find_any(key).await? else { continue };
            if encoding::read(key.kind, &found).is_ok_and(|found| found.write == mark.write) {
                return Ok(());
            }
            if !is_going(key.kind, &found) && !self.places.is_offered(key.kind, &found) {
                let is_ours = self.places.is_ours(key.kind, &found);
                return Err(if is_ours { Error::Conflict(key.clone()) } else { foreign(key) });
            }
            if !is_going(key.kind, &found) {
                match self.adopt(found, object, mark).await? {
                    Replaced::Done => return Ok(()),
                    Replaced::Met => continue,
                }
            }
            if Instant::now() > patience {
                let cause = "the cluster is still deleting what was in it; try again in a moment".to_owned();
                return Err(Error::Backend { doing: format!("writing {key}"), cause });
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn adopt(&self, mut target: DynamicObject, object: &Object, mark: &Mark) -> Result<Replaced, Error> {
        encoding::take(&mut target, &self.places, object, mark)?;
        let (api, name) = (self.places.api(&object.key), places::name(&object.key));
        let params = PostParams::default();
        match call(|| api.replace(&name, &params, &target)).await {
            Ok(_) => Ok(Replaced::Done),
            Err(failure) if failure.is_conflict() || failure.is_not_found() => Ok(Replaced::Met),
            Err(failure) => Err(Error::from((failure, &object.key))),
        }
    }

    pub(super) async fn replace(&self, mut object: Object) -> Result<Object, Error> {
        let (before, write) = (object.version, new_uid());
        object.version = next_version(before);
        let mut made = None;
        for _ in 0..MEETINGS {
            let Some(target) = self.find(&object.key).await? else { return Err(Error::NotFound(object.key)) };
            match self.replace_found(target, before, &object, &write, &mut made).await {
                Ok(Replaced::Done) => return Ok(object),
                Ok(Replaced::Met) => {}
                Err(error) => {
                    if matches!(error, Error::Conflict(_)) {
                        self.environments.forget(made).await;
                    }
                    return Err(error);
                }
            }
        }
        self.environments.forget(made).await;
        Err(Error::Conflict(object.key))
    }

    /// Replaces what was found; `made` is the Secret that was made for this write.
    async fn replace_found(
        &self,
        mut target: DynamicObject,
        before: u64,
        object: &Object,
        write: &str,
        made: &mut Option<String>,
    ) -> Result<Replaced, Error> {
        let found = encoding::read(object.key.kind, &target)?;
        if found.write == write {
            return Ok(Replaced::Done);
        }
        if (found.object.version, &found.object.uid) != (before, &object.uid) {
            return Err(Error::Conflict(object.key.clone()));
        }
        let (body, environment) = match made {
            Some(made) => self.environments.parted(object, made),
            None => self.environments.part(object, found.environment.as_deref()).await?,
        };
        if environment != found.environment {
            made.clone_from(&environment);
        }
        let mark = Mark { write: write.to_owned(), environment: environment.clone() };
        encoding::fill(&mut target, &Object { body, ..object.clone() }, &mark)?;
        let (api, name) = (self.places.api(&object.key), places::name(&object.key));
        let params = PostParams::default();
        match call(|| api.replace(&name, &params, &target)).await {
            Ok(_) => {
                if found.environment != environment {
                    self.environments.forget(found.environment).await;
                }
                Ok(Replaced::Done)
            }
            Err(failure) if failure.is_conflict() => Ok(Replaced::Met),
            Err(failure) if failure.is_not_found() => Err(Error::NotFound(object.key.clone())),
            Err(failure) => Err(Error::from((failure, &object.key))),
        }
    }

    pub(super) async fn remove(&self, key: &Key, version: Option<u64>) -> Result<(), Error> {
        let (api, name) = (self.places.api(key), places::name(key));
        // The object that a request of ours may have deleted without an answer.
        let mut perhaps_gone = None;
        for _ in 0..MEETINGS {
            let found = self.find(key).await?;
            if let Some(uid) = &perhaps_gone
                && found.as_ref().is_none_or(|found| found.metadata.uid.as_ref() != Some(uid))
            {
                return Ok(());
            }
            let Some(found) = found else { return Err(Error::NotFound(key.clone())) };
            let ours = encoding::read(key.kind, &found);
            let environment = match (ours, version) {
                (Ok(ours), Some(version)) if ours.object.version != version => {
                    return Err(Error::Conflict(key.clone()));
                }
                (Err(error), Some(_)) => return Err(error),
                // What cannot be read can be deleted.
                (ours, _) => ours.ok().and_then(|ours| ours.environment),
            };
            let only = Preconditions {
                uid: found.metadata.uid.clone(),
                resource_version: version.and(found.metadata.resource_version),
            };
            let params = DeleteParams { preconditions: Some(only), ..DeleteParams::background() };
            match call(|| api.delete(&name, &params)).await {
                Ok(_) => {
                    self.environments.forget(environment).await;
                    return Ok(());
                }
                Err(failure) if failure.is_conflict() || failure.is_not_found() => {
                    if failure.may_be_done() {
                        perhaps_gone = found.metadata.uid;
                    }
                }
                Err(failure) => return Err(failure.into_error(format!("deleting {key}"))),
            }
        }
        Err(Error::Conflict(key.clone()))
    }
}

enum Replaced {
    Done,
    /// Somebody changed something meanwhile, perhaps nothing of ours.
    Met,
}

fn foreign(key: &Key) -> Error {
    let cause = match key.kind {
        Kind::Namespace => format!(
            "the cluster has a namespace '{name}' that this epiniod did not make; choose another name, or hand it over with `kubectl label namespace {name} app.kubernetes.io/managed-by=epiniod`",
            name = key.name
        ),
        _ => "the cluster has an object of this name that this epiniod did not make; delete it, or choose another name"
            .to_owned(),
    };
    Error::Backend { doing: format!("creating {key}"), cause }
}
