//! How long a new route is without its certificate, beside a loop over the same ACME library that does nothing else; both at
//! the same authority (Pebble, without its sleeps), in this run, on an internet of their own. As root:
//! `cargo bench --bench certificates`.

#[path = "../suite"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod suite {
    pub mod support;
}

use std::{
    future::Future,
    net::TcpStream,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, http::Uri};
use http_body_util::{BodyExt as _, Full};
use instant_acme::{
    Account, BodyWrapper, BytesResponse, ChallengeType, HttpClient, Identifier, NewAccount, NewOrder, RetryPolicy,
};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};

use suite::support::{self, Daemon, Internet, Manner, Packages, RunBy, request};

/// Of each.
const HOSTS: usize = 20;
const GIVE_UP: Duration = Duration::from_secs(60);

fn main() {
    let Some(internet) = Internet::enter("certificates of new routes", Manner { waits: false, ..Manner::default() })
    else {
        return;
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (usual, hasty) = plain(&internet);
    let daemon = Daemon::start_in(internet.surroundings(&[]), Packages::Shared, RunBy::Caller);
    let trusted = Arc::new(client(&internet.trusted()));
    wait_for(&trusted, "epinio.paas.test");
    let credential = format!("admin:{}", daemon.password);
    let own = (0..HOSTS).map(|number| {
        let body = serde_json::json!({"name": format!("app{number}"), "configuration": {}}).to_string();
        let url = "http://127.0.0.1/api/v1/namespaces/workspace/applications";
        let begun = Instant::now();
        let made = request(&["-u", &credential, "-d", &body, url]).expect("an answer");
        assert_eq!(made.status, 201, "{made:?}");
        wait_for(&trusted, &format!("app{number}.paas.test"));
        begun.elapsed()
    });
    let own = Spread::of(own.collect());
    println!("certificates of {HOSTS} hosts, one after the other, ms: median (fastest, slowest)");
    println!("  a plain loop, as the library waits:        {usual}");
    println!("  a plain loop that asks each millisecond:   {hasty}");
    println!("  epiniod, new application to its handshake: {own}");
    let ratio = |plain: &Spread| own.median.as_secs_f64() / plain.median.as_secs_f64();
    println!("  ratios of the medians: {:.2}, {:.2}", ratio(&usual), ratio(&hasty));
}

struct Spread {
    median: Duration,
    fastest: Duration,
    slowest: Duration,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self { median: times[times.len() / 2], fastest: times[0], slowest: times[times.len() - 1] }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let millis = |time: Duration| time.as_secs_f64() * 1000.0;
        write!(formatter, "{:.0} ({:.0}, {:.0})", millis(self.median), millis(self.fastest), millis(self.slowest))
    }
}

/// What the public trusts.
fn client(path: &Path) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(path).expect("a file") {
        roots.add(root.expect("a certificate")).expect("a root");
    }
    rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
}

/// Until a handshake for the host succeeds.
fn wait_for(config: &Arc<rustls::ClientConfig>, host: &str) {
    let begun = Instant::now();
    while begun.elapsed() < GIVE_UP {
        let name = ServerName::try_from(host.to_owned()).expect("a name");
        let mut connection = rustls::ClientConnection::new(Arc::clone(config), name).expect("a client");
        let mut stream = TcpStream::connect("127.0.0.1:443").expect("the daemon listens");
        while connection.is_handshaking() {
            if connection.complete_io(&mut stream).is_err() {
                break;
            }
        }
        if !connection.is_handshaking() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{host} has no certificate after {GIVE_UP:?}");
}

type Answers = Arc<Mutex<Option<String>>>;

/// As the example of the library does it, with http-01 answered on port 80.
fn plain(internet: &Internet) -> (Spread, Spread) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let answers = Answers::default();
        let answer = |State(answers): State<Answers>, _: Uri| async move {
            answers.lock().expect("no panic").clone().unwrap_or_default()
        };
        let router = Router::new().fallback(answer).with_state(Arc::clone(&answers));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:80").await.expect("port 80");
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let roots = std::fs::read(internet.ca_file()).expect("a file");
        let roots = reqwest::Certificate::from_pem_bundle(&roots).expect("certificates");
        let http = Http(reqwest::Client::builder().tls_certs_only(roots).build().expect("a client"));
        let new = NewAccount { contact: &[], terms_of_service_agreed: true, only_return_existing: false };
        let builder = Account::builder_with_http(Box::new(http));
        let (account, _) = builder.create(&new, support::DIRECTORY.to_owned(), None).await.expect("an account");
        let hasty = RetryPolicy::new().initial_delay(Duration::from_millis(1)).backoff(1.0);
        let mut found = Vec::new();
        for (name, policy) in [("usual", RetryPolicy::default()), ("hasty", hasty)] {
            let mut times = Vec::new();
            for number in 0..HOSTS {
                let begun = Instant::now();
                order(&account, &format!("{name}{number}.paas.test"), &answers, &policy).await;
                times.push(begun.elapsed());
            }
            found.push(Spread::of(times));
        }
        server.abort();
        let [usual, hasty] = found.try_into().ok().expect("two of them");
        (usual, hasty)
    })
}

async fn order(account: &Account, host: &str, answers: &Answers, policy: &RetryPolicy) {
    let names = [Identifier::Dns(host.to_owned())];
    let mut order = account.new_order(&NewOrder::new(&names)).await.expect("an order");
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.expect("an authorization");
        let mut challenge = authorization.challenge(ChallengeType::Http01).expect("http-01");
        *answers.lock().expect("no panic") = Some(challenge.key_authorization().as_str().to_owned());
        challenge.set_ready().await.expect("it is ready");
    }
    order.poll_ready(policy).await.expect("it is ready");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![host.to_owned()]).expect("a name");
    order.finalize_csr(params.serialize_request(&key).expect("a request").der()).await.expect("it is taken");
    order.poll_certificate(policy).await.expect("a certificate");
}

struct Http(reqwest::Client);

impl HttpClient for Http {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let Ok(body) = body.collect().await;
            let sent =
                client.request(head.method, head.uri.to_string()).headers(head.headers).body(body.to_bytes()).send();
            let failed = |error: reqwest::Error| instant_acme::Error::Other(Box::new(error));
            let answer = sent.await.map_err(failed)?;
            let mut response = http::Response::builder().status(answer.status());
            response.headers_mut().expect("a good status").extend(answer.headers().clone());
            let body = Full::new(answer.bytes().await.map_err(failed)?);
            Ok(BytesResponse::from(response.body(body)?))
        })
    }
}
