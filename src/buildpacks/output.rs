//! What a buildpack says: all of it on stdout but the error, in the order in which it happens.

use std::error::Error as _;

use super::Error;

/// What was decided, and why.
pub(super) fn decided(text: impl AsRef<str>) {
    println!("---> {}", text.as_ref());
}

/// A detail of what was decided.
pub(super) fn detail(text: impl AsRef<str>) {
    println!("     {}", text.as_ref());
}

/// Something that works but that the user should change.
pub(super) fn warning(text: impl AsRef<str>) {
    println!("---> warning: {}", text.as_ref());
}

/// Why the build ends here, with its causes in one line.
pub(super) fn error(error: &libcnb::Error<Error>) {
    let libcnb::Error::BuildpackError(own) = error else {
        eprintln!("error: {error}");
        return;
    };
    let mut line = format!("error: {own}");
    let mut cause = own.source();
    while let Some(next) = cause {
        line.push_str(&format!(": {next}"));
        cause = next.source();
    }
    eprintln!("{line}");
}
