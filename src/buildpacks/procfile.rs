//! `epiniod/procfile`: the processes that a `Procfile` names. They win over what other buildpacks found.

use std::path::Path;

use libcnb::data::launch::{Launch, LaunchBuilder, ProcessType};

use super::{Context, Failure, Result, Wants, read, say, shell_process};

const PROCFILE: &str = "Procfile";

pub(super) fn detect(app: &Path) -> Result<Option<Wants>> {
    let Some(text) = read(app, PROCFILE) else { return Ok(None) };
    if processes(&text)?.is_empty() {
        return Err(Failure::new("the Procfile names no process; write a line such as 'web: ./start.sh'"));
    }
    Ok(Some(Wants::default()))
}

pub(super) fn build(context: &Context) -> Result<Launch> {
    let processes = processes(&read(&context.app_dir, PROCFILE).unwrap_or_default())?;
    let has_web = processes.iter().any(|(kind, _)| kind == "web");
    let mut launch = LaunchBuilder::new();
    for (number, (kind, command)) in processes.iter().enumerate() {
        say(&format!("Procfile: {kind}: {command}"));
        let default = if has_web { kind == "web" } else { number == 0 };
        launch.process(shell_process(kind, command, default));
    }
    Ok(launch.build())
}

/// `TYPE: COMMAND` a line.
fn processes(text: &str) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let parts = line.split_once(':').map(|(kind, command)| (kind.trim(), command.trim()));
        match parts {
            Some((kind, command)) if kind.parse::<ProcessType>().is_ok() && !command.is_empty() => {
                found.push((kind.to_owned(), command.to_owned()));
            }
            _ => {
                return Err(Failure::new(format!(
                    "line '{line}' of the Procfile is not 'TYPE: COMMAND', such as 'web: ./start.sh'"
                )));
            }
        }
    }
    Ok(found)
}
