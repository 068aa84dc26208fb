//! `epiniod image`: the program as an image that others import and run.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use crate::support::{epiniod, has_skopeo, not_run};

fn image() -> Output {
    let output = Command::new(epiniod()).arg("image").output().expect("epiniod");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("the program is there");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn equal_programs_make_equal_archives() {
    let (one, two) = (image(), image());
    assert!(one.stdout == two.stdout && one.stdout.len() > 1_000_000);
    let name = format!("localhost/epiniod:{}", env!("CARGO_PKG_VERSION"));
    assert!(String::from_utf8_lossy(&one.stderr).starts_with(&format!("{name}, ")), "{one:?}");
}

#[test]
fn engines_read_it_and_the_program_runs_in_it() {
    if !has_skopeo() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("epiniod.tar");
    fs::write(&archive, image().stdout).unwrap();
    for transport in ["oci-archive", "docker-archive"] {
        let there = format!("{transport}:{}", archive.display());
        let text = run(Command::new("skopeo").args(["inspect", "--config", &there]));
        let config: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/epiniod", "{transport}: {text}");
        assert_eq!(config["config"]["User"], "65532:65532", "{transport}");
    }
    let docker = format!("docker-archive:{}", archive.display());
    let tags: Value = serde_json::from_str(&run(Command::new("skopeo").args(["list-tags", &docker]))).unwrap();
    assert_eq!(tags["Tags"][0], format!("localhost/epiniod:{}", env!("CARGO_PKG_VERSION")));
    let copy = dir.path().join("copy");
    let oci = format!("oci-archive:{}", archive.display());
    run(Command::new("skopeo").args(["copy", "-q", &oci, &format!("dir:{}", copy.display())]));
    let root = unpack(&copy);
    let authorities = fs::read_to_string(root.path().join("etc/ssl/certs/ca-certificates.crt")).unwrap();
    assert!(authorities.matches("BEGIN CERTIFICATE").count() > 50);
    if !nix::unistd::geteuid().is_root() {
        not_run("the program in its own image: chroot needs root");
        return;
    }
    let version =
        run(Command::new("chroot").arg("--userspec=65532:65532").arg(root.path()).args(["/epiniod", "--version"]));
    assert_eq!(version.trim(), format!("epiniod {}", env!("CARGO_PKG_VERSION")));
}

/// The files of an image with one layer.
fn unpack(image: &Path) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let manifest: Value = serde_json::from_slice(&fs::read(image.join("manifest.json")).unwrap()).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 1);
    let digest = layers[0]["digest"].as_str().unwrap().trim_start_matches("sha256:");
    let layer = flate2::read::GzDecoder::new(File::open(image.join(digest)).unwrap());
    let mut names = Vec::new();
    for entry in tar::Archive::new(layer).entries().unwrap() {
        let mut entry = entry.unwrap();
        names.push(entry.path().unwrap().display().to_string());
        assert!(entry.unpack_in(root.path()).unwrap());
    }
    assert_eq!(names, ["etc", "etc/ssl", "etc/ssl/certs", "tmp", "etc/ssl/certs/ca-certificates.crt", "epiniod"]);
    // The folder itself is not in the layer, and engines make it readable for all.
    fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    root
}
