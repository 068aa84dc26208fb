//! Manifests, applied one after the other by server-side apply: what is so already stays as it is, and what others wrote
//! into the same objects stays theirs.

use kube::api::{Patch, PatchParams};

use super::{Connection, Error, MANAGER, Manifest, failed};

/// Whether anything is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Apply,
    /// The API server checks everything, and changes nothing.
    DryRun,
}

/// What became of an object, or would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Created,
    Changed,
    Unchanged,
}

impl Change {
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
        }
    }
}

/// Applies in order; what became of each is told as title and change, in the same order.
pub async fn apply(
    cluster: &Connection,
    manifests: &[Manifest],
    mode: Mode,
    mut tell: impl FnMut(&str),
) -> Result<Vec<(String, Change)>, Error> {
    let mut changes = Vec::with_capacity(manifests.len());
    for manifest in manifests {
        let title = manifest.title();
        tell(&title);
        changes.push((title, apply_one(cluster, manifest, mode).await?));
    }
    Ok(changes)
}

async fn apply_one(cluster: &Connection, manifest: &Manifest, mode: Mode) -> Result<Change, Error> {
    let doing = || format!("applying {}", manifest.title());
    let api = cluster.api_of(&manifest.types(), manifest.namespace());
    let before = api.get_opt(manifest.name()).await.map_err(failed(doing()))?;
    let mut params = PatchParams::apply(MANAGER).force();
    params.dry_run = mode == Mode::DryRun;
    let after = match api.patch(manifest.name(), &params, &Patch::Apply(&manifest.object)).await {
        Ok(after) => after,
        // The namespace would be there by now.
        Err(kube::Error::Api(status)) if status.code == 404 && mode == Mode::DryRun && before.is_none() => {
            return Ok(Change::Created);
        }
        Err(error) => return Err(failed(doing())(error)),
    };
    let Some(mut before) = before else { return Ok(Change::Created) };
    // A dry run gives no new version: what is compared is what it would be.
    let mut after = after;
    for object in [&mut before, &mut after] {
        object.metadata.managed_fields = None;
        object.metadata.resource_version = None;
        object.metadata.generation = None;
        object.data.as_object_mut().map(|data| data.remove("status"));
    }
    let same = before.metadata == after.metadata && before.data == after.data;
    Ok(if same { Change::Unchanged } else { Change::Changed })
}
