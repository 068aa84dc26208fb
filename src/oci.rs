//! OCI images: manifests, one-pass layers, the registry and a client of registries.
//!
//! Images are content: whatever goes in or out is named by its digest, and every layer is written
//! in a single pass (tar, diffID, compression, digest, upload).

mod archive;
mod client;
mod layer;
mod manifest;
pub mod registry;
pub mod tree;
mod unpack;
mod user;

pub use archive::write_archive;
pub use client::{Client, Error as ClientError};
pub use layer::{Compression, Layer, LayerWriter};
pub use manifest::{
    CREATED, CREATED_SECONDS, ConfigFile, DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, ExecutionConfig, History, Index,
    MEDIA_TYPE_CONFIG, MEDIA_TYPE_INDEX, MEDIA_TYPE_LAYER_GZIP, MEDIA_TYPE_LAYER_TAR, MEDIA_TYPE_LAYER_ZSTD,
    MEDIA_TYPE_MANIFEST, Manifest, RootFs, architecture,
};
pub use unpack::{Ownership, Unpacked, read_layer_file, unpack_layer};
pub use user::ImageUser;

/// What the build of this program compressed and put into it.
pub fn expand(compressed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(compressed);
    std::io::Read::read_to_end(&mut decoder, &mut bytes).expect("the build compressed it");
    bytes
}
