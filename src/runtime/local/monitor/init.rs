//! The first process of a sandbox: `monitor init PROGRAM ARGUMENT…`.
//!
//! The kernel spares the first process of a pid namespace from signals that it has no handler for, and makes it the
//! parent of orphans. Few programs are written for that, so this one is in front: it hands signals on, collects who
//! ends, and ends as the program did (128 and more for a signal, as a shell has it).

use std::{io, os::unix::process::CommandExt as _, process::Command};

use super::c;

const NOT_FOUND: i32 = 127;
const CANNOT_START: i32 = 126;

pub fn run(program: &str, args: &[String]) -> i32 {
    let signals = match c::signals(&c::HANDED_ON) {
        Ok(signals) => signals,
        Err(error) => return cannot(program, &error),
    };
    let mut command = Command::new(program);
    command.args(args).process_group(0);
    // SAFETY: what runs between fork and exec is one system call.
    unsafe { command.pre_exec(|| Ok(c::unblock())) };
    let child = match command.spawn() {
        Ok(child) => i32::try_from(child.id()).unwrap_or(0),
        Err(error) => return cannot(program, &error),
    };
    c::shed();
    loop {
        match c::next_signal(signals) {
            Ok(c::SIGCHLD) => {
                while let Some((pid, status)) = c::reap() {
                    if pid == child {
                        return match status {
                            c::Status::Exit(code) => code,
                            c::Status::Signal(signal) => 128 + signal,
                        };
                    }
                }
            }
            Ok(signal) => c::send(child, signal),
            Err(error) => return cannot(program, &error),
        }
    }
}

fn cannot(program: &str, error: &io::Error) -> i32 {
    eprintln!("epiniod: starting {program} failed: {error}");
    if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_START }
}
