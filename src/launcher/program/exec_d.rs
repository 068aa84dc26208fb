//! Programs of layers that set variables: they write a TOML table of strings to descriptor 3.

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    Failure,
    environment::{Environment, files},
    toml::{self, Value},
};

/// The standard library cannot give a descriptor 3 to a child without unsafe code, so a shell moves it there: our
/// pipe comes as its output and our own output as its input.
const MOVE_DESCRIPTORS: &str = "exec 3>&1 1>&0 0</dev/null; exec \"$0\"";

/// Runs the programs of a folder, one after the other, each with the variables of those before it.
pub fn run(folder: &Path, environment: &mut Environment) -> Result<(), Failure> {
    for program in files(folder) {
        let failed = |why: String| Failure::new(format!("exec.d program {}: {why}", program.display()));
        let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(|error| failed(error.to_string()))?;
        let output = Command::new("/bin/sh")
            .args(["-c", MOVE_DESCRIPTORS])
            .arg(&program)
            .env_clear()
            .envs(environment.iter())
            .stdin(File::from(stdout))
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| failed(format!("/bin/sh, which starts it: {error}")))?;
        if !output.status.success() {
            return Err(failed(output.status.to_string()));
        }
        let text = String::from_utf8(output.stdout).map_err(|error| failed(error.to_string()))?;
        for (name, value) in strings(&text).map_err(failed)? {
            environment.set(&name, &value);
        }
    }
    Ok(())
}

/// A flat table of strings.
fn strings(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut sections = toml::parse(text)?;
    if let Some(section) = sections.get(1) {
        return Err(format!("its output has a table '{}', and may have only strings", section.name));
    }
    let string = |(name, value)| match value {
        Value::Text(value) => Ok((name, value)),
        _ => Err(format!("its output '{name}' is not a string")),
    };
    sections.swap_remove(0).entries.into_iter().map(string).collect()
}
