//! Processes of sandboxes, seen from outside, as `/proc` shows them.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

/// Memory of all processes of the sandbox that a process set up, in bytes.
pub(super) fn resident_in(set_up: u32) -> u64 {
    let namespace = fs::read_link(format!("/proc/{set_up}/ns/pid_for_children"));
    namespace.map_or(0, |namespace| resident(&namespace))
}

/// Memory of all processes in the pid namespace of a process, in bytes.
pub(super) fn resident_with(pid: i32) -> u64 {
    let namespace = fs::read_link(format!("/proc/{pid}/ns/pid"));
    namespace.map_or(0, |namespace| resident(&namespace))
}

fn resident(namespace: &Path) -> u64 {
    let kibibytes = in_namespace(namespace).into_iter().filter_map(|process| {
        let status = fs::read_to_string(process.join("status")).ok()?;
        // Pages of files are there for everybody, and go when they are needed.
        let held = ["RssAnon:", "RssShmem:"].map(|name| {
            let held = status.lines().find_map(|line| line.strip_prefix(name))?;
            held.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        });
        Some(held.into_iter().flatten().sum::<u64>())
    });
    kibibytes.sum::<u64>() * 1024
}

/// The sockets of all processes in the pid namespace of a process, by inode.
pub(super) fn sockets_with(pid: i32) -> HashSet<u64> {
    let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/pid")) else { return HashSet::new() };
    in_namespace(&namespace).iter().flat_map(|process| sockets(process)).collect()
}

fn sockets(process: &Path) -> Vec<u64> {
    let fds = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let inode = |link: PathBuf| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    fds.filter_map(|fd| fs::read_link(fd.path()).ok().and_then(inode)).collect()
}

/// Folders in `/proc` of the processes in a pid namespace.
fn in_namespace(namespace: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered = entries.filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit));
    let inside = |process: &PathBuf| fs::read_link(process.join("ns/pid")).is_ok_and(|theirs| theirs == namespace);
    numbered.map(|entry| entry.path()).filter(inside).collect()
}

/// When a process started, in ticks since the machine did: with the pid it names a process for good.
pub(super) fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name of the program, in brackets, and may have anything in it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_started_and_needs_memory() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(start_ticks(pid).is_some());
        assert!(resident_with(pid) > 100 << 10);
        assert_eq!(start_ticks(-1), None);
    }
}
