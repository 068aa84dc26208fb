//! Types over objects.

use serde::{Serialize, de::DeserializeOwned};

use super::{Error, Event, Key, Kind, Object, Page, SharedStore};
use crate::model::{App, AppName, Namespace, Release, ReleaseId, StageId, Staging};

/// A type that is stored.
pub trait Resource: Serialize + DeserializeOwned + Clone + Send + 'static {
    const KIND: Kind;
    /// Grows when an older body can no longer be read as it is.
    const SCHEMA: u32 = 1;

    fn key(&self) -> Key;
}

/// A value with what the store knows of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored<T> {
    pub uid: String,
    pub version: u64,
    pub value: T,
}

/// The store, with types.
#[derive(Clone)]
pub struct Objects {
    store: SharedStore,
}

impl Objects {
    pub fn new(store: SharedStore) -> Self {
        Self { store }
    }

    pub async fn get<T: Resource>(&self, key: &Key) -> Result<Option<Stored<T>>, Error> {
        self.store.get(key).await?.map(decode).transpose()
    }

    /// Like [`get`](Self::get), for what has to be there.
    pub async fn require<T: Resource>(&self, key: &Key) -> Result<Stored<T>, Error> {
        self.get(key).await?.ok_or_else(|| Error::NotFound(key.clone()))
    }

    /// All objects of a type, of one namespace or of all.
    pub async fn list<T: Resource>(&self, namespace: Option<&str>) -> Result<Vec<Stored<T>>, Error> {
        let mut page = Page { namespace: namespace.map(str::to_owned), after: None, limit: 500 };
        let mut values = Vec::new();
        loop {
            let slice = self.store.list(T::KIND, &page).await?;
            for object in slice.objects {
                values.push(decode(object)?);
            }
            match slice.next {
                Some(next) => page.after = Some(next),
                None => return Ok(values),
            }
        }
    }

    pub async fn create<T: Resource>(&self, value: &T) -> Result<Stored<T>, Error> {
        self.write(value, String::new(), 0).await
    }

    /// Writes a value that was read before; fails with [`Error::Conflict`] when it changed meanwhile.
    pub async fn update<T: Resource>(&self, stored: &Stored<T>) -> Result<Stored<T>, Error> {
        self.write(&stored.value, stored.uid.clone(), stored.version).await
    }

    /// Reads, changes and writes until nobody was in between.
    pub async fn modify<T: Resource>(
        &self,
        key: &Key,
        mut change: impl FnMut(&mut T) + Send,
    ) -> Result<Stored<T>, Error> {
        loop {
            let mut stored = self.require::<T>(key).await?;
            change(&mut stored.value);
            match self.update(&stored).await {
                Err(Error::Conflict(_)) => tokio::task::yield_now().await,
                result => return result,
            }
        }
    }

    pub async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.store.delete(key, None).await
    }

    pub fn watch(&self, kind: Kind) -> tokio::sync::broadcast::Receiver<Event> {
        self.store.watch(kind)
    }

    async fn write<T: Resource>(&self, value: &T, uid: String, version: u64) -> Result<Stored<T>, Error> {
        let key = value.key();
        let body = serde_json::to_value(value).map_err(|source| Error::Malformed { key: key.clone(), source })?;
        let object = self.store.put(Object { key, uid, version, schema: T::SCHEMA, body }).await?;
        Ok(Stored { uid: object.uid, version: object.version, value: value.clone() })
    }
}

/// The value of an object as it is in a watch event or a list.
pub fn decode<T: Resource>(object: Object) -> Result<Stored<T>, Error> {
    if object.schema > T::SCHEMA {
        return Err(Error::NewerSchema { key: object.key, found: object.schema, known: T::SCHEMA });
    }
    let value = serde_json::from_value(object.body).map_err(|source| Error::Malformed { key: object.key, source })?;
    Ok(Stored { uid: object.uid, version: object.version, value })
}

impl Key {
    pub fn namespace(name: &Namespace) -> Self {
        Self { kind: Kind::Namespace, namespace: String::new(), name: name.to_string() }
    }

    pub fn app(namespace: &Namespace, app: &AppName) -> Self {
        Self { kind: Kind::App, namespace: namespace.to_string(), name: app.to_string() }
    }

    pub fn staging(namespace: &Namespace, id: &StageId) -> Self {
        Self { kind: Kind::Staging, namespace: namespace.to_string(), name: id.to_string() }
    }

    /// Numbers are padded so that releases sort by number.
    pub fn release(id: &ReleaseId) -> Self {
        Self { kind: Kind::Release, namespace: id.namespace.to_string(), name: format!("{}.{:010}", id.app, id.number) }
    }
}

impl Resource for App {
    const KIND: Kind = Kind::App;

    fn key(&self) -> Key {
        Key::app(&self.namespace, &self.name)
    }
}

impl Resource for Staging {
    const KIND: Kind = Kind::Staging;

    fn key(&self) -> Key {
        Key::staging(&self.namespace, &self.id)
    }
}

impl Resource for Release {
    const KIND: Kind = Kind::Release;

    fn key(&self) -> Key {
        Key::release(&self.id)
    }
}
