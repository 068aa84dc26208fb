//! The command line: one file for each verb.
//!
//! stdout is data, stderr is talk. `up` and `push` print one line on stdout, the URL. Exit codes and hints are in [`error`].

mod apps;
mod client;
pub mod error;
mod info;
mod lifecycle;
mod login;
mod logs;
mod namespaces;
mod push;
mod serve;
mod settings;
mod stop;
mod ui;
mod up;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use self::{client::Client, error::Error, ui::Ui};

/// From source code to a running URL: a PaaS in one binary.
#[derive(Debug, Parser)]
#[command(name = "epiniod", version, after_help = error::EXIT_CODES_HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a daemon here if none runs, push a folder, print its URL, follow its log
    Up(up::Up),
    /// Run the daemon
    Serve(serve::Serve),
    /// Stop the daemon of this machine
    Stop(stop::Stop),
    /// Build and deploy a folder or an archive, and print its URL
    Push(push::Push),
    /// Applications: list, show, logs, env, scale, restart, restage, delete
    #[command(subcommand, visible_alias = "app")]
    Apps(apps::Apps),
    /// Namespaces: list, create, delete
    #[command(subcommand, visible_alias = "namespace")]
    Namespaces(namespaces::Namespaces),
    /// Store the credential for an API in the settings file
    Login(login::Login),
    /// Remove the credential from the settings file
    Logout(login::Logout),
    /// Show what the daemon is and can do
    Info(info::Info),
    /// One phase of a build, in its sandbox
    #[command(hide = true)]
    Lifecycle(lifecycle::Lifecycle),
}

/// Which daemon a command talks to.
#[derive(Debug, Clone, Args)]
struct Target {
    /// Data directory of a daemon on this machine, whose own credential is used
    #[arg(long, env = "EPINIOD_DATA_DIR", value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// Settings file, as the epinio CLI has it [default: ~/.config/epinio/settings.yaml]
    #[arg(long, env = "EPINIO_SETTINGS", value_name = "FILE", global = true)]
    settings_file: Option<PathBuf>,
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, Args)]
struct OutputFlag {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// The name of a namespace, where one is meant.
#[derive(Debug, Clone, Args)]
struct InNamespace {
    /// Namespace [default: that of the settings file, else workspace]
    #[arg(long, short, env = "EPINIO_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
}

impl Target {
    fn client(&self) -> Result<Client, Error> {
        Client::new(settings::find(self)?)
    }
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout and is no failure.
            let code = if error.use_stderr() { error::USAGE } else { error::OK };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let ui = Ui::new();
    match execute(cli.command, &ui) {
        Ok(code) => code,
        Err(error) => {
            ui.fail(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// The whole reference of the command line, as `--help` prints it.
pub fn reference() -> String {
    fn describe(command: &mut clap::Command, path: &str, text: &mut String) {
        let path =
            if path.is_empty() { command.get_name().to_owned() } else { format!("{path} {}", command.get_name()) };
        text.push_str(&format!("# {path}\n\n{}\n\n", command.render_long_help()));
        for inner in command.get_subcommands_mut().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help") {
            describe(inner, &path, text);
        }
    }
    let mut text = String::new();
    describe(&mut Cli::command(), "", &mut text);
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn execute(command: Command, ui: &Ui) -> Result<ExitCode, Error> {
    match command {
        Command::Lifecycle(phase) => Ok(phase.run()),
        Command::Serve(serve) => serve.run(),
        Command::Up(up) => up.run(ui),
        Command::Stop(stop) => client_runtime()?.block_on(stop.run(ui)),
        Command::Push(push) => client_runtime()?.block_on(push.run(ui)),
        Command::Apps(apps) => client_runtime()?.block_on(apps.run(ui)),
        Command::Namespaces(namespaces) => client_runtime()?.block_on(namespaces.run(ui)),
        Command::Login(login) => client_runtime()?.block_on(login.run(ui)),
        Command::Logout(logout) => logout.run(ui),
        Command::Info(info) => client_runtime()?.block_on(info.run(ui)),
    }
    .map(|code: ExitCode| code)
}

/// One thread is enough for who waits for a daemon.
fn client_runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)
}
