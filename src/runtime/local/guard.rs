//! What no cgroup guards: the disk of the data directory, and memory where nobody delegated a cgroup.

use std::{io, path::Path, time::Duration};

use nix::sys::statvfs::statvfs;

use super::{Host, processes};

/// Why something has to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    Memory,
    Disk {
        /// In bytes.
        left: u64,
    },
    /// There is room on the disk, and hardly a name for a file.
    Files {
        left: u64,
    },
}

/// How often is looked. What can be written or filled in this time has to fit into the reserve.
const INTERVAL: Duration = Duration::from_millis(100);
/// What stays free on the disk of the data directory: this, or a twentieth of it when that is less.
const RESERVE_BYTES: u64 = 1 << 30;
/// The same of files.
const RESERVE_FILES: u64 = 50_000;

/// Ends when a step takes too much: of the disk, and of memory when a limit is given. `set_up` is the process that waits for it.
pub(super) async fn watch(host: &Host, set_up: u32, memory_bytes: Option<u64>) -> Excess {
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        if let Some(excess) = too_little_left(&host.data_dir) {
            return excess;
        }
        if memory_bytes.is_some_and(|limit| processes::resident_in(set_up) > limit) {
            return Excess::Memory;
        }
    }
}

/// The bytes that may still be written to the file system of a place.
pub(super) fn spare_bytes(place: &Path) -> io::Result<u64> {
    let (left, reserve) = space(place)?;
    Ok(left.saturating_sub(reserve))
}

fn too_little_left(place: &Path) -> Option<Excess> {
    let (left, reserve) = space(place).ok()?;
    if left < reserve {
        return Some(Excess::Disk { left });
    }
    let space = statvfs(place).ok()?;
    // Some file systems make room for files as they come, and say that they have none.
    let (left, total) = (space.files_available(), space.files());
    (total > 0 && left < RESERVE_FILES.min(total / 20)).then_some(Excess::Files { left })
}

/// What is left, and what has to be.
fn space(place: &Path) -> io::Result<(u64, u64)> {
    let space = statvfs(place)?;
    let (left, total) = (space.blocks_available() * space.fragment_size(), space.blocks() * space.fragment_size());
    Ok((left, RESERVE_BYTES.min(total / 20)))
}
