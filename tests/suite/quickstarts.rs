//! What the documentation of frameworks has people write, pushed as it is: by `push` and by curl alone.
//!
//! Python's and npm's registries are needed for it. Where one cannot be reached, its tests say so and end.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{Daemon, get, not_run, request, write};

/// An application as its framework's first page has it.
struct Quickstart {
    name: &'static str,
    files: &'static [(&'static str, &'static str)],
    /// What is asked for, and what the answer has in it.
    path: &'static str,
    answer: &'static str,
    /// Lines that the log of a first push has in it.
    said: &'static [&'static str],
}

const FLASK: Quickstart = Quickstart {
    name: "flask",
    files: &[
        ("requirements.txt", "flask\n"),
        (
            "app.py",
            "from flask import Flask\n\napp = Flask(__name__)\n\n@app.route(\"/\")\ndef hello_world():\n    \
             return \"<p>Hello, World!</p>\"\n",
        ),
    ],
    path: "/",
    answer: "<p>Hello, World!</p>",
    said: &["the application brings no gunicorn"],
};

const FASTAPI: Quickstart = Quickstart {
    name: "fastapi",
    files: &[
        ("requirements.txt", "fastapi\n"),
        (
            "main.py",
            "from fastapi import FastAPI\n\napp = FastAPI()\n\n\n@app.get(\"/\")\ndef read_root():\n    \
             return {\"Hello\": \"World\"}\n\n\n@app.get(\"/items/{item_id}\")\n\
             def read_item(item_id: int, q: str | None = None):\n    return {\"item_id\": item_id, \"q\": q}\n",
        ),
    ],
    path: "/items/5?q=somequery",
    answer: "{\"item_id\":5,\"q\":\"somequery\"}",
    said: &["the application brings no uvicorn"],
};

const UVICORN: Quickstart = Quickstart {
    name: "uvicorn",
    files: &[
        ("requirements.txt", "uvicorn\n"),
        (
            "main.py",
            "async def app(scope, receive, send):\n    assert scope['type'] == 'http'\n\n    await send({\n        \
             'type': 'http.response.start',\n        'status': 200,\n        'headers': [\n            \
             (b'content-type', b'text/plain'),\n        ],\n    })\n    await send({\n        \
             'type': 'http.response.body',\n        'body': b'Hello, world!',\n    })\n",
        ),
    ],
    path: "/",
    answer: "Hello, world!",
    said: &["start: main:app (ASGI, served by uvicorn)"],
};

const DJANGO: Quickstart = Quickstart {
    name: "django",
    files: &[
        ("pyproject.toml", "[project]\nname = \"mysite\"\nversion = \"0.1.0\"\ndependencies = [\"django\"]\n"),
        (
            "manage.py",
            "import os\nimport sys\n\n\ndef main():\n    \
             os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'mysite.settings')\n    \
             from django.core.management import execute_from_command_line\n    execute_from_command_line(sys.argv)\n\n\n\
             if __name__ == '__main__':\n    main()\n",
        ),
        ("mysite/__init__.py", ""),
        (
            "mysite/settings.py",
            "SECRET_KEY = 'django-insecure-of-a-quickstart'\nDEBUG = True\nALLOWED_HOSTS = []\nINSTALLED_APPS = []\n\
             MIDDLEWARE = ['django.middleware.security.SecurityMiddleware',\n              \
             'django.middleware.common.CommonMiddleware']\nROOT_URLCONF = 'mysite.urls'\n\
             WSGI_APPLICATION = 'mysite.wsgi.application'\n",
        ),
        ("mysite/urls.py", "urlpatterns = []\n"),
        (
            "mysite/wsgi.py",
            "import os\n\nfrom django.core.wsgi import get_wsgi_application\n\n\
             os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'mysite.settings')\n\n\
             application = get_wsgi_application()\n",
        ),
    ],
    path: "/",
    answer: "The install worked successfully! Congratulations!",
    said: &["pip install of the dependencies in pyproject.toml", "start: mysite.wsgi:application"],
};

const PROCFILE: Quickstart = Quickstart {
    name: "gunicorn",
    files: &[
        ("requirements.txt", "flask\ngunicorn\n"),
        ("Procfile", "web: gunicorn hello:app --bind 0.0.0.0:$PORT\n"),
        (
            "hello.py",
            "from flask import Flask\napp = Flask(__name__)\n\n@app.route('/')\ndef hello():\n    return 'Hello from hello.py'\n",
        ),
    ],
    path: "/",
    answer: "Hello from hello.py",
    said: &["start: the line 'web' of the Procfile"],
};

const EXPRESS: Quickstart = Quickstart {
    name: "express",
    files: &[
        (
            "package.json",
            r#"{
  "name": "myapp",
  "version": "1.0.0",
  "description": "",
  "main": "index.js",
  "scripts": {
    "test": "echo \"Error: no test specified\" && exit 1"
  },
  "keywords": [],
  "author": "",
  "license": "ISC",
  "type": "commonjs",
  "dependencies": {
    "express": "^5.1.0"
  }
}
"#,
        ),
        (
            "app.js",
            "const express = require('express')\nconst app = express()\nconst port = 3000\n\n\
             app.get('/', (req, res) => {\n  res.send('Hello World!')\n})\n\n\
             app.listen(port, () => {\n  console.log(`Example app listening on port ${port}`)\n})\n",
        ),
    ],
    path: "/",
    answer: "Hello World!",
    said: &["warning: there is no package-lock.json", "start: node 'app.js'"],
};

/// Without a server: what the bundler makes of it is served.
const VITE: Quickstart = Quickstart {
    name: "vite",
    files: &[
        (
            "package.json",
            r#"{"name":"vite-project","private":true,"version":"0.0.0","type":"module",
                "scripts":{"dev":"vite","build":"vite build","preview":"vite preview"},
                "devDependencies":{"vite":"^7.0.0"}}"#,
        ),
        (
            "index.html",
            "<!doctype html>\n<html lang=\"en\">\n  <body>\n    <div id=\"app\"></div>\n    \
             <script type=\"module\" src=\"/src/main.js\"></script>\n  </body>\n</html>\n",
        ),
        ("src/main.js", "document.querySelector('#app').innerHTML = `<h1>Hello Vite!</h1>`\n"),
    ],
    path: "/some/route",
    answer: "src=\"/assets/index-",
    said: &["npm run build", "start: nginx serves dist"],
};

/// Compiled at installation.
const ADDON: Quickstart = Quickstart {
    name: "addon",
    files: &[
        ("package.json", r#"{"name":"addon","version":"1.0.0","dependencies":{"cpu-features":"0.0.10"}}"#),
        (
            "server.js",
            "const features = require('cpu-features')();\nrequire('http')\n  \
             .createServer((_, response) => response.end(`architecture ${features.arch}`))\n  \
             .listen(process.env.PORT);\n",
        ),
    ],
    path: "/",
    answer: "architecture ",
    said: &["compiled at installation: cpu-features"],
};

/// With a script of its own that npm runs when it installs.
const SCRIPTS: Quickstart = Quickstart {
    name: "scripts",
    files: &[
        ("package.json", r#"{"name":"scripts","version":"1.0.0","scripts":{"postinstall":"node make.js"}}"#),
        ("make.js", "require('fs').writeFileSync('made.txt', 'made by postinstall')\n"),
        (
            "index.js",
            "const text = require('fs').readFileSync('made.txt', 'utf8')\nrequire('http')\n  \
             .createServer((_, response) => response.end(`first: ${text}`))\n  .listen(process.env.PORT)\n",
        ),
    ],
    path: "/",
    answer: "first: made by postinstall",
    said: &["every build installs node_modules anew: installing runs scripts of the application"],
};

#[test]
fn python_quickstarts_run_as_they_are() {
    let daemon = Daemon::start();
    let all = [(&FLASK, true), (&FASTAPI, true), (&UVICORN, false), (&DJANGO, false), (&PROCFILE, false)];
    // Ends at the first that finds no registry.
    let _ = all.iter().all(|(quickstart, is_curled)| quickstart.runs(&daemon, *is_curled));
}

#[test]
fn node_quickstarts_and_sites_run_as_they_are() {
    let daemon = Daemon::start();
    a_site_has_its_folders_and_its_own_page_for_what_is_not_there(&daemon);
    let all = [(&EXPRESS, true), (&VITE, true), (&ADDON, false), (&SCRIPTS, false)];
    if all.iter().all(|(quickstart, is_curled)| quickstart.runs(&daemon, *is_curled)) {
        install_scripts_run_at_every_push(&daemon);
        a_pushed_node_modules_is_thrown_away(&daemon);
    }
}

fn install_scripts_run_at_every_push(daemon: &Daemon) {
    let source = SCRIPTS.write_to(daemon);
    write(&source, "index.js", &SCRIPTS.files[2].1.replace("first", "second"));
    let url = daemon.push(SCRIPTS.name, &source);
    assert_eq!(page(&url), "second: made by postinstall");
}

fn a_pushed_node_modules_is_thrown_away(daemon: &Daemon) {
    let source = EXPRESS.write_to(daemon);
    write(&source, "node_modules/express/index.js", "throw new Error('made for another system')\n");
    let Some(log) = pushed(curl(daemon, "stale", &source)) else { return };
    assert!(log.contains("node_modules came with the source and is thrown away"), "{log}");
    assert!(page(&daemon.url("stale")).contains(EXPRESS.answer));
}

fn a_site_has_its_folders_and_its_own_page_for_what_is_not_there(daemon: &Daemon) {
    let source = daemon.dir().join("site");
    write(&source, "index.html", "home");
    write(&source, "404.html", "not here");
    write(&source, "docs/index.html", "<a href=\"guide.html\">guide</a>");
    write(&source, "docs/guide.html", "the guide");
    let url = daemon.push("site", &source);
    let moved = request(&["-i", &format!("{url}/docs?a=b")]).unwrap();
    assert_eq!(moved.status, 301, "{moved:?}");
    assert!(moved.body.to_lowercase().contains("location: /docs/?a=b"), "{moved:?}");
    assert!(page(&format!("{url}/docs/")).contains("guide.html"));
    assert_eq!(page(&format!("{url}/docs/guide")), "the guide");
    let missing = get(&format!("{url}/docs/nothing")).unwrap();
    assert_eq!((missing.status, missing.body.as_str()), (404, "not here"));
}

impl Quickstart {
    /// Pushes and asks, with curl as well if `is_curled`; false, said loudly, where there is no registry.
    fn runs(&self, daemon: &Daemon, is_curled: bool) -> bool {
        let source = self.write_to(daemon);
        let name = format!("{}-curled", self.name);
        let mut pushes = vec![(self.name, push(daemon, self.name, &source))];
        if is_curled {
            pushes.push((&name, curl(daemon, &name, &source)));
        }
        for (app, outcome) in pushes {
            let Some(log) = pushed(outcome) else { return false };
            for line in self.said {
                assert!(log.contains(line), "'{line}' is not in the log of {app}:\n{log}");
            }
            let page = page(&format!("{}{}", daemon.url(app), self.path));
            assert!(page.contains(self.answer), "{app}: {page}");
        }
        true
    }

    fn write_to(&self, daemon: &Daemon) -> PathBuf {
        let source = daemon.dir().join("quickstarts").join(self.name);
        for (name, text) in self.files {
            write(&source, name, text);
        }
        source
    }
}

/// Whether a push succeeded, and its log.
struct Outcome {
    success: bool,
    log: String,
}

fn push(daemon: &Daemon, name: &str, source: &Path) -> Outcome {
    let output = daemon.output(["push", "--name", name, "--path", source.to_str().unwrap()]);
    Outcome { success: output.status.success(), log: String::from_utf8_lossy(&output.stderr).into_owned() }
}

fn curl(daemon: &Daemon, name: &str, source: &Path) -> Outcome {
    let archive = daemon.dir().join(format!("{name}.tar.gz"));
    assert!(Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(source).arg(".").status().unwrap().success());
    let credential = format!("admin:{}", daemon.password);
    let url = daemon.api(&format!("/push/workspace/{name}"));
    let output = Command::new("curl").args(["-sS", "-u", &credential, "-T"]).arg(archive).arg(url).output().unwrap();
    Outcome { success: output.status.success(), log: String::from_utf8_lossy(&output.stdout).into_owned() }
}

/// The log of a push that succeeded; none where no registry of packages was reached.
fn pushed(Outcome { success, log }: Outcome) -> Option<String> {
    if success {
        return Some(log);
    }
    let unreachable =
        ["pip could not reach its index", "npm could not reach its registry", "the npm registry could not be reached"];
    let cause = unreachable.into_iter().find(|cause| log.contains(cause));
    let cause = cause.unwrap_or_else(|| panic!("the push failed:\n{log}"));
    not_run(&format!("quickstarts: {cause}"));
    None
}

/// The body of a page that has to be there.
fn page(url: &str) -> String {
    let response = get(url).unwrap_or_else(|error| panic!("{url}: {error}"));
    assert_eq!(response.status, 200, "{url}: {}", response.body);
    response.body
}
