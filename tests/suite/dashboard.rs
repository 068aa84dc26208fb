//! The web page, in a real browser: what a user does with it, with a mouse, by keyboard, on a phone and in the dark.
//!
//! With `EPINIOD_TEST_SCREENSHOTS=FOLDER` pictures of it are left there, to be looked at.

use std::{path::PathBuf, process::Command, time::Duration};

use crate::support::{Daemon, copy, get, request, sample, wait_until, write};

mod browser;
mod parts;
mod still;

use self::browser::{Browser, Key};

/// Pages of an application, and what each has to have before it is looked at.
const PARTS: [(&str, &str); 5] = [
    ("overview", "table[aria-label=Instances] td"),
    ("log", ".log div"),
    ("builds", ".phases li"),
    ("releases", "table[aria-label=Releases] td"),
    ("environment", "table[aria-label=Environment] td"),
];

fn home(daemon: &Daemon) -> String {
    format!("http://epinio.localhost:{}/", daemon.port)
}

fn log_in(browser: &mut Browser, daemon: &Daemon) {
    browser.open(&home(daemon));
    browser.fill("#login-user", "admin");
    browser.fill("#login-password", &daemon.password);
    browser.press(Key::Enter);
    browser.until_text("#user", "admin");
}

/// A copy of the Procfile sample that says what it was started with, and has files that are not to be sent.
fn talker(daemon: &Daemon) -> PathBuf {
    let source = daemon.dir().join("talker");
    copy(&sample("procfile"), &source);
    let text = std::fs::read_to_string(source.join("serve.sh")).unwrap();
    let says = "echo \"<b id=hostile>begins with</b> ${GREETING:-none}\"\nexec socat";
    write(&source, "serve.sh", &text.replace("exec socat", says));
    write(&source, "node_modules/left/index.js", "left out");
    write(&source, ".epinioignore", "*.secret\n");
    write(&source, "deep/er/key.secret", "ignored");
    source
}

#[test]
fn the_files_of_the_page_are_served_and_nothing_of_the_api_is_hidden() {
    let daemon = Daemon::start();
    let page = request(&["-i", &daemon.api("/")]).unwrap();
    assert_eq!(page.status, 200);
    let head = page.body.to_lowercase();
    for wanted in [
        "content-type: text/html",
        "cache-control: no-cache",
        "content-security-policy: default-src 'self'",
        "frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
    ] {
        assert!(head.contains(wanted), "{wanted} is not in {head}");
    }
    assert!(!page.body.contains("<script>") && !page.body.contains(" style="), "the policy forbids what is inline");
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("a tag").to_owned();
    assert_eq!(request(&["-H", &format!("If-None-Match: {tag}"), &daemon.api("/")]).unwrap().status, 304);
    assert!(get(&daemon.api("/dashboard/main.js")).unwrap().body.contains("import"));
    for (path, status) in [
        ("/dashboard/none.js", 404),
        ("/nonsense", 404),
        ("/ready", 200),
        ("/push/workspace/a", 401),
        ("/api/v1/me", 401),
    ] {
        assert_eq!(get(&daemon.api(path)).unwrap().status, status, "{path}");
    }
    let app = format!("http://nobody.localhost:{}/", daemon.port);
    assert_eq!(get(&app).unwrap().status, 404, "the page is on the API's own hosts only");
}

#[test]
fn who_logs_in_sees_applications_and_who_logs_out_leaves_nothing() {
    let Some(mut browser) = Browser::start("the web page: logging in") else { return };
    let daemon = Daemon::start();
    browser.open(&home(&daemon));
    browser.fill("#login-user", "admin");
    browser.fill("#login-password", "wrong");
    browser.click("button.main");
    browser.until_text("[role=alert]", "wrong user or password");
    browser.picture("login-wrong");
    browser.fill("#login-password", &daemon.password);
    browser.press(Key::Enter);
    browser.until_text("#user", "admin");
    browser.until_text("main", "There are none yet");
    browser.open(&format!("{}#/push", home(&daemon)));
    browser.reload();
    browser.until_there("#folder");
    assert_eq!(browser.value("sessionStorage.length + '/' + localStorage.length + '/' + document.cookie"), "1/0/");
    browser.click("#logout");
    browser.until_there("#login-user");
    assert_eq!(browser.value("sessionStorage.length"), 0);
    browser.open(&format!("{}#/push", home(&daemon)));
    browser.until_there("#login-user");
    // A token is as good as a password; one that is none is refused.
    browser.click("form button.plain");
    browser.fill("#login-token", "no-such-token");
    browser.press(Key::Enter);
    browser.until_text("[role=alert]", "token");
    browser.has_not_complained_but_of(&["/api/v1/me"]);
}

#[test]
fn a_folder_becomes_an_application_that_is_looked_at_scaled_changed_and_restarted() {
    let Some(mut browser) = Browser::start("the web page: an application") else { return };
    let daemon = Daemon::start();
    let source = talker(&daemon);
    log_in(&mut browser, &daemon);
    browser.click("nav a[href='#/push']");
    browser.choose("#folder", &source);
    browser.until_text("form", "Left out: node_modules, 1 named by .epinioignore.");
    assert_eq!(browser.value("document.querySelector('#name').value"), "talker");
    browser.picture("push-form");
    browser.click("form button.main");
    browser.until_text(".log", "===> BUILDING");
    browser.until_there(".url a");
    assert_eq!(browser.text(".url a"), daemon.url("talker"));
    assert!(get(&daemon.url("talker")).unwrap().body.contains("Hello from"));
    assert!(browser.text(".phases").contains("deploy"), "{}", browser.text(".phases"));
    browser.picture("pushed");

    browser.click("nav a[href='#/']");
    browser.until_text("tbody", "talker");
    let row = browser.text("tbody");
    assert!(["running", "1/1", "talker.localhost"].iter().all(|part| row.contains(part)), "{row}");
    browser.click("tbody a.name");
    browser.until_text("table[aria-label=Instances]", "talker-1-0");
    browser.fill("#instances", "2");
    browser.press(Key::Enter);
    browser.until_text("table[aria-label=Instances]", "talker-1-1");
    browser.until_text("[role=status]", "Scaled to 2");

    browser.click("a[data-part=log]");
    browser.until_text(".log", "<b id=hostile>begins with</b> none");
    assert_eq!(browser.value("document.querySelectorAll('#hostile').length"), 0, "a log became markup");
    browser.click("a[data-part=environment]");
    browser.fill("#variable", "GREETING");
    browser.fill("#value", "moin");
    browser.click("form button.main");
    browser.until_text("[role=status]", "GREETING is set");
    assert!(!browser.text("table[aria-label=Environment]").contains("moin"), "values are covered");
    browser.click("input[type=checkbox]");
    browser.until_text("table[aria-label=Environment]", "moin");
    browser.click("a[data-part=log]");
    browser.until_text(".log", "begins with</b> moin");

    browser.click("a[data-part=overview]");
    browser.until_text("table[aria-label=Instances]", "talker-2-1");
    browser.click("form button[type=button]");
    browser.until_text("[role=status]", "Restarted");
    browser.until_text("table[aria-label=Instances]", "talker-3-0");
    browser.click("a[data-part=releases]");
    browser.until("the third release serves", "document.querySelector('tbody tr').innerText.match(/#3\\s+serves/)");
    browser.until_text("table[aria-label=Releases]", "retired");
    browser.click("table[aria-label=Releases] a");
    browser.until_text(".phases", "export");
    browser.until_text(".log", "===> EXPORTING");
    look_at_everything(&mut browser);
    browser.has_not_complained_but_of(&[]);
}

/// On a phone and in the dark; a picture of each page.
fn look_at_everything(browser: &mut Browser) {
    for (look, scheme, width) in [("light", "light", 1200), ("phone", "light", 360), ("dark", "dark", 1200)] {
        browser.prefer(scheme);
        browser.resize(width, 800);
        let pages = PARTS.map(|(part, wanted)| (part, format!("#/apps/workspace/talker/{part}"), wanted));
        let others = [("list", "#/".to_owned(), "tbody a.name"), ("push", "#/push".to_owned(), "#folder")];
        for (name, hash, wanted) in pages.into_iter().chain(others) {
            browser.value(&format!("location.hash = {hash:?}"));
            browser.until_there(wanted);
            let outside = "[...document.querySelectorAll('main :not(thead *)')]
                .filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML)";
            assert_eq!(browser.value(outside), serde_json::json!([]), "{name} is wider than {width} pixels");
            assert_eq!(browser.value("document.documentElement.scrollWidth <= innerWidth"), true, "{name} at {width}");
            browser.picture(&format!("{name}-{look}"));
        }
        let luminance = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + +b, 0)";
        let is_dark = browser.value(luminance).as_f64().expect("a colour") < 200.0;
        assert_eq!(is_dark, scheme == "dark", "{look}");
    }
}

#[test]
fn what_is_dropped_is_pushed_and_what_fails_says_why() {
    let Some(mut browser) = Browser::start("the web page: drag and drop") else { return };
    let daemon = Daemon::start();
    log_in(&mut browser, &daemon);
    let source = daemon.dir().join("My Shop");
    copy(&sample("procfile"), &source);
    browser.drop_on_page(&source);
    browser.until("the folder names the application", "document.querySelector('#name')?.value === 'my-shop'");
    browser.press(Key::Enter);
    browser.until_there(".url a");
    assert!(get(&daemon.url("my-shop")).unwrap().body.contains("Hello from"));

    write(&source, "Procfile", "web: echo these are my last words; exit 3\n");
    let archive = daemon.dir().join("next.tar.gz");
    let packed = Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(&source).arg(".").status();
    assert!(packed.unwrap().success());
    browser.click("main a.button[href='#/apps/workspace/my-shop']");
    // The page that pushed has the name in its heading as well.
    browser.until_text("main", "Push a new version");
    browser.drop_on_page(&archive);
    browser.until("the application is the one that was shown", "document.querySelector('#name')?.value === 'my-shop'");
    assert!(browser.text("form").contains("next.tar.gz"), "{}", browser.text("form"));
    browser.click("form button.main");
    browser.until_text("[role=alert]", "exit code 3; what ran before still does");
    browser.until_text(".log", "these are my last words");
    browser.picture("push-failed");
    wait_until("the old version serves", Duration::from_secs(20), || {
        get(&daemon.url("my-shop")).is_ok_and(|answer| answer.body.contains("Hello from"))
    });

    let text = daemon.dir().join("letter.tar");
    std::fs::write(&text, "Dear reader").unwrap();
    browser.value("location.hash = '#/push'");
    browser.choose("#archive", &text);
    browser.until_there("#name");
    browser.click("form button.main");
    browser.until_text("[role=alert]", "archive");
    browser.has_not_complained_but_of(&["/push/workspace/"]);
}

#[test]
fn certificates_are_shown_with_their_end_and_what_is_wrong_with_them() {
    let Some(mut browser) = Browser::start("the web page: certificates") else { return };
    let daemon = Daemon::start();
    daemon.push("shop", &sample("procfile"));
    daemon.run(["apps", "scale", "shop", "0"]);
    // What the daemon would say with TLS, and later.
    let script = r#"const ask = window.fetch;
        const after = (days) => new Date(Date.now() + days * 86400000 + 3600000).toISOString();
        window.told = { host: "shop.localhost", path: "", certificate: { issuer: "R3", expires: after(83), state: "valid" } };
        window.fetch = (path, ...more) => path === "/daemon/routes" ? Promise.resolve(Response.json([window.told])) : ask(path, ...more);
        window.after = after;"#;
    browser.command("Page.addScriptToEvaluateOnNewDocument", serde_json::json!({ "source": script }));
    log_in(&mut browser, &daemon);
    browser.until_text("tbody", "expires in 83 days");
    browser.until_text("tbody", "stopped");
    browser.value("window.told.certificate.expires = window.after(3)");
    browser.value("window.told.certificate.message = 'no answer from the authority'");
    browser.until_text("tbody .badge.warn", "expires in 3 days");
    browser.until_text("tbody", "no answer from the authority");
    browser.picture("certificates");
    browser.value("location.hash = '#/apps/workspace/shop'");
    browser.until_text("table[aria-label=Routes]", "expires in 3 days");
    browser.has_not_complained_but_of(&[]);
}

#[test]
fn a_daemon_that_is_away_is_told_and_waited_for() {
    let Some(mut browser) = Browser::start("the web page: without its daemon") else { return };
    let mut daemon = Daemon::start();
    let source = talker(&daemon);
    daemon.push("talker", &source);
    log_in(&mut browser, &daemon);
    browser.value("location.hash = '#/apps/workspace/talker/log'");
    browser.until_text(".log", "begins with");
    daemon.kill();
    browser.until_text("#offline", "does not answer");
    daemon.resume();
    browser.until("the daemon answers again", "document.getElementById('offline').hidden");
    daemon.run(["apps", "env", "set", "talker", "GREETING", "back"]);
    browser.until_text(".log", "begins with</b> back");
}

#[test]
fn the_keyboard_reaches_what_the_mouse_does() {
    let Some(mut browser) = Browser::start("the web page: by keyboard") else { return };
    let daemon = Daemon::start();
    daemon.push("shop", &sample("procfile"));
    browser.open(&home(&daemon));
    browser.until("the first field has the focus", "document.activeElement.id === 'login-user'");
    browser.insert("admin");
    browser.press(Key::Tab);
    browser.insert(&daemon.password);
    browser.press(Key::Enter);
    browser.until_text("tbody", "shop");
    let tabbed = |browser: &mut Browser, last: &str| {
        let mut seen = Vec::new();
        while seen.last().is_none_or(|seen| seen != last) {
            assert!(seen.len() < 30, "{last} is not reached: {seen:?}");
            browser.press(Key::Tab);
            let named = "(document.activeElement.innerText || document.activeElement.id || 'nothing').trim()";
            seen.push(browser.value(named).as_str().unwrap_or_default().to_owned());
            let outlined = "getComputedStyle(document.activeElement).outlineStyle !== 'none'";
            assert_eq!(browser.value(outlined), true, "who is at {seen:?} does not see it");
        }
        seen
    };
    assert_eq!(browser.value("document.activeElement.innerText"), "Applications", "the page begins at its heading");
    browser.reload();
    browser.until_text("tbody", "shop");
    let seen = tabbed(&mut browser, "shop");
    assert_eq!(seen, ["Skip to content", "epiniod", "Applications", "Push", "Log out", "Push", "shop"]);
    browser.press(Key::Enter);
    browser.until_text("table[aria-label=Instances]", "shop-1-0");
    assert_eq!(browser.value("document.activeElement.innerText"), "shop", "the new page begins at its heading");
    let seen = tabbed(&mut browser, "Restart");
    for wanted in ["Push a new version", "Log", "Builds", "Releases", "Environment", "instances", "Scale"] {
        assert!(seen.iter().any(|seen| seen == wanted), "{wanted} is not among {seen:?}");
    }
    browser.press(Key::Enter);
    browser.until_text("[role=status]", "Restarted");
    browser.has_not_complained_but_of(&[]);
}
