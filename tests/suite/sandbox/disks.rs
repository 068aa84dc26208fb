//! File systems that a data directory may be on.

use std::{
    io::Write as _,
    net::TcpStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use epiniod::{
    blob::DiskBlobs,
    runtime::{Access, Ended, Error, Runtime as _, StepImage, VolumeMount},
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::house::{House, PATIENCE, SmallDisk, as_root, ask, runtime, step, text};

/// Overlays on top of each other, on a file system in memory. Gone when this is.
struct Overlays {
    mounts: Vec<PathBuf>,
    _dir: TempDir,
}

impl Overlays {
    fn new(depth: usize) -> Self {
        let dir = tempfile::Builder::new().prefix("epiniod-test-").tempdir_in("/var/tmp").unwrap();
        let plain = MsFlags::empty();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), plain, Some("size=256m,mode=755")).unwrap();
        let mut mounts = vec![dir.path().to_owned()];
        for level in 0..depth {
            let [lower, upper, work, merged] =
                ["lower", "upper", "work", "merged"].map(|name| dir.path().join(format!("{name}{level}")));
            for folder in [&lower, &upper, &work, &merged] {
                std::fs::create_dir(folder).unwrap();
            }
            let lower = if level == 0 { lower } else { mounts.last().unwrap().clone() };
            let options =
                format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
            mount(Some("overlay"), &merged, Some("overlay"), plain, Some(options.as_str())).unwrap();
            mounts.push(merged);
        }
        Self { mounts, _dir: dir }
    }

    fn folder(&self) -> TempDir {
        tempfile::Builder::new().tempdir_in(self.top()).unwrap()
    }

    fn top(&self) -> &Path {
        self.mounts.last().unwrap()
    }
}

impl Drop for Overlays {
    fn drop(&mut self) {
        for place in self.mounts.iter().rev() {
            umount2(place, MntFlags::MNT_DETACH).unwrap();
        }
    }
}

#[test]
fn without_idmapped_mounts_layers_and_volumes_have_the_same_owners_inside() {
    as_root(async {
        let disk = Overlays::new(1);
        let house = House::open_in(disk.folder()).await;
        let volume = |access| VolumeMount { volume: "layers".to_owned(), path: "/layers".to_owned(), access };
        let mut write = step(StepImage::Own, ["write", "/layers/file", "kept"]);
        write.volumes = vec![volume(Access::ReadWrite)];
        assert_eq!(house.run(write).await.0.ended, Ended::Exit(0));
        for (path, owner) in [("/layers/file", "1000:1000\n"), ("/workspace", "1000:1000\n"), ("/guest", "0:0\n")] {
            let mut owned = step(StepImage::Image(house.image.clone()), ["owner", path]);
            owned.volumes = vec![volume(Access::ReadOnly)];
            assert_eq!(text(&house.run(owned).await.1), owner, "{path}");
        }
        let address = house.start(&house.workload("shifted", 1)).await[0];
        for attempt in ["set-uid-program /set-uid-guest", "read /etc/secret", "create /etc/file"] {
            let answer = ask(address, &format!("attempt {attempt}"));
            assert!(answer.contains("refused"), "{answer}");
        }
        house.runtime_collects_nothing_that_runs(address).await;
        house.close().await;
    });
}

#[test]
fn a_data_directory_that_refuses_overlay_is_an_error_that_names_it() {
    as_root(async {
        // Two overlays are as many as the kernel puts on top of each other.
        let disk = Overlays::new(2);
        let dir = disk.folder();
        let blobs = DiskBlobs::open(&dir.path().join("blobs")).unwrap();
        let Err(Error::Unsupported(text)) = runtime(&dir, &blobs).await else { panic!("it cannot be opened") };
        let name = dir.path().display().to_string();
        assert!(text.contains(&name) && text.contains("refuses overlay"), "{text}");
    });
}

#[test]
fn a_full_disk_stops_no_program() {
    as_root(async {
        let place = tempfile::Builder::new().prefix("epiniod-test-").tempdir_in("/var/tmp").unwrap();
        let disk = SmallDisk::on(place.path());
        let house = House::open_in(tempfile::Builder::new().tempdir_in(place.path()).unwrap()).await;
        let workload = house.workload("steadfast", 1);
        let address = house.start(&workload).await[0];
        let filler = place.path().join("filler");
        while std::fs::File::options().create(true).append(true).open(&filler).unwrap().write(&[0; 1 << 16]).is_ok() {}
        for number in 0..10 {
            ask(address, &format!("shout {number}-nobody-will-read-this"));
        }
        ask(address, "crash");
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < until, "waited until the program is started again, without a word in any file");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::fs::remove_file(filler).unwrap();
        // What could not be said is said when there is room again.
        while house.runtime.status(&workload.id).await.unwrap().unwrap().instances[0].restarts != 1 {
            assert!(Instant::now() < until, "waited until the restart is known");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(house.ready(&workload).await, [address]);
        house.close().await;
        drop(disk);
    });
}
