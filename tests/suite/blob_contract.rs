//! What every backend of blobs does.

use std::{fs, io::Read as _, path::Path, sync::Arc, time::SystemTime};

use bytes::Bytes;
use epiniod::{
    blob::{BlobInfo, Blobs, DiskBlobs, Error, SharedBlobs},
    model::{Digest, Timestamp},
};
use futures::TryStreamExt as _;

async fn put(blobs: &SharedBlobs, content: &[u8], expected: Option<Digest>) -> Result<BlobInfo, Error> {
    let mut writer = blobs.writer().await?;
    for part in content.chunks(300_000) {
        writer.write(Bytes::copy_from_slice(part)).await?;
    }
    assert_eq!(writer.written(), content.len() as u64);
    writer.finish(expected).await
}

async fn read(blobs: &SharedBlobs, digest: &Digest, range: Option<std::ops::Range<u64>>) -> Option<(u64, Vec<u8>)> {
    let reader = blobs.open(digest, range).await.unwrap()?;
    let parts: Vec<Bytes> = reader.stream.try_collect().await.unwrap();
    Some((reader.size, parts.concat()))
}

fn files(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

#[tokio::test]
async fn a_blob_is_named_by_its_content_and_read_whole_or_in_part() {
    let dir = tempfile::tempdir().unwrap();
    let blobs: SharedBlobs = DiskBlobs::open(dir.path()).unwrap();
    let content: Vec<u8> = (0..1_300_000u32).map(|number| (number % 251) as u8).collect();
    let digest = Digest::of(&content);
    assert!(read(&blobs, &digest, None).await.is_none() && blobs.size(&digest).await.unwrap().is_none());
    let info = put(&blobs, &content, Some(digest)).await.unwrap();
    assert_eq!(info, BlobInfo { digest, size: 1_300_000 });
    assert_eq!(put(&blobs, &content, None).await.unwrap(), info, "the same again is the same");
    assert_eq!(files(dir.path()), 1);
    assert_eq!(read(&blobs, &digest, None).await.unwrap(), (1_300_000, content.clone()));
    assert_eq!(read(&blobs, &digest, Some(10..13)).await.unwrap(), (1_300_000, content[10..13].to_vec()));
    assert_eq!(read(&blobs, &digest, Some(1_299_999..2_000_000)).await.unwrap().1, content[1_299_999..]);
    let empty = put(&blobs, b"", None).await.unwrap();
    assert_eq!(read(&blobs, &empty.digest, None).await.unwrap(), (0, Vec::new()));
}

#[tokio::test]
async fn nothing_is_there_before_it_is_finished_and_nothing_stays_of_what_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let blobs: SharedBlobs = DiskBlobs::open(dir.path()).unwrap();
    let mut writer = blobs.writer().await.unwrap();
    writer.write(Bytes::from_static(b"half")).await.unwrap();
    let mut so_far = String::new();
    writer.so_far().await.unwrap().expect("a file on this machine").read_to_string(&mut so_far).unwrap();
    assert_eq!(so_far, "half");
    assert_eq!(blobs.list(None, 10).await.unwrap(), []);
    drop(writer);
    let wrong = put(&blobs, b"content", Some(Digest::of("other"))).await;
    assert!(matches!(wrong, Err(Error::Mismatch { .. })), "{wrong:?}");
    assert_eq!(files(dir.path()), 0);
    fs::write(dir.path().join("tmp/7"), "of a daemon that was killed").unwrap();
    drop(DiskBlobs::open(dir.path()).unwrap());
    assert_eq!(files(dir.path()), 0);
}

#[tokio::test]
async fn lists_come_in_pages_by_digest() {
    let dir = tempfile::tempdir().unwrap();
    let blobs: SharedBlobs = DiskBlobs::open(dir.path()).unwrap();
    let mut digests = Vec::new();
    for number in 0..25 {
        digests.push(put(&blobs, format!("blob {number}").as_bytes(), None).await.unwrap().digest);
    }
    digests.sort_by_key(Digest::hex);
    let (mut after, mut found) = (None, Vec::new());
    loop {
        let page = blobs.list(after, 10).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.digest);
        assert!(page.len() <= 10);
        found.extend(page.iter().map(|entry| entry.digest));
    }
    assert_eq!(found, digests);
}

#[tokio::test]
async fn only_what_is_old_is_deleted_and_using_it_again_makes_it_new() {
    let dir = tempfile::tempdir().unwrap();
    let disk = DiskBlobs::open(dir.path()).unwrap();
    let blobs: SharedBlobs = Arc::clone(&disk) as SharedBlobs;
    let digest = put(&blobs, b"content", None).await.unwrap().digest;
    let hour_ago = Timestamp::from_second(Timestamp::now().as_second() - 3600);
    let age = || {
        let file = fs::File::open(disk.local_path(&digest).unwrap()).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    };
    assert!(!blobs.delete_older(&digest, hour_ago).await.unwrap(), "it is new");
    age();
    assert!(blobs.touch(&digest).await.unwrap());
    assert!(!blobs.delete_older(&digest, hour_ago).await.unwrap(), "it was touched");
    age();
    put(&blobs, b"content", None).await.unwrap();
    assert!(!blobs.delete_older(&digest, hour_ago).await.unwrap(), "it was put again");
    age();
    assert!(blobs.delete_older(&digest, hour_ago).await.unwrap());
    assert!(!blobs.delete_older(&digest, hour_ago).await.unwrap() && !blobs.touch(&digest).await.unwrap());
    assert_eq!(blobs.list(None, 10).await.unwrap(), []);
}
