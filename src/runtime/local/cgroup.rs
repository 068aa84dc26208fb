//! Limits, by cgroups of version 1, 2, or both at once ("hybrid").

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use nix::unistd::Uid;

use crate::runtime::Limits;

/// The group of this data directory, in each hierarchy there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cgroups {
    /// Each controller has a hierarchy of its own.
    V1 {
        memory: PathBuf,
        cpu: PathBuf,
        pids: PathBuf,
        /// Where the time is counted, when that is elsewhere.
        cpuacct: Option<PathBuf>,
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
const SUBTREE: &str = "cgroup.subtree_control";
const CONTROLLERS: &str = "+memory +cpu +pids";

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
        // Root may use the top; everybody else only what was delegated to them.
        let own = if Uid::effective().is_root() { None } else { Some(own.as_str()) };
        Self::of(&mounts, own, name).ok_or_else(|| io::Error::other("none is mounted"))
    }

    /// The groups that there are by `/proc/self/mountinfo`. `own` is `/proc/self/cgroup` of who has to stay below their own.
    fn of(mounts: &str, own: Option<&str>, name: &str) -> Option<Self> {
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
            let cpuacct = hierarchy("cpuacct").filter(|place| *place != cpu).map(group);
            return Some(Self::V1 { memory: group(memory), cpu: group(cpu), pids: group(pids), cpuacct });
        }
        let root = hierarchy("")?;
        let below = own.map(|own| own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/"));
        let base = below.map_or(root.clone(), |below| root.join(below.trim_start_matches('/')));
        Some(Self::V2 { root: base.join(name) })
    }

    fn prepare(&self) -> io::Result<()> {
        match self {
            Self::V1 { .. } => self.tops().into_iter().try_for_each(fs::create_dir_all),
            Self::V2 { root } => {
                let parent = root.parent().unwrap_or(Path::new("/"));
                if fs::write(parent.join(SUBTREE), CONTROLLERS).is_err() {
                    make_room(parent)?;
                }
                fs::create_dir_all(root)?;
                fs::write(root.join(SUBTREE), CONTROLLERS)
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
            Self::V1 { .. } => {
                let folders: Vec<_> = self.tops().into_iter().map(|top| top.join(name)).collect();
                folders.iter().try_for_each(fs::create_dir_all)?;
                write(&folders[0], "memory.limit_in_bytes", limits.memory_bytes.map(|bytes| bytes.to_string()))?;
                write(&folders[1], "cpu.cfs_period_us", quota.map(|_| CPU_PERIOD.to_string()))?;
                write(&folders[1], "cpu.cfs_quota_us", quota.map(|quota| quota.to_string()))?;
                write(&folders[2], "pids.max", limits.pids.map(|pids| pids.to_string()))?;
                folders
            }
        };
        Ok(Cgroup { folders })
    }

    /// The group of a sandbox that was made before.
    pub fn existing(&self, name: &str) -> Cgroup {
        Cgroup { folders: self.tops().into_iter().map(|top| top.join(name)).collect() }
    }

    /// The groups of this data directory; that of memory comes first.
    fn tops(&self) -> Vec<&PathBuf> {
        match self {
            Self::None => Vec::new(),
            Self::V2 { root } => vec![root],
            Self::V1 { memory, cpu, pids, cpuacct } => [memory, cpu, pids].into_iter().chain(cpuacct).collect(),
        }
    }

    /// The names of the groups that there are.
    pub fn names(&self) -> Vec<String> {
        let entries = self.tops().into_iter().filter_map(|top| fs::read_dir(top).ok()).flatten().flatten();
        let folders = entries.filter(|entry| entry.path().is_dir());
        let names: BTreeSet<_> = folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.into_iter().collect()
    }

    /// Removes the group of the data directory, when no sandbox is left in it.
    pub fn close(&self) {
        for folder in self.tops() {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// A group that was delegated to us has controllers to give only when no process is in it: this one moves into a group below.
fn make_room(delegated: &Path) -> io::Result<()> {
    let own = delegated.join("epiniod-daemon");
    fs::create_dir_all(&own)?;
    let moved = fs::write(own.join("cgroup.procs"), "0").and_then(|()| fs::write(delegated.join(SUBTREE), CONTROLLERS));
    if moved.is_err() {
        // Others are in it too, or it was not delegated: nothing is to be left behind.
        let _ = fs::write(delegated.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&own);
    }
    moved
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

    /// The processor time that was used here, in microseconds.
    pub fn cpu_micros(&self) -> Option<u64> {
        self.folders.iter().find_map(|folder| {
            if let Ok(nanos) = fs::read_to_string(folder.join("cpuacct.usage")) {
                return Some(nanos.trim().parse::<u64>().ok()? / 1000);
            }
            let stat = fs::read_to_string(folder.join("cpu.stat")).ok()?;
            stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok())
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
31 25 0:27 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory
32 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct
33 25 0:29 / /sys/fs/cgroup/pids rw shared:11 - cgroup cgroup rw,pids
34 25 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
";
    const V2: &str =
        "30 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "35 25 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    const DELEGATED: &str = "0::/user.slice/user-1000.slice/epiniod.service\n";

    fn v1(cpu: &str, cpuacct: Option<&str>) -> Cgroups {
        let group = |controller: &str| PathBuf::from(format!("/sys/fs/cgroup/{controller}/ours"));
        Cgroups::V1 { memory: group("memory"), cpu: group(cpu), pids: group("pids"), cpuacct: cpuacct.map(group) }
    }

    fn v2(path: &str) -> Cgroups {
        Cgroups::V2 { root: path.into() }
    }

    #[test]
    fn the_groups_are_where_the_mounts_say() {
        let apart = V1.replace("cpu,cpuacct rw shared", "cpu rw shared").replace("rw,cpu,cpuacct", "rw,cpu")
            + "36 25 0:32 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n";
        let without_pids: String =
            V1.lines().filter(|line| !line.contains("pids")).map(|line| format!("{line}\n")).collect();
        for (what, mounts, own, expected) in [
            ("version 1", V1.to_owned(), None, Some(v1("cpu,cpuacct", None))),
            ("version 1, time counted elsewhere", apart, None, Some(v1("cpu", Some("cpuacct")))),
            ("hybrid", format!("{HYBRID}{V1}"), None, Some(v1("cpu,cpuacct", None))),
            (
                "hybrid, a controller in version 2",
                format!("{without_pids}{HYBRID}"),
                None,
                Some(v2("/sys/fs/cgroup/unified/ours")),
            ),
            ("version 2 as root", V2.to_owned(), None, Some(v2("/sys/fs/cgroup/ours"))),
            (
                "version 2 as a user",
                V2.to_owned(),
                Some(DELEGATED),
                Some(v2("/sys/fs/cgroup/user.slice/user-1000.slice/epiniod.service/ours")),
            ),
            ("only the one of systemd", V1.lines().last().map(str::to_owned).unwrap_or_default(), None, None),
            ("none", "22 1 0:20 / /proc rw - proc proc rw\n".to_owned(), None, None),
        ] {
            assert_eq!(Cgroups::of(&mounts, own, "ours"), expected, "{what}");
        }
    }

    #[test]
    fn without_a_group_there_are_no_limits_and_that_is_said() {
        assert_eq!(Cgroups::None.describe(), "none");
        let limits = Limits { memory_bytes: Some(1), ..Limits::default() };
        assert_eq!(Cgroups::None.create("any", &limits).unwrap().folders, Vec::<PathBuf>::new());
    }
}
