//! The root file system of a sandbox: layers, what is mounted into it, and what is hidden.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::chown},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, mkdirat},
    unistd::{chdir, fchdir, pivot_root},
};

use super::{
    init::context,
    spec::{File, Ids, Mount, Spec},
    sys,
};
use crate::runtime::OWN_BINARY;

const NONE: Option<&str> = None;
/// Devices that every program expects.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Files of `/proc` that say or do too much.
const HIDDEN_FILES: [&str; 6] = ["kcore", "keys", "timer_list", "sched_debug", "kmsg", "latency_stats"];
const HIDDEN_FOLDERS: [&str; 3] = ["acpi", "scsi", "asound"];
const READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];
/// Where programs look for certificate authorities.
const CA_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Puts the root together and enters it. The old one is gone afterwards.
pub(super) fn enter(spec: &Spec, user_namespace: Option<&OwnedFd>) -> io::Result<()> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let root = assemble(spec, user_namespace).map_err(|error| context("putting layers together", error))?;
    let inner = Inner { root: open_dir(&root)?, owner: outside(spec, spec.uid, spec.gid) };

    mount_system(&inner)?;
    inner.bind(&spec.own_binary, OWN_BINARY, true)?;
    for entry in &spec.mounts {
        inner.mount(entry, user_namespace).map_err(|error| context(&format!("mounting {}", entry.target), error))?;
    }
    for file in &spec.files {
        inner.write(file).map_err(|error| context(&format!("writing {}", file.path), error))?;
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
    mount(Some("tmpfs"), &spec.stage, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(size.as_str()))?;
    let (uid, gid) = outside(spec, 0, 0);
    if spec.layers.is_empty() {
        let root = spec.stage.join("root");
        fs::create_dir(&root)?;
        mount(Some(&root), &root, NONE, MsFlags::MS_BIND, NONE)?;
        own(spec, &root, uid, gid)?;
        return Ok(root);
    }
    for name in ["root", "upper", "work"] {
        fs::create_dir(spec.stage.join(name))?;
    }
    own(spec, &spec.stage.join("upper"), uid, gid)?;
    let mut lower = Vec::new();
    for (number, layer) in spec.layers.iter().enumerate().rev() {
        let name = number.to_string();
        let place = spec.stage.join(&name);
        fs::create_dir(&place)?;
        match user_namespace {
            Some(namespace) => shifted(layer, &open_dir(&place)?, namespace)?,
            None => mount(Some(layer), &place, NONE, MsFlags::MS_BIND, NONE)?,
        }
        lower.push(name);
    }
    chdir(&spec.stage)?;
    let user = if user_namespace.is_some() { "" } else { ",userxattr" };
    let options = format!("lowerdir={},upperdir=upper,workdir=work{user}", lower.join(":"));
    mount(Some("overlay"), "root", Some("overlay"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options.as_str()))?;
    Ok(spec.stage.join("root"))
}

/// `/proc`, `/dev`, `/tmp` and what is hidden of them.
fn mount_system(inner: &Inner) -> io::Result<()> {
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    inner.file_system("proc", "/proc", strict | MsFlags::MS_NOEXEC, "")?;
    inner.file_system("tmpfs", "/dev", MsFlags::MS_NOSUID, "size=64k,mode=755")?;
    for device in DEVICES {
        inner.bind(&Path::new("/dev").join(device), &format!("/dev/{device}"), false)?;
    }
    inner.file_system("tmpfs", "/dev/shm", strict, "size=64m,mode=1777")?;
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        let dev = inner.directory("/dev")?;
        nix::unistd::symlinkat(target, &dev, name)?;
    }
    inner.permissions("/tmp", 0o1777)?;
    for name in HIDDEN_FILES {
        if Path::new("/proc").join(name).exists() {
            inner.bind(Path::new("/dev/null"), &format!("/proc/{name}"), true)?;
        }
    }
    for name in HIDDEN_FOLDERS.iter().filter(|name| Path::new("/proc").join(name).exists()) {
        inner.file_system("tmpfs", &format!("/proc/{name}"), strict | MsFlags::MS_RDONLY, "size=0")?;
    }
    for name in READ_ONLY.iter().filter(|name| Path::new("/proc").join(name).exists()) {
        let target = inner.existing(&format!("/proc/{name}"))?;
        let path = target.path();
        mount(Some(path.as_str()), path.as_str(), NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
        let again = inner.existing(&format!("/proc/{name}"))?;
        mount(
            NONE,
            again.path().as_str(),
            NONE,
            MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | strict | MsFlags::MS_NOEXEC,
            NONE,
        )?;
    }
    Ok(())
}

/// Mounts the authorities for builds over every bundle whose folder is there, and where there is none makes one.
fn trust(inner: &Inner, bundle: &Path) -> io::Result<()> {
    for place in CA_BUNDLES {
        let folder = Path::new(place).parent().and_then(Path::to_str).unwrap_or("/");
        if inner.existing(folder).is_ok() {
            inner.bind(bundle, place, true)?;
        }
    }
    Ok(())
}

fn write_names(inner: &Inner, spec: &Spec) -> io::Result<()> {
    let hosts = format!("127.0.0.1 localhost\n127.0.1.1 {}\n", spec.hostname);
    let files = [
        ("/etc/hosts", hosts),
        ("/etc/hostname", format!("{}\n", spec.hostname)),
        ("/etc/resolv.conf", spec.resolv_conf.clone()),
    ];
    for (path, contents) in files {
        inner.write_as(&File { path: path.to_owned(), contents: contents.into_bytes() }, 0o644, (0, 0), spec)?;
    }
    Ok(())
}

/// The root file system, seen from outside.
struct Inner {
    root: OwnedFd,
    /// The program's user, outside.
    owner: (u32, u32),
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
        match user_namespace {
            Some(namespace) if entry.shifted => {
                let place = self.place_for(&entry.source, &entry.target)?;
                shifted(&entry.source, &place.0, namespace)?;
                if entry.read_only { self.make_read_only(&entry.target) } else { Ok(()) }
            }
            _ => self.bind(&entry.source, &entry.target, entry.read_only),
        }
    }

    fn bind(&self, source: &Path, target: &str, read_only: bool) -> io::Result<()> {
        let place = self.place_for(source, target)?;
        mount(Some(source), place.path().as_str(), NONE, MsFlags::MS_BIND, NONE)
            .map_err(|error| context(target, error))?;
        if read_only { self.make_read_only(target) } else { Ok(()) }
    }

    fn make_read_only(&self, target: &str) -> io::Result<()> {
        // Opened again: the descriptor from before names what is below the mount.
        let place = self.existing(target)?;
        let path = place.path();
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        // A mount that came with more restrictions keeps them, where the caller may not lift them.
        let all = [
            flags,
            flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RELATIME,
        ];
        let mut result = Ok(());
        for flags in all {
            result = mount(NONE, path.as_str(), NONE, flags, NONE);
            if result.is_ok() {
                break;
            }
        }
        result.map_err(|error| context(&format!("making {target} read-only"), error))
    }

    fn file_system(&self, kind: &str, target: &str, flags: MsFlags, options: &str) -> io::Result<()> {
        let place = self.directory(target)?;
        let path = format!("/proc/self/fd/{}", place.as_raw_fd());
        mount(Some(kind), path.as_str(), Some(kind), flags, Some(options)).map_err(|error| context(target, error))
    }

    /// The place of a mount: a folder for a folder, a file for a file.
    fn place_for(&self, source: &Path, target: &str) -> io::Result<Place> {
        if fs::metadata(source).map_err(|error| context(&source.display().to_string(), error))?.is_dir() {
            return Ok(Place(self.directory(target)?));
        }
        let (folder, name) = target.rsplit_once('/').unwrap_or(("", target));
        let folder = self.directory(folder)?;
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let made = nix::fcntl::openat(&folder, name, flags, Mode::from_bits_truncate(0o644));
        // A link, or a file that this user may not write, need not be made: it only has to be there.
        self.existing(target).map_err(|error| match made {
            Ok(_) => error,
            Err(made) => context(target, made),
        })
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
                Ok(()) | Err(nix::errno::Errno::EEXIST | nix::errno::Errno::EROFS) => {}
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

    /// A file for the program's user only.
    fn write(&self, file: &File) -> io::Result<()> {
        self.put(file, 0o400, self.owner)
    }

    fn write_as(&self, file: &File, mode: u32, (uid, gid): (u32, u32), spec: &Spec) -> io::Result<()> {
        self.put(file, mode, outside(spec, uid, gid))
    }

    fn put(&self, file: &File, mode: u32, (uid, gid): (u32, u32)) -> io::Result<()> {
        use std::{io::Write as _, os::unix::fs::fchown};
        let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
        let folder = self.directory(folder)?;
        match nix::unistd::unlinkat(&folder, name, nix::unistd::UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let mut out = fs::File::from(nix::fcntl::openat(&folder, name, flags, Mode::from_bits_truncate(mode))?);
        out.write_all(&file.contents)?;
        match fchown(&out, Some(uid), Some(gid)) {
            // There is nobody else to give it to.
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied || error.raw_os_error() == Some(libc::EINVAL) =>
            {
                Ok(())
            }
            result => result,
        }
    }
}

/// Mounts a directory or file of the host with the ids of a user namespace.
fn shifted(source: &Path, place: &OwnedFd, namespace: &OwnedFd) -> io::Result<()> {
    let source = CString::new(source.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let tree = sys::open_tree(&source).map_err(|error| context(&source.to_string_lossy(), error))?;
    sys::shift_ids(&tree, namespace).map_err(|error| context("this file system has no idmapped mounts", error))?;
    sys::attach(&tree, place)
}

/// Ids inside, as they are outside.
fn outside(spec: &Spec, uid: u32, gid: u32) -> (u32, u32) {
    match spec.ids {
        Ids::Range { first } => (first + uid, first + gid),
        Ids::Caller => (spec.uid, spec.gid),
    }
}

fn own(spec: &Spec, path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    match spec.ids {
        Ids::Range { .. } => chown(path, Some(uid), Some(gid)),
        // It is the caller's already.
        Ids::Caller => Ok(()),
    }
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}
