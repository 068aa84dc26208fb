//! The root file system of a sandbox: layers, what is mounted into it, and what is hidden.

use std::{
    ffi::CString,
    fs, io,
    io::Write as _,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            ffi::OsStrExt as _,
            fs::{chown, fchown},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, mkdirat},
    unistd::{chdir, fchdir, pivot_root},
};

use super::{
    init::context,
    spec::{File, Ids, Mount, Spec, User},
    sys::{self, NO_PRIVILEGES, READ_ONLY},
};
use crate::runtime::TRUST_BUNDLES;

const NONE: Option<&str> = None;
const PLAIN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
/// Devices that every program expects.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Names in `/dev` for what is elsewhere.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// Files of `/proc` that say or do too much.
const HIDDEN_FILES: [&str; 6] = ["kcore", "keys", "timer_list", "sched_debug", "kmsg", "latency_stats"];
const HIDDEN_FOLDERS: [&str; 3] = ["acpi", "scsi", "asound"];
const READ_ONLY_PROC: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Puts the root together and enters it. The old one is gone afterwards.
pub(super) fn enter(spec: &Spec, user_namespace: Option<&OwnedFd>) -> io::Result<()> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let user_namespace = user_namespace.filter(|_| spec.idmapped);
    let root = assemble(spec, user_namespace).map_err(|error| context("putting layers together", error))?;
    let inner = Inner { root: open_dir(&root)?, ids: spec.ids };

    mount_system(&inner)?;
    inner.bind(&spec.tool.source, &spec.tool.target, READ_ONLY | NO_PRIVILEGES)?;
    for entry in &spec.mounts {
        inner.mount(entry, user_namespace).map_err(|error| context(&format!("mounting {}", entry.target), error))?;
    }
    for file in &spec.files {
        inner.write(file, 0o400, spec.user).map_err(|error| context(&format!("writing {}", file.path), error))?;
    }
    if let Some(bundle) = &spec.build_ca {
        trust(&inner, bundle)?;
    }
    write_names(&inner, spec)?;
    // The old root is stacked on the new one, and taken away.
    fchdir(&inner.root)?;
    pivot_root(".", ".").map_err(|error| context("entering the root file system", error))?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    Ok(())
}

/// Overlays the layers with a file system in memory of limited size; returns where.
fn assemble(spec: &Spec, user_namespace: Option<&OwnedFd>) -> io::Result<PathBuf> {
    let size = format!("size={},mode=755", spec.scratch_bytes);
    mount(Some("tmpfs"), &spec.stage, Some("tmpfs"), PLAIN, Some(size.as_str()))?;
    let top = spec.stage.join(if spec.layers.is_empty() { "root" } else { "upper" });
    fs::create_dir(&top)?;
    if let Some(owner) = spec.ids.outside(User::of(0)) {
        chown(&top, Some(owner.uid), Some(owner.gid))?;
    }
    if spec.layers.is_empty() {
        mount(Some(&top), &top, NONE, MsFlags::MS_BIND, NONE)?;
        return Ok(top);
    }
    for name in ["root", "work"] {
        fs::create_dir(spec.stage.join(name))?;
    }
    let mut lower = Vec::new();
    for (number, layer) in spec.layers.iter().enumerate().rev() {
        let name = number.to_string();
        let place = spec.stage.join(&name);
        fs::create_dir(&place)?;
        attach(layer, &open_dir(&place)?, READ_ONLY | NO_PRIVILEGES, user_namespace)?;
        lower.push(name);
    }
    // The names are short and relative: all options have to fit in one page.
    chdir(&spec.stage)?;
    let trusted = if spec.ids == Ids::Caller { ",userxattr" } else { "" };
    let options = format!("lowerdir={},upperdir=upper,workdir=work{trusted}", lower.join(":"));
    mount(Some("overlay"), "root", Some("overlay"), PLAIN, Some(options.as_str()))
        .map_err(|error| overlay_refused(error, user_namespace.is_some()))?;
    Ok(spec.stage.join("root"))
}

/// Kernels from 5.12 to 5.18 have idmapped mounts, and refuse to put them on top of each other.
fn overlay_refused(error: Errno, idmapped: bool) -> io::Error {
    let error = context("the kernel refuses overlay on this file system", error);
    if idmapped && error.kind() == io::ErrorKind::InvalidInput {
        return io::Error::new(io::ErrorKind::Unsupported, error);
    }
    error
}

/// `/proc`, `/dev`, `/tmp` and what is hidden of them.
fn mount_system(inner: &Inner) -> io::Result<()> {
    inner.file_system("proc", "/proc", PLAIN | MsFlags::MS_NOEXEC, "")?;
    inner.file_system("tmpfs", "/dev", MsFlags::MS_NOSUID, "size=64k,mode=755")?;
    for device in DEVICES {
        inner.bind(&Path::new("/dev").join(device), &format!("/dev/{device}"), 0)?;
    }
    inner.file_system("tmpfs", "/dev/shm", PLAIN, "size=64m,mode=1777")?;
    let terminals = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    inner.file_system("devpts", "/dev/pts", terminals, "newinstance,ptmxmode=0666,mode=0620")?;
    let dev = inner.directory("/dev")?;
    for (name, target) in LINKS {
        nix::unistd::symlinkat(target, &dev, name)?;
    }
    inner.permissions("/tmp", 0o1777)?;
    let there = |name: &&&str| Path::new("/proc").join(name).exists();
    for name in HIDDEN_FILES.iter().filter(there) {
        inner.bind(Path::new("/dev/null"), &format!("/proc/{name}"), READ_ONLY)?;
    }
    for name in HIDDEN_FOLDERS.iter().filter(there) {
        inner.file_system("tmpfs", &format!("/proc/{name}"), PLAIN | MsFlags::MS_RDONLY, "size=0")?;
    }
    for name in READ_ONLY_PROC.iter().filter(there) {
        let place = inner.existing(&format!("/proc/{name}"))?;
        let tree = sys::open_tree(&c_path(Path::new(&place.path()))?)?;
        sys::set_attributes(&tree, READ_ONLY | NO_PRIVILEGES | sys::NO_PROGRAMS, None)?;
        sys::attach(&tree, &place.0)?;
    }
    Ok(())
}

/// Mounts the authorities for builds over every bundle whose folder is there, and where there is none makes one.
fn trust(inner: &Inner, bundle: &Path) -> io::Result<()> {
    for place in TRUST_BUNDLES {
        let folder = Path::new(place).parent().and_then(Path::to_str).unwrap_or("/");
        if inner.existing(folder).is_ok() {
            inner.bind(bundle, place, READ_ONLY | NO_PRIVILEGES)?;
        }
    }
    Ok(())
}

fn write_names(inner: &Inner, spec: &Spec) -> io::Result<()> {
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {}\n", spec.hostname);
    let files = [
        ("/etc/hosts", hosts),
        ("/etc/hostname", format!("{}\n", spec.hostname)),
        ("/etc/resolv.conf", spec.resolv_conf.clone()),
    ];
    for (path, contents) in files {
        let file = File { path: path.to_owned(), contents: contents.into_bytes() };
        inner.write(&file, 0o644, User::of(0)).map_err(|error| context(&format!("writing {path}"), error))?;
    }
    Ok(())
}

/// The root file system, seen from outside.
struct Inner {
    root: OwnedFd,
    ids: Ids,
}

/// A place inside, open.
struct Place(OwnedFd);

impl Place {
    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

impl Inner {
    fn mount(&self, entry: &Mount, user_namespace: Option<&OwnedFd>) -> io::Result<()> {
        let place = self.place_for(&entry.source, &entry.target)?;
        let attributes = if entry.read_only { READ_ONLY } else { 0 };
        attach(&entry.source, &place.0, attributes | NO_PRIVILEGES, user_namespace)
    }

    fn bind(&self, source: &Path, target: &str, attributes: u64) -> io::Result<()> {
        let place = self.place_for(source, target)?;
        attach(source, &place.0, attributes, None).map_err(|error| context(target, error))
    }

    fn file_system(&self, kind: &str, target: &str, flags: MsFlags, options: &str) -> io::Result<()> {
        let place = Place(self.directory(target)?);
        mount(Some(kind), place.path().as_str(), Some(kind), flags, Some(options))
            .map_err(|error| context(&format!("mounting {target}"), error))
    }

    /// The place of a mount: a folder for a folder, a file for a file. It is only made where nothing is.
    fn place_for(&self, source: &Path, target: &str) -> io::Result<Place> {
        if fs::metadata(source).map_err(|error| context(&source.display().to_string(), error))?.is_dir() {
            return Ok(Place(self.directory(target)?));
        }
        match self.existing(target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let (folder, name) = target.rsplit_once('/').unwrap_or(("", target));
        let folder = self.directory(folder)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        nix::fcntl::openat(&folder, name, flags, Mode::from_bits_truncate(0o644))
            .map_err(|error| context(target, error))?;
        self.existing(target)
    }

    /// Opens what is there; links lead nowhere but inside.
    fn existing(&self, path: &str) -> io::Result<Place> {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        Ok(Place(openat2(&self.root, path.trim_start_matches('/'), how).map_err(|error| context(path, error))?))
    }

    /// Opens a folder, making it and those above it where they are missing.
    fn directory(&self, path: &str) -> io::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let mut done = String::from(".");
        let mut folder = openat2(&self.root, ".", how)?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            match mkdirat(&folder, part, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST | Errno::EROFS) => {}
                Err(error) => return Err(context(path, error)),
            }
            done = format!("{done}/{part}");
            folder = openat2(&self.root, done.as_str(), how).map_err(|error| context(path, error))?;
        }
        Ok(folder)
    }

    fn permissions(&self, path: &str, mode: u32) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let place = Place(self.directory(path)?);
        fs::set_permissions(place.path(), fs::Permissions::from_mode(mode))
    }

    /// Writes a file; what was there is replaced, also when it is a link.
    fn write(&self, file: &File, mode: u32, owner: User) -> io::Result<()> {
        let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
        let folder = self.directory(folder)?;
        match nix::unistd::unlinkat(&folder, name, nix::unistd::UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let mut out = fs::File::from(nix::fcntl::openat(&folder, name, flags, Mode::from_bits_truncate(mode))?);
        out.write_all(&file.contents)?;
        match self.ids.outside(owner) {
            Some(owner) => fchown(&out, Some(owner.uid), Some(owner.gid)),
            // There is nobody else to give it to.
            None => Ok(()),
        }
    }
}

/// Shows a directory or file of the host at a place, in a user namespace with the ids that it has there.
fn attach(source: &Path, place: &OwnedFd, attributes: u64, user_namespace: Option<&OwnedFd>) -> io::Result<()> {
    let tree = sys::open_tree(&c_path(source)?).map_err(|error| context(&source.display().to_string(), error))?;
    sys::set_attributes(&tree, attributes, None)?;
    if user_namespace.is_some() {
        sys::set_attributes(&tree, 0, user_namespace).map_err(|error| {
            let text = format!("{}: this file system has no idmapped mounts: {error}", source.display());
            io::Error::new(io::ErrorKind::Unsupported, text)
        })?;
    }
    sys::attach(&tree, place)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_that_is_refused_for_its_idmapped_layers_may_be_tried_without() {
        for (error, idmapped, expected) in [
            (Errno::EINVAL, true, io::ErrorKind::Unsupported),
            (Errno::EINVAL, false, io::ErrorKind::InvalidInput),
            (Errno::EACCES, true, io::ErrorKind::PermissionDenied),
        ] {
            assert_eq!(overlay_refused(error, idmapped).kind(), expected, "{error} {idmapped}");
        }
    }
}
