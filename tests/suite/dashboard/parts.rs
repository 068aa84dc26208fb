//! Parts of the page by themselves, in the browser: what is left out of a folder, the archive that is made of it, and logs.

use std::io::Read as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Browser, home};
use crate::support::Daemon;

const RULES: &str = "# a comment\nnode_modules\n*.log\n!keep.log\n/build/\nsub/*.txt\na/**/z\n**/deep\nfoo/**\n[ab].c\n[!x].d\n\\#x\nq?\n[z-a]\n";

#[test]
fn what_is_ignored_is_what_git_ignores() {
    let Some(mut browser) = Browser::start("the web page: .epinioignore") else { return };
    let daemon = Daemon::start();
    browser.open(&home(&daemon));
    browser.until_there("#login-user");
    for (path, ignored) in [
        ("x/node_modules/a", true),
        ("a.log", true),
        ("x/keep.log", false),
        ("build/x", true),
        ("x/build/y", false),
        ("build", false),
        ("sub/a.txt", true),
        ("q/sub/a.txt", false),
        ("sub/x/a.txt", false),
        ("a/z", true),
        ("a/b/c/z", true),
        ("q/deep/x", true),
        ("foo/x", true),
        ("foo", false),
        ("a.c", true),
        ("c.c", false),
        ("y.d", true),
        ("x.d", false),
        ("#x", true),
        ("qa", true),
        ("q", false),
        ("axlog", false),
    ] {
        let expression = format!(
            "import('/dashboard/folder.js').then((it) => Boolean(it.isIgnored({path:?}, false, it.parse({RULES:?}))))"
        );
        assert_eq!(browser.value(&expression), ignored, "{path}");
    }
    let nearer = "import('/dashboard/folder.js').then((it) =>
        ['a.x', 's/a.x'].map((path) => Boolean(it.isIgnored(path, false, [...it.parse('*.x'), ...it.parse('!a.x', 's/')]))))";
    assert_eq!(browser.value(nearer), serde_json::json!([true, false]), "a file further down has the last word");
    for (text, name) in [("My App_2.0 ", "my-app-2-0"), ("2048-game", "game"), ("--", "")] {
        let expression = format!("import('/dashboard/folder.js').then((it) => it.appName({text:?}))");
        assert_eq!(browser.value(&expression), name);
    }
}

#[test]
fn the_archive_of_a_folder_is_one_that_others_read() {
    let Some(mut browser) = Browser::start("the web page: archives") else { return };
    let daemon = Daemon::start();
    browser.open(&home(&daemon));
    browser.until_there("#login-user");
    let long = format!("{}/ünïcode/{}.txt", "deep".repeat(20), "long".repeat(30));
    let expression = format!(
        "import('/dashboard/tar.js').then(async ({{ pack }}) => {{
             const files = [['run', '#!/bin/sh\\n'], [{long:?}, 'long'], ['block', 'x'.repeat(512)], ['none', '']];
             const blob = await pack([...files.map(([path, text]) => ({{ path, file: new Blob([text]) }})), {{ path: 'empty' }}]);
             return btoa(String.fromCharCode(...new Uint8Array(await blob.arrayBuffer())));
         }})"
    );
    let archive = STANDARD.decode(browser.value(&expression).as_str().expect("an archive")).expect("base64");
    let mut archive = tar::Archive::new(&archive[..]);
    let read: Vec<(String, u32, String)> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let (path, mode) = (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap());
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (path, mode, text)
        })
        .collect();
    let expected = [
        ("block".to_owned(), 0o644, "x".repeat(512)),
        (long, 0o644, "long".to_owned()),
        ("empty/".to_owned(), 0o755, String::new()),
        ("none".to_owned(), 0o644, String::new()),
        ("run".to_owned(), 0o755, "#!/bin/sh\n".to_owned()),
    ];
    assert_eq!(read, expected);
}

#[test]
fn a_log_that_floods_keeps_the_page_small() {
    let Some(mut browser) = Browser::start("the web page: logs") else { return };
    let daemon = Daemon::start();
    browser.open(&home(&daemon));
    browser.until_there("#login-user");
    let expression = "import('/dashboard/log.js').then(({ Log }) => {
        window.log = new Log('flood');
        document.body.append(window.log.element);
        for (let line = 0; line < 50000; line += 1) window.log.add(`line \\u001b[31m${line}\\u001b[0m`, 'shop-1-0');
    })";
    browser.value(expression);
    browser.until_text(".log", "shop-1-0 line 49999");
    browser.value("window.log.add('one more')");
    browser.until_text(".log", "one more");
    assert_eq!(browser.value("document.querySelector('.log').childElementCount"), 2000);
    browser.until("its end is seen", "(({ scrollTop, clientHeight, scrollHeight }) => scrollTop + clientHeight > scrollHeight - 2)(document.querySelector('.log'))");
    browser.has_not_complained_but_of(&[]);
}
