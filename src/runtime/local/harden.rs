//! What a program in a sandbox may not do: capabilities, system calls, resources.

use std::{collections::BTreeMap, io, os::fd::AsFd};

use caps::{CapSet, Capability};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigHandler, SigSet, SigmaskHow, Signal, raise, signal, sigprocmask},
    },
    unistd::{Gid, Uid, setresgid, setresuid},
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter, sock_filter,
};

use super::{
    init::context,
    spec::{Ids, Network, Spec},
    sys,
};

/// What root of a sandbox needs to lay out files for others.
const ROOT_KEEPS: [Capability; 6] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
];

/// Pastes the selection of a console, among others.
const TIOCLINUX: u64 = 0x541c;
/// System calls that no build and no application needs, and many an exploit does.
const REFUSED: [libc::c_long; 47] = [
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// Gives up everything that the program is not to have. What comes after can only be the program; it starts with these
/// signals blocked.
pub(super) fn drop_privileges(spec: &Spec, blocked: &SigSet) -> io::Result<()> {
    limit(spec);
    let keeps: &[Capability] = if spec.user.uid == 0 { &ROOT_KEEPS } else { &[] };
    for capability in caps::runtime::thread_all_supported() {
        if !keeps.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability)
                .map_err(|error| context("dropping capabilities", io::Error::other(error)))?;
        }
    }
    if matches!(spec.ids, Ids::Range { .. }) {
        let (uid, gid) = (Uid::from_raw(spec.user.uid), Gid::from_raw(spec.user.gid));
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    if spec.user.uid != 0 {
        for set in [CapSet::Ambient, CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
            caps::clear(None, set).map_err(|error| context("clearing capabilities", io::Error::other(error)))?;
        }
    }
    reset_signals(blocked)?;
    prctl::set_no_new_privs()?;
    // Nobody in the sandbox may look into what the program was before it starts.
    prctl::set_dumpable(false)?;
    if matches!(spec.network, Network::Host) {
        sys::scope_sockets();
    }
    sys::close_on_exec();
    Ok(())
}

/// Ends with the parent, however that ends. `parent` is a pipe whose other end only it has.
pub(super) fn die_with(parent: &impl AsFd) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let mut fds = [PollFd::new(parent.as_fd(), PollFlags::empty())];
    if poll(&mut fds, PollTimeout::ZERO)? > 0 {
        return Err(io::Error::other("nobody waits for it any more"));
    }
    Ok(())
}

/// From here on the program cannot make the system calls that are refused.
pub(super) fn filter_calls() -> io::Result<()> {
    for filter in [without_clone3(), refused(), without_x32()] {
        let filter = filter.map_err(|error| context("building a system call filter", io::Error::other(error)))?;
        apply_filter(&filter).map_err(|error| context("setting a system call filter", io::Error::other(error)))?;
    }
    Ok(())
}

/// What the machine does not grant is less, and no reason to stop: it is said in the log of the sandbox.
fn limit(spec: &Spec) {
    let warn = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            eprintln!("epiniod: warning: {what} is not possible here: {error}");
        }
    };
    let set = |resource, value| setrlimit(resource, value, value).map_err(io::Error::from);
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, spec.open_files));
    warn("limiting open files", set(Resource::RLIMIT_NOFILE, spec.open_files.min(most)));
    warn("switching core dumps off", set(Resource::RLIMIT_CORE, 0));
    if let Some(most) = spec.max_processes {
        warn("limiting processes", set(Resource::RLIMIT_NPROC, u64::from(most)));
    }
}

/// When memory runs out, sandboxes go first. As root it is for good; it has to be said before anything is given up.
pub(super) fn go_first() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "500") {
        eprintln!("epiniod: warning: when memory runs out, this may stay and others go: {error}");
    }
}

/// A program starts with no signal ignored, whatever the daemon did.
fn reset_signals(blocked: &SigSet) -> io::Result<()> {
    for number in Signal::iterator().filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action is no function of ours.
        unsafe { signal(number, SigHandler::SigDfl) }?;
    }
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(blocked), None)?)
}

/// Ends this process by a signal, so that its parent sees that one.
pub(super) fn end_by(number: Signal) {
    // SAFETY: the default action is no function of ours.
    let _ = unsafe { signal(number, SigHandler::SigDfl) };
    let _ = raise(number);
}

fn refused() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.into_iter().map(|number| (number, Vec::new())).collect();
    // New user namespaces give back what was taken away.
    let namespaces = u64::from(libc::CLONE_NEWUSER as u32);
    let new_user = masked(0, SeccompCmpArgLen::Qword, namespaces, namespaces)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![new_user])?]);
    // Devices: everything that is not a file, a FIFO or a socket.
    for (number, argument) in mknod() {
        let kind = u64::from(libc::S_IFMT);
        let devices = [libc::S_IFCHR, libc::S_IFBLK];
        let conditions = devices.map(|device| masked(argument, SeccompCmpArgLen::Dword, kind, u64::from(device)));
        let mut alternatives = Vec::new();
        for condition in conditions {
            alternatives.push(SeccompRule::new(vec![condition?])?);
        }
        rules.insert(number, alternatives);
    }
    // Sockets that reach around the network namespace, or into the kernel's tables.
    let families = [libc::AF_VSOCK, libc::AF_PACKET, libc::AF_ALG, libc::AF_KEY];
    let mut sockets = Vec::new();
    for family in families {
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, family as u64)?;
        sockets.push(SeccompRule::new(vec![condition])?);
    }
    // Routes may be looked at; the other families of netlink are for who runs the machine.
    let netlink = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::AF_NETLINK as u64)?;
    let not_routes = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, libc::NETLINK_ROUTE as u64)?;
    sockets.push(SeccompRule::new(vec![netlink, not_routes])?);
    rules.insert(libc::SYS_socket, sockets);
    // Characters that a terminal takes for typed ones.
    let mut typed = Vec::new();
    for request in [libc::TIOCSTI, TIOCLINUX] {
        let condition = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request)?;
        typed.push(SeccompRule::new(vec![condition])?);
    }
    rules.insert(libc::SYS_ioctl, typed);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let arch = std::env::consts::ARCH.try_into()?;
    let denied: BpfProgram = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?.try_into()?;
    Ok(denied)
}

/// clone3 has its flags behind a pointer, where a filter cannot look: glibc takes ENOSYS for "use clone".
fn without_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), arch)?.try_into()
}

/// Programs of the x32 ABI have other numbers for the same calls, which no filter above knows.
fn without_x32() -> Result<BpfProgram, seccompiler::BackendError> {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_GREATER_OR_EQUAL: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const X32: u32 = 0x4000_0000;
    const NOT_IMPLEMENTED: u32 = 0x0005_0000 | libc::ENOSYS as u32;
    const ALLOW: u32 = 0x7fff_0000;
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    Ok(vec![
        instruction(LOAD_WORD, 0, 0, 0),
        instruction(JUMP_IF_GREATER_OR_EQUAL, 0, 1, X32),
        instruction(RETURN, 0, 0, NOT_IMPLEMENTED),
        instruction(RETURN, 0, 0, ALLOW),
    ])
}

fn masked(
    argument: u8,
    length: SeccompCmpArgLen,
    mask: u64,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, length, SeccompCmpOp::MaskedEq(mask), value)
}

#[cfg(target_arch = "x86_64")]
fn mknod() -> Vec<(i64, u8)> {
    vec![(libc::SYS_mknod, 1), (libc::SYS_mknodat, 2)]
}

#[cfg(not(target_arch = "x86_64"))]
fn mknod() -> Vec<(i64, u8)> {
    vec![(libc::SYS_mknodat, 2)]
}
