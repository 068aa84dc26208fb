//! `epiniod push`: a folder or an archive becomes a running application.

mod answer;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::Args;
use indicatif::ProgressBar;
use tokio::sync::mpsc;

use self::answer::{Answer, is_interruption, is_of_absence};
use super::{
    InNamespace, Target,
    client::Client,
    error::{self, Error},
    ui::{Ui, print},
};
use crate::{
    model::{AppName, Builder, EnvName, Namespace, Route},
    source::pack,
};

/// How many packed steps may wait for the network, and how large each is.
const QUEUE: usize = 8;
const STEP: usize = 128 << 10;

/// How long one question may take to be answered while a daemon starts.
const READY: Duration = Duration::from_secs(2);

/// For `--help`.
pub(super) const EXAMPLES: &str = "\
Examples:
  epiniod push                                     the folder you are in
  epiniod push --path ./shop --instances 2         two instances
  epiniod push --path shop.tar.gz --name shop      an archive: tar, gz, xz, bz2, zst, zip
  epiniod push --route shop.example.com/api        at a route of its own
  epiniod push --builder heroku/builder:24         with a builder image of others, from now on

Without epiniod: curl -u USER:PASSWORD -T shop.tar.gz URL/push/NAMESPACE/NAME";

#[derive(Debug, Args)]
pub struct Push {
    #[command(flatten)]
    pub wishes: Wishes,
    /// Folder or archive to push
    #[arg(long, short, default_value = ".", value_name = "PATH")]
    pub path: PathBuf,
    #[command(flatten)]
    target: Target,
}

/// What the application is to be.
#[derive(Debug, Clone, Args)]
pub struct Wishes {
    /// Name of the application [default: name of the folder]
    #[arg(long)]
    pub name: Option<AppName>,
    #[command(flatten)]
    pub namespace: InNamespace,
    /// Variable of the application's environment; may be given several times
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse_env)]
    pub env: Vec<(EnvName, String)>,
    /// Number of instances
    #[arg(long, short, value_name = "NUMBER")]
    pub instances: Option<u32>,
    /// Route, HOST or HOST/PATH; may be given several times [default: NAME.DOMAIN]
    #[arg(long, short, value_name = "ROUTE")]
    pub route: Vec<Route>,
    /// Builder image, or oci:/FOLDER on the daemon's machine; 'default' is the embedded one [default: the application's last]
    #[arg(long, alias = "builder-image", value_name = "IMAGE")]
    pub builder: Option<Builder>,
}

fn parse_env(text: &str) -> Result<(EnvName, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.parse().map_err(|error: crate::model::InvalidName| error.to_string())?, value.to_owned()))
}

impl Push {
    pub async fn run(self, ui: &Ui) -> Result<ExitCode, Error> {
        let client = self.target.client()?;
        let pushed = push(&client, ui, &self.wishes, &self.path).await?;
        print(&pushed.url);
        Ok(ExitCode::from(error::OK))
    }
}

/// What came of a push.
pub struct Pushed {
    pub namespace: Namespace,
    pub name: AppName,
    pub url: String,
}

/// Packs and uploads while it is packed; then follows the log to its end. A daemon that is replaced meanwhile is waited
/// for: the next one is asked again, or goes on with what the one before has begun.
pub async fn push(client: &Client, ui: &Ui, wishes: &Wishes, path: &Path) -> Result<Pushed, Error> {
    let started = Instant::now();
    let path = path.canonicalize().map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let namespace: Namespace = wishes
        .namespace
        .namespace
        .as_deref()
        .unwrap_or(client.settings.namespace())
        .parse()
        .map_err(|error: crate::model::InvalidName| Error::Usage(error.to_string()))?;
    let name = match &wishes.name {
        Some(name) => name.clone(),
        None => name_of(&path)?,
    };
    let place = format!("/push/{namespace}/{name}");
    let request = format!("{place}{}", query(wishes, &path));
    let mut answer = Answer::new(client, ui, place);
    // Who may not push hears it before anything is packed and sent.
    let asked = format!("/api/v1/namespaces/{namespace}");
    match client.get(&asked).await {
        Err(error) if is_of_absence(&error) => {
            ui.say(&format!("{error}; waiting until it serves"));
            answer.wait_for_daemon().await?;
            client.get(&asked).await?;
        }
        known => drop(known?),
    }
    ui.say(&format!("pushing {} as application {name} to namespace {namespace}", path.display()));
    let mut attempts = 1;
    let url = loop {
        let ended = match upload(client, ui, &path, &request).await {
            Ok(response) => answer.follow(response).await,
            Err(error) => Err(error),
        };
        match ended {
            // What did not arrive as a whole is nothing to the daemon.
            Err(error) if answer.has_not_begun() && is_interruption(&error) && attempts < ATTEMPTS => {
                ui.say(&format!("{error}; pushing again when it answers"));
                answer.wait_for_daemon().await?;
                attempts += 1;
            }
            ended => break ended?,
        }
    };
    ui.say(&format!("pushed in {:.2} s", started.elapsed().as_secs_f64()));
    Ok(Pushed { namespace, name, url })
}

/// How often is pushed anew that did not arrive.
const ATTEMPTS: u32 = 3;

async fn upload(client: &Client, ui: &Ui, path: &Path, request: &str) -> Result<reqwest::Response, Error> {
    let total = if path.is_file() { path.metadata().ok().map(|metadata| metadata.len()) } else { None };
    let bar = ui.bytes("uploading", total);
    let (parts, queue) = mpsc::channel::<io::Result<Bytes>>(QUEUE);
    let (source, sink) = (path.to_owned(), Parts { parts, buffer: Vec::with_capacity(STEP), bar: bar.clone() });
    let packing = tokio::task::spawn_blocking(move || send_source(&source, sink));
    let body = futures::stream::unfold(queue, |mut queue| async move { queue.recv().await.map(|part| (part, queue)) });
    let response = client.put_stream(request, reqwest::Body::wrap_stream(body)).await;
    bar.finish_and_clear();
    // What is wrong with the folder is the cause of what the daemon says.
    let packed = packing.await.map_err(|error| Error::Runtime(io::Error::other(error)))?;
    match (&response, packed) {
        (_, Err(error)) if !is_broken_pipe(&error) => return Err(error.into()),
        (Ok(_), Ok(skipped)) => skipped.iter().for_each(|name| ui.say(&format!("left out {name}: it is no file"))),
        _ => {}
    }
    response.map_err(as_push)
}

/// A source that is refused is a push that failed.
fn as_push(error: Error) -> Error {
    match error {
        Error::Api { status: 413 | 415 | 422, title, .. } => Error::Staging(title),
        error => error,
    }
}

fn send_source(path: &Path, mut sink: Parts) -> Result<Vec<String>, crate::source::Error> {
    if path.is_dir() {
        return Ok(pack(path, sink)?.skipped);
    }
    let failed = |source| crate::source::Error::Io { doing: "reading", path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    io::copy(&mut file, &mut sink).and_then(|_| sink.flush()).map_err(failed)?;
    Ok(Vec::new())
}

fn is_broken_pipe(error: &crate::source::Error) -> bool {
    matches!(error, crate::source::Error::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
}

/// The writing end of the request's body.
struct Parts {
    parts: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
    bar: ProgressBar,
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= STEP {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let step = std::mem::replace(&mut self.buffer, Vec::with_capacity(STEP));
        self.bar.inc(step.len() as u64);
        self.parts.blocking_send(Ok(step.into())).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Cut off, so that the daemon does not take it for the whole.
            let _ = self.parts.blocking_send(Err(io::Error::other("packing failed")));
        }
    }
}

/// The name of a folder or archive, made into one that an application may have.
fn name_of(path: &Path) -> Result<AppName, Error> {
    let file = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let stem = if path.is_file() { file.split('.').next().unwrap_or_default() } else { file.as_str() };
    let plain: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    let trimmed = plain.trim_matches('-').trim_start_matches(|c: char| c.is_ascii_digit() || c == '-');
    trimmed.parse().map_err(|_| Error::Usage(format!("'{file}' does not make a name; give one with --name")))
}

fn query(wishes: &Wishes, path: &Path) -> String {
    let mut pairs = vec![format!("path={}", encode(&path.to_string_lossy()))];
    pairs.extend(wishes.instances.map(|instances| format!("instances={instances}")));
    pairs.extend(wishes.env.iter().map(|(name, value)| format!("env={}", encode(&format!("{name}={value}")))));
    pairs.extend(wishes.route.iter().map(|route| format!("route={}", encode(&route.to_string()))));
    pairs.extend(wishes.builder.iter().map(|builder| format!("builder={}", encode(&builder.to_string()))));
    format!("?{}", pairs.join("&"))
}

fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Waits until a daemon answers, or a deadline has passed.
pub async fn wait_until_ready(client: &Client, within: Duration, alive: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + within;
    while Instant::now() < deadline && alive() {
        if client.send(client.request(reqwest::Method::GET, "/ready").timeout(READY)).await.is_ok() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_of_folders() {
        let name = |path: &str| name_of(Path::new(path)).map(|name| name.to_string()).ok();
        assert_eq!(name("/x/My App"), Some("my-app".to_owned()));
        assert_eq!(name("/x/2048_game"), Some("game".to_owned()));
        assert_eq!(name("/x/___"), None);
    }
}
