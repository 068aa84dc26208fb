//! What is refused, with a text that helps, and what is left behind: nothing.

use epiniod::base::{Bases, Error, Keyring, Progress};

use super::{
    Room,
    making::unpacked,
    mirror::{Deb, Fault, Mirror, Releases},
};

/// The error of a first making, after which nothing may be there.
async fn refused(mirror: &Mirror, run: &[&str]) -> Error {
    let folder = tempfile::tempdir().unwrap();
    let room = Room::new(folder.path(), mirror.options(folder.path()));
    let error = room.ensure(&[], run).await.unwrap_err();
    room.assert_nothing_made().await;
    error
}

fn assert_says(error: &Error, words: &[&str]) {
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_down() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(&[]).await;
    let room = Room::new(folder.path(), mirror.options(folder.path()));
    mirror.stop().await;
    let error = room.ensure(&[], &[]).await.unwrap_err();
    assert!(matches!(error, Error::MirrorDown { .. }), "{error:?}");
    assert_says(&error, &["cannot reach", "http://127.0.0.1", "--debian-mirror"]);
    room.assert_nothing_made().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_is_there_is_used_while_the_mirror_is_down() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(&[Deb::new("python3", "3")]).await;
    let room = Room::that_looks_each_time(folder.path(), &mirror);
    let pair = room.ensure(&[], &["python3"]).await.unwrap();
    mirror.stop().await;
    for _ in 0..2 {
        room.notes.lock().unwrap().clear();
        assert_eq!(room.ensure(&[], &["python3"]).await.unwrap(), pair);
        let notes = room.notes.lock().unwrap();
        assert!(
            matches!(&notes[..], [Progress::Note(note)] if note.contains("using the base made before")),
            "{notes:?}"
        );
    }
    assert!(matches!(room.ensure(&[], &["bash"]).await, Err(Error::MirrorDown { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_that_is_bad_or_of_another_key() {
    let mirror = Mirror::start(&[]).await;
    mirror.fault("trixie-security/InRelease", Fault::Changed);
    let error = refused(&mirror, &[]).await;
    assert!(matches!(error, Error::Signature { .. }), "{error:?}");
    assert_says(&error, &["trixie-security/InRelease", "not signed by Debian"]);

    mirror.repair();
    let folder = tempfile::tempdir().unwrap();
    let mut options = mirror.options(folder.path());
    options.keyring = Keyring::debian();
    let room = Room::new(folder.path(), options);
    assert!(matches!(room.ensure(&[], &[]).await, Err(Error::Signature { .. })));
    room.assert_nothing_made().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_or_an_index_with_another_hash() {
    let mirror = Mirror::start(&[Deb::new("python3", "3")]).await;
    for part in ["pool/bash", "dists/trixie/main"] {
        mirror.fault(part, Fault::Changed);
        let folder = tempfile::tempdir().unwrap();
        let room = Room::new(folder.path(), mirror.options(folder.path()));
        let error = room.ensure(&[], &["python3"]).await.unwrap_err();
        assert!(matches!(error, Error::WrongHash { .. }), "{error:?}");
        assert_says(&error, &[part, "as Debian signed it"]);
        room.assert_nothing_made().await;
        // What was thrown away is fetched anew once the mirror is right.
        mirror.repair();
        room.ensure(&[], &["python3"]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_that_there_is_not() {
    let mirror = Mirror::start(&[Deb::new("nodejs", "20"), Deb::new("broken", "1").needs("missing (>= 2)")]).await;
    let error = refused(&mirror, &["nodsjs"]).await;
    assert!(matches!(error, Error::UnknownPackage { .. }), "{error:?}");
    assert_says(&error, &["no package 'nodsjs'", "did you mean nodejs?"]);
    let error = refused(&mirror, &["broken"]).await;
    assert_says(&error, &["package broken needs missing"]);
    let error = refused(&mirror, &["../etc"]).await;
    assert_says(&error, &["'../etc' is not the name of a Debian package"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_expired_or_is_of_another_release() {
    let mirror = Mirror::start(&[]).await;
    mirror.release(&[], &Releases { valid_for: -60, ..Releases::default() });
    let error = refused(&mirror, &[]).await;
    assert!(matches!(error, Error::Expired { .. }), "{error:?}");
    assert_says(&error, &["expired on", "clock"]);

    mirror.release(&[], &Releases { codename: "forky", ..Releases::default() });
    let error = refused(&mirror, &[]).await;
    assert!(matches!(error, Error::WrongSuite { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_older_than_one_that_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(&[]).await;
    let room = Room::that_looks_each_time(folder.path(), &mirror);
    let pair = room.ensure(&[], &[]).await.unwrap();
    mirror.release(&[Deb::new("bash", "0.1")], &Releases { date: -7200, ..Releases::default() });
    let error = room.ensure(&[], &["bash"]).await.unwrap_err();
    assert!(matches!(error, Error::Rollback { .. }), "{error:?}");
    assert_eq!(room.ensure(&[], &[]).await.unwrap(), pair, "what was made before is used");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_that_reaches_out_of_the_image() {
    let mirror = Mirror::start(&[Deb::new("evil", "1").with("usr/lib/hosts -> ../../../../etc/hosts", 0, "")]).await;
    let folder = tempfile::tempdir().unwrap();
    let room = Room::new(folder.path(), mirror.options(folder.path()));
    // A link is only text in a layer; who unpacks it keeps it inside.
    let pair = room.ensure(&[], &["evil"]).await.unwrap();
    let layer = unpacked(&room, &room.manifest(&pair.run).await.layers[1].digest);
    assert_eq!(layer["usr/lib/hosts"].2, "../../../../etc/hosts");
    assert!(layer.keys().all(|path| !path.contains("..") && !path.starts_with('/')), "{:?}", layer.keys());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_hangs_while_a_base_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(&[]).await;
    let room = Room::that_looks_each_time(folder.path(), &mirror);
    let pair = room.ensure(&[], &[]).await.unwrap();
    mirror.fault("InRelease", Fault::Silent);
    room.notes.lock().unwrap().clear();
    assert_eq!(room.ensure(&[], &[]).await.unwrap(), pair);
    let notes = room.notes.lock().unwrap();
    assert!(matches!(&notes[..], [Progress::Note(note)] if note.contains("did not answer within 3 s")), "{notes:?}");
}

#[test]
fn bases_can_be_shared_between_tasks() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Bases>();
}
