//! Limits, by cgroups of version 1, 2, or both at once ("hybrid").

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::unistd::Uid;

use crate::runtime::Limits;

/// The group of this data directory, in each hierarchy there is.
#[derive(Debug, Clone)]
pub(super) enum Cgroups {
    /// Each controller has a hierarchy of its own.
    V1 {
        memory: PathBuf,
        cpu: PathBuf,
        pids: PathBuf,
    },
    V2 {
        root: PathBuf,
    },
    /// Nobody delegated one to us.
    None,
}

/// The group of one sandbox.
#[derive(Debug, Clone, Default)]
pub(super) struct Cgroup {
    pub folders: Vec<PathBuf>,
}

const CPU_PERIOD: u64 = 100_000;

impl Cgroups {
    /// Looks what this machine has; makes a group of the given name.
    pub fn open(name: &str) -> Self {
        let found = Self::find(name);
        match found.and_then(|groups| groups.prepare().map(|()| groups)) {
            Ok(groups) => groups,
            Err(error) => {
                tracing::warn!(%error, "no cgroup can be used here: sandboxes have no limits of memory, processors and processes");
                Self::None
            }
        }
    }

    pub fn describe(&self) -> &'static str {
        match self {
            Self::V1 { .. } => "cgroup1",
            Self::V2 { .. } => "cgroup2",
            Self::None => "none",
        }
    }

    fn find(name: &str) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let hierarchy = |controller: &str| -> Option<PathBuf> {
            let mount = mounts.lines().find_map(|line| {
                let (left, right) = line.split_once(" - ")?;
                let kind = right.split(' ').next()?;
                let options = right.rsplit(' ').next()?;
                let fits = match controller {
                    "" => kind == "cgroup2",
                    controller => kind == "cgroup" && options.split(',').any(|option| option == controller),
                };
                fits.then(|| left.split(' ').nth(4).map(PathBuf::from))?
            })?;
            Some(mount)
        };
        if let (Some(memory), Some(cpu), Some(pids)) = (hierarchy("memory"), hierarchy("cpu"), hierarchy("pids")) {
            let group = |root: PathBuf| root.join(name);
            return Ok(Self::V1 { memory: group(memory), cpu: group(cpu), pids: group(pids) });
        }
        let root = hierarchy("").ok_or_else(|| io::Error::other("none is mounted"))?;
        // Root may use the top; everybody else only what was delegated to them.
        let base = if Uid::effective().is_root() {
            root
        } else {
            let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
            root.join(path.trim_start_matches('/'))
        };
        Ok(Self::V2 { root: base.join(name) })
    }

    fn prepare(&self) -> io::Result<()> {
        match self {
            Self::V1 { memory, cpu, pids } => [memory, cpu, pids].into_iter().try_for_each(fs::create_dir_all),
            Self::V2 { root } => {
                let parent = root.parent().unwrap_or(Path::new("/"));
                let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory +cpu +pids");
                fs::create_dir_all(root)?;
                fs::write(root.join("cgroup.subtree_control"), "+memory +cpu +pids")
            }
            Self::None => Ok(()),
        }
    }

    /// Makes the group of a sandbox, with its limits.
    pub fn create(&self, name: &str, limits: &Limits) -> io::Result<Cgroup> {
        let write = |folder: &Path, file: &str, value: Option<String>| match value {
            Some(value) => fs::write(folder.join(file), value),
            None => Ok(()),
        };
        let quota = limits.millicpus.map(|cpus| u64::from(cpus) * CPU_PERIOD / 1000);
        let folders = match self {
            Self::None => Vec::new(),
            Self::V2 { root } => {
                let folder = root.join(name);
                fs::create_dir_all(&folder)?;
                write(&folder, "memory.max", limits.memory_bytes.map(|bytes| bytes.to_string()))?;
                // Swap is no memory that was asked for. Not every kernel counts it.
                let _ = fs::write(folder.join("memory.swap.max"), "0");
                write(&folder, "cpu.max", quota.map(|quota| format!("{quota} {CPU_PERIOD}")))?;
                write(&folder, "pids.max", limits.pids.map(|pids| pids.to_string()))?;
                vec![folder]
            }
            Self::V1 { memory, cpu, pids } => {
                let folders = [memory.join(name), cpu.join(name), pids.join(name)];
                folders.iter().try_for_each(fs::create_dir_all)?;
                write(&folders[0], "memory.limit_in_bytes", limits.memory_bytes.map(|bytes| bytes.to_string()))?;
                write(&folders[1], "cpu.cfs_period_us", quota.map(|_| CPU_PERIOD.to_string()))?;
                write(&folders[1], "cpu.cfs_quota_us", quota.map(|quota| quota.to_string()))?;
                write(&folders[2], "pids.max", limits.pids.map(|pids| pids.to_string()))?;
                folders.to_vec()
            }
        };
        Ok(Cgroup { folders })
    }

    /// The group of a sandbox that was made before.
    pub fn existing(&self, name: &str) -> Cgroup {
        let folders = match self {
            Self::None => Vec::new(),
            Self::V2 { root } => vec![root.join(name)],
            Self::V1 { memory, cpu, pids } => vec![memory.join(name), cpu.join(name), pids.join(name)],
        };
        Cgroup { folders }
    }

    /// The names of the groups that there are.
    pub fn names(&self) -> Vec<String> {
        let folder = match self {
            Self::None => return Vec::new(),
            Self::V2 { root } => root,
            Self::V1 { memory, .. } => memory,
        };
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.path().is_dir())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Removes the group of the data directory, when no sandbox is left in it.
    pub fn close(&self) {
        let folders: Vec<&PathBuf> = match self {
            Self::None => Vec::new(),
            Self::V2 { root } => vec![root],
            Self::V1 { memory, cpu, pids } => vec![memory, cpu, pids],
        };
        for folder in folders {
            let _ = fs::remove_dir(folder);
        }
    }
}

impl Cgroup {
    /// How often the kernel has killed something here for lack of memory.
    pub fn out_of_memory(&self) -> u64 {
        let Some(folder) = self.folders.first() else { return 0 };
        let text = fs::read_to_string(folder.join("memory.events"))
            .or_else(|_| fs::read_to_string(folder.join("memory.oom_control")))
            .unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
    }

    pub fn memory_bytes(&self) -> Option<u64> {
        let folder = self.folders.first()?;
        let text = fs::read_to_string(folder.join("memory.current"))
            .or_else(|_| fs::read_to_string(folder.join("memory.usage_in_bytes")))
            .ok()?;
        text.trim().parse().ok()
    }

    /// Kills what is still in it, and removes it.
    pub fn remove(&self) {
        for _ in 0..100 {
            let mut left = false;
            for folder in self.folders.iter().filter(|folder| folder.exists()) {
                let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
                for pid in processes.lines().filter_map(|pid| pid.parse().ok()) {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                }
                left |= fs::remove_dir(folder).is_err();
            }
            if !left {
                return;
            }
            // What was killed needs a moment to go.
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        tracing::warn!(folders = ?self.folders, "a cgroup could not be removed");
    }
}
