//! The few system calls that have no safe wrapper. Every one is a plain call with pointers to values
//! that outlive it.

use std::{
    ffi::CStr,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
    unistd::Pid,
};

/// `struct mount_attr` (mount_setattr(2)).
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Attributes of mounts (mount_setattr(2)).
pub(super) const READ_ONLY: u64 = 1;
/// Neither set-uid programs nor devices.
pub(super) const NO_PRIVILEGES: u64 = 2 | 4;
pub(super) const NO_PROGRAMS: u64 = 8;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;

/// A detached copy of the mount at a path.
pub(super) fn open_tree(path: &CStr) -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: the path is a C string that lives through the call; the kernel only reads it.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just returned this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Changes a detached mount: adds attributes; shows it with the ids of a user namespace.
pub(super) fn set_attributes(mount: &OwnedFd, attributes: u64, ids_of: Option<&OwnedFd>) -> io::Result<()> {
    let attr = MountAttr {
        attr_set: attributes | ids_of.map_or(0, |_| MOUNT_ATTR_IDMAP),
        attr_clr: 0,
        propagation: 0,
        userns_fd: ids_of.map_or(0, |namespace| namespace.as_raw_fd() as u64),
    };
    let size = size_of::<MountAttr>();
    // SAFETY: the path is an empty C string, the attributes are a live struct of the size that is given.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, &attr, size)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches a detached mount at a place that is open.
pub(super) fn attach(mount: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    let empty = c"".as_ptr();
    // SAFETY: both paths are empty C strings; both descriptors are open.
    let result =
        unsafe { libc::syscall(libc::SYS_move_mount, mount.as_raw_fd(), empty, target.as_raw_fd(), empty, flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whose child a new process is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Parent {
    Caller,
    /// The caller's own parent: it reaps the child, and the caller may end.
    Grandparent,
}

/// A child, in the new process; its pid, in the old one.
pub(super) enum Forked {
    Child,
    Parent(Pid),
}

/// Forks. The caller must have one thread only, as every process that calls this has.
pub(super) fn fork(parent: Parent) -> io::Result<Forked> {
    let flags = match parent {
        Parent::Caller => libc::SIGCHLD,
        Parent::Grandparent => libc::SIGCHLD | libc::CLONE_PARENT,
    };
    // SAFETY: without CLONE_VM and without a stack this is fork(2); the process has one thread, so
    // nothing can be locked by a thread that the child does not have.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        0 => Ok(Forked::Child),
        pid if pid > 0 => Ok(Forked::Parent(Pid::from_raw(pid as i32))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Writes bytes to a socket of the kernel's, and returns what it answers.
pub(super) fn exchange(socket: BorrowedFd<'_>, request: &[u8], answer: &mut [u8]) -> io::Result<usize> {
    nix::sys::socket::send(socket.as_raw_fd(), request, nix::sys::socket::MsgFlags::empty())?;
    Ok(nix::sys::socket::recv(socket.as_raw_fd(), answer, nix::sys::socket::MsgFlags::empty())?)
}

/// The most descriptors in one message.
const MOST_FDS: usize = 3;

/// Sends a message of a process to another, with descriptors for it.
pub(super) fn send(socket: BorrowedFd<'_>, message: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let with = [ControlMessage::ScmRights(fds)];
    let with = if fds.is_empty() { &[][..] } else { &with };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(message)], with, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// What was sent that way; nothing when the other end is gone.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; MOST_FDS]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for entry in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = entry {
            // SAFETY: the kernel has just made these descriptors for us, and nobody else knows of them.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, fds))
}

/// The terminal's end of a pseudo terminal whose other end this is.
pub(super) fn terminal_of(master: &impl AsFd) -> io::Result<OwnedFd> {
    let master = master.as_fd().as_raw_fd();
    let unlocked: libc::c_int = 0;
    // SAFETY: the call reads an integer that lives through it.
    if unsafe { libc::ioctl(master, libc::TIOCSPTLCK, &unlocked) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call takes an integer. Unlike a path it cannot lead anywhere else.
    let fd = unsafe { libc::ioctl(master, libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just returned this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a terminal the one of this session, which has none yet.
pub(super) fn control_by(terminal: &impl AsFd) -> io::Result<()> {
    // SAFETY: the call takes an integer.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Says how large the window of a terminal is.
pub(super) fn resize(master: &impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call reads a struct that lives through it.
    let result = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A descriptor that becomes readable when a process ends.
pub(super) fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just returned this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Marks every descriptor but the first three: none is handed on to a program.
pub(super) fn close_on_exec() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: three integers. Kernels that do not know the call change nothing; our own descriptors are marked already.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Does the kernel know [`scope_sockets`]?
pub(super) fn can_scope_sockets() -> bool {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
    const ABI: libc::c_long = 6;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call takes no struct, and returns a version.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, LANDLOCK_CREATE_RULESET_VERSION) >= ABI }
}

/// Keeps this process from connecting to abstract unix sockets of others, where the kernel can (Landlock, ABI 6).
pub(super) fn scope_sockets() {
    #[repr(C)]
    struct Ruleset {
        handled_access_fs: u64,
        handled_access_net: u64,
        scoped: u64,
    }
    const LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;
    let ruleset = Ruleset { handled_access_fs: 0, handled_access_net: 0, scoped: LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET };
    let size = size_of::<Ruleset>();
    // SAFETY: the struct lives through the call, and has the size that is given.
    let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &ruleset, size, 0) };
    if fd >= 0 {
        // SAFETY: the call has just returned this descriptor, and nobody else knows of it.
        let ruleset = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // SAFETY: two integers.
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    }
}

/// Gives back to the kernel what was freed, also in the middle of the heap.
pub(super) fn return_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and looks only at what is free.
    unsafe {
        libc::malloc_trim(0)
    };
}
