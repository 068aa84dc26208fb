//! The mirrors that the host itself uses: the URLs of its apt sources, never their suites, options or keys.

use std::{fs, path::Path};

use super::Archive;

/// Which mirrors to read from; where none is named, the host's own are found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirrors {
    /// Has `dists/trixie`: `http://ftp.debian.org/debian`.
    pub archive: Option<String>,
    /// Has `dists/trixie-security`.
    pub security: Option<String>,
}

impl Mirrors {
    /// The mirrors to try, best first: only the named one where one is named, else those of the host,
    /// then the public one.
    pub(super) fn candidates(&self, archive: Archive, host: &[String], public: &str) -> Vec<String> {
        let named = match archive {
            Archive::Debian => &self.archive,
            Archive::Security => &self.security,
        };
        if let Some(named) = named {
            return vec![named.trim_end_matches('/').to_owned()];
        }
        let mut candidates: Vec<String> = host.iter().filter(|url| is_likely(url, archive)).cloned().collect();
        if archive == Archive::Security {
            let siblings = host.iter().filter(|url| is_likely(url, Archive::Debian));
            candidates.extend(siblings.map(|url| format!("{url}-security")));
        }
        candidates.extend(host.iter().cloned());
        candidates.push(public.to_owned());
        let mut seen = std::collections::BTreeSet::new();
        candidates.retain(|url| seen.insert(url.clone()));
        candidates
    }
}

/// Debian's mirrors keep its folder names; others in the apt sources are asked last.
fn is_likely(url: &str, archive: Archive) -> bool {
    let folder = url.rsplit('/').next().unwrap_or("");
    match archive {
        Archive::Debian => folder == "debian",
        Archive::Security => matches!(folder, "debian-security" | "security"),
    }
}

/// The URLs of all enabled binary sources below `/etc/apt`, in the order of the files. What cannot be read is left out.
pub(super) fn of_host(apt: &Path) -> Vec<String> {
    let mut files = vec![apt.join("sources.list")];
    let parts = fs::read_dir(apt.join("sources.list.d")).into_iter().flatten().flatten();
    let mut parts: Vec<_> = parts.map(|entry| entry.path()).collect();
    parts.sort();
    files.append(&mut parts);
    let mut urls = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => urls.extend(text.lines().filter_map(one_line)),
            Some("sources") => urls.extend(stanzas(&text)),
            _ => {}
        }
    }
    let urls = urls.into_iter().map(|url| url.trim_end_matches('/').to_owned());
    urls.filter(|url| url.starts_with("http://") || url.starts_with("https://")).collect()
}

/// `deb [options] url suite components` (sources.list(5), one-line style).
fn one_line(line: &str) -> Option<String> {
    let line = line.split('#').next()?.trim().strip_prefix("deb")?;
    let rest = line.strip_prefix([' ', '\t'])?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    rest.split_ascii_whitespace().next().map(str::to_owned)
}

/// The deb822 style: stanzas of fields, whose values may go on over several lines.
fn stanzas(text: &str) -> Vec<String> {
    let mut urls = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let field = |name: &str| {
            let start = stanza
                .iter()
                .position(|line| line.split_once(':').is_some_and(|(field, _)| field.eq_ignore_ascii_case(name)))?;
            let first = stanza[start].split_once(':')?.1;
            let more = stanza[start + 1..].iter().take_while(|line| line.starts_with([' ', '\t']));
            Some(std::iter::once(first).chain(more.copied()).flat_map(str::split_ascii_whitespace).collect::<Vec<_>>())
        };
        let enabled = field("Enabled").is_none_or(|value| !matches!(value[..], ["no" | "false" | "off" | "0"]));
        if enabled && field("Types").is_some_and(|types| types.contains(&"deb")) {
            urls.extend(field("URIs").into_iter().flatten().map(str::to_owned));
        }
    }
    urls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_styles_of_apt_sources_are_read() {
        let apt = tempfile::tempdir().unwrap();
        let parts = apt.path().join("sources.list.d");
        fs::create_dir(&parts).unwrap();
        let list = "# deb http://no/debian x main\ndeb-src http://no/src x main\n\
            deb [arch=amd64 signed-by=/a b] http://one/debian/ bookworm main # x\ndeb cdrom:[x]/ x main\n";
        fs::write(apt.path().join("sources.list"), list).unwrap();
        let sources = "Types: deb deb-src\nURIs: http://two/debian\n https://three/debian-security/\n# c\nSuites: x\n\n\
            Enabled: no\nTypes: deb\nURIs: http://no/off\n\nTypes: deb-src\nURIs: http://no/src\n";
        fs::write(parts.join("b.sources"), sources).unwrap();
        fs::write(parts.join("a.list"), "deb http://zero/ubuntu noble main\n").unwrap();
        fs::write(parts.join("c.list.disabled"), "deb http://no/debian x main\n").unwrap();
        let urls = of_host(apt.path());
        assert_eq!(
            urls,
            ["http://one/debian", "http://zero/ubuntu", "http://two/debian", "https://three/debian-security"]
        );
        assert!(of_host(&apt.path().join("none")).is_empty());
    }

    #[test]
    fn likely_mirrors_come_first_and_the_public_one_last() {
        let host = ["http://a/ubuntu", "http://b/debian", "http://c/debian-security"].map(str::to_owned);
        let mirrors = Mirrors::default();
        let archive = mirrors.candidates(Archive::Debian, &host, "http://p/debian");
        assert_eq!(archive, ["http://b/debian", "http://a/ubuntu", "http://c/debian-security", "http://p/debian"]);
        let security = mirrors.candidates(Archive::Security, &host[..2], "http://p/debian-security");
        assert_eq!(security[0], "http://b/debian-security");
        let named = Mirrors { archive: Some("http://n/".to_owned()), security: None };
        assert_eq!(named.candidates(Archive::Debian, &host, "http://p"), ["http://n"]);
    }
}
