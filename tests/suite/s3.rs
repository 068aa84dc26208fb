//! A bucket as the place of blobs: what is special about it, and what it does when the other end does not.

mod daemon;
mod trouble;

use std::time::Duration;

use bytes::Bytes;
use epiniod::{
    blob::{Blobs as _, Error, S3Blobs},
    model::Digest,
};
use futures::TryStreamExt as _;

use crate::support::{Bucket, wait_until};

const PART: usize = 8 << 20;

/// Bytes that no part has twice.
fn content(length: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut number = 1u64;
    while bytes.len() < length {
        number = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31);
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

async fn put(blobs: &S3Blobs, content: &Bytes) -> Result<Digest, Error> {
    let mut writer = blobs.writer().await?;
    for start in (0..content.len()).step_by(1_000_003) {
        writer.write(content.slice(start..content.len().min(start + 1_000_003))).await?;
    }
    Ok(writer.finish(None).await?.digest)
}

async fn read(blobs: &S3Blobs, digest: &Digest) -> std::io::Result<Vec<u8>> {
    let reader = blobs.open(digest, None).await.map_err(std::io::Error::other)?.expect("the blob is there");
    let parts: Vec<Bytes> = reader.stream.try_collect().await?;
    Ok(parts.concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_larger_than_a_part_is_sent_in_parts_and_appears_at_once() {
    let Some(bucket) = Bucket::start() else { return };
    let blobs = bucket.open().await;
    for length in [PART - 1, PART, PART + 1, 3 * PART, 3 * PART + 12_345] {
        let content = content(length);
        let digest = put(&blobs, &content).await.unwrap();
        assert_eq!(digest, Digest::of(&content));
        assert_eq!(blobs.size(&digest).await.unwrap(), Some(length as u64));
        assert!(read(&blobs, &digest).await.unwrap() == content, "{length} bytes come back as they were");
        let copy = blobs.local_file(&digest).await.unwrap().expect("a copy");
        assert!(std::fs::read(copy).unwrap() == content);
        assert_eq!(put(&blobs, &content).await.unwrap(), digest, "the same again is the same");
    }
    wait_until("nothing is left of uploads", Duration::from_secs(10), || left_over(&bucket) == 0);
    assert_eq!(bucket.files("blobs").len(), 5);
}

/// Objects of uploads, and parts that the server keeps elsewhere.
fn left_over(bucket: &Bucket) -> usize {
    bucket.files("uploads").len() + bucket.files(".sgwtmp").len()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_ends_early_leaves_nothing_in_the_bucket() {
    let Some(bucket) = Bucket::start() else { return };
    let blobs = bucket.open().await;
    let content = content(3 * PART);
    let mut dropped = blobs.writer().await.unwrap();
    dropped.write(content.clone()).await.unwrap();
    // Both, as one that still arrives would be there after the sweep.
    wait_until("two parts have arrived", Duration::from_secs(10), || left_over(&bucket) > 1);
    drop(dropped);
    wait_until("a dropped upload is given up", Duration::from_secs(10), || left_over(&bucket) == 0);

    let mut wrong = blobs.writer().await.unwrap();
    wrong.write(content.clone()).await.unwrap();
    assert!(matches!(wrong.finish(Some(Digest::of("other"))).await, Err(Error::Mismatch { .. })));
    wait_until("a wrong upload is given up", Duration::from_secs(10), || left_over(&bucket) == 0);
    assert_eq!(blobs.list(None, 10).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_daemon_that_was_killed_had_begun_is_removed_by_the_next() {
    let Some(bucket) = Bucket::start() else { return };
    let first = bucket.open().await;
    let mut writer = first.writer().await.unwrap();
    writer.write(content(3 * PART)).await.unwrap();
    // Both, as one that still arrives would be there after the sweep.
    wait_until("two parts have arrived", Duration::from_secs(10), || left_over(&bucket) > 1);
    // As a process that is killed: nothing is told.
    std::mem::forget(writer);
    let object = |name: &str| {
        let path = bucket.folder().join("uploads").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "an upload that was complete and not copied").unwrap();
        path
    };
    let foreign = object("another/alive/object");
    first.tidy().await.unwrap();
    assert!(left_over(&bucket) > 1 && foreign.exists(), "what is on its way stays");
    object("tests/dead/object");
    let second = bucket.open().await;
    assert_eq!(bucket.files("uploads"), vec![foreign.clone()]);
    assert_eq!(bucket.files(".sgwtmp").len(), 0);
    std::fs::File::open(&foreign).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    second.tidy().await.unwrap();
    assert!(!foreign.exists(), "after a day it is nobody's");
}
