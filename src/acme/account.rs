//! The accounts of this daemon at authorities: made at the first order, and kept with their keys.

use std::sync::Arc;

use instant_acme::{Account, AccountCredentials, ExternalAccountKey, NewAccount};
use serde::{Deserialize, Serialize};

use super::{
    Directory, Error,
    failure::Failure,
    http::{Heard, Http},
};
use crate::{
    model::Digest,
    store::{Key, Kind, Objects, Resource},
};

/// An account that orders can be made with.
#[derive(Clone)]
pub(super) struct Client {
    pub account: Account,
    pub heard: Arc<Heard>,
}

/// What is kept of an account.
#[derive(Clone, Serialize, Deserialize)]
struct Record {
    directory: String,
    /// With the key, as the ACME library writes them.
    credentials: serde_json::Value,
}

impl Resource for Record {
    const KIND: Kind = Kind::Secret;

    fn key(&self) -> Key {
        key_of(&self.directory)
    }
}

fn key_of(directory: &str) -> Key {
    let name = format!("acme-account-{}", &Digest::of(directory.as_bytes()).hex()[..16]);
    Key { kind: Kind::Secret, namespace: String::new(), name }
}

impl Client {
    /// The account that is kept, or a new one.
    pub async fn open(objects: &Objects, directory: &Directory, email: Option<&str>) -> Result<Self, Failure> {
        let http = Http::new(directory)?;
        let heard = http.heard();
        let failed = |error| Failure::of(&error, &heard).with_clock(&heard);
        let builder = Account::builder_with_http(Box::new(http));
        let known = objects.get::<Record>(&key_of(&directory.url)).await.map_err(Error::from)?;
        if let Some(known) = known {
            let credentials: AccountCredentials = serde_json::from_value(known.value.credentials).map_err(malformed)?;
            let account = builder.from_credentials(credentials).await.map_err(failed)?;
            return Ok(Self { account, heard });
        }
        let contact = email.map(|email| format!("mailto:{email}"));
        let contact: Vec<&str> = contact.as_deref().into_iter().collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let binding =
            directory.binding.as_ref().map(|binding| ExternalAccountKey::new(binding.key_id.clone(), &binding.key));
        let made = builder.create(&new, directory.url.clone(), binding.as_ref()).await;
        let (account, credentials) = made.map_err(failed)?;
        let credentials = serde_json::to_value(credentials).map_err(malformed)?;
        let record = Record { directory: directory.url.clone(), credentials };
        objects.create(&record).await.map_err(Error::from)?;
        tracing::info!(directory = directory.url, account = account.id(), "there is an account for certificates");
        Ok(Self { account, heard })
    }

    /// For an account that its authority does not know any more: the next order makes another one.
    pub async fn forget(objects: &Objects, directory: &Directory) -> Result<(), Error> {
        Ok(objects.delete(&key_of(&directory.url)).await?)
    }
}

fn malformed(error: serde_json::Error) -> Error {
    Error::Key { doing: "reading or writing an account for certificates".to_owned(), cause: error.to_string() }
}
