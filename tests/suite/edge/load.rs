//! Requests without a pause while what serves them is replaced: certificates, and the only instance of an application.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, StreamOwned,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::ring::default_provider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};

use crate::support::{Daemon, Internet, Manner, Packages, RunBy, copy, sample, wait_until};

/// Of each kind: those that keep a connection, and those that make one for each request.
const VISITORS: usize = 2;
/// Between two requests of one visitor: with all of them some hundred in a second, as others work here as well.
const PAUSE: Duration = Duration::from_millis(2);
const DEADLINE: Duration = Duration::from_secs(300);

/// What visitors do, until they are told to stop.
#[derive(Default)]
struct Load {
    asked: AtomicUsize,
    stop: AtomicBool,
}

/// One visitor; it ends with what it saw, one after the other.
type Visitor = JoinHandle<Vec<String>>;

impl Load {
    /// `connect` makes a connection, and `see` says what is worth remembering of an answer.
    fn start<S: Read + Write>(
        self: &Arc<Self>,
        host: &'static str,
        path: &'static str,
        connect: impl Fn() -> S + Clone + Send + 'static,
        see: impl Fn(&str, &S) -> String + Clone + Send + 'static,
    ) -> Vec<Visitor> {
        let visitor = |number: usize| {
            let (load, connect, see) = (Arc::clone(self), connect.clone(), see.clone());
            std::thread::spawn(move || {
                let mut seen: Vec<String> = Vec::new();
                let mut connection = BufReader::new(connect());
                while !load.stop.load(Ordering::Relaxed) {
                    if number.is_multiple_of(2) {
                        connection = BufReader::new(connect());
                    }
                    let (status, body) = ask(&mut connection, host, path).expect("every request is answered");
                    assert_eq!(status, 200, "after {seen:?}: {body}");
                    let saw = see(&body, connection.get_ref());
                    if seen.last() != Some(&saw) {
                        seen.push(saw);
                    }
                    load.asked.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(PAUSE);
                }
                seen
            })
        };
        (0..2 * VISITORS).map(visitor).collect()
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// What each of them saw.
    fn end(&self, visitors: Vec<Visitor>) -> Vec<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        visitors.into_iter().map(|visitor| visitor.join().expect("every request was answered")).collect()
    }
}

/// Status and body of an answer that says how long it is.
fn ask(stream: &mut BufReader<impl Read + Write>, host: &str, path: &str) -> io::Result<(u16, String)> {
    stream.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let head = head.to_ascii_lowercase();
    let number = |text: Option<&str>| text.and_then(|text| text.trim().parse::<u16>().ok());
    let length = number(head.lines().find_map(|line| line.strip_prefix("content-length:")))
        .ok_or_else(|| io::Error::other(format!("it says how long it is: {head}")))?;
    let mut body = vec![0; length.into()];
    stream.read_exact(&mut body)?;
    Ok((number(head.split(' ').nth(1)).unwrap_or_default(), String::from_utf8_lossy(&body).into_owned()))
}

#[test]
fn no_request_of_20_000_fails_during_ten_pushes_of_the_only_instance() {
    const PUSHES: usize = 10;
    const REQUESTS: usize = 20_000;
    let daemon = Daemon::start();
    let folder = daemon.dir().join("busy");
    copy(&sample("static"), &folder);
    let page = |version: usize| std::fs::write(folder.join("index.html"), format!("version {version:02}")).unwrap();
    page(0);
    daemon.push("busy", &folder);
    let (load, address) = (Arc::new(Load::default()), ("127.0.0.1", daemon.port));
    let visitors = load.start("busy.localhost", "/", move || connect(address), |body, _| body.to_owned());
    let begun = load.asked();
    for version in 1..=PUSHES {
        page(version);
        daemon.push("busy", &folder);
    }
    let during = load.asked() - begun;
    wait_until("all requests were made", DEADLINE, || {
        load.asked() >= REQUESTS || visitors.iter().any(JoinHandle::is_finished)
    });
    let seen = load.end(visitors);
    println!("{} requests, {during} of them during {PUSHES} pushes: 0 failed", load.asked());
    let versions: Vec<String> = (0..=PUSHES).map(|version| format!("version {version:02}")).collect();
    for seen in seen {
        assert_eq!(seen, versions, "each version was seen, and none after a newer one");
    }
}

#[test]
fn no_request_of_10_000_fails_during_ten_swaps_of_a_certificate() {
    const SWAPS: usize = 10;
    const REQUESTS: usize = 10_000;
    const HOST: &str = "epinio.paas.test";
    // Renewed after two thirds of that.
    let manner = Manner { validity: 6, ..Manner::default() };
    let Some(internet) = Internet::enter("certificates that are swapped under load", manner) else { return };
    let trusted = internet.trusted();
    let daemon = Daemon::start_in(internet.surroundings(&[]), Packages::Shared, RunBy::Caller);
    wait_until("there is the first certificate", DEADLINE, || {
        let trusted = trusted.to_str().unwrap();
        crate::support::request(&["--max-time", "5", "--cacert", trusted, &format!("https://{HOST}/ready")]).is_ok()
    });
    let serials: Arc<Mutex<Vec<String>>> = Arc::default();
    let config = Arc::new(client(&trusted));
    let secure = move || {
        let name = ServerName::try_from(HOST).unwrap();
        StreamOwned::new(ClientConnection::new(Arc::clone(&config), name).unwrap(), connect(("127.0.0.1", 443)))
    };
    let told = Arc::clone(&serials);
    let see = move |_: &str, stream: &StreamOwned<ClientConnection, TcpStream>| {
        let serial = serial(&stream.conn.peer_certificates().expect("the handshake was done")[0]);
        let mut serials = told.lock().unwrap();
        if !serials.contains(&serial) {
            serials.push(serial.clone());
        }
        serial
    };
    let load = Arc::new(Load::default());
    let visitors = load.start(HOST, "/ready", secure, see);
    let swaps = || serials.lock().unwrap().len().saturating_sub(1);
    wait_until("all certificates were seen and all requests were made", DEADLINE, || {
        swaps() >= SWAPS && load.asked() >= REQUESTS || visitors.iter().any(JoinHandle::is_finished)
    });
    let seen = load.end(visitors);
    println!("{} requests during {} swaps: 0 failed\n{}", load.asked(), swaps(), daemon.log_tail());
    for (number, seen) in seen.iter().enumerate() {
        match number % 2 {
            // Who comes anew has another certificate after each swap, and no old one again.
            0 => assert!(seen.len() > SWAPS / 2 && is_subsequence(seen, &serials.lock().unwrap()), "{seen:?}"),
            _ => assert_eq!(seen.len(), 1, "who stays keeps the connection, and what it began with"),
        }
    }
}

fn is_subsequence(part: &[String], whole: &[String]) -> bool {
    let mut rest = whole.iter();
    part.iter().all(|wanted| rest.any(|found| found == wanted))
}

fn connect(address: (&str, u16)) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the edge accepts connections");
    stream.set_read_timeout(Some(crate::sandbox::house::PATIENCE)).expect("a timeout");
    stream.set_nodelay(true).expect("an option");
    stream
}

fn serial(certificate: &CertificateDer<'_>) -> String {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).expect("a certificate");
    certificate.raw_serial_as_string()
}

/// Trusts the authority, whatever the time is: these certificates live for seconds, and this machine may be busy.
#[derive(Debug)]
struct AtItsTime(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AtItsTime {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (_, certificate) = x509_parser::parse_x509_certificate(end_entity).expect("a certificate");
        let begun = u64::try_from(certificate.validity().not_before.timestamp()).expect("after 1970");
        let then = UnixTime::since_unix_epoch(Duration::from_secs(begun + 1));
        self.0.verify_server_cert(end_entity, intermediates, name, ocsp, then)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn client(trusted: &Path) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(PathBuf::from(trusted)).expect("a file") {
        roots.add(root.expect("a certificate")).expect("a root");
    }
    let provider = Arc::new(default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
    let verifier = Arc::new(AtItsTime(verifier.expect("there is a root")));
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("ring's");
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Whoever goes on with a session is shown no certificate.
    config.resumption = rustls::client::Resumption::disabled();
    config
}
