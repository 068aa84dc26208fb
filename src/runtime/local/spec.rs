//! What a sandbox is made of, as the process that makes it reads it.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Everything about one sandbox. Written by the daemon to a file that only it can read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Spec {
    pub hostname: String,
    /// An empty directory of the host that the root file system is put together on.
    pub stage: PathBuf,
    /// Directories of unpacked layers, lowest first. Empty: nothing but the tool.
    pub layers: Vec<PathBuf>,
    /// Size of what may be written outside of mounts, in bytes.
    pub scratch_bytes: u64,
    pub tool: Tool,
    pub mounts: Vec<Mount>,
    pub files: Vec<File>,
    /// Certificate authorities that are mounted over the well-known bundles.
    pub build_ca: Option<PathBuf>,
    /// Name servers and the like: the content of `/etc/resolv.conf`.
    pub resolv_conf: String,
    pub network: Network,
    pub ids: Ids,
    /// Layers and mounts have the ids of inside on disk, and are shown with those of outside.
    pub idmapped: bool,
    /// Whom the program runs as, inside.
    pub user: User,
    /// Directories of cgroups to join.
    pub cgroups: Vec<PathBuf>,
    /// Where no cgroup counts processes, the kernel counts those of the user.
    pub max_processes: Option<u32>,
    pub program: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub cwd: String,
    pub open_files: u64,
}

/// The program of ours that is in every sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Tool {
    pub source: PathBuf,
    pub target: String,
}

/// A file or directory of the host, at a place inside.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Mount {
    pub source: PathBuf,
    pub target: String,
    pub read_only: bool,
}

/// A small file that only the program's user can read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct File {
    pub path: String,
    pub contents: Vec<u8>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Network {
    /// The daemon's.
    Host,
    /// Nothing but a loopback of its own.
    None,
    /// An address on the bridge.
    Bridge { bridge: String, address: Ipv4Addr, prefix: u8, gateway: Ipv4Addr, mtu: u32 },
}

/// How ids inside belong to ids outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Ids {
    /// 0 to 65,535 inside are these many from here on outside.
    Range { first: u32 },
    /// The caller is the CNB user; there is nobody else.
    Caller,
}

/// How many ids a range has.
pub(super) const RANGE: u32 = 65_536;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct User {
    pub uid: u32,
    pub gid: u32,
}

impl User {
    /// One number for both, as the users of our images have it.
    pub fn of(id: u32) -> Self {
        Self { uid: id, gid: id }
    }
}

impl Ids {
    /// Somebody inside, as outside. Rootless everybody is the caller.
    pub fn outside(self, user: User) -> Option<User> {
        match self {
            Self::Range { first } => Some(User { uid: first + user.uid, gid: first + user.gid }),
            Self::Caller => None,
        }
    }
}
