//! `epiniod completion`: the script that lets a shell complete commands and flags.

use std::{
    io::{ErrorKind, Write as _},
    process::ExitCode,
};

use clap::{Args, Command, ValueEnum};
use clap_complete::{
    Generator,
    shells::{Bash, Fish, Zsh},
};

use super::error::{self, Error};

pub const EXAMPLES: &str = "\
Examples:
  source <(epiniod completion bash)                                      this shell only
  epiniod completion bash > ~/.local/share/bash-completion/completions/epiniod
  epiniod completion zsh > ~/.zfunc/_epiniod                             a folder of $fpath
  epiniod completion fish > ~/.config/fish/completions/epiniod.fish";

#[derive(Debug, Args)]
pub struct Completion {
    /// Whose script
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completion {
    pub fn run(self, program: &Command) -> Result<ExitCode, Error> {
        match std::io::stdout().write_all(&self.shell.script(program)) {
            // Who read it has seen enough.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(Error::Write { path: "the script to stdout".into(), source: error })
            }
            _ => Ok(ExitCode::from(error::OK)),
        }
    }
}

impl Shell {
    fn script(self, program: &Command) -> Vec<u8> {
        let mut program = visible(program).disable_help_subcommand(true);
        match self {
            Self::Bash => script(Bash, &mut program),
            Self::Zsh => script(Zsh, &mut program),
            Self::Fish => script(Fish, &mut program),
        }
    }
}

fn script(generator: impl Generator, program: &mut Command) -> Vec<u8> {
    let (name, mut script) = (program.get_name().to_owned(), Vec::new());
    clap_complete::generate(generator, program, name, &mut script);
    script
}

/// A command without what users are not shown: generators write down whatever there is.
fn visible(command: &Command) -> Command {
    // Names have to live for ever; this process does not.
    let kept = |text: &str| -> &'static str { text.to_owned().leak() };
    let mut seen = Command::new(kept(command.get_name()))
        .args(command.get_arguments().filter(|argument| !argument.is_hide_set()))
        .visible_aliases(command.get_visible_aliases().map(kept))
        .subcommands(command.get_subcommands().filter(|inner| !inner.is_hide_set()).map(visible));
    if let Some(about) = command.get_about() {
        seen = seen.about(about.clone());
    }
    match command.get_version() {
        Some(version) => seen.version(kept(version)),
        None => seen,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn what_is_hidden_is_in_no_script() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(shell.script(&super::super::Cli::command())).unwrap();
            for shown in ["port-forward", "listen-tls", "system-domain"] {
                assert!(script.contains(shown), "{shell:?}: {shown}");
            }
            for hidden in ["lifecycle", "own-session"] {
                assert!(!script.contains(hidden), "{shell:?}: {hidden}");
            }
        }
    }
}
