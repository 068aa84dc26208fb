//! Namespaces: what applications are in.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Apps, Error};
use crate::{
    model::{Namespace, Timestamp},
    store::{self, Key, Kind, Resource},
};

/// A namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NamespaceRecord {
    pub name: Namespace,
    pub created_at: Timestamp,
}

impl Resource for NamespaceRecord {
    const KIND: Kind = Kind::Namespace;

    fn key(&self) -> Key {
        Key::namespace(&self.name)
    }
}

impl Apps {
    pub async fn create_namespace(&self, name: &Namespace) -> Result<NamespaceRecord, Error> {
        let record = NamespaceRecord { name: name.clone(), created_at: Timestamp::now() };
        match self.objects.create(&record).await {
            Ok(_) => Ok(record),
            Err(store::Error::Conflict(_)) => Err(Error::NamespaceExists(name.clone())),
            Err(error) => Err(error.into()),
        }
    }

    pub async fn namespace(&self, name: &Namespace) -> Result<NamespaceRecord, Error> {
        let stored = self.objects.get::<NamespaceRecord>(&Key::namespace(name)).await?;
        stored.map(|stored| stored.value).ok_or_else(|| Error::NoSuchNamespace(name.clone()))
    }

    pub async fn namespaces(&self) -> Result<Vec<NamespaceRecord>, Error> {
        let stored = self.objects.list::<NamespaceRecord>(None).await?;
        Ok(stored.into_iter().map(|stored| stored.value).collect())
    }

    /// Deletes a namespace with all its applications.
    pub async fn delete_namespace(self: &Arc<Self>, name: &Namespace) -> Result<(), Error> {
        for app in self.list(Some(name)).await? {
            match self.delete(name, &app.name).await {
                Ok(()) | Err(Error::NoSuchApp { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        match self.objects.delete(&Key::namespace(name)).await {
            Err(store::Error::NotFound(_)) => Err(Error::NoSuchNamespace(name.clone())),
            result => Ok(result?),
        }
    }
}
