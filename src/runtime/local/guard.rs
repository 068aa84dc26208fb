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
}

/// How often is looked. What can be written or filled in this time has to fit into the reserve.
const INTERVAL: Duration = Duration::from_millis(100);
/// What stays free on the disk of the data directory: this, or a twentieth of it when that is less.
const RESERVE_BYTES: u64 = 1 << 30;

/// Ends when a step takes too much: of the disk, and of memory when a limit is given. `set_up` is the process that waits for it.
pub(super) async fn watch(host: &Host, set_up: u32, memory_bytes: Option<u64>) -> Excess {
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        if let Some(left) = too_little_left(&host.data_dir) {
            return Excess::Disk { left };
        }
        if memory_bytes.is_some_and(|limit| processes::resident_in(set_up) > limit) {
            return Excess::Memory;
        }
    }
}

/// The bytes that are left, when they are fewer than the reserve.
fn too_little_left(place: &Path) -> Option<u64> {
    let (left, total) = space(place).ok()?;
    (left < RESERVE_BYTES.min(total / 20)).then_some(left)
}

fn space(place: &Path) -> io::Result<(u64, u64)> {
    let space = statvfs(place)?;
    Ok((space.blocks_available() * space.fragment_size(), space.blocks() * space.fragment_size()))
}
