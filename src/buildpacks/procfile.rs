//! `epiniod/procfile`: each line `type: command` of a Procfile is a process, run by bash. `web` is the default; where no
//! other buildpack serves, so is a line that is the only one.

use std::path::Path;

use libcnb::{
    Buildpack,
    build::{BuildContext, BuildResult, BuildResultBuilder},
    data::launch::{LaunchBuilder, Process, ProcessBuilder, ProcessType},
    detect::{DetectContext, DetectResult, DetectResultBuilder},
    generic::{GenericMetadata, GenericPlatform},
};

use super::{Error, error::At, output};

pub(super) const PROCFILE: &str = "Procfile";
pub(super) const WEB: &str = "web";

pub(super) struct Procfile;

impl Buildpack for Procfile {
    type Platform = GenericPlatform;
    type Metadata = GenericMetadata;
    type Error = Error;

    fn detect(&self, context: DetectContext<Self>) -> libcnb::Result<DetectResult, Error> {
        if read(&context.app_dir)?.is_empty() {
            return DetectResultBuilder::fail().build();
        }
        DetectResultBuilder::pass().build()
    }

    fn build(&self, context: BuildContext<Self>) -> libcnb::Result<BuildResult, Error> {
        let lines = read(&context.app_dir)?;
        output::decided(format!("{PROCFILE}: {} process type(s)", lines.len()));
        if !lines.iter().any(|line| line.name == WEB) {
            output::warning("the Procfile has no line 'web: …', so it says nothing about how requests are answered");
        }
        let only_one = lines.len() == 1 && !super::is_served(&context.app_dir)?;
        let mut launch = LaunchBuilder::new();
        for line in &lines {
            output::detail(format!("{}: {}", line.name, line.command));
            let name: ProcessType = line.name.parse().map_err(libcnb::Error::ProcessTypeError)?;
            launch.process(shell(name, &line.command, line.name == WEB || only_one));
        }
        BuildResultBuilder::new().launch(launch.build()).build()
    }
}

/// A line of a Procfile.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub name: String,
    pub command: String,
}

/// The valid lines of the Procfile of `app`; none when there is no such file. The last of several lines with the same
/// name is the one that counts.
pub(super) fn read(app: &Path) -> Result<Vec<Line>, Error> {
    let path = app.join(PROCFILE);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    Ok(parse(&String::from_utf8_lossy(&std::fs::read(&path).at(&path)?)))
}

/// A process whose command is a line for bash.
pub(super) fn shell(name: ProcessType, command: &str, default: bool) -> Process {
    ProcessBuilder::new(name, ["bash", "-c", command]).default(default).build()
}

fn parse(text: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for line in text.trim_start_matches('\u{feff}').lines() {
        let Some((name, command)) = line.split_once(':') else { continue };
        let (name, command) = (name.trim(), command.trim());
        if command.is_empty() || name.parse::<ProcessType>().is_err() {
            continue;
        }
        lines.retain(|other| other.name != name);
        lines.push(Line { name: name.to_owned(), command: command.to_owned() });
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_names_and_commands() {
        let line = |name: &str, command: &str| Line { name: name.into(), command: command.into() };
        let table: [(&str, Vec<Line>); 7] = [
            ("web: ./run --port $PORT\n", vec![line("web", "./run --port $PORT")]),
            ("web:a\r\nworker: b : c\r\n", vec![line("web", "a"), line("worker", "b : c")]),
            ("# web: no\nweb: yes", vec![line("web", "yes")]),
            ("\u{feff}web: a", vec![line("web", "a")]),
            ("web: a\nweb: b", vec![line("web", "b")]),
            ("web:\nno line\nbad name: x", vec![]),
            ("", vec![]),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }
}
