//! What is made, with a mirror of the test's own.

use std::{collections::BTreeMap, io::Read as _};

use epiniod::{
    base::{BUILD_TOOLS, Progress, REPOSITORY},
    model::Digest,
};

use super::{
    Room,
    mirror::{self, Deb, Fault, Mirror, Releases},
};

/// Mode, owner and content (or link target) of each path.
pub fn unpacked(room: &Room, layer: &Digest) -> BTreeMap<String, (u32, u64, String)> {
    let file = room.blob(layer);
    let mut archive = tar::Archive::new(zstd::Decoder::new(file).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        assert_eq!(entry.header().mtime().unwrap(), 315_532_801);
        let (mode, uid) = (entry.header().mode().unwrap(), entry.header().uid().unwrap());
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let content = match entry.link_name().unwrap() {
            Some(target) => target.display().to_string(),
            None => String::from_utf8_lossy(&content).into_owned(),
        };
        (entry.path().unwrap().display().to_string(), (mode, uid, content))
    });
    entries.collect()
}

fn app() -> Vec<Deb> {
    let mut compiler = Deb::new("compiler", "2").needs("libc6, linker (>= 1)");
    compiler.postinst = "update-alternatives --install /lib/cpp cpp /bin/compiler 10\n".to_owned();
    vec![
        Deb::new("python3", "3.13").needs("libc6 (>= 1), debconf | debconf-2.0"),
        Deb::new("linker", "1").with("usr/lib/x86_64-linux-gnu/libld.so.1", 0o644, "\x7fELF"),
        compiler,
    ]
}

/// Text that stays large when it is compressed.
fn incompressible(length: u64) -> String {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'!' + (state >> 33) as u8 % 90)
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn run_and_build_base_share_their_layers() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(&app()).await;
    let room = Room::new(folder.path(), mirror.options(folder.path()));
    let pair = room.ensure(&["compiler"], &["python3"]).await.unwrap();
    let (run, build) = (room.manifest(&pair.run).await, room.manifest(&pair.build).await);
    assert_eq!((run.layers.len(), build.layers.len()), (2, 3));
    assert_eq!(run.layers, build.layers[..2]);
    let tags = room.registry.tags(REPOSITORY).await.unwrap();
    assert!(matches!(&tags[..], [build, run] if build.starts_with("build-") && run.starts_with("run-")), "{tags:?}");

    let lock: serde_json::Value =
        serde_json::from_reader(room.blob(&room.bases.references().await.unwrap()[0])).unwrap();
    assert_eq!(lock["layers"][1]["packages"][0]["name"], "python3");
    assert_eq!(lock["layers"][1]["packages"][0]["version"], "3.13");
    assert!(lock["suites"]["trixie-security"].is_string());

    let (run, build) = (room.config(&pair.run).await, room.config(&pair.build).await);
    assert_eq!(run.config.user.as_deref(), Some("1000:1000"));
    assert_eq!(run.config.labels.unwrap()["io.buildpacks.base.distro.version"], "13");
    assert!(build.config.env.unwrap().contains(&"CNB_USER_ID=1000".to_owned()));
    assert!(!run.config.env.unwrap().iter().any(|variable| variable.starts_with("CNB_")));
    assert_eq!(run.created.as_deref(), Some("1980-01-01T00:00:01Z"));
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_hold_what_packages_ship_and_what_their_scripts_would_have_made() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(&app()).await;
    let room = Room::new(folder.path(), mirror.options(folder.path()));
    let pair = room.ensure(&["compiler"], &["python3"]).await.unwrap();
    let layers = room.manifest(&pair.build).await.layers;
    let [base, python, build] = [0, 1, 2].map(|number| unpacked(&room, &layers[number].digest));
    assert_eq!(base["usr/bin/bash"], (0o755, 0, "bash 1".to_owned()), "the set-user-id bit is cleared");
    assert_eq!(base["bin"].2, "usr/bin");
    assert_eq!(base["tmp/"].0, 0o1777);
    assert!(base["etc/passwd"].2.contains("root:x:0:0:") && base["etc/passwd"].2.contains("\ncnb:x:1000:1000:"));
    assert_eq!((base["home/cnb/"].1, base["workspace/"].1), (1000, 1000));
    assert_eq!(base["etc/ssl/certs/ca-certificates.crt"].2, "A CA\n");
    assert!(base.contains_key("usr/share/doc/bash/copyright"));
    assert!(base.contains_key("usr/lib/x86_64-linux-gnu/libc.so.6"), "merged into /usr");
    assert!(!base.keys().any(|path| path.starts_with("usr/share/man") || path.contains("mozilla")));
    assert!(base["var/lib/dpkg/status.d/bash"].2.starts_with("Package: bash\n"));

    assert!(python.contains_key("usr/bin/python3") && !python.contains_key("usr/bin/bash"));
    assert_eq!(build["usr/lib/cpp"].2, "/bin/compiler");
    assert!(!build.contains_key("lib/"), "it would hide the link that the base has there");
    let cache = |layer: &BTreeMap<String, (u32, u64, String)>| layer["etc/ld.so.cache"].2.clone();
    assert!(!cache(&python).contains("/lib/x86_64-linux-gnu/libld.so.1"));
    assert!(
        ["libld.so.1", "libc.so.6"].iter().all(|name| cache(&build).contains(&format!("/lib/x86_64-linux-gnu/{name}")))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_packages_give_equal_images() {
    let mirror = Mirror::start(&app()).await;
    let mut pairs = Vec::new();
    for date in [-7200, -3600] {
        mirror.release(&app(), &Releases { date, ..Releases::default() });
        let folder = tempfile::tempdir().unwrap();
        let room = Room::new(folder.path(), mirror.options(folder.path()));
        pairs.push(room.ensure(&["compiler"], &["python3"]).await.unwrap());
    }
    assert_eq!(pairs[0], pairs[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_found_without_a_mirror() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(&app()).await;
    let mut room = Room::new(folder.path(), mirror.options(folder.path()));
    let (first, second) = tokio::join!(room.ensure(&[], &["python3"]), room.ensure(&[], &["python3"]));
    let pair = first.unwrap();
    assert_eq!(second.unwrap(), pair);
    let waited = |progress: &Progress| matches!(progress, Progress::Note(note) if note.starts_with("waiting:"));
    assert!(room.notes.lock().unwrap().iter().any(waited), "who waits hears why");
    let mut requests = mirror.requests();
    requests.sort();
    let asked = requests.len();
    requests.dedup();
    assert_eq!(requests.len(), asked, "nothing is fetched twice");

    // Another set only fetches what is new, and the daemon may have been restarted in between.
    room.forget(mirror.options(folder.path()));
    assert_eq!(room.ensure(&[], &["python3"]).await.unwrap(), pair);
    assert_eq!(mirror.requests(), [""; 0]);
    let other = room.ensure(&["compiler"], &["python3"]).await.unwrap();
    assert_eq!(room.manifest(&other.build).await.layers[..2], room.manifest(&pair.run).await.layers);
    let packages: Vec<String> = mirror.requests().into_iter().filter(|path| path.ends_with(".deb")).collect();
    assert_eq!(packages.len(), 2, "{packages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn compilers_are_one_layer_for_all_applications() {
    let folder = tempfile::tempdir().unwrap();
    let packages = [app(), mirror::build_tools(), vec![Deb::new("nodejs", "20")]].concat();
    let mirror = Mirror::start(&packages).await;
    let room = Room::new(folder.path(), mirror.options(folder.path()));
    let python = room.ensure(&[BUILD_TOOLS, "compiler"], &["python3"]).await.unwrap();
    let node = room.ensure(&[BUILD_TOOLS], &["nodejs"]).await.unwrap();
    let (python, node) = (room.manifest(&python.build).await, room.manifest(&node.build).await);
    assert_eq!((python.layers.len(), node.layers.len()), (4, 4));
    assert_eq!(python.layers[2], node.layers[2]);
    assert!(unpacked(&room, &node.layers[2].digest).contains_key("usr/bin/gcc"));
    assert!(unpacked(&room, &python.layers[3].digest).contains_key("usr/bin/compiler"));
    assert_eq!(unpacked(&room, &node.layers[3].digest).keys().collect::<Vec<_>>(), ["etc/", "etc/ld.so.cache"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mirror_of_the_hosts_apt_sources_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(&app()).await;
    let room = Room::new(folder.path(), mirror.options_of_host(folder.path()));
    room.ensure(&[], &["python3"]).await.unwrap();
    let requests = mirror.requests();
    assert!(!requests.iter().any(|path| path.contains("bookworm") || path.contains("noble")), "{requests:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_of_the_host_has_to_have_all_suites() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(&app()).await;
    let options = mirror.options_of_host(folder.path());
    let partial = mirror.serve_part("partial", |path| !path.contains("-updates"));
    std::fs::write(options.apt.join("sources.list"), format!("deb {partial} bookworm main\n")).unwrap();
    Room::new(folder.path(), options).ensure(&[], &["python3"]).await.unwrap();
    let requests = mirror.requests();
    assert!(requests.iter().any(|path| path.starts_with("/partial/")), "{requests:?}");
    assert!(!requests.iter().any(|path| path.starts_with("/partial/") && path.ends_with(".deb")), "{requests:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_that_was_replaced_is_looked_up_again() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(&app()).await;
    let room = Room::new(folder.path(), mirror.options(folder.path()));
    room.ensure(&[], &["python3"]).await.unwrap();
    // The index on disk is of today, and names a package that is not on the mirror any more.
    let mut packages = app();
    packages[1].version = "1+deb13u1".to_owned();
    mirror.release(&packages, &Releases { date: -1800, ..Releases::default() });
    room.ensure(&["compiler"], &["python3"]).await.unwrap();
    let requests = mirror.requests();
    assert!(requests.iter().any(|path| path.ends_with("linker_1+deb13u1.deb")), "{requests:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_power_cut_damaged_is_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(&app()).await;
    let pair = Room::new(folder.path(), mirror.options(folder.path())).ensure(&[], &["python3"]).await.unwrap();
    let cache = folder.path().join("cache/debian");
    let truncate = |path: &std::path::Path| std::fs::File::create(path).unwrap();
    for entry in std::fs::read_dir(cache.join("files")).unwrap() {
        truncate(&entry.unwrap().path());
    }
    let again = tempfile::tempdir().unwrap();
    let mut room = Room::new(again.path(), mirror.options(folder.path()));
    assert_eq!(room.ensure(&[], &["python3"]).await.unwrap(), pair);

    for entry in std::fs::read_dir(&cache).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("index-") {
            truncate(&path);
        }
    }
    room.forget(mirror.options(folder.path()));
    room.ensure(&["compiler"], &["python3"]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn daemons_that_share_their_downloads_fetch_each_once() {
    let mirror = Mirror::start(&app()).await;
    let shared = tempfile::tempdir().unwrap();
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let rooms = folders.each_ref().map(|folder| {
        let cache = folder.path().join("cache/debian");
        std::fs::create_dir_all(&cache).unwrap();
        std::os::unix::fs::symlink(shared.path(), cache.join("files")).unwrap();
        Room::new(folder.path(), mirror.options(folder.path()))
    });
    let (first, second) = tokio::join!(rooms[0].ensure(&[], &["python3"]), rooms[1].ensure(&[], &["python3"]));
    assert_eq!(first.unwrap(), second.unwrap());
    let mut packages: Vec<String> = mirror.requests().into_iter().filter(|path| path.ends_with(".deb")).collect();
    packages.sort();
    let all = packages.len();
    packages.dedup();
    assert_eq!(packages.len(), all, "{packages:?}");
    let left: Vec<_> = std::fs::read_dir(shared.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.iter().all(|path| path.extension().is_none()), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_package_makes_a_newer_base() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(&app()).await;
    let room = Room::that_looks_each_time(folder.path(), &mirror);
    let old = room.ensure(&[], &["python3"]).await.unwrap();
    assert_eq!(room.ensure(&[], &["python3"]).await.unwrap(), old, "nothing changed");
    let mut packages = app();
    packages[0] = Deb::new("python3", "3.13+deb13u1");
    mirror.release(&packages, &Releases::default());
    let new = room.ensure(&[], &["python3"]).await.unwrap();
    assert_ne!(new, old);
    let (new, old) = (room.manifest(&new.run).await, room.manifest(&old.run).await);
    assert_eq!(new.layers[0], old.layers[0], "the run set is the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(&app()).await;
    let packages = [Deb::new("python3", "3").with("usr/lib/large", 0o644, &incompressible(3_000_000))];
    mirror.release(&packages, &Releases::default());
    mirror.fault("pool/python3", Fault::Cut(1_000_000));
    let room = Room::new(folder.path(), mirror.options(folder.path()));
    room.ensure(&[], &["python3"]).await.unwrap();
    let requests = mirror.requests();
    let resumed = requests.iter().find_map(|request| request.split_once("python3_3.deb bytes="));
    assert!(resumed.is_some_and(|(_, from)| from != "0-"), "{requests:?}");
    let notes = room.notes.lock().unwrap();
    let mut downloads = notes.iter().filter_map(|progress| match progress {
        Progress::Download { done, total } => Some((*done, *total)),
        Progress::Note(_) => None,
    });
    let (done, total) = downloads.next_back().unwrap();
    assert_eq!(done, total);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_making_that_is_given_up_leaves_no_half_layer() {
    let folder = tempfile::tempdir().unwrap();
    let mut packages = app();
    packages[0] = packages[0].clone().with("usr/lib/large", 0o644, &incompressible(3_000_000));
    let mirror = Mirror::start(&packages).await;
    let room = Room::new(folder.path(), mirror.options(folder.path()));
    // Given up as soon as the downloads are over, that is while the first layer is made.
    let (tell, told) = tokio::sync::oneshot::channel();
    let tell = std::sync::Mutex::new(Some(tell));
    let hear = |progress| {
        if let Progress::Download { done, total } = progress
            && done == total
            && total > 10_000
            && let Some(tell) = tell.lock().unwrap().take()
        {
            let _ = tell.send(());
        }
    };
    let names = ["python3".to_owned()];
    tokio::select! {
        biased;
        _ = told => {}
        made = room.bases.ensure(&[], &names, &hear) => panic!("{made:?}"),
    }
    room.assert_nothing_made().await;
    room.ensure(&[], &["python3"]).await.unwrap();
}
