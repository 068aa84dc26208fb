//! What is taken as a source, and what is refused: one case each, and nothing is left of what is refused.

use std::{fs, io, io::Write as _, path::Path};

use bytes::Bytes;
use epiniod::{
    blob::DiskBlobs,
    source::{Error, Limits, Source, Sources, unpack},
    store::{DiskStore, Objects},
};
use tar::{EntryType, Header};
use tempfile::TempDir;

const LIMITS: Limits = Limits { max_archive_bytes: 1 << 20, max_unpacked_bytes: 4 << 20, max_entries: 100 };

struct Place {
    dir: TempDir,
    objects: Objects,
    sources: Sources,
    runtime: tokio::runtime::Runtime,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let objects = Objects::new(DiskStore::open(&dir.path().join("store")).unwrap());
        let blobs = DiskBlobs::open(&dir.path().join("blobs")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let sources = Sources::new(objects.clone(), blobs, LIMITS);
        Self { dir, objects, sources, runtime }
    }

    fn receive(&self, parts: Vec<io::Result<Bytes>>) -> Result<Source, Error> {
        let (namespace, app) = ("workspace".parse().unwrap(), "app".parse().unwrap());
        self.runtime.block_on(self.sources.receive(&namespace, &app, futures::stream::iter(parts)))
    }

    fn send(&self, archive: &[u8]) -> Result<Source, Error> {
        self.receive(archive.chunks(1000).map(|part| Ok(Bytes::copy_from_slice(part))).collect())
    }

    fn files_left(&self) -> Vec<String> {
        fn walk(dir: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, found) } else { found.push(path.display().to_string()) }
            }
        }
        let mut found = Vec::new();
        walk(&self.dir.path().join("blobs"), &mut found);
        found
    }

    fn objects_left(&self) -> usize {
        self.runtime.block_on(self.objects.list::<Source>(None)).unwrap().len()
    }
}

/// A tar archive of entries with any name, which the tar crate would not write.
fn tar(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if is_link {
            header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content.as_bytes());
        }
        let body = if is_link { "" } else { content };
        header.set_size(body.len() as u64);
        header.set_cksum();
        archive.append(&header, body.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

fn good() -> Vec<u8> {
    tar(&[
        ("./", EntryType::Directory, ""),
        ("./app.py", EntryType::Regular, "print('hi')"),
        ("./link", EntryType::Symlink, "app.py"),
    ])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, content) in entries {
        archive.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[test]
fn every_format_is_taken_and_unpacked() {
    let place = Place::new();
    let tar = good();
    let bzip2 = {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(&tar).unwrap();
        encoder.finish().unwrap()
    };
    let xz = {
        let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
        encoder.write_all(&tar).unwrap();
        encoder.finish().unwrap()
    };
    let archives = [
        ("tar", tar.clone()),
        ("gzip", gzip(&tar)),
        ("bzip2", bzip2),
        ("xz", xz),
        ("zstd", zstd::encode_all(&tar[..], 1).unwrap()),
        ("zip", zip(&[("app.py", b"print('hi')")])),
    ];
    for (name, archive) in archives {
        let source = place.send(&archive).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((source.unpacked_bytes, source.size), (11, archive.len() as u64), "{name}");
        let dest = tempfile::tempdir().unwrap();
        let file = dest.path().join("archive");
        fs::write(&file, &archive).unwrap();
        let out = dest.path().join("out");
        fs::create_dir(&out).unwrap();
        unpack(&file, &out, LIMITS, None).unwrap();
        assert_eq!(fs::read_to_string(out.join("app.py")).unwrap(), "print('hi')", "{name}");
    }
}

#[test]
fn what_is_not_a_plain_tree_is_refused_and_nothing_is_left() {
    use EntryType::{Block, Char, Fifo, Link, Regular, Symlink};
    let many: Vec<_> = (0..101).map(|_| ("file", Regular, "x")).collect();
    let large = "x".repeat(1 << 20);
    let bomb = gzip(&tar(&[("zeros", Regular, &"\0".repeat(5 << 20))]));
    let mut cut = gzip(&good());
    cut.truncate(cut.len() - 20);
    let mut half = tar(&[("a", Regular, &large)]);
    half.truncate(5000);
    let mut unmarked = tar(&[("a", Regular, "x")]);
    unmarked.truncate(1024);
    let mut damaged = gzip(&good());
    damaged[30] ^= 0xff;
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("absolute name", tar(&[("/etc/passwd", Regular, "x")]), "'/etc/passwd'"),
        ("parent name", tar(&[("a/../../b", Regular, "x")]), "outside of the application's folder"),
        ("absolute link", tar(&[("l", Symlink, "/etc/passwd")]), "absolute path '/etc/passwd'"),
        ("link that leaves", tar(&[("a/l", Symlink, "../../x")]), "outside of the application's folder"),
        ("link that winds out", tar(&[("a/l", Symlink, "b/../../../x")]), "'..' after a name"),
        ("hard link that leaves", tar(&[("l", Link, "../x")]), "link to something outside"),
        ("character device", tar(&[("d", Char, "")]), "a device, a FIFO or a socket"),
        ("block device", tar(&[("d", Block, "")]), "a device, a FIFO or a socket"),
        ("FIFO", tar(&[("p", Fifo, "")]), "a device, a FIFO or a socket"),
        ("cut off while compressed", cut, "damaged or cut off"),
        ("cut off in a file", half, "damaged or cut off"),
        ("no end mark", unmarked, "without an end mark"),
        ("damaged", damaged, "damaged or cut off"),
        ("bomb", bomb, "come to more than 4194304 bytes"),
        ("archive over the limit", tar(&[("a", Regular, &large), ("b", Regular, "x")]), "larger than 1048576 bytes"),
        ("too many entries", tar(&many), "more than 100 entries"),
        ("nothing in it", tar(&[]), "no archive that is known"),
        ("no files", gzip(&tar(&[])), "no files in it"),
        ("no archive", b"#!/bin/sh\necho hello\n".repeat(50), "no archive that is known"),
        ("empty", Vec::new(), "the upload is empty"),
        ("zip with a parent name", zip(&[("../x", b"x")]), "outside of the application's folder"),
        ("zip that is cut off", zip(&[("a", b"x")])[..40].to_vec(), "damaged or cut off"),
    ];
    let place = Place::new();
    for (name, archive, message) in cases {
        let error = place.send(&archive).expect_err(name);
        assert!(error.to_string().contains(message), "{name}: {error}");
        assert!(error.is_users(), "{name}: {error:?}");
        assert_eq!((place.files_left(), place.objects_left()), (Vec::new(), 0), "{name} left something");
    }
}

#[test]
fn a_client_that_goes_away_leaves_nothing() {
    let place = Place::new();
    let start = good()[..1500].to_vec();
    let gone = io::Error::from(io::ErrorKind::ConnectionReset);
    let error = place.receive(vec![Ok(Bytes::from(start)), Err(gone)]).unwrap_err();
    assert!(matches!(error, Error::ClientGone(_)), "{error:?}");
    assert_eq!((place.files_left(), place.objects_left()), (Vec::new(), 0));
}
