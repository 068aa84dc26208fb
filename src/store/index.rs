//! The index of the store on disk: what sled has, and how it comes to where the journal is.

use std::{fs, io, path::Path};

use super::{
    Error, Key, Kind, Object,
    journal::{Entry, Journal, Write},
};

/// Under this key sled has (generation, sequence number) of the last entry that it has.
pub(super) const POSITION: &[u8] = b"\0position";
/// Before the number of an index that took the place of one that failed.
pub(super) const SUBSTITUTE: &str = "index.substitute-";

pub(super) fn remove_substitutes(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(SUBSTITUTE) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

pub(super) enum Replay {
    /// The index cannot be used with this journal.
    Index,
    Failed(Error),
}

/// Brings the index to where the journal is.
pub(super) fn replay(dir: &Path, index: &sled::Tree) -> Result<Journal, Replay> {
    let failed = |error| Replay::Failed(sled_failed(error));
    let known = index.get(POSITION).map_err(|_| Replay::Index)?.and_then(|bytes| parse_position(&bytes));
    if known.is_none() {
        index.clear().map_err(failed)?;
    }
    let mut stale = false;
    let journal = Journal::open(dir, |generation, entry| {
        match known {
            Some((known_generation, _)) if known_generation != generation => stale = true,
            Some((_, seq)) if entry.seq <= seq => {}
            _ => apply(index, generation, &[entry])?,
        }
        Ok(())
    })
    .map_err(Replay::Failed)?;
    match known {
        _ if stale => Err(Replay::Index),
        // An index that knows more than the journal belongs to another one.
        Some((generation, seq)) if generation != journal.generation || seq > journal.last_seq => Err(Replay::Index),
        _ => Ok(journal),
    }
}

pub(super) fn apply(index: &sled::Tree, generation: u64, entries: &[Entry]) -> Result<(), Error> {
    let mut batch = sled::Batch::default();
    for Entry { seq, write, .. } in entries {
        let key = key_of(write);
        let at = index_key(key.kind, &key.namespace, &key.name);
        match write {
            Write::Put(object) => {
                let value =
                    serde_json::to_vec(object).map_err(|source| Error::Malformed { key: key.clone(), source })?;
                batch.insert(at, value);
            }
            Write::Delete(_) => batch.remove(at),
        }
        batch.insert(POSITION, position(generation, *seq));
    }
    index.apply_batch(batch).map_err(sled_failed)
}

pub(super) fn open_sled(path: &Path) -> Result<sled::Db, Error> {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        // A snapshot that was being written when the process died keeps sled from opening.
        if entry.file_name().to_string_lossy().ends_with(".generating") {
            let _ = fs::remove_file(entry.path());
        }
    }
    let config = sled::Config::new().path(path).cache_capacity(1 << 20).flush_every_ms(Some(5_000));
    match config.open() {
        Ok(database) => Ok(database),
        Err(error) => {
            tracing::warn!(%error, "the index of the store is broken; it is made again from the journal");
            let doing = || format!("removing the broken index {}", path.display());
            fs::remove_dir_all(path).map_err(|source| Error::Io { doing: doing(), source })?;
            config.open().map_err(sled_failed)
        }
    }
}

pub(super) fn read(index: &sled::Tree, key: &Key) -> Result<Option<Object>, Error> {
    let found = index.get(index_key(key.kind, &key.namespace, &key.name)).map_err(sled_failed)?;
    found.map(|value| decode(&value)).transpose()
}

pub(super) fn decode(value: &[u8]) -> Result<Object, Error> {
    serde_json::from_slice(value)
        .map_err(|error| Error::Backend { doing: "reading the index".to_owned(), cause: error.to_string() })
}

pub(super) fn key_of(write: &Write) -> &Key {
    match write {
        Write::Put(object) => &object.key,
        Write::Delete(key) => key,
    }
}

pub(super) fn kind_prefix(kind: Kind) -> Vec<u8> {
    [kind.as_str().as_bytes(), &[0]].concat()
}

/// Sorts by kind, namespace, name.
pub(super) fn index_key(kind: Kind, namespace: &str, name: &str) -> Vec<u8> {
    [kind.as_str().as_bytes(), &[0], namespace.as_bytes(), &[0], name.as_bytes()].concat()
}

pub(super) fn position(generation: u64, seq: u64) -> Vec<u8> {
    [generation.to_be_bytes(), seq.to_be_bytes()].concat()
}

pub(super) fn parse_position(bytes: &[u8]) -> Option<(u64, u64)> {
    let generation = bytes.get(..8)?.try_into().ok()?;
    let seq = bytes.get(8..16)?.try_into().ok()?;
    Some((u64::from_be_bytes(generation), u64::from_be_bytes(seq)))
}

pub(super) fn sled_failed(error: sled::Error) -> Error {
    let doing = "using the index of the store".to_owned();
    match error {
        sled::Error::Io(source) => Error::Io { doing, source },
        other => Error::Backend { doing, cause: other.to_string() },
    }
}
