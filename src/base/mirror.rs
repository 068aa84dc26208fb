//! Finding the mirrors and reading the three suites from them.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Archive, Error, Keyring, Mirrors, Options, Package, Progress,
    definition::Definition,
    download::{Download, Downloader},
    index::IndexBuilder,
    release::{Expected, IndexFile, Release, Suite},
    sources,
};
use crate::model::{Digest, Timestamp};

/// The mirrors that were found good, each without a slash at the end.
#[derive(Debug, Clone)]
pub(super) struct Located {
    archive: String,
    security: String,
}

/// The package index that is on disk, and when it was last compared with the mirrors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    pub checked: Timestamp,
    /// The dates of the suites by codename. No older one is accepted any more.
    pub suites: BTreeMap<String, Timestamp>,
    /// Of what the indexes hold: equal snapshots, equal answers.
    pub snapshot: Digest,
}

/// What a look at the mirrors gave.
pub(super) struct Checked {
    pub located: Located,
    pub state: State,
    files: Vec<(Suite, IndexFile)>,
}

/// The largest InRelease that is read; Debian's have 140 KB.
const MAX_RELEASE_BYTES: usize = 4 << 20;

impl Located {
    pub(super) fn package_url(&self, package: &Package) -> String {
        format!("{}/{}", self.root(package.archive), package.filename)
    }

    fn root(&self, archive: Archive) -> &str {
        match archive {
            Archive::Debian => &self.archive,
            Archive::Security => &self.security,
        }
    }
}

/// Reads and verifies what the suites are today.
pub(super) struct Look<'a> {
    pub options: &'a Options,
    pub downloader: &'a Downloader,
    pub last: Option<&'a State>,
}

impl Look<'_> {
    pub(super) async fn at_mirrors(&self) -> Result<Checked, Error> {
        let host = sources::of_host(&self.options.apt);
        let ((archive, stable, updates), (security, security_release)) =
            futures::try_join!(self.locate_archive(&host), self.locate_security(&host))?;
        let releases = [(Suite::Stable, stable), (Suite::Updates, updates), (Suite::Security, security_release)];
        let release_name = &Definition::embedded().suite;
        let suites = releases.iter().map(|(suite, release)| (suite.codename(release_name), release.date)).collect();
        let digests: Vec<Digest> = releases.iter().map(|(_, release)| release.packages.digest).collect();
        let identity = (Definition::embedded().recipe, &self.options.architecture, &digests);
        let snapshot = Digest::of(serde_json::to_vec(&identity).unwrap_or_default());
        Ok(Checked {
            located: Located { archive, security },
            state: State { checked: Timestamp::now(), suites, snapshot },
            files: releases.into_iter().map(|(suite, release)| (suite, release.packages)).collect(),
        })
    }

    async fn locate_archive(&self, host: &[String]) -> Result<(String, Release, Release), Error> {
        let candidates = self.candidates(Archive::Debian, host);
        let (root, [stable, updates]) = self.first_good(candidates, [Suite::Stable, Suite::Updates]).await?;
        Ok((root, stable, updates))
    }

    async fn locate_security(&self, host: &[String]) -> Result<(String, Release), Error> {
        let candidates = self.candidates(Archive::Security, host);
        let (root, [release]) = self.first_good(candidates, [Suite::Security]).await?;
        Ok((root, release))
    }

    fn candidates(&self, archive: Archive, host: &[String]) -> Vec<String> {
        let public = &Definition::embedded().mirrors;
        let public = match archive {
            Archive::Debian => &public.archive,
            Archive::Security => &public.security,
        };
        let mirrors: &Mirrors = &self.options.mirrors;
        mirrors.candidates(archive, host, public)
    }

    /// The first mirror all of whose suites verify. When none does, the most telling reason: what a mirror said rather
    /// than that one could not be reached.
    async fn first_good<const N: usize>(
        &self,
        candidates: Vec<String>,
        suites: [Suite; N],
    ) -> Result<(String, [Release; N]), Error> {
        let only_one = candidates.len() == 1;
        let mut reason: Option<Error> = None;
        for root in candidates {
            match futures::future::try_join_all(suites.map(|suite| self.release(&root, suite))).await {
                Ok(releases) => return Ok((root, releases.try_into().expect("as many as there are suites"))),
                Err(error) => {
                    let is_better = reason.as_ref().is_none_or(|known| !known.is_about_content());
                    if is_better && (reason.is_none() || error.is_about_content()) {
                        reason = Some(error);
                    }
                }
            }
        }
        let suite = suites[0].codename(&Definition::embedded().suite);
        let reason = reason.unwrap_or_else(|| Error::NoMirror { suite: suite.clone(), source: None });
        if only_one || reason.is_about_content() {
            return Err(reason);
        }
        Err(Error::NoMirror { suite, source: Some(Box::new(reason)) })
    }

    async fn release(&self, root: &str, suite: Suite) -> Result<Release, Error> {
        let codename = suite.codename(&Definition::embedded().suite);
        let url = format!("{root}/dists/{codename}/InRelease");
        let file = self.downloader.text(&url, MAX_RELEASE_BYTES).await?;
        let keyring: &Keyring = &self.options.keyring;
        let not_before = self.last.and_then(|state| state.suites.get(&codename)).copied();
        let expected = Expected {
            url: &super::download::shown(&url),
            codename: &codename,
            architecture: &self.options.architecture,
            keyring,
            now: Timestamp::now(),
            not_before,
        };
        Release::verify(&file, &expected)
    }
}

impl Checked {
    /// Gets the indexes and writes the compact one. Nothing is visible under its name before it is whole.
    pub(super) async fn build_index(
        &self,
        options: &Options,
        downloader: &Downloader,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), Error> {
        let files = self.files.iter().map(|(suite, file)| {
            let codename = suite.codename(&Definition::embedded().suite);
            let (root, hex) = (self.located.root(suite.archive()), file.digest.hex());
            // By hash, so that a change of the mirror between InRelease and here does no harm.
            let url = format!("{root}/dists/{codename}/main/binary-{}/by-hash/SHA256/{hex}", options.architecture);
            (suite.archive(), Download { url, path: options.file(&hex), size: file.size, digest: file.digest })
        });
        let files: Vec<(Archive, Download)> = files.collect();
        downloader.fetch(files.iter().map(|(_, file)| file.clone()).collect(), progress).await?;
        let path = options.index_path(&self.state.snapshot);
        let files: Vec<(Archive, PathBuf)> = files.into_iter().map(|(archive, file)| (archive, file.path)).collect();
        let build = move || -> std::io::Result<usize> {
            let mut builder = IndexBuilder::default();
            for (archive, file) in &files {
                let file = std::io::BufReader::new(std::fs::File::open(file)?);
                builder.add(*archive, lzma_rust2::XzReader::new(file, true))?;
            }
            let unfinished = super::unfinished(&path);
            let packages = builder.write(&unfinished)?;
            std::fs::rename(&unfinished, &path)?;
            Ok(packages)
        };
        let doing = "writing the package index";
        let packages = super::blocking(doing, build).await?;
        progress(Progress::Note(format!("read the Debian package index: {packages} packages")));
        Ok(())
    }
}
