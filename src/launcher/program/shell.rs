//! Processes that go through bash: profiles are sourced, and the words of the command are expanded.

use std::{
    convert::Infallible, ffi::OsString, os::unix::process::CommandExt, path::Path, path::PathBuf, process::Command,
};

use crate::{
    Failure, Launch,
    environment::{Environment, files},
    metadata::Process,
};

/// The command is a script of its own.
const SCRIPT: &str = "exec bash -c \"$1\"";
/// Each word is expanded as if it stood in double quotes, and stays one word.
const WORDS: &str = r#"set -f
words=()
for word in "$@"; do words+=("$(eval printf %s \"$word\")"); done
set +f
exec "${words[@]}""#;

pub fn start(launch: &Launch, process: &Process, environment: &Environment) -> Result<Infallible, Failure> {
    let mut script = String::new();
    for profile in profiles(launch) {
        script.push_str(&format!("source {}\n", quoted(&profile)));
    }
    script.push_str(&format!("cd {}\n", quoted(&launch.directory(process))));
    script.push_str(if process.args.is_empty() { SCRIPT } else { WORDS });
    let command = process.command.join(" ".as_ref());
    let words: Vec<OsString> = [vec![command], process.args.clone()].concat();
    let mut shell = Command::new("/bin/bash");
    shell.args(["-c", &script, "bash"]).args(words).env_clear().envs(environment.iter());
    Err(Failure::new(format!("exec /bin/bash, which this process needs: {}", shell.exec())))
}

/// Of all layers in order, and the application's own.
fn profiles(launch: &Launch) -> Vec<PathBuf> {
    let layers = launch.metadata.layer_folders(&launch.layers).into_iter().flatten();
    let folders = layers.flat_map(|layer| launch.with_kind(&layer.join("profile.d")));
    let mut profiles: Vec<PathBuf> = folders.flat_map(|folder| files(&folder)).collect();
    profiles.extend(Some(launch.app.join(".profile")).filter(|path| path.is_file()));
    profiles
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}
