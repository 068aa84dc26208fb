//! An image as one file, as container engines import it: an OCI layout (image-spec 1.1, "image-layout") in a tar, with
//! the `manifest.json` beside it that Docker reads.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    Descriptor, MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Manifest,
    manifest::{ConfigFile, Index, MEDIA_TYPE_CONFIG},
};
use crate::model::Digest;

/// Writes an image of these layers (compressed, lowest first) under a name like `localhost/app:1.0`.
pub fn write_archive(
    out: impl Write,
    name: &str,
    config: &ConfigFile,
    layers: &[(Descriptor, Vec<u8>)],
) -> io::Result<()> {
    let mut archive = Archive { tar: tar::Builder::new(out) };
    archive.file("oci-layout", &json_bytes(&json!({"imageLayoutVersion": "1.0.0"}))?)?;
    for (layer, content) in layers {
        archive.file(&path(&layer.digest), content)?;
    }
    let config_blob = archive.document(MEDIA_TYPE_CONFIG, config)?;
    let descriptors: Vec<Descriptor> = layers.iter().map(|(layer, _)| layer.clone()).collect();
    let image = Manifest::image(config_blob.clone(), descriptors);
    let mut manifest = archive.document(MEDIA_TYPE_MANIFEST, &image)?;
    manifest.platform = Some(json!({"architecture": config.architecture, "os": config.os}));
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    manifest.annotations = BTreeMap::from(
        [("io.containerd.image.name", name), ("org.opencontainers.image.ref.name", tag)]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    let index = Index {
        schema_version: 2,
        media_type: Some(MEDIA_TYPE_INDEX.to_owned()),
        manifests: vec![manifest],
        subject: None,
        annotations: BTreeMap::new(),
    };
    archive.file("index.json", &json_bytes(&index)?)?;
    let paths: Vec<String> = image.layers.iter().map(|layer| path(&layer.digest)).collect();
    let docker = json!([{"Config": path(&config_blob.digest), "RepoTags": [name], "Layers": paths}]);
    archive.file("manifest.json", &json_bytes(&docker)?)?;
    archive.tar.into_inner()?.flush()
}

struct Archive<W: Write> {
    tar: tar::Builder<W>,
}

impl<W: Write> Archive<W> {
    fn document(&mut self, media_type: &str, document: &impl serde::Serialize) -> io::Result<Descriptor> {
        let bytes = json_bytes(document)?;
        let digest = Digest::from_sha256(Sha256::digest(&bytes).into());
        self.file(&path(&digest), &bytes)?;
        Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
    }

    fn file(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        self.tar.append_data(&mut header, name, content)
    }
}

fn path(digest: &Digest) -> String {
    format!("blobs/{}", digest.to_string().replace(':', "/"))
}

fn json_bytes(document: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(io::Error::other)
}
