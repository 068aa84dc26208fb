//! The embedded buildpacks: Python, Node.js, static sites, Procfile, and the Debian packages they run on.
//!
//! They are ordinary Cloud Native Buildpacks (API 0.10, written with libcnb) whose `bin/detect` and `bin/build` are
//! links to this program: it looks at the name it was called by and at the id in `$CNB_BUILDPACK_DIR/buildpack.toml`,
//! so that the lifecycle treats them like any other buildpack.
//!
//! None of them downloads a language runtime. Each *requires* Debian packages of `epiniod/debian` in its plan, and
//! the daemon puts the build and the image on a base that has them. What they install on top is a function of the
//! source, so that the same source gives the same image on any machine: no time stamps, no byte code that
//! records one, no paths of temporary directories.

mod command;
mod debian;
mod error;
mod layer;
mod nodejs;
mod output;
mod procfile;
mod python;
mod site;
mod static_site;
mod switch;
mod tree;

use std::{
    env, fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::ExitCode,
};

use libcnb::{BuildArgs, Buildpack, DetectArgs, data::buildpack::ComponentBuildpackDescriptor, read_toml_file};

pub use error::Error;

use crate::{launcher, model::Digest};

/// An embedded buildpack: its id and its `buildpack.toml`.
struct Embedded {
    id: &'static str,
    descriptor: &'static str,
}

const ORDER: &str = include_str!("../embedded/builder/order.toml");
const EMBEDDED: [Embedded; 5] = [
    Embedded { id: "epiniod/debian", descriptor: include_str!("../embedded/builder/debian.toml") },
    Embedded { id: "epiniod/python", descriptor: include_str!("../embedded/builder/python.toml") },
    Embedded { id: "epiniod/nodejs", descriptor: include_str!("../embedded/builder/nodejs.toml") },
    Embedded { id: "epiniod/static", descriptor: include_str!("../embedded/builder/static.toml") },
    Embedded { id: "epiniod/procfile", descriptor: include_str!("../embedded/builder/procfile.toml") },
];
/// Version of all embedded buildpacks and of the recipe of their layers: has to grow with every change that
/// gives other bytes or other processes, because cached layers are kept by it.
const VERSION: &str = "0.1.0";

/// Runs the embedded buildpack that this process was started as, if it was. To be called before any thread is started.
pub fn run_if_buildpack() -> Option<ExitCode> {
    let args: Vec<String> = env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let phase = match Path::new(args.first()?).file_name()?.to_str()? {
        "detect" => Phase::Detect,
        "build" => Phase::Build,
        _ => return None,
    };
    let descriptor = PathBuf::from(env::var_os("CNB_BUILDPACK_DIR")?).join("buildpack.toml");
    let id = toml::from_str::<toml::Table>(&fs::read_to_string(descriptor).ok()?)
        .ok()?
        .get("buildpack")?
        .get("id")?
        .as_str()?
        .to_owned();
    let code = match id.as_str() {
        "epiniod/debian" => run(&debian::Debian, phase, &args),
        "epiniod/python" => run(&python::Python, phase, &args),
        "epiniod/nodejs" => run(&nodejs::Nodejs, phase, &args),
        "epiniod/static" => run(&static_site::StaticSite, phase, &args),
        "epiniod/procfile" => run(&procfile::Procfile, phase, &args),
        _ => return None,
    };
    Some(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Writes `order.toml` and `buildpacks/…` below `cnb_dir`; `own_binary` is what the links of `bin/` point to.
pub fn install(cnb_dir: &Path, own_binary: &str) -> io::Result<()> {
    fs::create_dir_all(cnb_dir)?;
    fs::write(cnb_dir.join("order.toml"), ORDER)?;
    for buildpack in &EMBEDDED {
        let directory = cnb_dir.join("buildpacks").join(buildpack.id.replace('/', "_")).join(VERSION);
        let bin = directory.join("bin");
        fs::create_dir_all(&bin)?;
        fs::write(directory.join("buildpack.toml"), buildpack.descriptor)?;
        for name in ["detect", "build"] {
            replace_link(own_binary, &bin.join(name))?;
        }
    }
    Ok(())
}

/// Whether an embedded buildpack before `procfile` brings a process of its own, as detect decided it.
fn is_served(app: &Path) -> Result<bool, Error> {
    let is_node = app.join("package.json").is_file();
    Ok(is_node || site::find(app).is_some() || python::takes(app)?)
}

/// Names everything embedded that decides what an image of a given source looks like.
pub fn builder_version() -> String {
    let mut all = format!("{VERSION}\n{}\n{}\n{}\n{ORDER}", python::pins(), nodejs::pins(), site::RECIPE.concat());
    all.push_str(&launcher::digest().hex());
    for buildpack in &EMBEDDED {
        all.push_str(buildpack.descriptor);
    }
    format!("{VERSION}+{}", &Digest::of(all).hex()[..12])
}

#[derive(Clone, Copy)]
enum Phase {
    Detect,
    Build,
}

/// libcnb's own entry point calls `exit`; this one lets `main` return.
fn run<B: Buildpack<Error = Error>>(buildpack: &B, phase: Phase, args: &[String]) -> i32 {
    let descriptor = || -> libcnb::Result<ComponentBuildpackDescriptor<B::Metadata>, Error> {
        let directory = env::var("CNB_BUILDPACK_DIR").map_err(libcnb::Error::CannotDetermineBuildpackDirectory)?;
        read_toml_file(Path::new(&directory).join("buildpack.toml"))
            .map_err(libcnb::Error::CannotReadBuildpackDescriptor)
    };
    let result = descriptor().and_then(|descriptor| match phase {
        Phase::Detect => {
            let args = DetectArgs::parse(args).map_err(|_| Error::Arguments("detect <platform> <plan>"))?;
            libcnb::libcnb_runtime_detect(buildpack, descriptor, args)
        }
        Phase::Build => {
            let args = BuildArgs::parse(args).map_err(|_| Error::Arguments("build <layers> <platform> <plan>"))?;
            libcnb::libcnb_runtime_build(buildpack, descriptor, args)
        }
    });
    result.unwrap_or_else(|error| {
        output::error(&error);
        1
    })
}

fn replace_link(target: &str, link: &Path) -> io::Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => symlink(target, link),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_and_the_descriptors_name_the_same_buildpacks() {
        let order: toml::Table = toml::from_str(ORDER).unwrap();
        for group in order["order"].as_array().unwrap() {
            for element in group["group"].as_array().unwrap() {
                assert_eq!(element["version"].as_str(), Some(VERSION));
                assert!(EMBEDDED.iter().any(|one| Some(one.id) == element["id"].as_str()), "{element}");
            }
        }
        for buildpack in &EMBEDDED {
            let descriptor: toml::Table = toml::from_str(buildpack.descriptor).unwrap();
            assert_eq!(descriptor["api"].as_str(), Some("0.10"));
            assert_eq!(descriptor["buildpack"]["id"].as_str(), Some(buildpack.id));
            assert_eq!(descriptor["buildpack"]["version"].as_str(), Some(VERSION));
        }
    }

    #[test]
    fn installing_twice_is_harmless() {
        let cnb = tempfile::tempdir().unwrap();
        install(cnb.path(), "/a").unwrap();
        install(cnb.path(), "/b").unwrap();
        let link = cnb.path().join("buildpacks/epiniod_python/0.1.0/bin/build");
        assert_eq!(fs::read_link(link).unwrap(), Path::new("/b"));
    }
}
