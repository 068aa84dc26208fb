//! The making of a pair of bases, from a request to published images.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use super::{
    BasePair, BaseRecord, Bases, Error, Package, Progress, REPOSITORY, Work,
    assemble::Plan,
    blocking,
    definition::Definition,
    download::{Download, Downloader},
    image::{self, Role},
    index::PackageIndex,
    mirror::{Look, State},
    record::{Answer, Lock, LockedLayer, RecordedLayer, Request, lock_id},
    stack::{self, Wanted, megabytes},
};
use crate::{
    model::{Digest, ImageName, Timestamp},
    oci::Layer,
    store,
};

pub(super) struct Making<'a> {
    pub bases: &'a Bases,
    /// Of a look at the mirrors; none where nothing can be done without.
    pub patience: Option<Duration>,
    pub progress: &'a (dyn Fn(Progress) + Send + Sync),
}

impl Making<'_> {
    pub(super) async fn pair(&self, request: &Request, work: &mut Work) -> Result<BasePair, Error> {
        if let Some(state) = self.bases.fresh_state().await? {
            match self.pair_on(&state, request, work).await {
                Ok(Some(pair)) => return Ok(pair),
                Ok(None) => {}
                // What an older index names may be gone from the mirror, or the mirror itself.
                Err(error) if error.deserves_another_look() => {
                    (self.progress)(Progress::Note(format!("looking at the Debian mirrors again: {error}")));
                }
                Err(error) => return Err(error),
            }
        }
        let state = self.look(work).await?;
        let made = self.pair_on(&state, request, work).await?;
        Ok(made.expect("the mirrors are known after a look at them"))
    }

    /// The pair as this index has it; `None` when packages have to be downloaded and the mirrors are not known yet.
    async fn pair_on(&self, state: &State, request: &Request, work: &Work) -> Result<Option<BasePair>, Error> {
        let mut layers = self.resolve(request, state).await?;
        let id = lock_id(layers.iter().map(|layer| (layer.key, layer.is_build_only)));
        if let Some(pair) = self.answer_again(&id, request, state).await? {
            return Ok(Some(pair));
        }
        self.find_made(&mut layers).await?;
        if work.located.is_none() && self.needs_mirror(&layers) {
            return Ok(None);
        }
        self.download(&layers, work).await?;
        let layers = self.assemble(layers).await?;
        self.publish(request, state, layers).await.map(Some)
    }

    /// Asks the mirrors what the suites are today, and gets the indexes when they changed.
    async fn look(&self, work: &mut Work) -> Result<State, Error> {
        let options = &self.bases.options;
        let files = options.cache.join("files");
        blocking("making the folder for Debian packages", move || fs::create_dir_all(files)).await?;
        let downloader = Downloader::new(options.retry_delay)?;
        let last = self.bases.last_state().await?;
        let look = Look { options, downloader: &downloader, last: last.as_ref() };
        let checked = match self.patience {
            None => look.at_mirrors().await?,
            Some(patience) => tokio::time::timeout(patience, look.at_mirrors())
                .await
                .unwrap_or(Err(Error::MirrorSlow { seconds: patience.as_secs() }))?,
        };
        if !options.index_path(&checked.state.snapshot).exists() {
            checked.build_index(options, &downloader, self.progress).await?;
        }
        self.bases.save_state(&checked.state).await?;
        let (cache, keep) = (options.cache.clone(), options.index_path(&checked.state.snapshot));
        blocking("clearing the Debian cache", move || clear(&cache, &keep)).await?;
        work.located = Some(checked.located);
        Ok(checked.state)
    }

    async fn resolve(&self, request: &Request, state: &State) -> Result<Vec<Wanted>, Error> {
        let (options, request) = (self.bases.options.clone(), request.clone());
        let path = options.index_path(&state.snapshot);
        let resolve = move || {
            let index = PackageIndex::open(&path).map_err(|source| {
                // A look at the mirrors makes it anew when it is not there.
                let _ = fs::remove_file(&path);
                Error::DamagedIndex { source }
            })?;
            stack::resolve(&index, &request, &options)
        };
        let panicked = |panic| Err(Error::Assembly { source: std::io::Error::other(panic) });
        tokio::task::spawn_blocking(resolve).await.unwrap_or_else(panicked)
    }

    /// The pair with exactly these layers, when it is there: then it is the answer to this request too.
    async fn answer_again(&self, id: &Digest, request: &Request, state: &State) -> Result<Option<BasePair>, Error> {
        let key = BaseRecord::key_of(id);
        let objects = &self.bases.objects;
        let Some(stored) = objects.get::<BaseRecord>(&key).await? else { return Ok(None) };
        if !self.bases.is_whole(&stored.value).await? {
            return Ok(None);
        }
        let answer = answer(state);
        let change = |record: &mut BaseRecord| {
            record.requests.insert(request.id(&self.bases.options), answer.clone());
        };
        Ok(Some(objects.modify(&key, change).await?.value.pair()))
    }

    /// Finds the layers that other bases have already.
    async fn find_made(&self, layers: &mut [Wanted]) -> Result<(), Error> {
        let records = self.bases.objects.list::<BaseRecord>(None).await?;
        for wanted in layers {
            for stored in &records {
                let record = &stored.value;
                let Some(recorded) = record.layers.iter().find(|layer| layer.key == wanted.key) else { continue };
                if self.bases.blobs.size(&recorded.layer.blob.digest).await? != Some(recorded.layer.blob.size) {
                    continue;
                }
                let lock = image::read_blob(&self.bases.blobs, &record.lock).await?;
                let lock = lock.and_then(|text| serde_json::from_slice::<Lock>(&text).ok());
                wanted.made = lock.and_then(|lock| lock.layers.into_iter().find(|layer| layer.key == wanted.key));
                if wanted.made.is_some() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn needs_mirror(&self, layers: &[Wanted]) -> bool {
        // Downloads are not synced: after a power cut one may have its name without its content.
        let missing = |package: &Package| {
            let file = fs::metadata(self.bases.options.file(&package.sha256.hex()));
            !file.is_ok_and(|file| file.len() == package.size)
        };
        layers.iter().filter(|layer| layer.made.is_none()).any(|layer| layer.packages.iter().any(missing))
    }

    async fn download(&self, layers: &[Wanted], work: &Work) -> Result<(), Error> {
        let packages: Vec<&Package> =
            layers.iter().filter(|layer| layer.made.is_none()).flat_map(|layer| &layer.packages).collect();
        if packages.is_empty() {
            return Ok(());
        }
        let options = &self.bases.options;
        let download = |package: &&Package| Download {
            // Without a mirror all files are there, and the URL is never used.
            url: work.located.as_ref().map_or_else(|| package.filename.clone(), |at| at.package_url(package)),
            path: options.file(&package.sha256.hex()),
            size: package.size,
            digest: package.sha256,
        };
        let downloads: Vec<Download> = packages.iter().map(download).collect();
        (self.progress)(Progress::Note(format!("assembling a base of {} Debian packages", packages.len())));
        Downloader::new(options.retry_delay)?.fetch(downloads, self.progress).await
    }

    async fn assemble(&self, layers: Vec<Wanted>) -> Result<Vec<(LockedLayer, bool)>, Error> {
        let options = &self.bases.options;
        let mut made: Vec<(LockedLayer, bool)> = Vec::new();
        for Wanted { key, packages, is_build_only, below, made: known } in layers {
            let layer = match known {
                Some(layer) => layer,
                None => {
                    let file = |package: &Package| (package.name.clone(), options.file(&package.sha256.hex()));
                    let plan = Plan {
                        packages: packages.iter().map(file).collect(),
                        architecture: options.architecture.clone(),
                        compression: options.compression,
                        below: stack::facts_of(below.iter().map(|number| &made[*number].0.facts)),
                    };
                    let (layer, facts) = image::write_layer(&self.bases.blobs, plan).await?;
                    if !packages.is_empty() {
                        let (count, size) = (packages.len(), megabytes(layer.blob.size));
                        (self.progress)(Progress::Note(format!("made a layer of {count} packages, {size} compressed")));
                    }
                    LockedLayer { key, layer, packages, facts }
                }
            };
            made.push((layer, is_build_only));
        }
        Ok(made)
    }

    /// Writes the images, makes them known, and last the record: before it nothing refers to them.
    async fn publish(
        &self,
        request: &Request,
        state: &State,
        layers: Vec<(LockedLayer, bool)>,
    ) -> Result<BasePair, Error> {
        let bases = self.bases;
        let id = lock_id(layers.iter().map(|(layer, is_build_only)| (layer.key, *is_build_only)));
        let all: Vec<Layer> = layers.iter().map(|(layer, _)| layer.layer.clone()).collect();
        let shared = layers.iter().filter(|(_, is_build_only)| !is_build_only).count();
        let mut images = Vec::new();
        for (role, layers) in [(Role::Run, &all[..shared]), (Role::Build, &all[..])] {
            let manifest = image::write_image(&bases.blobs, role, &bases.options.architecture, &id, layers).await?;
            let tag = format!("{}-{}", role.as_str(), &id.hex()[..16]);
            bases.publish.publish(REPOSITORY, &tag, manifest).await.map_err(Error::Publish)?;
            images.push(ImageName::new(REPOSITORY, manifest));
        }
        let layers: Vec<LockedLayer> = layers.into_iter().map(|(layer, _)| layer).collect();
        let recorded =
            layers.iter().map(|layer| RecordedLayer { key: layer.key, layer: layer.layer.clone() }).collect();
        let recipe = Definition::embedded().recipe;
        let (architecture, suites) = (bases.options.architecture.clone(), state.suites.clone());
        let lock = image::to_json(&Lock { recipe, architecture, suites, layers })?;
        let lock = image::write_blob(&bases.blobs, lock).await?;
        let requests = BTreeMap::from([(request.id(&bases.options), answer(state))]);
        let [run, build] = <[ImageName; 2]>::try_from(images).expect("there are two roles");
        let record = BaseRecord { id, run, build, lock, layers: recorded, requests, made: Timestamp::now() };
        self.keep(&record).await?;
        Ok(record.pair())
    }

    /// Writes the record; one that is there lost blobs, and keeps what it was the answer to.
    async fn keep(&self, record: &BaseRecord) -> Result<(), Error> {
        match self.bases.objects.create(record).await {
            Err(store::Error::Conflict(key)) => {
                let change = |kept: &mut BaseRecord| {
                    let earlier = std::mem::take(&mut kept.requests);
                    *kept = record.clone();
                    for (request, answer) in earlier {
                        kept.requests.entry(request).or_insert(answer);
                    }
                };
                self.bases.objects.modify(&key, change).await?;
                Ok(())
            }
            created => Ok(created.map(drop)?),
        }
    }
}

fn answer(state: &State) -> Answer {
    Answer { snapshot: state.snapshot, at: Timestamp::now() }
}

const KEEP_FILES: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const KEEP_PARTS: Duration = Duration::from_secs(24 * 60 * 60);

/// Removes older indexes, downloads that nothing used for long, and parts that nobody will resume.
fn clear(cache: &Path, current_index: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if (name.starts_with("index-") || name.ends_with(".part")) && path != current_index {
            fs::remove_file(path)?;
        }
    }
    for entry in fs::read_dir(cache.join("files"))? {
        let entry = entry?;
        let used = entry.metadata()?.modified()?;
        let is_part = entry.path().extension().is_some_and(|extension| extension == "part");
        let keep = if is_part { KEEP_PARTS } else { KEEP_FILES };
        if SystemTime::now().duration_since(used).is_ok_and(|age| age > keep) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
