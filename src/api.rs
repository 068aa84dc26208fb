//! Epinio's API (v1) as far as the commands need it, and the upload for plain `curl`.
//!
//! | path | what |
//! |---|---|
//! | `GET /ready` | 200 when the daemon serves; without a credential |
//! | `GET /live` | 200 also while another daemon of the cluster serves; without a credential |
//! | `/api/v1/…` | Epinio's routes and shapes |
//! | `/wapi/v1/…` | Epinio's websockets, and connections to ports; the token of `GET /api/v1/authtoken` is their credential |
//! | `PUT /push/NAMESPACE/APP` | ours: stores, stages, deploys, streams the log as text, ends with the URL |
//! | `GET /push/NAMESPACE/APP/STAGING?heard=LINES` | ours: the same answer once more, from a line on, for whoever lost the connection |
//! | `GET /daemon/namespaces/NAMESPACE/applications/APP/releases` | ours: the releases that are kept, the newest first |
//! | `GET /daemon/namespaces/NAMESPACE/applications/APP/stagings` | ours: the same of stagings, with the time that each phase took |
//! | `GET`, `POST /daemon/tokens`, `DELETE /daemon/tokens/NAME` | ours: API tokens; a new one is in the answer, and nowhere else |
//! | `GET /daemon/audit?lines=NUMBER` | ours: the end of the audit log, one JSON object in each line |
//! | `POST /daemon/stop` | ours: stops the daemon and all applications |
//! | `GET /daemon/routes` | ours: every route, who answers it, and its certificate |
//! | `GET /metrics` | ours: what was asked of each application, for Prometheus |
//!
//! A credential is a user's name and password (`Basic`), or an API token, as `Bearer` or in place of the password. What a token
//! reaches, and what is in the audit log, is declared for each route in `access`, and enforced in `credential`.
//!
//! What a caller may read of an error is in the answer, with a request id; its cause is in the daemon's log under
//! the same id.

mod access;
mod applications;
mod credential;
mod environment;
mod error;
mod exec;
mod history;
mod json;
mod logs;
mod metrics;
mod models;
mod namespaces;
mod port_forward;
mod push;
mod routes;
mod shape;
mod staging;
mod system;
mod tokens;
mod websocket;

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{delete, get, post, put},
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    acme::Certificates, apps::Apps, auth::Auth, model::Route, runtime::SharedRuntime, source::Sources,
    staging::Stagings,
};

pub use error::ApiError;
pub use push::{STOPPED, resume_pushes};

/// The version of the API that this one is compatible with.
const EPINIO_VERSION: &str = "v1.14.0";
/// JSON bodies are at most so large, in bytes.
const MAX_JSON_BYTES: usize = 1 << 20;

/// The rooms that requests are about.
#[derive(Clone)]
pub struct ApiState {
    pub apps: Arc<Apps>,
    pub stagings: Arc<Stagings>,
    pub sources: Arc<Sources>,
    pub auth: Arc<Auth>,
    pub runtime: SharedRuntime,
    pub urls: Urls,
    /// None without TLS.
    pub securing: Option<Securing>,
    /// Pushes that go on, whoever listens.
    pub pushes: TaskTracker,
    pub ending: Ending,
}

/// How far the end of the daemon is, for who waits for a push.
#[derive(Clone, Default)]
pub struct Ending {
    /// Applications end as well: no other daemon is about to take its place.
    pub everything: CancellationToken,
    /// What has not ended by now does not end here.
    pub given_up: CancellationToken,
}

/// Who comes by the certificates that clients see.
#[derive(Clone)]
pub enum Securing {
    Daemon(Arc<Certificates>),
    /// cert-manager.
    ClusterIssuer {
        name: String,
        api_host: String,
    },
}

impl Securing {
    fn api_host(&self) -> &str {
        match self {
            Self::Daemon(certificates) => certificates.api_host(),
            Self::ClusterIssuer { api_host, .. } => api_host,
        }
    }
}

/// How routes are reached from outside.
#[derive(Debug, Clone, Copy)]
pub struct Urls {
    pub scheme: &'static str,
    pub port: u16,
}

impl Urls {
    pub fn of(&self, route: &Route) -> String {
        let is_usual = matches!((self.scheme, self.port), ("http", 80) | ("https", 443));
        let port = if is_usual { String::new() } else { format!(":{}", self.port) };
        format!("{}://{}{port}{}", self.scheme, route.host(), route.path())
    }
}

/// Everything that is served on the API's hosts. `more` are routes that need a credential as well.
pub fn router(state: ApiState, more: Router) -> Router {
    let authenticated = middleware::from_fn_with_state(state.clone(), credential::require);
    let with_token = middleware::from_fn_with_state(state.clone(), credential::require_token);
    let protected = protected().with_state(state.clone()).merge(more).route_layer(authenticated);
    let websockets = websockets().route_layer(with_token).with_state(state);
    Router::new()
        .route("/ready", get(system::ready))
        .route("/live", get(system::ready))
        .merge(protected)
        .merge(websockets)
        .fallback(system::not_found)
        .layer(middleware::from_fn(shape::shape))
}

fn protected() -> Router<ApiState> {
    let uploads = Router::new()
        .route("/push/{namespace}/{app}", put(push::push).post(push::push))
        .route("/push/{namespace}/{app}/{stage}", get(push::follow))
        .route("/api/v1/namespaces/{namespace}/applications/{app}/store", post(push::store))
        .layer(DefaultBodyLimit::disable());
    let own = Router::new()
        .route("/daemon/tokens", get(tokens::list).post(tokens::create))
        .route("/daemon/tokens/{token}", delete(tokens::delete))
        .route("/daemon/audit", get(tokens::audit))
        .route("/daemon/routes", get(routes::list))
        .route("/metrics", get(metrics::metrics))
        .route("/daemon/namespaces/{namespace}/applications/{app}/releases", get(history::releases))
        .route("/daemon/namespaces/{namespace}/applications/{app}/stagings", get(history::stagings));
    Router::new().nest("/api/v1", v1().layer(DefaultBodyLimit::max(MAX_JSON_BYTES))).merge(uploads).merge(own)
}

fn websockets() -> Router<ApiState> {
    let routes = Router::new()
        .route("/namespaces/{namespace}/applications/{app}/logs", get(logs::of_app))
        .route("/namespaces/{namespace}/applications/{app}/exec", get(exec::exec))
        .route("/namespaces/{namespace}/applications/{app}/portforward", get(port_forward::port_forward))
        .route("/namespaces/{namespace}/staging/{stage}/logs", get(logs::of_staging))
        .route("/namespaces/{namespace}/staging/{stage}/complete", get(staging::complete_websocket));
    Router::new().nest("/wapi/v1", routes)
}

/// The routes that want a credential, as they describe themselves.
#[cfg(test)]
fn guarded_routes() -> [String; 2] {
    [format!("{:?}", protected()), format!("{:?}", websockets())]
}

fn v1() -> Router<ApiState> {
    let app = Router::new()
        .route("/validate-cv", get(applications::validate))
        .route("/stage", post(staging::stage))
        .route("/deploy", post(staging::deploy))
        .route("/restart", post(applications::restart))
        .route("/environment", get(environment::list).post(environment::set))
        .route("/environment/{name}", get(environment::show).delete(environment::unset));
    Router::new()
        .route("/info", get(system::info))
        .route("/me", get(system::me))
        .route("/authtoken", get(system::token))
        .route("/namespaces", get(namespaces::list).post(namespaces::create).delete(namespaces::delete_many))
        .route("/namespaces/{namespace}", get(namespaces::show).delete(namespaces::delete))
        .route("/namespacematches", get(namespaces::matches))
        .route("/namespacematches/", get(namespaces::matches))
        .route("/namespacematches/{pattern}", get(namespaces::matches))
        .route("/applications", get(applications::list_all))
        .route(
            "/namespaces/{namespace}/applications",
            get(applications::list).post(applications::create).delete(applications::delete_many),
        )
        .route("/namespaces/{namespace}/appsmatches", get(applications::matches))
        .route("/namespaces/{namespace}/appsmatches/", get(applications::matches))
        .route("/namespaces/{namespace}/appsmatches/{pattern}", get(applications::matches))
        .route("/namespaces/{namespace}/staging/{stage}/complete", get(staging::complete))
        .route("/namespaces/{namespace}/staging/{stage}", get(staging::show))
        .route(
            "/namespaces/{namespace}/applications/{app}",
            get(applications::show).patch(applications::update).delete(applications::delete),
        )
        .nest("/namespaces/{namespace}/applications/{app}", app)
}
