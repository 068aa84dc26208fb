//! Files of images, where labels do not say it: looked for in their layers, from the top.

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
            let Some(text) = self.file_in(builder, layer, FILES).await? else { continue };
            let parsed: RunToml = toml::from_str(&text)
                .map_err(|error| Error::malformed(&builder.name, format!("its run.toml: {error}")))?;
            if let Some(found) = parsed.images.into_iter().next().or(parsed.run_image) {
                return Ok(found);
            }
        }
        Err(Error::malformed(&builder.name, "neither its labels nor /cnb/run.toml name a run image"))
    }

    /// The text of a file of an image, by its path without the first slash; none when no layer has it. Links are not
    /// followed.
    pub(super) async fn file_of(&self, image: &Copied, name: &'static str) -> Result<Option<String>, Error> {
        for layer in image.manifest.layers.iter().rev() {
            if let Some(text) = self.file_in(image, layer, [name]).await? {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    async fn file_in<const N: usize>(
        &self,
        image: &Copied,
        layer: &Descriptor,
        names: [&'static str; N],
    ) -> Result<Option<String>, Error> {
        let gone = || Error::malformed(&image.name, format!("layer {} is gone; push again", layer.digest));
        let reader = self.blobs.open(&layer.digest, None).await?.ok_or_else(gone)?;
        let bridge = SyncIoBridge::new(StreamReader::new(reader.stream));
        let media_type = layer.media_type.clone();
        let read = move || read_layer_file(bridge, &media_type, &names, MAX_BYTES);
        let read = tokio::task::spawn_blocking(read).await.map_err(io::Error::other).and_then(|read| read);
        let interrupted = |source| Error::Interrupted { image: image.name.clone(), source };
        let Some(bytes) = read.map_err(interrupted)? else { return Ok(None) };
        let mut text = String::new();
        bytes.as_slice().read_to_string(&mut text).map_err(interrupted)?;
        Ok(Some(text))
    }
}
