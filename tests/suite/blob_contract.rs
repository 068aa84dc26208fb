//! What every backend of blobs does: a disk, and a bucket of somebody else's S3.

use std::{
    fs::{self, File},
    io::Read as _,
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use epiniod::{
    blob::{BlobInfo, DiskBlobs, Error, SharedBlobs},
    model::{Digest, Timestamp},
};
use futures::TryStreamExt as _;
use tempfile::TempDir;

use crate::support::{Bucket, files};

/// A backend, with a look behind it.
enum Place {
    Disk { dir: TempDir, disk: Arc<DiskBlobs> },
    Bucket { bucket: Bucket, blobs: SharedBlobs },
}

impl Place {
    async fn all() -> Vec<Self> {
        let dir = tempfile::tempdir().unwrap();
        let disk = DiskBlobs::open(dir.path()).unwrap();
        let mut places = vec![Self::Disk { dir, disk }];
        if let Some(bucket) = Bucket::start() {
            let blobs = bucket.open().await;
            places.push(Self::Bucket { bucket, blobs });
        }
        places
    }

    fn blobs(&self) -> SharedBlobs {
        match self {
            Self::Disk { disk, .. } => Arc::clone(disk) as SharedBlobs,
            Self::Bucket { blobs, .. } => Arc::clone(blobs),
        }
    }

    /// How many there are of blobs, and of what is none yet.
    fn files(&self) -> usize {
        match self {
            Self::Disk { dir, .. } => files(dir.path()).len(),
            Self::Bucket { bucket, .. } => {
                files(&bucket.copies()).len()
                    + bucket.files("").iter().filter(|path| !path.ends_with("epiniod-owner")).count()
            }
        }
    }

    fn age(&self, digest: &Digest) {
        match self {
            Self::Disk { disk, .. } => {
                let file = File::open(disk.local_path(digest).unwrap()).unwrap();
                file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            }
            Self::Bucket { bucket, .. } => bucket.age(digest),
        }
    }
}

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

#[tokio::test]
async fn a_blob_is_named_by_its_content_and_read_whole_or_in_part() {
    for place in Place::all().await {
        let blobs = place.blobs();
        let content: Vec<u8> = (0..1_300_000u32).map(|number| (number % 251) as u8).collect();
        let digest = Digest::of(&content);
        assert!(read(&blobs, &digest, None).await.is_none() && blobs.size(&digest).await.unwrap().is_none());
        assert!(blobs.local_file(&digest).await.unwrap().is_none());
        let info = put(&blobs, &content, Some(digest)).await.unwrap();
        assert_eq!(info, BlobInfo { digest, size: 1_300_000 });
        assert_eq!(put(&blobs, &content, None).await.unwrap(), info, "the same again is the same");
        assert_eq!(place.files(), 1);
        assert_eq!(blobs.size(&digest).await.unwrap(), Some(1_300_000));
        assert_eq!(read(&blobs, &digest, None).await.unwrap(), (1_300_000, content.clone()));
        assert_eq!(read(&blobs, &digest, Some(10..13)).await.unwrap(), (1_300_000, content[10..13].to_vec()));
        assert_eq!(read(&blobs, &digest, Some(1_299_999..2_000_000)).await.unwrap().1, content[1_299_999..]);
        assert_eq!(read(&blobs, &digest, Some(2_000_000..3_000_000)).await.unwrap(), (1_300_000, Vec::new()));
        assert_eq!(fs::read(blobs.local_file(&digest).await.unwrap().unwrap()).unwrap(), content);
        let empty = put(&blobs, b"", None).await.unwrap();
        assert_eq!(read(&blobs, &empty.digest, None).await.unwrap(), (0, Vec::new()));
    }
}

#[tokio::test]
async fn nothing_is_there_before_it_is_finished_and_nothing_stays_of_what_is_not() {
    for place in Place::all().await {
        let blobs = place.blobs();
        let mut writer = blobs.readable_writer().await.unwrap();
        writer.write(Bytes::from_static(b"half")).await.unwrap();
        let mut so_far = String::new();
        writer.so_far().await.unwrap().expect("a file on this machine").read_to_string(&mut so_far).unwrap();
        assert_eq!(so_far, "half");
        writer.write(Bytes::from_static(b" and half")).await.unwrap();
        assert_eq!(blobs.list(None, 10).await.unwrap(), []);
        drop(writer);
        let wrong = put(&blobs, b"content", Some(Digest::of("other"))).await;
        assert!(matches!(wrong, Err(Error::Mismatch { .. })), "{wrong:?}");
        assert_eq!(place.files(), 0);
        let mut writer = blobs.readable_writer().await.unwrap();
        writer.write(Bytes::from_static(b"half")).await.unwrap();
        writer.so_far().await.unwrap();
        writer.write(Bytes::from_static(b" and half")).await.unwrap();
        let info = writer.finish(Some(Digest::of("half and half"))).await.unwrap();
        assert_eq!(read(&blobs, &info.digest, None).await.unwrap().1, b"half and half");
        assert_eq!(place.files(), 1);
    }
}

#[tokio::test]
async fn what_a_daemon_that_was_killed_had_begun_is_removed_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    drop(DiskBlobs::open(dir.path()).unwrap());
    fs::write(dir.path().join("tmp/7"), "of a daemon that was killed").unwrap();
    drop(DiskBlobs::open(dir.path()).unwrap());
    assert_eq!(files(dir.path()).len(), 0);
}

#[tokio::test]
async fn lists_come_in_pages_by_digest() {
    for place in Place::all().await {
        let blobs = place.blobs();
        let mut digests = Vec::new();
        for number in 0..25 {
            digests.push(put(&blobs, format!("blob {number}").as_bytes(), None).await.unwrap().digest);
        }
        digests.sort_by_key(Digest::hex);
        for digest in digests.iter().step_by(3) {
            place.age(digest);
            assert!(blobs.touch(digest).await.unwrap());
        }
        place.age(&digests[1]);
        let (mut after, mut found) = (None, Vec::new());
        loop {
            let page = blobs.list(after, 10).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.digest);
            assert!(page.len() <= 10);
            found.extend(page);
        }
        assert_eq!(found.iter().map(|entry| entry.digest).collect::<Vec<_>>(), digests);
        let is_old = |entry: &epiniod::blob::BlobEntry| entry.modified == Timestamp::from_second(0);
        let old: Vec<_> = found.iter().filter(|entry| is_old(entry)).map(|entry| entry.digest).collect();
        assert_eq!(old, [digests[1]], "a blob that was touched is new in lists, too");
    }
}

#[tokio::test]
async fn only_what_is_old_is_deleted_and_using_it_again_makes_it_new() {
    for place in Place::all().await {
        let blobs = place.blobs();
        let digest = put(&blobs, b"content", None).await.unwrap().digest;
        let hour_ago = Timestamp::from_second(Timestamp::now().as_second() - 3600);
        assert!(!blobs.delete_older(&digest, hour_ago).await.unwrap(), "it is new");
        place.age(&digest);
        assert!(blobs.touch(&digest).await.unwrap());
        assert!(!blobs.delete_older(&digest, hour_ago).await.unwrap(), "it was touched");
        place.age(&digest);
        put(&blobs, b"content", None).await.unwrap();
        assert!(!blobs.delete_older(&digest, hour_ago).await.unwrap(), "it was put again");
        place.age(&digest);
        assert!(blobs.delete_older(&digest, hour_ago).await.unwrap());
        assert!(!blobs.delete_older(&digest, hour_ago).await.unwrap() && !blobs.touch(&digest).await.unwrap());
        assert_eq!(blobs.list(None, 10).await.unwrap(), []);
        assert_eq!(place.files(), 0, "nothing is left beside it");
    }
}
