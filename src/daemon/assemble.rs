//! The rooms, put together.

use std::{
    collections::BTreeMap, fs, io, net::SocketAddr, os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration,
};

use async_trait::async_trait;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    routing::{get, post},
};
use tokio_util::task::TaskTracker;

use super::{
    Error, Mode, bucket,
    cluster::{self, Place},
    collect::Garbage,
    control::Control,
    credential, handover,
    report::Reports,
};
use crate::{
    acme::{Authority, Certificates, Challenges, Keeper},
    api::{self, Ending, Securing, Urls},
    apps::{self, Apps},
    auth::{Audit, Auth},
    base::{Bases, Options, Publish},
    blob::SharedBlobs,
    builders::Builders,
    buildpacks,
    config::{Config, Kubernetes},
    dashboard,
    edge::{Edge, InFront, Tls},
    model::{Digest, Namespace},
    oci::registry::Registry,
    runtime::{Front, SharedRuntime, local},
    source::Sources,
    staging::{self, Rooms, Stagings},
    store::{DiskStore, Objects, SharedStore},
};

/// Everything that a daemon has.
pub(super) struct House {
    pub apps: Arc<Apps>,
    pub stagings: Arc<Stagings>,
    pub edge: Arc<Edge>,
    /// For the listener with TLS, where there is one.
    pub tls: Option<Tls>,
    /// Who gets public certificates, where there are some.
    pub keeper: Option<Arc<Keeper>>,
    /// What the cluster's users see of applications.
    pub reports: Option<Reports>,
    registry: Registry,
    auth: Arc<Auth>,
    api: api::ApiState,
    garbage: Arc<Garbage>,
}

/// Credentials for registries of others, in the data directory.
const CREDENTIALS: &str = "registries.json";
const WEB_PORT: u16 = 80;
const WEB_TLS_PORT: u16 = 443;
/// The bundles that programs look into; they are mounted over with the authorities for builds.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
const BUNDLE_VARIABLES: [&str; 6] =
    ["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"];
const PROXY_VARIABLES: [&str; 8] =
    ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"];

impl House {
    pub async fn build(
        config: &Config,
        api: SocketAddr,
        tls: Option<SocketAddr>,
        registry_at: SocketAddr,
        control: &Control,
        place: Option<&Place>,
    ) -> Result<Self, Error> {
        prepare_data_dir(config)?;
        let (objects, reports) = match place {
            Some(place) => {
                let store = place.store().await?;
                (Objects::new(Arc::clone(&store) as SharedStore), Some(store))
            }
            None => (Objects::new(DiskStore::open(&config.data_dir.join("store"))?), None),
        };
        let blobs = bucket::open_blobs(config, &objects).await?;
        let auth = Auth::open(objects.clone(), audit(config)?).await?;
        credential::provide(config, control.mode(), api, &auth).await?;
        let registry = Registry::new(objects.clone(), Arc::clone(&blobs));
        let (runtime, front, registry_address) = match place {
            Some(place) => cluster::open(config, place, registry_at, &blobs, &registry, &auth).await?,
            None => (open_local(config, &blobs).await?, None, registry_at.to_string()),
        };
        let publisher = Arc::new(Publisher(registry.clone()));
        let options = Options::new(&config.data_dir, config.mirrors.clone());
        let bases = Arc::new(Bases::new(options, Arc::clone(&blobs), objects.clone(), publisher));
        let credentials = config.data_dir.join(CREDENTIALS);
        let builders = Arc::new(Builders::new(registry.clone(), Arc::clone(&blobs), credentials));
        let sources = Arc::new(Sources::new(objects.clone(), Arc::clone(&blobs), config.sources));
        let rooms = Rooms {
            objects: objects.clone(),
            blobs: Arc::clone(&blobs),
            runtime: Arc::clone(&runtime),
            registry: registry.clone(),
            bases: Arc::clone(&bases),
            builders: Arc::clone(&builders),
            auth: Arc::clone(&auth),
        };
        let stagings = Stagings::new(rooms, staging_settings(config, registry_address));
        let app_settings = apps::Settings {
            system_domain: config.system_domain.clone(),
            limits: config.instances.clone(),
            ..apps::Settings::default()
        };
        let apps = Apps::new(objects.clone(), Arc::clone(&runtime), app_settings);
        let certificates = certificates(config, &objects, &apps, tls).await?;
        let state = api::ApiState {
            apps: Arc::clone(&apps),
            stagings: Arc::clone(&stagings),
            sources: Arc::clone(&sources),
            auth: Arc::clone(&auth),
            runtime: Arc::clone(&runtime),
            urls: urls(config, api, tls),
            securing: securing(config, certificates.as_ref()),
            pushes: TaskTracker::new(),
            ending: Ending::default(),
        };
        let open = certificates.as_deref().map_or_else(Router::new, authority_routes);
        let router = api::router(state.clone(), control_routes(control)).merge(open).merge(dashboard::router());
        let tls_port = to_tls(config, tls);
        let (routes, challenges) = (apps.route_table(), Arc::new(Challenges::default()));
        let domain = config.system_domain.clone();
        let edge = Edge::new(routes, router, domain, tls_port, Arc::clone(&challenges)).behind(in_front(config));
        let edge = Arc::new(edge.with(config.edge.clone()));
        let keeper = match &certificates {
            Some(certificates) => keeper(config, &objects, &apps, certificates, &challenges, front).await?,
            None => None,
        };
        let tls = certificates.filter(|_| tls.is_some()).map(|certificates| Tls::new(certificates, challenges));
        let garbage =
            Arc::new(Garbage { objects, blobs, registry: registry.clone(), runtime, bases, builders, sources });
        let reports = reports.map(|store| Reports::new(store, Arc::clone(&apps)));
        Ok(Self { apps, stagings, edge, tls, keeper, reports, registry, auth, api: state, garbage })
    }

    /// Takes up what a daemon before left, and makes what has to be there.
    pub async fn take_up(&self) -> Result<(), Error> {
        match self.apps.create_namespace(&Namespace::default()).await {
            Ok(_) | Err(apps::Error::NamespaceExists(_)) => {}
            Err(error) => return Err(error.into()),
        }
        self.apps.recover().await?;
        self.stagings.recover().await?;
        api::resume_pushes(&self.api).await.map_err(|error| Error::Pushes(error.title))
    }

    /// Nothing begins any more. What was begun ends, or is given up for the next daemon to take up; only then is it
    /// known which applications there are to stop.
    pub async fn wind_down(&self, applications: Mode, within: Duration) -> Result<(), Error> {
        if applications == Mode::Up {
            self.api.ending.everything.cancel();
        }
        self.stagings.finish().await;
        self.api.pushes.close();
        if tokio::time::timeout(within, self.api.pushes.wait()).await.is_err() {
            tracing::warn!(
                seconds = within.as_secs(),
                "a deployment did not end in time; the next daemon goes on with it"
            );
        }
        self.api.ending.given_up.cancel();
        let stopped = match applications {
            Mode::Up => self.apps.stop_all().await,
            Mode::Serve => Ok(()),
        };
        self.apps.finish(within).await;
        if applications == Mode::Up {
            // What a request changed meanwhile.
            self.apps.stop_all().await?;
        }
        Ok(stopped?)
    }

    pub fn registry_router(&self) -> Router {
        let blobs = Arc::clone(&self.garbage.blobs);
        handover::router(self.garbage.objects.clone(), blobs, Arc::clone(&self.auth))
            .fallback_service(self.registry.router(self.auth.clone()))
    }

    pub fn garbage(&self) -> Arc<Garbage> {
        Arc::clone(&self.garbage)
    }
}

/// Names finished bases in the registry.
struct Publisher(Registry);

#[async_trait]
impl Publish for Publisher {
    async fn publish(&self, repository: &str, tag: &str, manifest: Digest) -> Result<(), String> {
        self.0.publish(repository, tag, manifest).await.map_err(|error| error.to_string())
    }
}

/// The disk of a pod goes with the pod; its log is collected.
fn audit(config: &Config) -> Result<Audit, Error> {
    if config.kubernetes.as_ref().is_some_and(Kubernetes::is_inside) {
        return Ok(Audit::to_log());
    }
    Audit::to_files(&config.data_dir).map_err(|source| Error::DataDir { path: config.data_dir.clone(), source })
}

/// Only there is it known that an ingress controller is what clients reach.
fn in_front(config: &Config) -> InFront {
    if is_behind_ingress(config) { InFront::Ingress } else { InFront::Nobody }
}

fn is_behind_ingress(config: &Config) -> bool {
    config.kubernetes.as_ref().is_some_and(Kubernetes::is_behind_ingress)
}

fn is_inside(config: &Config) -> bool {
    config.kubernetes.as_ref().is_some_and(Kubernetes::is_inside)
}

/// Where users find what listens there: what leads to a pod listens on the ports of the web, whatever the pod's are.
fn urls(config: &Config, api: SocketAddr, tls: Option<SocketAddr>) -> Urls {
    let is_issued = config.kubernetes.as_ref().is_some_and(|kubernetes| kubernetes.tls_issuer.is_some());
    match tls {
        _ if is_inside(config) && (config.acme.is_some() || is_issued) => Urls { scheme: "https", port: WEB_TLS_PORT },
        _ if is_inside(config) => Urls { scheme: "http", port: WEB_PORT },
        Some(tls) => Urls { scheme: "https", port: tls.port() },
        None => Urls { scheme: "http", port: api.port() },
    }
}

/// The port of TLS that requests without it are sent to. In a cluster only where certificates of the public are asked for:
/// no client of a cluster trusts the daemon's own authority by itself, and the domain may be magic. Never from behind an
/// ingress controller, whose clients may have come by TLS.
fn to_tls(config: &Config, tls: Option<SocketAddr>) -> Option<u16> {
    let tls = tls.filter(|_| !is_behind_ingress(config))?;
    if is_inside(config) { config.acme.as_ref().map(|_| WEB_TLS_PORT) } else { Some(tls.port()) }
}

/// Certificates for the API and for the routes of applications; those that are not of the public are of an authority of
/// our own where this daemon speaks TLS.
async fn certificates(
    config: &Config,
    objects: &Objects,
    apps: &Apps,
    tls: Option<SocketAddr>,
) -> Result<Option<Arc<Certificates>>, Error> {
    let authority = match tls {
        Some(_) => Some(Authority::open(objects, &config.system_domain).await?),
        None if is_behind_ingress(config) && config.acme.is_some() => None,
        None => return Ok(None),
    };
    if let Some(authority) = &authority {
        tracing::info!(
            fingerprint = authority.fingerprint().hex(),
            "certificates are signed by an authority of our own"
        );
    }
    let (api, routes) = (api_host(config), apps.route_table());
    let own = api.clone();
    let is_served = move |host: &str| host == own || host == "localhost" || routes.has_host(host);
    Ok(Some(Certificates::new(authority, api, Arc::new(is_served))))
}

fn api_host(config: &Config) -> String {
    format!("epinio.{}", config.system_domain)
}

fn securing(config: &Config, certificates: Option<&Arc<Certificates>>) -> Option<Securing> {
    let issuer = config.kubernetes.as_ref().and_then(|kubernetes| kubernetes.tls_issuer.clone());
    let delegated = issuer.map(|name| Securing::ClusterIssuer { name, api_host: api_host(config) });
    delegated.or_else(|| certificates.map(|certificates| Securing::Daemon(Arc::clone(certificates))))
}

/// Who gets certificates of the public, for the API and for the routes of applications.
async fn keeper(
    config: &Config,
    objects: &Objects,
    apps: &Apps,
    certificates: &Arc<Certificates>,
    challenges: &Arc<Challenges>,
    front: Option<Arc<dyn Front>>,
) -> Result<Option<Arc<Keeper>>, Error> {
    let Some(settings) = config.acme.clone() else { return Ok(None) };
    let (api, routes) = (api_host(config), apps.route_table());
    let hosts = move || routes.hosts().into_iter().chain([api.clone()]).collect();
    let urls: Vec<_> = settings.directories.iter().map(|directory| directory.url.as_str()).collect();
    tracing::info!(directories = urls.join(", "), "certificates are asked of authorities of the public");
    let (certificates, challenges) = (Arc::clone(certificates), Arc::clone(challenges));
    let domain = config.system_domain.clone();
    let (objects, hosts) = (objects.clone(), Arc::new(hosts));
    Ok(Some(Keeper::open(objects, settings, domain, hosts, certificates, challenges, front).await?))
}

/// Whoever is to trust the authority gets its certificate without a credential.
fn authority_routes(certificates: &Certificates) -> Router {
    let Some(authority) = certificates.authority() else { return Router::new() };
    let pem = authority.pem().to_owned();
    let kind = [(header::CONTENT_TYPE, "application/pem-certificate-chain")];
    Router::new().route("/ca.pem", get(move || async move { (kind, pem) }))
}

/// The runtime of this machine.
async fn open_local(config: &Config, blobs: &SharedBlobs) -> Result<SharedRuntime, Error> {
    let own_binary =
        std::env::current_exe().map_err(|source| Error::DataDir { path: "/proc/self/exe".into(), source })?;
    let (data_dir, build_ca) = (config.data_dir.clone(), config.build_ca.clone());
    let settings = local::LocalConfig { data_dir, build_ca, own_binary };
    Ok(local::LocalRuntime::open(settings, Arc::clone(blobs)).await?)
}

fn prepare_data_dir(config: &Config) -> Result<(), Error> {
    let prepare = || -> io::Result<()> {
        fs::create_dir_all(&config.data_dir)?;
        fs::set_permissions(&config.data_dir, fs::Permissions::from_mode(0o700))
    };
    prepare().map_err(|source| Error::DataDir { path: config.data_dir.clone(), source })
}

fn staging_settings(config: &Config, registry_address: String) -> staging::Settings {
    let mut build_environment: BTreeMap<String, String> = PROXY_VARIABLES
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok().filter(|value| !value.is_empty())?)))
        .collect();
    if config.build_ca.is_some() {
        build_environment.extend(BUNDLE_VARIABLES.map(|name| (name.to_owned(), BUNDLE.to_owned())));
    }
    staging::Settings {
        registry_address,
        at_once: config.builds.at_once,
        limits: config.builds.limits.clone(),
        deadline: config.builds.deadline,
        max_source_bytes: config.sources.max_unpacked_bytes,
        max_source_entries: config.sources.max_entries,
        build_environment,
        ca_bundle: config.build_ca.is_some().then(|| BUNDLE.to_owned()),
        builder: buildpacks::builder_version(),
    }
}

/// `POST /daemon/stop`: ours, not Epinio's.
fn control_routes(control: &Control) -> Router {
    async fn stop(State(control): State<Control>) -> StatusCode {
        control.stop(Mode::Up);
        StatusCode::ACCEPTED
    }
    Router::new().route("/daemon/stop", post(stop)).with_state(control.clone())
}
