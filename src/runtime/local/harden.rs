//! What a program in a sandbox may not do: capabilities, system calls, resources.

use std::{collections::BTreeMap, io};

use caps::{CapSet, Capability};
use nix::{
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::{SigHandler, SigSet, SigmaskHow, Signal, raise, signal, sigprocmask},
    },
    unistd::{Gid, Uid, setresgid, setresuid},
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

use super::{
    init::context,
    spec::{Ids, Spec},
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

/// System calls that no build and no application needs, and many an exploit does.
const REFUSED: [libc::c_long; 45] = [
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

/// Gives up everything that the program is not to have. What comes after can only be the program.
pub(super) fn drop_privileges(spec: &Spec) -> io::Result<()> {
    limit(spec)?;
    let keeps: &[Capability] = if spec.uid == 0 { &ROOT_KEEPS } else { &[] };
    for capability in caps::runtime::thread_all_supported() {
        if !keeps.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability)
                .map_err(|error| context("dropping capabilities", io::Error::other(error)))?;
        }
    }
    if matches!(spec.ids, Ids::Range { .. }) {
        let (uid, gid) = (Uid::from_raw(spec.uid), Gid::from_raw(spec.gid));
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    if spec.uid != 0 {
        for set in [CapSet::Ambient, CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
            caps::clear(None, set).map_err(|error| context("clearing capabilities", io::Error::other(error)))?;
        }
    }
    reset_signals()?;
    prctl::set_no_new_privs()?;
    // Nobody in the sandbox may look into what the program was before it starts.
    prctl::set_dumpable(false)?;
    for filter in [without_clone3(), refused()] {
        let filter = filter.map_err(|error| context("building a system call filter", io::Error::other(error)))?;
        apply_filter(&filter).map_err(|error| context("setting a system call filter", io::Error::other(error)))?;
    }
    Ok(())
}

fn limit(spec: &Spec) -> io::Result<()> {
    // What the machine does not grant is less, and no reason to stop.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, spec.open_files, spec.open_files);
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = std::fs::write("/proc/self/oom_score_adj", "500");
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    Ok(())
}

/// A program starts with no signal ignored or blocked, whatever the daemon did.
fn reset_signals() -> io::Result<()> {
    for number in Signal::iterator().filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action is no function of ours.
        unsafe { signal(number, SigHandler::SigDfl) }?;
    }
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
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
    rules.insert(libc::SYS_socket, sockets);
    // Characters that a terminal takes for typed ones.
    let sti = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::TIOCSTI)?;
    rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(vec![sti])?]);
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
