//! A real Chromium without a screen, driven over its DevTools protocol.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpStream, runtime::Runtime};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::still::Still;
use crate::support::{get, not_run, wait_until};

/// How long a command of the protocol, or the start, may take on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// What becomes of a question when its page is left.
const LEFT: [&str; 3] = ["navigated or closed", "context was destroyed", "Cannot find context"];

pub struct Browser {
    runtime: Runtime,
    socket: WebSocketStream<TcpStream>,
    network: Still,
    commands: u64,
    /// What the console and the page complained about.
    complaints: Vec<String>,
    /// Ends the browser when its stdin ends, with this process at the latest.
    keeper: Child,
    _profile: TempDir,
}

impl Browser {
    /// None where there is no Chromium; that is said.
    pub fn start(what: &str) -> Option<Self> {
        if Command::new("chromium").arg("--version").output().is_err() {
            // Where the gate runs, tools are installed: a test that is not run has failed.
            assert!(std::env::var_os("EPINIOD_TEST_TOOLS").is_none(), "chromium is not installed");
            not_run(&format!("{what}: chromium is not installed"));
            return None;
        }
        let profile = tempfile::tempdir().expect("a temporary folder");
        let script = r#""$@" >/dev/null 2>&1 </dev/null & browser=$!; cat >/dev/null; kill $browser; wait $browser"#;
        let mut keeper = Command::new("/bin/sh");
        keeper.args(["-c", script, "keeper", "chromium", "--headless=new", "--no-sandbox", "--disable-gpu"]);
        keeper.args(["--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"]);
        keeper.args(["--remote-debugging-port=0", "about:blank"]).arg(flag("--user-data-dir", profile.path()));
        keeper.stdin(Stdio::piped()).stdout(Stdio::null());
        let network = Still::new();
        let keeper = network.run(move || keeper.spawn()).expect("a shell");
        let told = profile.path().join("DevToolsActivePort");
        let port = || fs::read_to_string(&told).ok().filter(|text| text.lines().count() == 2);
        wait_until("the browser says where it listens", PATIENCE, || port().is_some());
        let port = port().and_then(|text| text.lines().next()?.parse::<u16>().ok()).expect("a port");
        let pages =
            network.run(move || get(&format!("http://127.0.0.1:{port}/json/list"))).expect("the browser answers");
        let pages: Vec<Value> = serde_json::from_str(&pages.body).expect("JSON");
        let page = pages.iter().find(|page| page["type"] == "page").expect("a page");
        let url = page["webSocketDebuggerUrl"].as_str().expect("an address").to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let stream =
            network.run(move || std::net::TcpStream::connect(("127.0.0.1", port))).expect("the browser listens");
        stream.set_nonblocking(true).expect("a socket");
        let connect =
            async { tokio_tungstenite::client_async(url, TcpStream::from_std(stream).expect("a socket")).await };
        let (socket, _) = runtime.block_on(connect).expect("a websocket");
        let mut browser =
            Self { runtime, socket, network, commands: 0, complaints: Vec::new(), keeper, _profile: profile };
        for domain in ["Page", "Runtime", "Log", "DOM", "Network"] {
            browser.command(&format!("{domain}.enable"), json!({}));
        }
        browser.resize(1200, 800);
        Some(browser)
    }

    /// One command that succeeds.
    pub fn command(&mut self, method: &str, parameters: Value) -> Value {
        self.ask(method, parameters).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// What the browser answers to one command; complaints that come meanwhile are kept.
    fn ask(&mut self, method: &str, parameters: Value) -> Result<Value, Value> {
        self.commands += 1;
        let id = self.commands;
        let text = json!({ "id": id, "method": method, "params": parameters }).to_string();
        let Self { runtime, socket, complaints, .. } = self;
        let answer = async {
            socket.send(Message::Text(text.into())).await.expect("the browser listens");
            loop {
                let Message::Text(text) = socket.next().await.expect("the browser lives").expect("a frame") else {
                    continue;
                };
                let message: Value = serde_json::from_str(&text).expect("JSON");
                if message["id"] == id {
                    return message;
                }
                complaints.extend(complaint(&message));
            }
        };
        let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, answer).await });
        let mut answer = answer.unwrap_or_else(|_| panic!("{method} took longer than {PATIENCE:?}"));
        match answer.get("error") {
            Some(error) => Err(error.clone()),
            None => Ok(answer["result"].take()),
        }
    }

    pub fn open(&mut self, url: &str) {
        let port = url.parse::<http::Uri>().expect("an address").port_u16().expect("a port");
        self.network.lead(port);
        self.command("Page.navigate", json!({ "url": url }));
    }

    pub fn reload(&mut self) {
        self.value("window.isOld = true");
        self.command("Page.reload", json!({}));
        self.until("it is loaded again", "!window.isOld && document.readyState === 'complete'");
    }

    /// What an expression of JavaScript is.
    pub fn value(&mut self, expression: &str) -> Value {
        value_of(expression, self.ask("Runtime.evaluate", evaluation(expression)))
    }

    pub fn text(&mut self, selector: &str) -> String {
        let expression = format!("[...document.querySelectorAll({selector:?})].map((e) => e.innerText).join('\\n')");
        self.value(&expression).as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an expression is true.
    pub fn until(&mut self, what: &str, expression: &str) {
        let deadline = Instant::now() + 2 * PATIENCE;
        // What it speaks of may not be there yet.
        let asked = format!("(() => {{ try {{ return Boolean({expression}); }} catch {{ return false; }} }})()");
        loop {
            match self.ask("Runtime.evaluate", evaluation(&asked)) {
                // The page that was asked made way for the next one.
                Err(error) if LEFT.iter().any(|left| error.to_string().contains(left)) => {}
                answer => {
                    if value_of(&asked, answer) == true {
                        return;
                    }
                }
            }
            if Instant::now() > deadline {
                let complaints = self.complaints.join("\n");
                panic!("waited until {what}; the page is:\n{}\n{complaints}", self.text("body"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn until_there(&mut self, selector: &str) {
        self.until(&format!("there is {selector}"), &format!("document.querySelector({selector:?})"));
    }

    pub fn until_text(&mut self, selector: &str, text: &str) {
        let expression =
            format!("[...document.querySelectorAll({selector:?})].some((e) => e.innerText.includes({text:?}))");
        self.until(&format!("{selector} says {text:?}"), &expression);
    }

    /// Where somebody would point: something that is covered or outside cannot be clicked. What moved away under the mouse, as
    /// the page is alive, is clicked again.
    pub fn click(&mut self, selector: &str) {
        let aim = format!(
            "(() => {{ const e = document.querySelector({selector:?}); window.isClicked = false;
             e.addEventListener('click', () => window.isClicked = true, {{ once: true }});
             e.scrollIntoView({{ block: 'center' }});
             const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        );
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.until_there(selector);
            let at = self.value(&aim);
            for kind in ["mousePressed", "mouseReleased"] {
                let event = json!({ "type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1 });
                self.command("Input.dispatchMouseEvent", event);
            }
            // Who was led to another document by it has no such mark.
            if self.value("window.isClicked ?? true") == true {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{selector} is not to be clicked at {at}; the page is:\n{}",
                self.text("body")
            );
        }
    }

    /// Replaces what is in a field.
    pub fn fill(&mut self, selector: &str, text: &str) {
        self.until_there(selector);
        let ready = format!(
            "const e = document.querySelector({selector:?}); e.focus(); e.select(); document.activeElement === e"
        );
        assert_eq!(self.value(&format!("{{ {ready} }}")), true, "{selector} cannot be written into");
        self.insert(text);
    }

    /// Types where the focus is.
    pub fn insert(&mut self, text: &str) {
        self.command("Input.insertText", json!({ "text": text }));
    }

    pub fn press(&mut self, key: Key) {
        let (name, code, text) = match key {
            Key::Tab => ("Tab", 9, ""),
            Key::Enter => ("Enter", 13, "\r"),
        };
        let down = json!({ "type": "keyDown", "key": name, "code": name, "windowsVirtualKeyCode": code, "text": text });
        self.command("Input.dispatchKeyEvent", down);
        let up = json!({ "type": "keyUp", "key": name, "code": name, "windowsVirtualKeyCode": code });
        self.command("Input.dispatchKeyEvent", up);
    }

    /// What a user chooses in the dialog of a file input.
    pub fn choose(&mut self, selector: &str, path: &Path) {
        self.until_there(selector);
        let document = self.command("DOM.getDocument", json!({}));
        let found = json!({ "nodeId": document["root"]["nodeId"], "selector": selector });
        let node = self.command("DOM.querySelector", found)["nodeId"].clone();
        self.command("DOM.setFileInputFiles", json!({ "nodeId": node, "files": [path] }));
    }

    /// Drags a file or folder over the page, and drops it there.
    pub fn drop_on_page(&mut self, path: &Path) {
        let data = json!({ "items": [], "files": [path], "dragOperationsMask": 1 });
        for kind in ["dragEnter", "dragOver"] {
            self.command("Input.dispatchDragEvent", json!({ "type": kind, "x": 300, "y": 400, "data": data }));
        }
        self.until("the page says that it takes it", "!document.getElementById('dropping').hidden");
        self.command("Input.dispatchDragEvent", json!({ "type": "drop", "x": 300, "y": 400, "data": data }));
    }

    pub fn resize(&mut self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.command("Emulation.setDeviceMetricsOverride", metrics);
    }

    pub fn prefer(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.command("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// A picture of the whole page, where somebody wants to look at it.
    pub fn picture(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("EPINIOD_TEST_SCREENSHOTS").map(PathBuf::from) else { return };
        let size = self.command("Page.getLayoutMetrics", json!({}))["cssContentSize"].clone();
        let clip = json!({ "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1 });
        let asked = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let picture = self.command("Page.captureScreenshot", asked)["data"].clone();
        let bytes = STANDARD.decode(picture.as_str().expect("a picture")).expect("base64");
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join(format!("{name}.png")), bytes).expect("a file");
    }

    /// Fails when there was a complaint that names none of these.
    pub fn has_not_complained_but_of(&mut self, expected: &[&str]) {
        // What was on its way is here after one more command.
        self.value("1");
        let unexpected = |complaint: &&String| !expected.iter().any(|expected| complaint.contains(expected));
        let complaints: Vec<&String> = self.complaints.iter().filter(unexpected).collect();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

#[derive(Clone, Copy)]
pub enum Key {
    Tab,
    Enter,
}

fn evaluation(expression: &str) -> Value {
    json!({ "expression": expression, "awaitPromise": true, "returnByValue": true })
}

fn value_of(expression: &str, answer: Result<Value, Value>) -> Value {
    let mut answer = answer.unwrap_or_else(|error| panic!("{expression}: {error}"));
    assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
    answer["result"]["value"].take()
}

fn complaint(message: &Value) -> Option<String> {
    let parameters = &message["params"];
    let is_complaint = match message["method"].as_str()? {
        "Runtime.exceptionThrown" => true,
        "Runtime.consoleAPICalled" => parameters["type"] == "error" || parameters["type"] == "warning",
        "Log.entryAdded" => parameters["entry"]["level"] == "error",
        _ => false,
    };
    is_complaint.then(|| parameters.to_string())
}

fn flag(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}
