//! The daemon as an image: this program and certificate authorities, and nothing else.
//!
//! Everything in it is fixed but the program, so equal programs make equal images.

use std::{
    collections::BTreeMap,
    error::Error,
    fs::File,
    io::{self, Read as _, Write},
};

use crate::{
    blob::SharedBlobs,
    config,
    model::{Digest, ImageName},
    oci::{
        CREATED, CREATED_SECONDS, Compression, ConfigFile, Descriptor, ExecutionConfig, Layer, LayerWriter,
        MEDIA_TYPE_CONFIG, Manifest, RootFs, architecture, registry::Registry, write_archive,
    },
};

/// Where the program is in the image.
const PROGRAM: &str = "epiniod";
const AUTHORITIES: &str = "etc/ssl/certs/ca-certificates.crt";
/// Where the image is in our own registry.
const REPOSITORY: &str = "epiniod/daemon";
/// A user that nobody has a name for: clusters want a number that is not 0.
const USER: &str = "65532:65532";

/// The name that the image has where it was imported by hand: no registry has such a name.
pub fn name() -> String {
    format!("localhost/epiniod:{}", env!("CARGO_PKG_VERSION"))
}

/// Writes the image as an archive; returns the size of its layer in bytes.
pub fn write(out: impl Write) -> io::Result<u64> {
    // What runs, also when the file was replaced since.
    let mut program = Vec::new();
    File::open("/proc/self/exe")?.read_to_end(&mut program)?;
    let (layer, content) = layer(&program)?;
    let size = layer.blob.size;
    write_archive(out, &name(), &configuration(&layer), &[(layer.blob, content)])?;
    Ok(size)
}

/// Puts the image into our own registry: there it is for the steps of builds in a cluster.
pub(super) async fn publish(
    blobs: &SharedBlobs,
    registry: &Registry,
) -> Result<ImageName, Box<dyn Error + Send + Sync>> {
    publish_program(tokio::fs::read("/proc/self/exe").await?, blobs, registry).await
}

async fn publish_program(
    program: Vec<u8>,
    blobs: &SharedBlobs,
    registry: &Registry,
) -> Result<ImageName, Box<dyn Error + Send + Sync>> {
    let tag = Digest::of(&program).hex();
    if let Some(digest) = registry.resolve(REPOSITORY, &tag).await? {
        return Ok(ImageName::new(REPOSITORY, digest));
    }
    let (layer, content) = tokio::task::spawn_blocking(move || layer(&program)).await??;
    let config = serde_json::to_vec(&configuration(&layer))?;
    let described = Descriptor::new(MEDIA_TYPE_CONFIG, Digest::of(&config), config.len() as u64);
    let manifest = serde_json::to_vec(&Manifest::image(described, vec![layer.blob]))?;
    let digest = Digest::of(&manifest);
    for bytes in [content, config, manifest] {
        let mut writer = blobs.writer().await?;
        let digest = Digest::of(&bytes);
        writer.write(bytes.into()).await?;
        writer.finish(Some(digest)).await?;
    }
    registry.publish(REPOSITORY, &tag, digest).await?;
    forget_all_but(&tag, registry).await?;
    Ok(ImageName::new(REPOSITORY, digest))
}

/// Of programs that ran before this one only the last is kept: builds that it began may still be on their way.
async fn forget_all_but(current: &str, registry: &Registry) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut others = registry.tagged(REPOSITORY).await?;
    others.retain(|(tag, _, _)| tag != current);
    others.sort_by_key(|(_, _, since)| std::cmp::Reverse(*since));
    for (tag, _, _) in others.into_iter().skip(1) {
        registry.delete_tag(REPOSITORY, &tag).await?;
    }
    Ok(())
}

/// Compressed in the way that every engine reads, also the old ones.
fn layer(program: &[u8]) -> io::Result<(Layer, Vec<u8>)> {
    let mut tar = tar::Builder::new(LayerWriter::new(Compression::Gzip, Vec::new())?);
    for folder in ["etc", "etc/ssl", "etc/ssl/certs"] {
        entry(&mut tar, tar::EntryType::Directory, folder, 0o755, &[])?;
    }
    // What is temporary is anybody's.
    entry(&mut tar, tar::EntryType::Directory, "tmp", 0o1777, &[])?;
    entry(&mut tar, tar::EntryType::Regular, AUTHORITIES, 0o644, config::embedded_authorities().as_bytes())?;
    entry(&mut tar, tar::EntryType::Regular, PROGRAM, 0o755, program)?;
    tar.into_inner()?.finish()
}

fn entry(
    tar: &mut tar::Builder<impl Write>,
    kind: tar::EntryType,
    name: &str,
    mode: u32,
    content: &[u8],
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(CREATED_SECONDS);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, name, content)
}

fn configuration(layer: &Layer) -> ConfigFile {
    let labels = [("title", "epiniod"), ("version", env!("CARGO_PKG_VERSION"))]
        .map(|(name, value)| (format!("org.opencontainers.image.{name}"), value.to_owned()));
    ConfigFile {
        created: Some(CREATED.to_owned()),
        architecture: architecture().to_owned(),
        os: "linux".to_owned(),
        config: ExecutionConfig {
            user: Some(USER.to_owned()),
            env: Some(vec!["PATH=/".to_owned(), format!("SSL_CERT_FILE=/{AUTHORITIES}")]),
            entrypoint: Some(vec![format!("/{PROGRAM}")]),
            cmd: Some(vec!["serve".to_owned()]),
            working_dir: Some("/".to_owned()),
            labels: Some(BTreeMap::from(labels)),
            ..ExecutionConfig::default()
        },
        rootfs: RootFs { diff_ids: vec![layer.diff_id], ..RootFs::default() },
        ..ConfigFile::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        blob::DiskBlobs,
        store::{DiskStore, Objects},
    };

    #[tokio::test]
    async fn of_the_programs_before_only_the_last_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let blobs: SharedBlobs = DiskBlobs::open(&dir.path().join("blobs")).unwrap();
        let objects = Objects::new(DiskStore::open(&dir.path().join("store")).unwrap());
        let registry = Registry::new(objects, std::sync::Arc::clone(&blobs));
        for program in ["one", "two", "three", "two"] {
            let image = publish_program(program.into(), &blobs, &registry).await.unwrap();
            let again = publish_program(program.into(), &blobs, &registry).await.unwrap();
            assert_eq!(image, again);
            assert!(registry.image(&image).await.unwrap().is_some(), "{program}");
            let tags = registry.tags(REPOSITORY).await.unwrap();
            assert!(tags.len() <= 2 && tags.contains(&Digest::of(program).hex()), "{program}: {tags:?}");
        }
    }
}
