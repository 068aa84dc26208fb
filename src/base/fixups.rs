//! What maintainer scripts would have done, as files that are generated from what packages ship.

use std::collections::BTreeMap;

use super::tree::Access;

/// A path that no package ships.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Generated {
    Folder(Access),
    File(Access, Vec<u8>),
    /// A symbolic link.
    Link(String),
}

/// Contents of package files that fix-ups are made from, by path.
pub(super) type Captured = BTreeMap<String, Vec<u8>>;

/// Whether fix-ups want to see this file.
pub(super) fn is_wanted(path: &str) -> bool {
    is_certificate(path)
        || Php::of(path).is_some()
        || COPIES.iter().any(|(from, _)| *from == path)
        || [PASSWD, GROUP].contains(&path)
}

/// What any layer gets for the packages in it.
pub(super) fn of_layer(captured: &Captured) -> BTreeMap<String, Generated> {
    let mut made = BTreeMap::new();
    for (path, content) in captured {
        let file = || Generated::File(Access::root(0o644), content.clone());
        match Php::of(path) {
            Some(Php::Settings { version, program }) => {
                made.insert(format!("etc/php/{version}/{program}/php.ini"), file());
            }
            Some(Php::Module { version, name }) => {
                let available = format!("etc/php/{version}/mods-available/{name}.ini");
                let text = String::from_utf8_lossy(content);
                let priority = text.lines().find_map(|line| line.strip_prefix("; priority=")).unwrap_or("20").trim();
                for program in PHP_PROGRAMS {
                    let link = format!("etc/php/{version}/{program}/conf.d/{priority}-{name}.ini");
                    made.insert(link, Generated::Link(format!("/{available}")));
                }
                made.insert(available, file());
            }
            None => {}
        }
    }
    made
}

/// A file from which PHP's maintainer scripts make its configuration. Without them no module is loaded.
#[derive(Debug, PartialEq, Eq)]
enum Php<'a> {
    Settings { version: &'a str, program: &'static str },
    Module { version: &'a str, name: &'a str },
}

impl<'a> Php<'a> {
    fn of(path: &'a str) -> Option<Self> {
        if let Some(rest) = path.strip_prefix("usr/lib/php/") {
            return match rest.split_once('/')? {
                (version, "php.ini-production.cli") => Some(Self::Settings { version, program: "cli" }),
                (version, "php.ini-production") => Some(Self::Settings { version, program: "fpm" }),
                _ => None,
            };
        }
        // usr/share/php8.4-mbstring/mbstring/mbstring.ini
        let (package, rest) = path.strip_prefix("usr/share/php")?.split_once('/')?;
        let (version, _) = package.split_once('-')?;
        let (_, name) = rest.split_once('/')?;
        let name = name.strip_suffix(".ini").filter(|name| !name.contains('/'))?;
        version.starts_with(|c: char| c.is_ascii_digit()).then_some(Self::Module { version, name })
    }
}

const PHP_PROGRAMS: [&str; 2] = ["cli", "fpm"];

/// Everything that the lowest layer gets, by path.
pub(super) fn of_lowest_layer(captured: &Captured) -> BTreeMap<String, Generated> {
    let mut made = BTreeMap::new();
    for (path, access) in FOLDERS {
        made.insert(path.to_owned(), Generated::Folder(access));
    }
    for (path, target) in LINKS {
        made.insert(path.to_owned(), Generated::Link(target.to_owned()));
    }
    let mut file = |path: &str, content: Vec<u8>| {
        made.insert(path.to_owned(), Generated::File(Access::root(0o644), content));
    };
    file("etc/timezone", b"Etc/UTC\n".to_vec());
    file("etc/shells", b"/bin/sh\n/usr/bin/sh\n/bin/bash\n/usr/bin/bash\n/bin/dash\n/usr/bin/dash\n".to_vec());
    file("etc/ssl/certs/ca-certificates.crt", certificates(captured));
    for (from, to) in COPIES {
        if let Some(content) = captured.get(from) {
            file(to, content.clone());
        }
    }
    for (from, to, cnb) in ACCOUNTS {
        if let Some(content) = captured.get(from) {
            // In the master files '*' bars the account; the real ones have 'x' and no shadow entry, which bars it as well.
            let content = String::from_utf8_lossy(content).replace(":*:", ":x:");
            file(to, format!("{content}{cnb}").into_bytes());
        }
    }
    made
}

const FOLDERS: [(&str, Access); 8] = [
    ("cnb", Access::root(0o755)),
    ("home/cnb", Access::cnb(0o755)),
    ("layers", Access::cnb(0o755)),
    ("platform", Access::root(0o755)),
    ("root", Access::root(0o700)),
    ("tmp", Access::root(0o1777)),
    ("var/tmp", Access::root(0o1777)),
    ("workspace", Access::cnb(0o755)),
];

/// The first two belong to the package `openssl`, which the base has no other use for: without them Python
/// and Ruby trust no certificate at all.
const LINKS: [(&str, &str); 3] = [
    ("usr/lib/ssl/cert.pem", "/etc/ssl/certs/ca-certificates.crt"),
    ("usr/lib/ssl/certs", "/etc/ssl/certs"),
    ("etc/localtime", "/usr/share/zoneinfo/Etc/UTC"),
];

const COPIES: [(&str, &str); 4] = [
    ("usr/share/base-files/dot.bashrc", "root/.bashrc"),
    ("usr/share/base-files/dot.profile", "root/.profile"),
    ("usr/share/base-files/profile", "etc/profile"),
    ("usr/share/libc-bin/nsswitch.conf", "etc/nsswitch.conf"),
];

const PASSWD: &str = "usr/share/base-passwd/passwd.master";
const GROUP: &str = "usr/share/base-passwd/group.master";

const ACCOUNTS: [(&str, &str, &str); 2] =
    [(PASSWD, "etc/passwd", "cnb:x:1000:1000:CNB user:/home/cnb:/bin/bash\n"), (GROUP, "etc/group", "cnb:x:1000:\n")];

fn is_certificate(path: &str) -> bool {
    path.starts_with("usr/share/ca-certificates/mozilla/") && path.ends_with(".crt")
}

/// All certificates in one file, in order of their names.
fn certificates(captured: &Captured) -> Vec<u8> {
    let mut bundle = Vec::new();
    for (_, content) in captured.iter().filter(|(path, _)| is_certificate(path)) {
        bundle.extend_from_slice(content);
        if !content.ends_with(b"\n") {
            bundle.push(b'\n');
        }
    }
    bundle
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn php_finds_its_modules() {
        let captured: Captured = [
            ("usr/lib/php/8.4/php.ini-production.cli", "[PHP]\n"),
            ("usr/share/php8.4-mbstring/mbstring/mbstring.ini", "extension=mbstring.so\n"),
            ("usr/share/php8.4-common/common/pdo.ini", "; priority=10\nextension=pdo.so\n"),
        ]
        .map(|(path, content)| (path.to_owned(), content.as_bytes().to_vec()))
        .into();
        assert!(captured.keys().all(|path| is_wanted(path)));
        let made = of_layer(&captured);
        let link = |to: &str| Generated::Link(format!("/etc/php/8.4/mods-available/{to}.ini"));
        assert_eq!(made["etc/php/8.4/cli/conf.d/20-mbstring.ini"], link("mbstring"));
        assert_eq!(made["etc/php/8.4/fpm/conf.d/10-pdo.ini"], link("pdo"));
        assert!(
            made.contains_key("etc/php/8.4/cli/php.ini") && made.contains_key("etc/php/8.4/mods-available/pdo.ini")
        );
        for other in ["usr/share/php/x/y.ini", "usr/share/php8.4-common/common/x/y.ini", "usr/lib/php/20240924/a.so"] {
            assert!(!is_wanted(other), "{other}");
        }
    }

    #[test]
    fn accounts_and_certificates_come_from_what_packages_ship() {
        let captured: Captured = [
            (PASSWD, "root:*:0:0:root:/root:/bin/bash\n"),
            (GROUP, "root:*:0:\n"),
            ("usr/share/ca-certificates/mozilla/B.crt", "b"),
            ("usr/share/ca-certificates/mozilla/A.crt", "a\n"),
        ]
        .map(|(path, content)| (path.to_owned(), content.as_bytes().to_vec()))
        .into();
        assert!(captured.keys().all(|path| is_wanted(path)));
        let made = of_lowest_layer(&captured);
        let text = |path: &str| match &made[path] {
            Generated::File(_, content) => String::from_utf8(content.clone()).unwrap(),
            other => panic!("{other:?}"),
        };
        let passwd = "root:x:0:0:root:/root:/bin/bash\ncnb:x:1000:1000:CNB user:/home/cnb:/bin/bash\n";
        assert_eq!(text("etc/passwd"), passwd);
        assert_eq!(text("etc/group"), "root:x:0:\ncnb:x:1000:\n");
        assert_eq!(text("etc/ssl/certs/ca-certificates.crt"), "a\nb\n");
        assert_eq!(made["workspace"], Generated::Folder(Access::cnb(0o755)));
    }
}
