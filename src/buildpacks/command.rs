//! Programs that a buildpack runs: their output goes to the log as it comes, and its end is kept for the error.

use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use super::Error;

/// How a program ended.
pub(super) struct Outcome {
    pub success: bool,
    /// The last lines of stdout and stderr, to look for known causes.
    pub tail: String,
}

/// Lines kept for [`Outcome::tail`].
const KEPT_LINES: usize = 200;
/// Bytes of a line that are looked at; a longer one is cut into several.
const MAX_LINE: u64 = 16 * 1024;

/// Runs `command` to its end, with an indented copy of what it prints. Both streams go through one pipe, so that
/// their lines keep their order.
pub(super) fn run(command: &mut Command) -> Result<Outcome, Error> {
    let start = |source| Error::Start { program: command_name(command), source };
    let (reader, writer) = io::pipe().map_err(&start)?;
    let second = writer.try_clone().map_err(&start)?;
    let name = command_name(command);
    let start = |source| Error::Start { program: name.clone(), source };
    let mut child = command.stdin(Stdio::null()).stdout(writer).stderr(second).spawn().map_err(&start)?;
    // The parent's copies of the writing end have to go, or the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let tail = copy_lines(reader).map_err(&start)?;
    let status = child.wait().map_err(&start)?;
    Ok(Outcome { success: status.success(), tail })
}

/// The trimmed stdout of a short command; `None` when it fails.
pub(super) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn command_name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn copy_lines(reader: impl io::Read) -> io::Result<String> {
    let mut reader = BufReader::new(reader);
    let mut kept = VecDeque::new();
    let mut line = Vec::new();
    let mut stdout = io::stdout().lock();
    loop {
        line.clear();
        if io::Read::take(&mut reader, MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if text.is_empty() {
            continue;
        }
        writeln!(stdout, "     {text}")?;
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(text.to_owned());
    }
    Ok(Vec::from(kept).join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_streams_are_kept_for_the_error() {
        let outcome = run(Command::new("sh").args(["-c", "echo one; echo two >&2; exit 3"])).unwrap();
        assert!(!outcome.success);
        assert_eq!(outcome.tail, "one\ntwo");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program")).err().unwrap();
        assert!(error.to_string().contains("no-such-program"), "{error}");
    }
}
