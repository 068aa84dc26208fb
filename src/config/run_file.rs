//! Where a running daemon says that it runs: `DATA_DIR/daemon.json`.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// What a stop means for applications.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// They run on.
    #[default]
    Serve,
    /// They are stopped with the daemon.
    Up,
}

/// The daemon of a data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    pub pid: i32,
    /// When the process started, in clock ticks after boot: a pid is used again, this is not.
    pub start_ticks: u64,
    pub api: SocketAddr,
    pub registry: SocketAddr,
    #[serde(default)]
    pub mode: Mode,
    #[serde(skip)]
    path: PathBuf,
}

impl RunFile {
    pub fn write(data_dir: &Path, api: SocketAddr, registry: SocketAddr, mode: Mode) -> io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let path = place(data_dir);
        let file = Self { pid, start_ticks: start_ticks(pid).unwrap_or(0), api, registry, mode, path };
        let temporary = file.path.with_extension("new");
        fs::write(&temporary, serde_json::to_vec(&file)?)?;
        fs::rename(temporary, &file.path)?;
        Ok(file)
    }

    /// The daemon of this data directory; none when none runs. Fails where this user may not look.
    pub fn read(data_dir: &Path) -> io::Result<Option<Self>> {
        let path = place(data_dir);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            text => text.unwrap_or_default(),
        };
        let file: Option<Self> = serde_json::from_slice(&text).ok();
        Ok(file.filter(Self::is_alive).map(|file| Self { path, ..file }))
    }

    /// Does it still run?
    pub fn is_alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }

    pub fn remove(&self) {
        // A file that stays names a process that is gone: nobody takes it for a daemon.
        let _ = fs::remove_file(&self.path);
    }
}

fn place(data_dir: &Path) -> PathBuf {
    data_dir.join("daemon.json")
}

/// proc(5), `/proc/PID/stat`, field 22; the name before it may have spaces. A zombie does not run.
fn start_ticks(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}
