//! Programs that a buildpack runs: their output goes to the log as it comes, and its end is kept for the error.

use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Write},
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    thread,
    time::{Duration, Instant},
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
/// Between looks at whether the program has ended.
const LOOK: Duration = Duration::from_millis(50);
/// How long output is awaited after the end of the program.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs `command` to its end, with an indented copy of what it prints. Both streams go through one pipe, so that
/// their lines keep their order. A process that it leaves behind may hold that pipe for ever: it is not waited for.
pub(super) fn run(command: &mut Command) -> Result<Outcome, Error> {
    let start = |source| Error::Start { program: command_name(command), source };
    let (reader, writer) = io::pipe().map_err(&start)?;
    let second = writer.try_clone().map_err(&start)?;
    let name = command_name(command);
    let start = |source| Error::Start { program: name.clone(), source };
    let mut child = command.stdin(Stdio::null()).stdout(writer).stderr(second).spawn().map_err(&start)?;
    // The parent's copies of the writing end have to go, or the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (sender, lines) = mpsc::sync_channel(KEPT_LINES);
    // Ends with the pipe, or with this process.
    thread::spawn(move || send_lines(reader, &sender));
    let mut has_ended = || child.try_wait().map(|status| status.is_some());
    let tail = copy_lines(&lines, &mut has_ended).map_err(&start)?;
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

fn send_lines(reader: impl io::Read, lines: &SyncSender<String>) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while io::Read::take(&mut reader, MAX_LINE).read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if !text.is_empty() && lines.send(text).is_err() {
            return;
        }
        line.clear();
    }
}

fn copy_lines(lines: &Receiver<String>, has_ended: &mut dyn FnMut() -> io::Result<bool>) -> io::Result<String> {
    let mut kept = VecDeque::new();
    let mut stdout = io::stdout().lock();
    let mut ended = None;
    while ended.is_none_or(|at: Instant| at.elapsed() < LAST_WORDS) {
        match lines.recv_timeout(LOOK) {
            Ok(text) => {
                writeln!(stdout, "     {text}")?;
                if kept.len() == KEPT_LINES {
                    kept.pop_front();
                }
                kept.push_back(text);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if ended.is_none() && has_ended()? {
            ended = Some(Instant::now());
        }
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
    fn a_process_left_behind_is_not_waited_for() {
        let started = Instant::now();
        let outcome = run(Command::new("sh").args(["-c", "sleep 30 & echo done"])).unwrap();
        assert!(outcome.success && outcome.tail == "done");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program")).err().unwrap();
        assert!(error.to_string().contains("no-such-program"), "{error}");
    }
}
