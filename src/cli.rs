//! The command line: one file for each verb.
//!
//! stdout is data, stderr is talk. `up` and `push` print one line on stdout, the URL. Exit codes and hints are in [`error`].

mod apps;
mod audit;
mod authorities;
mod ca;
mod client;
mod completion;
pub mod error;
mod exec;
mod image;
mod info;
mod install;
mod lifecycle;
mod login;
mod logs;
mod manifests;
mod namespaces;
mod port_forward;
mod push;
mod registry_relay;
mod routes;
mod serve;
mod settings;
mod stop;
mod terminal;
mod tokens;
mod ui;
mod uninstall;
mod up;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use self::{
    client::Client,
    error::Error,
    ui::{Talk, Ui},
};
use crate::runtime::kube::install::Connection;

/// From source code to a running URL: a PaaS in one binary.
///
/// 'epiniod up' in the folder of an application starts a daemon, builds the application,
/// runs it, and prints its URL. Where a daemon runs already, 'epiniod push' does the same.
///
/// Commands find the daemon of this machine by themselves. Another one is named by
/// 'epiniod login URL', or by the variables EPINIO_API, EPINIO_USER and EPINIO_PASS (base64),
/// as the epinio CLI has them.
///
/// stdout is data, stderr is talk: 'up' and 'push' print one line on stdout, the URL.
/// NO_COLOR switches colours off.
#[derive(Debug, Parser)]
#[command(name = "epiniod", version, after_help = error::EXIT_CODES_HELP, verbatim_doc_comment)]
struct Cli {
    /// Say only what went wrong
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a daemon here if none runs, push a folder, print its URL, follow its log
    ///
    /// The daemon runs in the foreground: Ctrl-C stops it, and its applications. Where a daemon
    /// of the same data directory runs already, that one is used, and goes on after Ctrl-C.
    #[command(verbatim_doc_comment, after_help = up::EXAMPLES)]
    Up(up::Up),
    /// Run the daemon
    ///
    /// API, applications and registry, until SIGTERM; applications run on, and the next daemon
    /// takes them up. The first start creates the user 'admin' with the password of
    /// EPINIOD_ADMIN_PASSWORD, or a random one, which is shown once at a terminal and kept in
    /// client.yaml of the data directory, never in the log. A flag wins over its variable, a variable over the file.
    #[command(verbatim_doc_comment, after_help = serve::CONFIG_HELP)]
    Serve(serve::Serve),
    /// Stop the daemon of this machine
    ///
    /// Its applications run on, without a route until a daemon runs again; --all stops them.
    #[command(verbatim_doc_comment)]
    Stop(stop::Stop),
    /// Build and deploy a folder or an archive, and print its URL
    ///
    /// The source is packed and sent at once; what .epinioignore names (as .gitignore has it)
    /// and .git is left out. The log of the build is on stderr, with the time of each phase at the end.
    /// Where the new version does not come up, the one before still serves.
    #[command(verbatim_doc_comment, after_help = push::EXAMPLES)]
    Push(push::Push),
    /// Applications: list, show, logs, exec, port-forward, env, scale, restart, restage, delete
    #[command(subcommand, visible_alias = "app")]
    Apps(apps::Apps),
    /// List routes: who answers, and with which certificate
    Routes(routes::Routes),
    /// Namespaces: list, create, delete
    #[command(subcommand, visible_alias = "namespace")]
    Namespaces(namespaces::Namespaces),
    /// Store the credential for an API in the settings file
    ///
    /// It is tried first. The file is that of the epinio CLI, so both are logged in.
    #[command(verbatim_doc_comment)]
    Login(login::Login),
    /// Remove the credential from the settings file
    Logout(login::Logout),
    /// Credentials for programs: create, list, delete
    #[command(subcommand, visible_alias = "token")]
    Tokens(tokens::Tokens),
    /// Show who changed what: the end of the audit log, one JSON object in each line
    ///
    /// The file is audit.jsonl of the data directory; in a cluster it is in the log of the daemon's pod,
    /// with the target epiniod::audit.
    #[command(verbatim_doc_comment)]
    Audit(audit::Audit),
    /// The authority of a daemon's certificates where no public one signs them: show, trust
    #[command(subcommand)]
    Ca(ca::Ca),
    /// Show what the daemon is and can do
    Info(info::Info),
    /// Write this program as an image: epiniod image > epiniod.tar
    ///
    /// The image has the program and certificate authorities, and nothing else. The archive is one of
    /// the OCI that Docker reads as well; equal programs make equal archives.
    #[command(verbatim_doc_comment, after_help = image::EXAMPLES)]
    Image(image::Image),
    /// Install into a Kubernetes cluster, or bring an installation up to date
    ///
    /// Looks at the cluster, says what it found, applies the manifests, waits until the daemon
    /// answers, and prints its URL, the user and the password. A second time it changes what flags
    /// name, and the version; applications and builds go on meanwhile.
    #[command(verbatim_doc_comment, after_help = install::EXAMPLES)]
    Install(Box<install::Install>),
    /// Take an installation out of a Kubernetes cluster
    ///
    /// The daemon goes with its data, images and users. Applications run on as what they are in the
    /// cluster, unless --apps takes them away as well.
    #[command(verbatim_doc_comment)]
    Uninstall(uninstall::Uninstall),
    /// Print the manifests of an installation, for GitOps
    ///
    /// What 'install' would apply, made without a look at a cluster. The password of the user 'admin'
    /// is not among them: see the comment that is printed on stderr.
    #[command(verbatim_doc_comment)]
    Manifests(Box<manifests::Manifests>),
    /// Print the script that lets a shell complete commands and flags
    #[command(after_help = completion::EXAMPLES)]
    Completion(completion::Completion),
    /// One phase of a build, in its sandbox
    #[command(hide = true)]
    Lifecycle(lifecycle::Lifecycle),
    /// Carry connections from the loopback of a node to the registry
    #[command(hide = true)]
    RegistryRelay(registry_relay::RegistryRelay),
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

/// Which cluster a command is about.
#[derive(Debug, Clone, Args)]
struct InCluster {
    /// Kubeconfig of the cluster [default: as kubectl]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
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

impl InCluster {
    async fn connect(&self) -> Result<Connection, Error> {
        Ok(Connection::open(self.kubeconfig.as_deref(), self.context.as_deref()).await?)
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
    let ui = Ui::new(if cli.quiet { Talk::Errors } else { Talk::All });
    match execute(cli.command, &ui) {
        Ok(code) => code,
        Err(error) => {
            ui.fail(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// The whole reference of the command line, as `--help` prints it where no variable is set.
pub fn reference() -> String {
    fn describe(command: &mut clap::Command, path: &str, text: &mut String) {
        let inner = std::mem::take(command);
        *command = inner.mut_args(|argument| argument.hide_env_values(true));
        let path =
            if path.is_empty() { command.get_name().to_owned() } else { format!("{path} {}", command.get_name()) };
        text.push_str(&format!("# {path}\n\n{}\n\n", command.render_long_help()));
        for inner in command.get_subcommands_mut().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help") {
            describe(inner, &path, text);
        }
    }
    let mut text = String::new();
    describe(&mut Cli::command(), "", &mut text);
    let lines: Vec<&str> = text.trim_end().lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

fn execute(command: Command, ui: &Ui) -> Result<ExitCode, Error> {
    match command {
        Command::Lifecycle(phase) => Ok(phase.run()),
        Command::RegistryRelay(relay) => client_runtime()?.block_on(relay.run()),
        Command::Serve(serve) => serve.run(),
        Command::Up(up) => up.run(ui),
        Command::Stop(stop) => client_runtime()?.block_on(stop.run(ui)),
        Command::Push(push) => client_runtime()?.block_on(push.run(ui)),
        Command::Apps(apps) => client_runtime()?.block_on(apps.run(ui)),
        Command::Namespaces(namespaces) => client_runtime()?.block_on(namespaces.run(ui)),
        Command::Routes(routes) => client_runtime()?.block_on(routes.run()),
        Command::Login(login) => client_runtime()?.block_on(login.run(ui)),
        Command::Logout(logout) => logout.run(ui),
        Command::Image(image) => image.run(ui),
        Command::Completion(completion) => completion.run(&Cli::command()),
        Command::Install(install) => client_runtime()?.block_on(install.run(ui)),
        Command::Uninstall(uninstall) => client_runtime()?.block_on(uninstall.run(ui)),
        Command::Manifests(manifests) => manifests.run(ui),
        Command::Tokens(tokens) => client_runtime()?.block_on(tokens.run(ui)),
        Command::Audit(audit) => client_runtime()?.block_on(audit.run(ui)),
        Command::Ca(ca) => client_runtime()?.block_on(ca.run(ui)),
        Command::Info(info) => client_runtime()?.block_on(info.run(ui)),
    }
}

/// One thread is enough for who waits for a daemon.
fn client_runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)
}
