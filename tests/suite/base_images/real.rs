//! With Debian's own packages.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use epiniod::{
    base::{BUILD_TOOLS, Error, Mirrors, Options},
    oci::Descriptor,
};

use super::Room;
use crate::support::not_run;

/// None, said loudly, where no mirror can be reached: everything else of this behaviour is tested without.
async fn room(folder: &Path) -> Option<Room> {
    let room = Room::new(folder, Options::new(folder, Mirrors::default()));
    match room.ensure(&[], &[]).await {
        Ok(_) => Some(room),
        Err(error @ (Error::NoMirror { .. } | Error::MirrorDown { .. })) => {
            not_run(&format!("base images of Debian's own packages: no mirror can be reached: {error}"));
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_of_debian_packages_runs_python() {
    let folder = tempfile::tempdir().unwrap();
    let Some(room) = room(folder.path()).await else { return };
    let pair = room.ensure(&[], &["python3", "python3-venv", "python3-pip"]).await.unwrap();
    let run = room.manifest(&pair.run).await;
    assert_eq!(run.layers.len(), 2);
    assert!(run.layers[0].size < 25_000_000, "the run layer has {} bytes", run.layers[0].size);
    assert_eq!(room.manifest(&pair.build).await.layers, run.layers, "nothing was asked for the build alone");

    room.notes.lock().unwrap().clear();
    assert_eq!(room.ensure(&[], &["python3-pip", "python3", "python3-venv"]).await.unwrap(), pair);
    assert_eq!(room.notes.lock().unwrap()[..], [], "it is found, not made");

    // Other stores, the same packages: the same bytes.
    let again = tempfile::tempdir().unwrap();
    let other = Room::new(again.path(), Options::new(folder.path(), Mirrors::default()));
    assert_eq!(other.ensure(&[], &["python3", "python3-venv", "python3-pip"]).await.unwrap(), pair);

    if !is_root() {
        return;
    }
    let root = folder.path().join("root");
    unpack(&room, &run.layers, &root);
    let script = "import ssl, ctypes.util, getpass, pwd, subprocess\n\
        print(len(ssl.create_default_context().get_ca_certs()) > 100, ctypes.util.find_library('z'), \
        pwd.getpwuid(1000).pw_name, subprocess.check_output(['awk', 'BEGIN { print 6 * 7 }'], text=True).strip())";
    let python = run_in(&root, &["python3", "-c", script]);
    assert_eq!(python, "True libz.so.1 cnb 42\n");
    assert!(
        run_in(&root, &["ldconfig", "-p"]).contains("libssl.so.3 (libc6,x86-64) => /lib/x86_64-linux-gnu/libssl.so.3")
    );
    run_in(&root, &["python3", "-m", "venv", "/tmp/venv"]);
    assert!(run_in(&root, &["/tmp/venv/bin/pip", "--version"]).contains("/tmp/venv/"));
}

/// Runs a program with `root` as its root and returns what it prints.
fn run_in(root: &Path, arguments: &[&str]) -> String {
    let output = Command::new("chroot")
        .arg("--userspec=1000:1000")
        .arg(root)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin")
        .env("HOME", "/home/cnb")
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_buildpacks_ask_for_is_there_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    let Some(room) = room(folder.path()).await else { return };
    let node = "node -e \"require('https'); console.log(process.versions.node.split('.')[0], 'ß'.localeCompare('t', 'de'))\" \
        && corepack --version";
    let compile = "cd /tmp && printf '#include <openssl/ssl.h>\nint main() { return SSL_library_init() - 1; }' > a.c \
        && cc a.c -lssl -lcrypto -o a && ./a && git --version && echo built";
    let nginx = "echo 'pid /tmp/n; events {} http { access_log off; }' > /tmp/c && nginx -t -e stderr -c /tmp/c 2>&1";
    for (build, run, command, said) in [
        (&[][..], &["nodejs"][..], &["sh", "-c", node][..], "20 -1\n0."),
        (&[], &["nginx"], &["sh", "-c", nginx], "test is successful"),
        (&[BUILD_TOOLS], &["nodejs"], &["sh", "-c", compile], "built\n"),
    ] {
        room.notes.lock().unwrap().clear();
        let pair = room.ensure(build, run).await.unwrap();
        assert_eq!(room.manifest(&pair.run).await.layers.len(), 2);
        let layers = room.manifest(&pair.build).await.layers;
        // With compilers: their layer, which is the same on every run base, and the linker cache of the whole.
        assert_eq!(layers.len(), if build.is_empty() { 2 } else { 4 });
        assert!(build.is_empty() || layers[3].size < 50_000);
        if is_root() {
            let root = folder.path().join(run[0]).join(build.len().to_string());
            unpack(&room, &layers, &root);
            let output = run_in(&root, command);
            assert!(output.contains(said), "{command:?}: {output}");
            if !build.is_empty() {
                let libraries = run_in(&root, &["ldconfig", "-p"]);
                assert!(["libnode.so.115", "libisl.so.23"].iter().all(|name| libraries.contains(name)), "{libraries}");
            }
        }
    }
}

fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        not_run("programs of base images: chroot needs root");
    }
    is_root
}

fn unpack(room: &Room, layers: &[Descriptor], root: &Path) {
    for layer in layers {
        let file = room.blob(&layer.digest);
        let mut archive = tar::Archive::new(zstd::Decoder::new(file).unwrap());
        archive.set_preserve_permissions(true);
        archive.set_overwrite(true);
        archive.unpack(root).unwrap();
    }
    // Opened by whoever starts other programs; a plain file is enough.
    std::fs::write(root.join("dev/null"), "").unwrap();
    std::fs::set_permissions(root.join("dev/null"), Permissions::from_mode(0o666)).unwrap();
}
