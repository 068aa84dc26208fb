//! Applications in a cluster: pushed, healed, failed, and driven by a daemon that is killed, from outside of the cluster.

mod failing;
mod healing;
mod hostile;
mod images;
mod killing;
mod pushing;
mod versions;
mod watch;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use crate::support::{Driven, copy, sample, sources, write};

/// What the page of the Procfile sample says.
const HELLO: &str = "Hello from the Procfile sample";

/// The Procfile sample with another text.
fn page(driven: &Driven, name: &str, text: &str) -> std::path::PathBuf {
    let path = sources(driven, name);
    copy(&sample("procfile"), &path);
    let script = fs::read_to_string(sample("procfile").join("answer.sh")).expect("the sample");
    write(&path, "answer.sh", &script.replace(HELLO, text));
    path
}

/// An application that runs this shell script.
fn program(driven: &Driven, name: &str, script: &str) -> std::path::PathBuf {
    let path = sources(driven, name);
    copy(&sample("procfile"), &path);
    write(&path, "serve.sh", &format!("#!/bin/bash\n{script}\n"));
    fs::set_permissions(path.join("serve.sh"), fs::Permissions::from_mode(0o755)).expect("an own file");
    path
}

/// A Python application that serves this text and whose requirement is a package of its own, which runs this code when it
/// is built. `say` writes a line into the log of the build.
pub fn python(path: &Path, text: &str, code: &str) {
    write(path, "requirements.txt", &format!("./own\n# {text}\n"));
    write(path, "Procfile", "web: python3 serve.py\n");
    write(path, "serve.py", &SERVE.replace("TEXT", text));
    let project = "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n\
                   [project]\nname = \"own\"\nversion = \"1\"\n";
    write(path, "own/pyproject.toml", project);
    write(path, "own/backend.py", &BACKEND.replace("CODE", &code.replace('\n', "\n    ")));
}

const SERVE: &str = r#"import http.server, os

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"TEXT\n")

http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
"#;

/// The smallest that makes a wheel. pip keeps what it prints for itself.
const BACKEND: &str = r#"import os, zipfile

def say(text):
    with open("/proc/1/fd/1", "w") as log:
        log.write(text + "\n")

METADATA = "Metadata-Version: 2.1\nName: own\nVersion: 1\n"
WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"

def prepare_metadata_for_build_wheel(folder, settings=None):
    os.makedirs(os.path.join(folder, "own-1.dist-info"))
    for name, text in [("METADATA", METADATA), ("WHEEL", WHEEL)]:
        with open(os.path.join(folder, "own-1.dist-info", name), "w") as file:
            file.write(text)
    return "own-1.dist-info"

def build_wheel(wheels, settings=None, metadata=None):
    CODE
    name = "own-1-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheels, name), "w") as wheel:
        wheel.writestr("own.py", "")
        wheel.writestr("own-1.dist-info/METADATA", METADATA)
        wheel.writestr("own-1.dist-info/WHEEL", WHEEL)
        names = ["own.py", "own-1.dist-info/METADATA", "own-1.dist-info/WHEEL", "own-1.dist-info/RECORD"]
        wheel.writestr("own-1.dist-info/RECORD", "".join(f"{name},,\n" for name in names))
    return name
"#;
