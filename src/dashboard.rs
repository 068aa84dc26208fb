//! The web page on the API's hosts: a few static files that are compiled in, from `embedded/dashboard`.
//!
//! They are served without a credential, as there is no secret in them: the page is one more client of the API, and asks its
//! user for a credential. There is no build step and no framework. Browsers are told to run nothing but these files, to
//! speak with nobody but this daemon, and to show the page in no other.

use std::future::ready;

use axum::{
    Router,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};

use crate::model::Digest;

/// What the page and its files are answered with. Forms are handled by scripts: one that were sent by the browser could
/// have a password in its URL.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// A file of the page.
#[derive(Clone, Copy)]
struct File {
    path: &'static str,
    kind: &'static str,
    content: &'static str,
}

macro_rules! files {
    ($($name:literal as $kind:ident),* $(,)?) => {
        [$(File {
            path: concat!("/dashboard/", $name),
            kind: $kind,
            content: include_str!(concat!("../embedded/dashboard/", $name)),
        }),*]
    };
}

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const ICON: &str = "image/svg+xml";

const PAGE: File =
    File { path: "/", kind: "text/html; charset=utf-8", content: include_str!("../embedded/dashboard/index.html") };
const FILES: [File; 19] = files![
    "api.js" as SCRIPT,
    "app-page.js" as SCRIPT,
    "apps-page.js" as SCRIPT,
    "builds.js" as SCRIPT,
    "dom.js" as SCRIPT,
    "environment.js" as SCRIPT,
    "folder.js" as SCRIPT,
    "icon.svg" as ICON,
    "log.js" as SCRIPT,
    "login.js" as SCRIPT,
    "main.js" as SCRIPT,
    "overview.js" as SCRIPT,
    "phases.js" as SCRIPT,
    "push-page.js" as SCRIPT,
    "push.js" as SCRIPT,
    "releases.js" as SCRIPT,
    "routes.js" as SCRIPT,
    "style.css" as STYLE,
    "tar.js" as SCRIPT,
];

/// `/` and what the page loads, below `/dashboard/`.
pub fn router() -> Router {
    FILES.into_iter().chain([PAGE]).fold(Router::new(), |router, file| {
        let tag = format!("\"{}\"", Digest::of(file.content));
        router.route(file.path, get(move |asked: HeaderMap| ready(answer(&file, &tag, &asked))))
    })
}

/// A browser asks each time whether what it has is still right: another daemon may have another page.
fn answer(file: &File, tag: &str, asked: &HeaderMap) -> Response {
    let headers = [
        (header::CONTENT_TYPE, file.kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::ETAG, tag),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    if is_known(tag, asked) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    (headers, file.content).into_response()
}

/// RFC 9110, section 13.1.2; proxies that compress make a tag a weak one.
fn is_known(tag: &str, asked: &HeaderMap) -> bool {
    let known = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value: &HeaderValue| value.to_str().ok());
    known.flat_map(|tags| tags.split(',')).any(|known| {
        let known = known.trim();
        known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_files_are_served_and_the_page_is_small() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/embedded/dashboard");
        let there: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| format!("/dashboard/{}", entry.unwrap().file_name().into_string().unwrap()))
            .filter(|path| path != "/dashboard/index.html")
            .collect();
        let served: BTreeSet<String> = FILES.iter().map(|file| file.path.to_owned()).collect();
        assert_eq!(served, there);
        let size: usize = FILES.iter().map(|file| file.content.len()).sum();
        assert!(size + PAGE.content.len() < 70_000, "{size} bytes");
    }

    #[test]
    fn what_a_browser_has_is_not_sent_again() {
        let asked = |text: &str| HeaderMap::from_iter([(header::IF_NONE_MATCH, text.parse().unwrap())]);
        for (text, known) in [("\"a\"", true), ("W/\"a\"", true), ("\"b\", \"a\"", true), ("*", true), ("\"b\"", false)]
        {
            assert_eq!(is_known("\"a\"", &asked(text)), known, "{text}");
        }
        let answered = answer(&PAGE, "\"a\"", &asked("\"a\""));
        assert_eq!(answered.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(answer(&PAGE, "\"a\"", &HeaderMap::new()).status(), StatusCode::OK);
    }
}
