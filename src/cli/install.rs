//! `epiniod install`: this program as the daemon of a Kubernetes cluster.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};

use super::{
    InCluster, Target,
    ca::is_of_a_stranger,
    client::Client,
    error::{self, Error},
    settings::{self, Settings},
    ui::{Ui, print, table},
};
use crate::{
    auth,
    config::Bundle,
    daemon::own_image,
    model::Namespace,
    runtime::kube::install::{
        self, Connection, Entrance, Exposure, Findings, Installation, Keys, Mode, NodePorts, Password, Storage, Way,
        Wishes,
    },
};

/// For `--help`.
pub const EXAMPLES: &str = "\
Examples:
  epiniod install                                          what the cluster has decides
  epiniod install --system-domain apps.example.com         *.apps.example.com leads to the cluster
  epiniod install --image registry.example.com/epiniod     an image that the nodes can pull
  epiniod install --storage-path /var/lib/epiniod          a bare cluster without storage classes
  epiniod install --ingress traefik                        brings Traefik along
  epiniod install --ingress-class nginx --tls-issuer NAME  certificates by cert-manager
  epiniod install --s3-bucket images --replicas 2          a second daemon takes over when the first one goes
  epiniod install --dry-run                                what would be created and changed";

/// How long the API may take to be reached from here once the daemon is ready: controllers and proxies take a moment.
const REACHED: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub struct Install {
    #[command(flatten)]
    cluster: InCluster,
    #[command(flatten)]
    wishes: Wishes,
    /// Change nothing: ask the cluster what would be created and changed
    #[arg(long)]
    dry_run: bool,
    /// What to print: what was done, or the manifests, of which none is applied
    #[arg(long, value_enum, default_value_t)]
    output: Printed,
    /// How long the daemon may take to get ready, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// Write the login into the settings file also where that is logged in to another API
    #[arg(long)]
    save_settings: bool,
    /// Settings file, as the epinio CLI has it [default: ~/.config/epinio/settings.yaml]
    #[arg(long, env = "EPINIO_SETTINGS", value_name = "FILE")]
    settings_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Printed {
    #[default]
    Text,
    Yaml,
}

impl Install {
    pub async fn run(mut self, ui: &Ui) -> Result<ExitCode, Error> {
        let settings = settings_of(&mut self.wishes)?;
        let cluster = self.cluster.connect().await?;
        ui.say(&format!("looking at the cluster of {}", cluster.address));
        let found = install::detect(&cluster, &self.wishes.namespace).await?;
        for (name, text) in found.report() {
            ui.say(&format!("  {name:14} {text}"));
        }
        let draft = install::settle(&self.wishes, &own_image::name(), Some(&found))?.with_settings(settings.as_ref());
        if self.output == Printed::Yaml {
            print_manifests(&install::assume(draft, &found)?);
            return Ok(ExitCode::from(error::OK));
        }
        if self.dry_run {
            return dry_run(&cluster, &install::assume(draft, &found)?).await;
        }
        let installation = {
            let waiting = ui.waiting();
            install::open(&cluster, draft, &found, |text| waiting.tell(text)).await?
        };
        warn(ui, &installation, &found);
        let password = apply(ui, &cluster, &installation, settings.as_ref()).await?;
        {
            let waiting = ui.waiting();
            let within = Duration::from_secs(self.timeout);
            install::wait_until_ready(&cluster, &installation, &found, within, |text| waiting.tell(text)).await?;
            install::remove_unwanted(&cluster, &installation, |text| waiting.tell(text)).await?;
        }
        self.finish(ui, &installation, &found, &password).await
    }

    /// The login, as far as this machine can use it, and where everything is.
    async fn finish(
        &self,
        ui: &Ui,
        installation: &Installation,
        found: &Findings,
        password: &Password,
    ) -> Result<ExitCode, Error> {
        let url = installation.url();
        let mut login =
            Settings { user: auth::ADMIN.to_owned(), namespace: Namespace::DEFAULT.to_owned(), ..Settings::default() };
        let (Password::New(text) | Password::Kept(text)) = password;
        login.set_password(text);
        let login = login.at(&url);
        match reach(&login, installation).await {
            Ok(()) => {}
            Err(Error::Api { status: 401, .. }) => ui.say(
                "note: the daemon does not take the password of secret epiniod-admin: somebody changed it there or here",
            ),
            Err(error) => unreached(ui, installation, found, &error),
        }
        self.save(ui, login)?;
        print(&format!("{:9} {url}", "url"));
        print(&format!("{:9} {}", "user", auth::ADMIN));
        match password {
            Password::New(text) => print(&format!("{:9} {text}", "password")),
            Password::Kept(_) => print(&format!(
                "{:9} as before: kubectl -n {} get secret epiniod-admin -o jsonpath='{{.data.password}}' | base64 -d",
                "password", installation.namespace
            )),
        }
        Ok(ExitCode::from(error::OK))
    }

    /// A login to something else is never overwritten, unless that is wanted.
    fn save(&self, ui: &Ui, login: Settings) -> Result<(), Error> {
        let path = settings::place(&Target { data_dir: None, settings_file: self.settings_file.clone() })?;
        let known = settings::read(&path)?;
        let other = known.as_ref().filter(|known| !known.api.is_empty() && known.api != login.api);
        if let Some(other) = other.filter(|_| !self.save_settings) {
            ui.say(&format!(
                "{} stays logged in to {}; change that with 'epiniod login {} --user {}', or --save-settings",
                path.display(),
                other.api,
                login.api,
                login.user
            ));
            return Ok(());
        }
        let namespace = known.as_ref().map(|known| known.namespace().to_owned());
        let kept = known.unwrap_or_default().logged_out();
        let settings = Settings { namespace: namespace.unwrap_or(login.namespace), other: kept.other, ..login };
        settings::write(&settings, &path)?;
        ui.say(&format!("logged in: {}", path.display()));
        Ok(())
    }
}

/// The daemon's settings and what they name; whom they ask for certificates is as if a flag said it.
pub(super) fn settings_of(wishes: &mut Wishes) -> Result<Option<BTreeMap<String, Vec<u8>>>, Error> {
    let Some(path) = &wishes.config else { return Ok(None) };
    let Bundle { files, acme_directory } = Bundle::read(path)?;
    wishes.acme_directory = wishes.acme_directory.take().or(acme_directory);
    Ok(Some(files))
}

/// The manifests as one stream of YAML.
pub(super) fn print_manifests(installation: &Installation) {
    let texts: Vec<String> = install::plan(installation).into_iter().map(|manifest| manifest.text).collect();
    print(texts.join("---\n").trim_end());
}

async fn dry_run(cluster: &Connection, installation: &Installation) -> Result<ExitCode, Error> {
    let changes = install::apply(cluster, &install::plan(installation), Mode::DryRun, |_| {}).await?;
    let rows: Vec<_> = changes.into_iter().map(|(title, change)| vec![change.word().to_owned(), title]).collect();
    table(&["WOULD BE", "OBJECT"], &rows);
    Ok(ExitCode::from(error::OK))
}

/// Everything, the password before the daemon that is to have it.
async fn apply(
    ui: &Ui,
    cluster: &Connection,
    installation: &Installation,
    settings: Option<&BTreeMap<String, Vec<u8>>>,
) -> Result<Password, Error> {
    let waiting = ui.waiting();
    let tell = |title: &str| waiting.pass(&format!("applying {title}"));
    let manifests = install::plan(installation);
    let (namespaces, others): (Vec<_>, Vec<_>) =
        manifests.into_iter().partition(|manifest| manifest.kind() == "Namespace");
    let mut changes = install::apply(cluster, &namespaces, Mode::Apply, tell).await?;
    if installation.bucket.is_some() {
        install::provide_keys(cluster, installation, keys()).await?;
    }
    if let Some(files) = settings {
        install::provide_settings(cluster, installation, files).await?;
    }
    let password = install::provide_password(cluster, installation, auth::new_password()).await?;
    changes.extend(install::apply(cluster, &others, Mode::Apply, tell).await?);
    drop(waiting);
    let count = |wanted| changes.iter().filter(|(_, change)| *change == wanted).count();
    let counted: Vec<String> = [install::Change::Created, install::Change::Changed, install::Change::Unchanged]
        .into_iter()
        .map(|change| format!("{} {}", count(change), change.word()))
        .collect();
    ui.say(&format!("applied {} objects: {}", changes.len(), counted.join(", ")));
    Ok(password)
}

/// The keys of the bucket, where the tools of AWS have them.
fn keys() -> Option<Keys> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    Some(Keys { id: variable("AWS_ACCESS_KEY_ID")?, secret: variable("AWS_SECRET_ACCESS_KEY")? })
}

/// What will surprise somebody later is said now.
fn warn(ui: &Ui, installation: &Installation, found: &Findings) {
    ui.say(&format!("installing {} into namespace {}", installation.image, installation.namespace));
    match &installation.entrance {
        Entrance::Class(class) => ui.say(&format!("  entrance: ingress class {class}")),
        Entrance::Edge(Exposure::LoadBalancer) => ui.say("  entrance: the daemon's own edge, behind a load balancer"),
        Entrance::Edge(Exposure::HostPorts) => ui.say(&format!(
            "  entrance: the daemon's own edge, on ports 80 and 443 of node {}; for that the namespace has the Pod Security level privileged",
            installation.node.as_deref().unwrap_or_default()
        )),
        Entrance::Traefik { image, .. } => ui.say(&format!("  entrance: Traefik ({image}), brought along")),
    }
    match &installation.certificates.issuer {
        Some(issuer) => ui.say(&format!("  certificates: of cert-manager, by the ClusterIssuer {issuer}")),
        None if installation.asks_for_certificates() => ui.say(&format!(
            "  certificates: the daemon asks {}",
            installation.certificates.directory.as_deref().unwrap_or("letsencrypt")
        )),
        None => ui.say("  certificates: none of the public; --acme-directory names whom to ask for them"),
    }
    ui.say(match (installation.pulls.by, &found.node_ports) {
        (Way::Relay, _) => "  registry: a relay on each node answers on its 127.0.0.1:30500",
        (Way::NodePort, NodePorts::Answer(_)) => "  registry: a node port",
        (Way::NodePort, _) => {
            "  registry: a node port; where it does not answer on the nodes' 127.0.0.1, repeat with --registry-relay always"
        }
    });
    if installation.replicas > 1 {
        ui.say(&format!(
            "  replicas: {}, of which one works, and another takes over when it goes",
            installation.replicas
        ));
    }
    if installation.storage == Storage::Ephemeral && installation.bucket.is_none() {
        ui.say("warning: the data is in the daemon's pod: applications, images and users are lost when it is replaced");
    }
    let without: Vec<&str> = found.without(&installation.image).iter().map(|node| node.name.as_str()).collect();
    if !without.is_empty() && installation.image.starts_with("localhost/") {
        ui.say(&format!(
            "warning: {} does not have the image {}, as far as its list says",
            without.join(", "),
            installation.image
        ));
        ui.say(&format!("  to import it: {}", found.import(&installation.image)));
    }
}

/// Whether the API takes this login, from here. A certificate that the daemon asks for may be there in a moment; when others
/// have one is theirs.
async fn reach(login: &Settings, installation: &Installation) -> Result<(), Error> {
    let until = Instant::now() + REACHED;
    loop {
        let asked = tokio::time::timeout(REACHED, async { Client::new(login.clone())?.get("/api/v1/me").await }).await;
        let cause = || format!("no answer within {} s", REACHED.as_secs());
        let asked = asked.unwrap_or_else(|_| Err(Error::Unreachable { address: login.api.clone(), cause: cause() }));
        match asked {
            Ok(_) => return Ok(()),
            Err(error @ Error::Api { status: 401, .. }) => return Err(error),
            Err(error) if is_of_a_stranger(&error) && !installation.asks_for_certificates() => return Err(error),
            Err(error) if Instant::now() >= until => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// The daemon is ready, and yet its URL leads nowhere from here.
fn unreached(ui: &Ui, installation: &Installation, found: &Findings, error: &Error) {
    let (namespace, domain) = (&installation.namespace, &installation.system_domain);
    ui.say(&format!(
        "warning: the daemon is ready, but this machine does not reach it: {}",
        crate::telemetry::chain(error)
    ));
    if is_of_a_stranger(error) {
        let who = if installation.asks_for_certificates() { "the daemon" } else { "cert-manager" };
        ui.say(&format!(
            "  {who} has no certificate for it yet, or of nobody whom this machine trusts; 'kubectl -n {namespace} logs \
             deployment/epiniod' and 'epiniod routes' tell what hinders one"
        ));
    } else if found.distribution.is_on_a_desktop() {
        ui.say(
            "  the nodes of this cluster are containers or a virtual machine, whose addresses a browser outside of it \
             often cannot reach. Publish port 80 of the cluster when it is made (kind: extraPortMappings; k3d: --port \
             80:80@loadbalancer; minikube: minikube tunnel), and install with --address 127.0.0.1",
        );
    } else {
        ui.say(&format!(
            "  does epinio.{domain} resolve here, and may this machine speak to ports 80 and 443 of that address? Networks of \
             virtual machines and clouds often forbid it; another address is set by --address or --system-domain"
        ));
    }
    ui.say(&format!(
        "  until then: kubectl -n {namespace} port-forward service/epiniod 8080:80, and EPINIO_API=http://127.0.0.1:8080"
    ));
}
