//! Compiles the two small programs that epiniod carries with plain rustc: the launcher, which is in every
//! application image, and the monitor, which is beside every instance. They use the standard library only.

use std::{
    env,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    compile("src/launcher/program", "launcher");
    compile("src/runtime/local/monitor", "monitor");
    link_small();
    println!("cargo::rerun-if-changed=src/launcher/build.rs");
}

/// Functions that are the same are there once, and relocations are packed: a tenth of the binary. Rust's own linker on this
/// platform does both; glibc starts such a program from 2.36 on.
fn link_small() {
    if env::var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu") {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all,--pack-dyn-relocs=relr");
    }
}

/// The same bytes wherever the sources are: they decide the digests of images. What is carried is compressed.
fn compile(folder: &str, name: &str) {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join(name);
    let target = env::var("TARGET").expect("cargo sets it");
    println!("cargo::rerun-if-changed={folder}");
    // Cargo names it where another than rustc's own choice is wanted, as for another architecture.
    let linker = env::var("RUSTC_LINKER").ok().map(|linker| format!("-Clinker={linker}"));
    let status = Command::new(env::var_os("RUSTC").expect("cargo sets it"))
        .current_dir(root.join(folder))
        .args(["--edition=2024", "--crate-type=bin", "--crate-name", name, "--target", &target])
        .args(["-Copt-level=s", "-Clto=fat", "-Ccodegen-units=1", "-Cpanic=abort", "-Cstrip=symbols"])
        .args(["-Ctarget-feature=+crt-static", "-Crelocation-model=static", "-Cmetadata=epiniod"])
        .arg(format!("--remap-path-prefix={}=/epiniod", root.display()))
        .args(linker)
        .arg("-Dwarnings")
        .arg("-o")
        .arg(&out)
        .arg(Path::new("main.rs"))
        .status();
    match status {
        Ok(status) if status.success() => compress(&out).expect("what was just compiled can be read"),
        Ok(status) => panic!("compiling the {name} failed: {status}"),
        Err(error) => panic!("starting rustc for the {name} failed: {error}"),
    }
}

fn compress(program: &Path) -> io::Result<()> {
    let compressed = File::create(program.with_extension("gz"))?;
    let mut encoder = flate2::write::GzEncoder::new(compressed, flate2::Compression::best());
    io::copy(&mut File::open(program)?, &mut encoder)?;
    encoder.finish().map(drop)
}
