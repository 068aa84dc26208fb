//! A file of a builder that its labels do not have: looked for in its layers, from the top.

use std::io::{self, Read};

use serde::Deserialize;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::{Builders, Error, copy::Copied, facts::RunImage};
use crate::oci::{Descriptor, read_layer_file};

/// Files that name the run image, the newer one first (platform-spec, "run.toml", "stack.toml").
const FILES: [&str; 2] = ["cnb/run.toml", "cnb/stack.toml"];
const MAX_BYTES: u64 = 1 << 20;

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RunToml {
    #[serde(default)]
    images: Vec<RunImage>,
    run_image: Option<RunImage>,
}

impl Builders {
    /// The run image by `/cnb/run.toml` or `/cnb/stack.toml` of a builder.
    pub(super) async fn run_image_in(&self, builder: &Copied) -> Result<RunImage, Error> {
        for layer in builder.manifest.layers.iter().rev() {
            let Some(text) = self.file_in(builder, layer).await? else { continue };
            let parsed: RunToml = toml::from_str(&text)
                .map_err(|error| Error::malformed(&builder.name, format!("its run.toml: {error}")))?;
            if let Some(found) = parsed.images.into_iter().next().or(parsed.run_image) {
                return Ok(found);
            }
        }
        Err(Error::malformed(&builder.name, "neither its labels nor /cnb/run.toml name a run image"))
    }

    async fn file_in(&self, builder: &Copied, layer: &Descriptor) -> Result<Option<String>, Error> {
        let gone = || Error::malformed(&builder.name, format!("layer {} is gone; push again", layer.digest));
        let reader = self.blobs.open(&layer.digest, None).await?.ok_or_else(gone)?;
        let bridge = SyncIoBridge::new(StreamReader::new(reader.stream));
        let media_type = layer.media_type.clone();
        let read = move || read_layer_file(bridge, &media_type, &FILES, MAX_BYTES);
        let read = tokio::task::spawn_blocking(read).await.map_err(io::Error::other).and_then(|read| read);
        let interrupted = |source| Error::Interrupted { image: builder.name.clone(), source };
        let Some(bytes) = read.map_err(interrupted)? else { return Ok(None) };
        let mut text = String::new();
        bytes.as_slice().read_to_string(&mut text).map_err(interrupted)?;
        Ok(Some(text))
    }
}
