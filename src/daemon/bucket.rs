//! Where the blobs are: in the data directory, or in a bucket. The store remembers which.
//!
//! A daemon that looked somewhere else than where they were put would find applications without images, and its garbage
//! collection would believe it. So the place is recorded where the objects are that refer to them, before the first blob is
//! put, and a start with another place is refused.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

use super::Error;
use crate::{
    blob::{Claim, DiskBlobs, S3Blobs, S3Settings, SharedBlobs, random_name},
    config::Config,
    store::{self, Key, Kind, Objects, Resource, Stored},
};

/// The bucket of the objects beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    endpoint: String,
    bucket: String,
    /// Who the bucket belongs to, under a name that nobody else has.
    owner: String,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// The bucket is not known to be ours yet: a start that was killed in between has perhaps told it its name.
    Pending,
    Ours,
}

impl Record {
    const NAME: &str = "bucket";

    fn key_of() -> Key {
        Key { kind: Kind::Secret, namespace: String::new(), name: Self::NAME.to_owned() }
    }
}

impl Resource for Record {
    const KIND: Kind = Kind::Secret;

    fn key(&self) -> Key {
        Self::key_of()
    }
}

/// Opens the blobs where the settings say they are, when that is where they are.
pub(super) async fn open_blobs(config: &Config, objects: &Objects) -> Result<SharedBlobs, Error> {
    let dir = &config.data_dir;
    let known = objects.get::<Record>(&Record::key_of()).await?;
    let on_disk = dir.join("blobs");
    let Some(settings) = &config.s3 else {
        return match known.filter(|known| known.value.state == State::Ours) {
            Some(Stored { value: record, .. }) => Err(Error::Elsewhere(format!(
                "the blobs of this daemon are in the bucket '{}' at {}; name it with --s3-bucket and --s3-endpoint, or start anew \
                 with another --data-dir",
                record.bucket, record.endpoint
            ))),
            None => Ok(DiskBlobs::open(&on_disk)?),
        };
    };
    let failed = |source| Error::DataDir { path: dir.clone(), source };
    if known.is_none() && has_files(&on_disk.join("sha256")).map_err(failed)? {
        return Err(Error::Elsewhere(format!(
            "the blobs of {} are in it, and not in a bucket; start without --s3-bucket, or start anew with another --data-dir",
            dir.display()
        )));
    }
    open_bucket(dir, settings, objects, known).await
}

/// A bucket that moved is known by its owner, wherever it is.
async fn open_bucket(
    dir: &Path,
    settings: &S3Settings,
    objects: &Objects,
    known: Option<Stored<Record>>,
) -> Result<SharedBlobs, Error> {
    let ours = known.as_ref().is_some_and(|known| known.value.state == State::Ours);
    let owner = known.as_ref().map_or_else(random_name, |known| known.value.owner.clone());
    let (endpoint, bucket) = (settings.endpoint.clone(), settings.bucket.clone());
    let record = Record { endpoint, bucket, owner, state: State::Ours };
    if known.is_none() {
        match objects.create(&Record { state: State::Pending, ..record.clone() }).await {
            Ok(_) => {}
            Err(store::Error::Conflict(_)) => {
                let text = "another daemon has just named a bucket; start again";
                return Err(Error::Elsewhere(text.to_owned()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let claim = if ours { Claim::Existing } else { Claim::New };
    let blobs = S3Blobs::open(settings.clone(), &record.owner, claim, &dir.join("cache/blobs")).await?;
    if known.is_none_or(|known| known.value != record) {
        objects.modify::<Record>(&Record::key_of(), |known| *known = record.clone()).await?;
    }
    tracing::info!(bucket = record.bucket, endpoint = record.endpoint, "blobs are in object storage");
    Ok(blobs)
}

fn has_files(dir: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if !entry.file_type()?.is_dir() || has_files(&entry.path())? {
            return Ok(true);
        }
    }
    Ok(false)
}
