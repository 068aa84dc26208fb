//! Where the blobs of a data directory are: in it, or in a bucket, which `DATA_DIR/bucket` names.
//!
//! A daemon that looked somewhere else than where they were put would find applications without images, and its garbage collection
//! would believe it. So the place is written down before the first blob is, and a start with another place is refused.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::Error;
use crate::{
    blob::{Claim, DiskBlobs, S3Blobs, S3Settings, SharedBlobs},
    config::Config,
};

/// The bucket of a data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    endpoint: String,
    bucket: String,
    /// Who the bucket belongs to: this data directory, under a name that no other has.
    owner: String,
}

const RECORD: &str = "bucket";
/// The bucket is not known to be ours yet.
const PENDING: &str = "bucket.pending";

/// Opens the blobs where the settings say they are, when that is where they are.
pub(super) async fn open_blobs(config: &Config) -> Result<SharedBlobs, Error> {
    let dir = &config.data_dir;
    let failed = |source| Error::DataDir { path: dir.clone(), source };
    let known = read(&dir.join(RECORD)).map_err(failed)?;
    let on_disk = dir.join("blobs");
    let Some(settings) = &config.s3 else {
        return match known {
            Some(record) => Err(Error::Elsewhere(format!(
                "the blobs of {} are in the bucket '{}' at {}; name it with --s3-bucket and --s3-endpoint, or start anew \
                 with another --data-dir",
                dir.display(),
                record.bucket,
                record.endpoint
            ))),
            None => Ok(DiskBlobs::open(&on_disk)?),
        };
    };
    if known.is_none() && has_files(&on_disk.join("sha256")).map_err(failed)? {
        return Err(Error::Elsewhere(format!(
            "the blobs of {} are in it, and not in a bucket; start without --s3-bucket, or start anew with another --data-dir",
            dir.display()
        )));
    }
    open_bucket(dir, settings, known).await
}

/// A bucket that moved is known by its owner, wherever it is.
async fn open_bucket(dir: &Path, settings: &S3Settings, known: Option<Record>) -> Result<SharedBlobs, Error> {
    let failed = |source| Error::DataDir { path: dir.to_owned(), source };
    let pending = dir.join(PENDING);
    // A start that was killed in between has perhaps told the bucket its name.
    let before = known.as_ref().cloned().or(read(&pending).map_err(failed)?);
    let record = Record {
        endpoint: settings.endpoint.clone(),
        bucket: settings.bucket.clone(),
        owner: before.map_or_else(random_name, |record| record.owner),
    };
    let claim = if known.is_some() { Claim::Existing } else { Claim::New };
    if known.as_ref() != Some(&record) {
        write(&pending, &record).map_err(failed)?;
    }
    let blobs = S3Blobs::open(settings.clone(), &record.owner, claim, &dir.join("cache/blobs")).await?;
    if known.as_ref() != Some(&record) {
        rename(&pending, &dir.join(RECORD)).map_err(failed)?;
    }
    tracing::info!(bucket = record.bucket, endpoint = record.endpoint, "blobs are in object storage");
    Ok(blobs)
}

fn read(path: &Path) -> io::Result<Option<Record>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| io::Error::other(format!("{} cannot be read: {error}", path.display()))),
    }
}

fn write(path: &Path, record: &Record) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()?;
    rename(&temporary, path)
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    File::open(to.parent().unwrap_or(Path::new("/")))?.sync_all()
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

fn random_name() -> String {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; 16];
    ring::rand::SystemRandom::new().fill(&mut bytes).expect("the kernel has random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
