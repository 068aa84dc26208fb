//! Programs of layers that set variables: they write a TOML table of strings to descriptor 3.

use std::{path::Path, process::Command};

use crate::{Failure, environment::Environment, environment::files, metadata};

/// Runs the programs of a folder, one after the other.
pub fn run(folder: &Path, environment: &mut Environment) -> Result<(), Failure> {
    for program in files(folder) {
        let name = program.display().to_string();
        let failed = |why: String| Failure::new(format!("exec.d program {name}: {why}"));
        // A shell opens descriptor 3 for it: its output becomes ours, and what it prints goes to stderr.
        let script = "exec 3>&1 1>&2; exec \"$0\"";
        let output = Command::new("/bin/sh")
            .args(["-c", script])
            .arg(&program)
            .env_clear()
            .envs(environment.iter())
            .stderr(std::process::Stdio::inherit())
            .output()
            .map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(output.status.to_string()));
        }
        let text = String::from_utf8(output.stdout).map_err(|error| failed(error.to_string()))?;
        for (name, value) in metadata::strings(&text).map_err(failed)? {
            environment.set(&name, &value);
        }
    }
    Ok(())
}
