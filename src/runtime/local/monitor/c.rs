//! The C functions that the monitor needs, and the standard library does not have.

use std::{ffi::c_int, io, os::fd::RawFd};

pub const SIGTERM: i32 = 15;
pub const SIGUSR1: i32 = 10;
pub const SIGKILL: i32 = 9;
pub const SIGCHLD: i32 = 17;
/// What a program may be told, and the end of children.
pub const HANDED_ON: [i32; 9] = [1, 2, 3, SIGUSR1, 12, SIGTERM, SIGCHLD, 18, 28];
const SIG_BLOCK: c_int = 0;
const SIG_SET: c_int = 2;
const LOCK_EXCLUSIVE_NOW: c_int = 2 | 4;
const WNOHANG: c_int = 1;
const CLOEXEC: c_int = 0o2_000_000;
const POLLIN: i16 = 1;
/// `struct signalfd_siginfo` has this size; its first field is the number.
const SIGINFO_BYTES: usize = 128;

#[repr(C)]
struct PollFd {
    fd: c_int,
    events: i16,
    revents: i16,
}

/// `sigset_t` of glibc and musl: 1024 bits.
#[repr(C)]
struct SignalSet([u64; 16]);

unsafe extern "C" {
    fn flock(fd: c_int, operation: c_int) -> c_int;
    fn setsid() -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn poll(fds: *mut PollFd, count: u64, timeout: c_int) -> c_int;
    fn sigprocmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn signalfd(fd: c_int, set: *const SignalSet, flags: c_int) -> c_int;
    fn read(fd: c_int, buffer: *mut u8, count: usize) -> isize;
    fn madvise(address: usize, length: usize, advice: c_int) -> c_int;
    /// Where the linker put the program: from here …
    static __executable_start: u8;
    /// … to here is what nobody writes to.
    static etext: u8;
}

/// Gives back the pages of the program that are in memory because it started: few are needed to wait. They come
/// from the file again when they are.
pub fn shed() {
    const DONTNEED: c_int = 4;
    const PAGE: usize = 65_536;
    let (start, end) = (&raw const __executable_start as usize, &raw const etext as usize);
    let start = start.next_multiple_of(PAGE);
    // SAFETY: between these addresses is code and constant data, mapped from the file and never changed (the program is not
    // relocated): every page that is dropped reads the same again. The last page, which may have other things, stays.
    unsafe { madvise(start, end.saturating_sub(start) / PAGE * PAGE, DONTNEED) };
}

pub enum Status {
    Exit(i32),
    Signal(i32),
}

/// True when nobody else has it.
pub fn lock(fd: RawFd) -> bool {
    // SAFETY: two integers; the descriptor is open.
    unsafe { flock(fd, LOCK_EXCLUSIVE_NOW) == 0 }
}

/// Away from the terminal and the process group of whoever started this.
pub fn new_session() {
    // SAFETY: no arguments. It fails only for who leads a group already.
    unsafe { setsid() };
}

/// A descriptor that these signals are read from; they are blocked otherwise.
pub fn signals(signals: &[i32]) -> io::Result<RawFd> {
    let mut set = SignalSet([0; 16]);
    for signal in signals {
        set.0[0] |= 1 << (signal - 1);
    }
    // SAFETY: the set lives through both calls, and has the size that the C library expects.
    let fd = unsafe {
        sigprocmask(SIG_BLOCK, &set, std::ptr::null_mut());
        signalfd(-1, &set, CLOEXEC)
    };
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) }
}

/// Blocks nothing any more, as a program expects it that is started.
pub fn unblock() {
    let none = SignalSet([0; 16]);
    // SAFETY: the set lives through the call, and has the size that the C library expects.
    unsafe { sigprocmask(SIG_SET, &none, std::ptr::null_mut()) };
}

pub fn next_signal(fd: RawFd) -> io::Result<i32> {
    let mut info = [0u8; SIGINFO_BYTES];
    loop {
        // SAFETY: the buffer has the size that is given.
        let read = unsafe { read(fd, info.as_mut_ptr(), info.len()) };
        if read >= 4 {
            return Ok(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Sends a signal to a child that was not reaped yet.
pub fn send(pid: i32, signal: i32) {
    // SAFETY: two integers; what cannot be sent is not.
    unsafe { kill(pid, signal) };
}

/// A child that has ended.
pub fn reap() -> Option<(i32, Status)> {
    let mut status = 0;
    // SAFETY: the status lives through the call.
    let pid = unsafe { waitpid(-1, &mut status, WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let signal = status & 0x7f;
    Some((pid, if signal == 0 { Status::Exit((status >> 8) & 0xff) } else { Status::Signal(signal) }))
}

/// The descriptors of these that can be read, or have ended. A timeout is in milliseconds; -1 waits for ever.
pub fn wait_readable(fds: &[RawFd], timeout: i32) -> io::Result<Vec<RawFd>> {
    let mut polled: Vec<PollFd> = fds.iter().map(|fd| PollFd { fd: *fd, events: POLLIN, revents: 0 }).collect();
    // SAFETY: the array has as many entries as are given.
    let count = unsafe { poll(polled.as_mut_ptr(), polled.len() as u64, timeout) };
    if count < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(Vec::new()) } else { Err(error) };
    }
    Ok(polled.iter().filter(|fd| fd.revents != 0).map(|fd| fd.fd).collect())
}
