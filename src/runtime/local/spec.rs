//! What a sandbox is made of, as the process that makes it reads it.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Everything about one sandbox. Written by the daemon to a file that only it can read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Spec {
    pub hostname: String,
    /// An empty directory of the host that the root file system is put together on.
    pub stage: PathBuf,
    /// Directories of unpacked layers, lowest first. Empty: nothing but our own binary.
    pub layers: Vec<PathBuf>,
    /// Size of what may be written outside of mounts, in bytes.
    pub scratch_bytes: u64,
    pub own_binary: PathBuf,
    pub mounts: Vec<Mount>,
    pub files: Vec<File>,
    /// Certificate authorities that are mounted over the well-known bundles.
    pub build_ca: Option<PathBuf>,
    /// Name servers and the like: the content of `/etc/resolv.conf`.
    pub resolv_conf: String,
    pub network: Network,
    pub ids: Ids,
    /// Whom the program runs as, inside.
    pub uid: u32,
    pub gid: u32,
    /// Directories of cgroups to join.
    pub cgroups: Vec<PathBuf>,
    pub program: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub cwd: String,
    pub open_files: u64,
}

/// A file or directory of the host, at a place inside.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Mount {
    pub source: PathBuf,
    pub target: String,
    pub read_only: bool,
    /// Shifted: ids on disk are those inside.
    pub shifted: bool,
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
