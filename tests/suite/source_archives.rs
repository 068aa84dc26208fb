//! What is taken as a source, and what is refused: one case each, and nothing is left of what is refused.

use std::{fs, io, io::Write as _, path::Path, sync::Arc};

use bytes::Bytes;
use epiniod::{
    api::ApiError,
    blob::DiskBlobs,
    source::{Error, Limits, Source, Sources, unpack},
    store::{DiskStore, Objects},
};
use futures::StreamExt as _;
use tar::{EntryType, Header};
use tempfile::TempDir;

const LIMITS: Limits = Limits { max_archive_bytes: 1 << 20, max_unpacked_bytes: 4 << 20, max_entries: 100 };

struct Place {
    dir: TempDir,
    objects: Objects,
    blobs: Arc<DiskBlobs>,
    sources: Sources,
    runtime: tokio::runtime::Runtime,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let objects = Objects::new(DiskStore::open(&dir.path().join("store")).unwrap());
        let blobs = DiskBlobs::open(&dir.path().join("blobs")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let sources = Sources::new(objects.clone(), blobs.clone(), LIMITS);
        Self { dir, objects, blobs, sources, runtime }
    }

    fn receive(&self, parts: Vec<io::Result<Bytes>>) -> Result<Source, Error> {
        let (namespace, app) = ("workspace".parse().unwrap(), "app".parse().unwrap());
        self.runtime.block_on(self.sources.receive(&namespace, &app, futures::stream::iter(parts)))
    }

    fn send(&self, archive: &[u8]) -> Result<Source, Error> {
        self.receive(archive.chunks(1000).map(|part| Ok(Bytes::copy_from_slice(part))).collect())
    }

    /// With this message and status, and nothing of it is left.
    fn is_refused(&self, name: &str, archive: &[u8], message: &str, status: u16) {
        let before = (self.files_left(), self.objects_left());
        let error = self.send(archive).expect_err(name);
        let text = error.to_string();
        assert!(text.contains(message), "{name}: {text}");
        assert_eq!(ApiError::from(error).status.as_u16(), status, "{name}: {text}");
        assert_eq!((self.files_left(), self.objects_left()), before, "{name} left something");
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

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// With a window of 2 to the power of this.
fn zstd(bytes: &[u8], window: u32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(window).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The archive in every format.
fn formats(entries: &[(&str, &[u8])]) -> Vec<(&'static str, Vec<u8>)> {
    let texts: Vec<String> = entries.iter().map(|(_, content)| String::from_utf8(content.to_vec()).unwrap()).collect();
    let files: Vec<_> =
        entries.iter().zip(&texts).map(|((name, _), text)| (*name, EntryType::Regular, text.as_str())).collect();
    let tar = tar(&files);
    vec![
        ("gzip", gzip(&tar)),
        ("bzip2", bzip2(&tar)),
        ("xz", xz(&tar)),
        ("zstd", zstd(&tar, 20)),
        ("zip", zip(entries)),
        ("tar", tar),
    ]
}

#[test]
fn every_format_is_taken_and_unpacked() {
    let place = Place::new();
    let mut archives = formats(&[("app.py", b"print('hi')")]);
    archives.push(("tar with a link", good()));
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
fn what_is_cut_off_or_damaged_is_refused_in_every_format() {
    let text: String = (0..20_000u32).map(|number| format!("{number} ")).collect();
    let place = Place::new();
    for (name, archive) in formats(&[("numbers", text.as_bytes())]) {
        let mut damaged = archive.clone();
        // Of a plain archive only headers have a sum.
        let at = if name == "tar" { 10 } else { archive.len() / 2 };
        damaged[at] ^= 0xff;
        for (what, archive) in [("cut off", &archive[..archive.len() * 2 / 3]), ("damaged", &damaged[..])] {
            place.is_refused(&format!("{name} {what}"), archive, "damaged or cut off", 422);
        }
    }
}

#[test]
fn a_bomb_takes_little_memory_and_is_refused_in_every_format() {
    let place = Place::new();
    let zeros = vec![0; 5 << 20];
    for (name, archive) in formats(&[("zeros", &zeros)]) {
        let message = if name == "tar" { "larger than 1048576 bytes" } else { "come to more than 4194304 bytes" };
        place.is_refused(name, &archive, message, 413);
    }
    // The dictionary is 4 GiB.
    let mut wide_xz = xz(&good());
    wide_xz[16] = 40;
    let longest = "n".repeat(2 << 20);
    let long_name = tar(&[("././@LongLink", EntryType::GNULongName, &longest), ("a", EntryType::Regular, "x")]);
    // The end of the directory says that there are 65534 entries.
    let mut many = zip(&[("a", b"x")]);
    let end = many.len() - 22;
    many[end + 8..end + 12].copy_from_slice(&[0xfe, 0xff, 0xfe, 0xff]);
    place.is_refused("xz dictionary", &wide_xz, "in little memory: its xz dictionary has 4294967295 bytes", 422);
    place.is_refused("zstd window", &zstd(&good(), 27), "in little memory: its zstd window", 422);
    place.is_refused("header", &gzip(&long_name), "headers of an entry are larger than 1 MiB", 422);
    place.is_refused("zip directory", &many, "more than 100 entries", 413);
}

#[test]
fn what_is_not_a_plain_tree_is_refused_and_nothing_is_left() {
    use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
    let many: Vec<_> = (0..101).map(|_| ("file", Regular, "x")).collect();
    let large = "x".repeat(1 << 20);
    let deep = "d/".repeat(40);
    let folders: Vec<String> = (0..3).map(|number| format!("{number}/{deep}f")).collect();
    let folders: Vec<_> = folders.iter().map(|name| (name.as_str(), Regular, "x")).collect();
    let name_255 = "d/".repeat(300);
    let too_deep = tar(&[("././@LongLink", EntryType::GNULongName, &name_255), ("d", Directory, "")]);
    let mut unmarked = tar(&[("a", Regular, "x")]);
    unmarked.truncate(1024);
    let cases: Vec<(&str, Vec<u8>, &str, u16)> = vec![
        ("absolute name", tar(&[("/etc/passwd", Regular, "x")]), "'/etc/passwd'", 422),
        ("parent name", tar(&[("a/../../b", Regular, "x")]), "outside of the application's folder", 422),
        ("absolute link", tar(&[("l", Symlink, "/etc/passwd")]), "absolute path '/etc/passwd'", 422),
        ("link that leaves", tar(&[("a/l", Symlink, "../../x")]), "outside of the application's folder", 422),
        ("link that winds out", tar(&[("a/l", Symlink, "b/../../../x")]), "'..' after a name", 422),
        ("hard link that leaves", tar(&[("l", Link, "../x")]), "link to something outside", 422),
        ("hard link to nothing", tar(&[("l", Link, "x")]), "no file that came before it", 422),
        ("hard link to a link", tar(&[("a/l", Symlink, "../x"), ("l", Link, "a/l")]), "no file that came before", 422),
        ("file below a file", tar(&[("a", Regular, "x"), ("a/b", Regular, "x")]), "below a file or a link", 422),
        ("file below a link", tar(&[("d/a", Symlink, "b"), ("d/a/b", Regular, "x")]), "below a file or a link", 422),
        ("file for a folder", tar(&[("a/b", Regular, "x"), ("a", Regular, "x")]), "a folder has the same name", 422),
        ("character device", tar(&[("d", Char, "")]), "a device, a FIFO or a socket", 422),
        ("block device", tar(&[("d", Block, "")]), "a device, a FIFO or a socket", 422),
        ("FIFO", tar(&[("p", Fifo, "")]), "a device, a FIFO or a socket", 422),
        ("no end mark", unmarked, "without an end mark", 422),
        ("archive over the limit", tar(&[("a", Regular, &large), ("b", Regular, "x")]), "larger than 1048576", 413),
        ("too many entries", tar(&many), "more than 100 entries", 413),
        ("too many folders", tar(&folders), "more than 100 entries", 413),
        ("too deep", too_deep, "in more than 256 folders", 422),
        ("nothing in it", tar(&[]), "the archive has no files in it", 422),
        ("no files", gzip(&tar(&[])), "no files in it", 422),
        ("no archive", b"#!/bin/sh\necho hello\n".repeat(50), "no archive that is known", 415),
        ("empty", Vec::new(), "the upload is empty", 422),
        ("zip with a parent name", zip(&[("../x", b"x")]), "outside of the application's folder", 422),
    ];
    let place = Place::new();
    for (name, archive, message, status) in cases {
        place.is_refused(name, &archive, message, status);
    }
}

#[test]
fn a_zip_that_is_refused_takes_nothing_from_others() {
    let place = Place::new();
    let archive = zip(&[("a", b"x"), ("b", b"y")]);
    place.send(&archive).unwrap();
    let before = place.files_left();
    let strict = Sources::new(place.objects.clone(), place.blobs.clone(), Limits { max_entries: 1, ..LIMITS });
    let (namespace, app) = ("workspace".parse().unwrap(), "app".parse().unwrap());
    let body = futures::stream::iter([Ok(Bytes::from(archive))]);
    place.runtime.block_on(strict.receive(&namespace, &app, body)).expect_err("it has two entries");
    assert_eq!(place.files_left(), before);
}

#[test]
fn open_uploads_stop_nobody_and_are_not_without_number() {
    let place = Place::new();
    let (namespace, app) = ("workspace".parse().unwrap(), "app".parse().unwrap());
    place.runtime.block_on(async {
        let silent = || {
            let start = futures::stream::iter([Ok(Bytes::from(good()))]);
            Box::pin(place.sources.receive(&namespace, &app, start.chain(futures::stream::pending())))
        };
        let mut open: Vec<_> = (0..15).map(|_| silent()).collect();
        for upload in &mut open {
            assert!(futures::poll!(upload).is_pending());
        }
        let body = || futures::stream::iter([Ok(Bytes::from(good()))]);
        place.sources.receive(&namespace, &app, body()).await.expect("there is one place left");
        let mut last = silent();
        assert!(futures::poll!(&mut last).is_pending());
        let error = place.sources.receive(&namespace, &app, body()).await.expect_err("all places are taken");
        assert_eq!(ApiError::from(error).status.as_u16(), 503);
    });
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
