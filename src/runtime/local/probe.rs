//! Can a sandbox be made here? The answer is one that was made.

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    process::{Command, Output, Stdio},
};

use super::{
    init::NO_IDMAP,
    io_error,
    spec::{Ids, Network, Spec, Tool, User},
};
use crate::{
    oci::tree::remove_tree,
    runtime::{CNB_ID, Error, OWN_BINARY},
};

/// Makes a sandbox over a layer in the data directory, and ends it. True when the file system has idmapped mounts, which are
/// tried as root only.
pub(super) fn idmapped(data_dir: &Path, own_binary: &Path, ids: Ids) -> Result<bool, Error> {
    let folder = data_dir.join("run").join("probe");
    let try_it = |idmapped| {
        let output = run(&folder, own_binary, ids, idmapped).map_err(io_error("trying to make a sandbox"));
        // What is left of a probe is tried to be removed again before the next.
        let _ = remove_tree(&folder);
        output
    };
    let wanted = matches!(ids, Ids::Range { .. });
    let first = try_it(wanted)?;
    if first.status.success() {
        return Ok(wanted);
    }
    let output = if first.status.code() == Some(i32::from(NO_IDMAP)) { try_it(false)? } else { first };
    if output.status.success() {
        tracing::info!("idmapped mounts cannot be used here: layers are unpacked with shifted owners");
        return Ok(false);
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::Unsupported(format!(
        "no sandbox can be made with the data directory {} ({}): {}",
        data_dir.display(),
        output.status,
        said.trim(),
    )))
}

fn run(folder: &Path, own_binary: &Path, ids: Ids, idmapped: bool) -> io::Result<Output> {
    remove_tree(folder)?;
    let (stage, layer) = (folder.join("stage"), folder.join("layer"));
    fs::create_dir_all(&stage)?;
    fs::create_dir_all(&layer)?;
    let spec = Spec {
        hostname: "probe".to_owned(),
        stage,
        layers: vec![layer],
        scratch_bytes: 1 << 20,
        tool: Tool { source: own_binary.to_owned(), target: OWN_BINARY.to_owned() },
        mounts: Vec::new(),
        files: Vec::new(),
        build_ca: None,
        resolv_conf: String::new(),
        network: Network::None,
        ids,
        idmapped,
        user: User::of(CNB_ID),
        cgroups: Vec::new(),
        max_processes: None,
        program: [OWN_BINARY, "sandbox-init", "probe", "-"].map(str::to_owned).to_vec(),
        env: BTreeMap::new(),
        cwd: "/".to_owned(),
        open_files: 1024,
    };
    let file = folder.join("spec.json");
    fs::write(&file, serde_json::to_vec(&spec)?)?;
    let mut command = Command::new(own_binary);
    command.args(["sandbox-init", "step"]).arg(file).env_clear();
    // Its stdin is open until it has ended: when it ends before, the sandbox is killed.
    let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child?;
    let stdin = child.stdin.take();
    let output = child.wait_with_output();
    drop(stdin);
    output
}
