//! What people see: progress, colours, tables.

use std::io::{ErrorKind, IsTerminal as _, Write as _, stderr, stdout};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::error::{self, Error};
use crate::telemetry::chain;

/// Talks on stderr.
pub struct Ui {
    colours: bool,
    terminal: bool,
    talk: Talk,
}

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    All,
    /// `--quiet`: only what went wrong.
    Errors,
}

impl Ui {
    pub fn new(talk: Talk) -> Self {
        let terminal = stderr().is_terminal();
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colours, terminal: terminal && talk == Talk::All, talk }
    }

    /// Something worth knowing.
    pub fn say(&self, text: &str) {
        if self.talk == Talk::All {
            write(text);
        }
    }

    /// What went wrong, and what to do next.
    pub fn fail(&self, error: &Error) {
        write(&format!("{} {}", self.paint("31;1", "error:"), chain(error)));
        if let Some(details) = error.details() {
            write(details);
        }
        write(&format!("{} {}", self.paint("36", "hint:"), error.hint()));
    }

    /// A line of a build or of an application.
    pub fn log(&self, text: &str) {
        match text.strip_prefix("===> ") {
            Some(title) => self.say(&self.paint("36;1", &format!("===> {title}"))),
            None => self.say(text),
        }
    }

    /// Bytes on their way; hidden where nobody watches. Without a total it only counts.
    pub fn bytes(&self, what: &'static str, total: Option<u64>) -> ProgressBar {
        if !self.terminal {
            return ProgressBar::hidden();
        }
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::no_length(),
        };
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        let template = match total {
            Some(_) => "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}",
            None => "{msg} {bytes} {bytes_per_sec}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what);
        bar
    }

    /// Something that takes a while, with what it is at just now.
    pub fn waiting(&self) -> Waiting<'_> {
        let bar = if self.terminal { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if self.terminal {
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
            bar.enable_steady_tick(std::time::Duration::from_millis(100));
        }
        Waiting { ui: self, bar }
    }

    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A line that changes where somebody watches, and one line after the other where not. It goes when this does.
pub struct Waiting<'a> {
    ui: &'a Ui,
    bar: ProgressBar,
}

impl Waiting<'_> {
    /// Worth a line also where nobody watches.
    pub fn tell(&self, text: &str) {
        if self.ui.terminal {
            self.pass(text);
        } else {
            self.ui.say(text);
        }
    }

    /// Over in a moment.
    pub fn pass(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn write(text: &str) {
    // Nobody reads it any more: nothing else is lost.
    let _ = writeln!(stderr(), "{text}");
}

/// Data, on stdout. A reader that has gone away ends the process as it ends other tools.
pub fn print(text: &str) {
    if let Err(error) = writeln!(stdout(), "{text}") {
        if error.kind() == ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        write(&format!("error: cannot write to stdout: {error}\nhint: is the disk full?"));
        std::process::exit(i32::from(error::FAILED));
    }
}

/// Rows in columns that are as wide as they have to be.
pub fn table(head: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String]| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    print(&line(&head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>()));
    for row in rows {
        print(&line(row));
    }
}
