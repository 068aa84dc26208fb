//! Layers that are kept from build to build by a key: the digest of all that decides what is in them.

use std::path::{Path, PathBuf};

use libcnb::{
    Buildpack,
    build::BuildContext,
    data::layer::LayerName,
    layer::{CachedLayerDefinition, InvalidMetadataAction, LayerRef, LayerState, RestoredLayerAction},
};
use serde::{Deserialize, Serialize};

use super::{Error, output, tree};

/// Where a cached layer is used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// In the image.
    Launch,
    /// Only by the next build.
    Cache,
}

/// A layer, and whether its content is there already.
pub(super) struct Layer<B: Buildpack> {
    reference: LayerRef<B, (), ()>,
    key: String,
    pub kept: bool,
}

/// Only this is stored beside a layer. It is a string, as numbers and dates change their type on the way.
#[derive(Serialize, Deserialize)]
struct Metadata {
    key: String,
}

impl<B: Buildpack<Error = Error>> Layer<B> {
    /// The restored layer if it was made for the same `key`, else an empty one.
    pub(super) fn open(
        context: &BuildContext<B>,
        name: LayerName,
        used: Use,
        key: &str,
    ) -> libcnb::Result<Self, Error> {
        let reference = context.cached_layer(
            name,
            CachedLayerDefinition {
                build: false,
                launch: used == Use::Launch,
                invalid_metadata_action: &|_| InvalidMetadataAction::<Metadata>::DeleteLayer,
                restored_layer_action: &|metadata: &Metadata, _: &Path| {
                    if metadata.key == key { RestoredLayerAction::KeepLayer } else { RestoredLayerAction::DeleteLayer }
                },
            },
        )?;
        let kept = matches!(reference.state, LayerState::Restored { .. });
        Ok(Self { reference, key: key.to_owned(), kept })
    }

    pub(super) fn path(&self) -> PathBuf {
        self.reference.path()
    }

    /// Empties a layer of downloads that has grown over `limit` bytes: nothing else ever takes out what is not used any more.
    pub(super) fn empty_over(&self, limit: u64) -> Result<(), Error> {
        if tree::size(&self.path())? <= limit {
            return Ok(());
        }
        output::detail(format!(
            "the downloads kept for the next build are over {} MB: starting anew",
            limit / 1_000_000
        ));
        tree::empty(&self.path())
    }

    /// Records the key; to be called when the content is complete.
    pub(super) fn complete(&self) -> libcnb::Result<(), Error> {
        self.reference.write_metadata(Metadata { key: self.key.clone() })
    }

    pub(super) fn write_env(&self, env: &libcnb::layer_env::LayerEnv) -> libcnb::Result<(), Error> {
        self.reference.write_env(env)
    }
}
