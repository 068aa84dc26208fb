//! Where an application is reached: a host, and perhaps a path below it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// `host` or `host/path`, as users and Epinio write it. The host is lower case; the path is empty
/// or starts with `/` and does not end with one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Route {
    host: String,
    path: String,
}

impl Route {
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Empty for the whole host.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Does a request for this path belong here? `/api` takes `/api` and `/api/x`, not `/apix`.
    pub fn takes_path(&self, path: &str) -> bool {
        path.strip_prefix(self.path.as_str())
            .is_some_and(|rest| self.path.is_empty() || rest.is_empty() || rest.starts_with('/'))
    }
}

/// Not a route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("route '{route}' is not valid: {rule}")]
pub struct InvalidRoute {
    route: String,
    rule: &'static str,
}

impl FromStr for Route {
    type Err = InvalidRoute;

    fn from_str(text: &str) -> Result<Self, InvalidRoute> {
        let invalid = |rule| InvalidRoute { route: text.chars().filter(|c| !c.is_control()).take(200).collect(), rule };
        let (host, path) = match text.split_once('/') {
            Some((host, path)) => (host, format!("/{path}")),
            None => (text, String::new()),
        };
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.contains("://") {
            return Err(invalid("give the host without 'http://' or 'https://'"));
        }
        if host.is_empty() || host.len() > 253 || !host.split('.').all(label) {
            return Err(invalid("the host must be a DNS name such as 'app.example.com', without a port"));
        }
        if !path.bytes().all(|c| c.is_ascii_graphic() && !matches!(c, b'?' | b'#' | b'%' | b'\\'))
            || path.contains("//")
        {
            return Err(invalid("the path may have letters, digits and '-_.~/' only"));
        }
        Ok(Self { host: host.to_ascii_lowercase(), path: path.trim_end_matches('/').to_owned() })
    }
}

impl TryFrom<String> for Route {
    type Error = InvalidRoute;

    fn try_from(text: String) -> Result<Self, InvalidRoute> {
        text.parse()
    }
}

impl From<Route> for String {
    fn from(route: Route) -> String {
        route.to_string()
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.host, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_a_host_and_perhaps_a_path() {
        let route: Route = "App.Localhost/api/".parse().unwrap();
        assert_eq!((route.host(), route.path()), ("app.localhost", "/api"));
        assert!(route.takes_path("/api") && route.takes_path("/api/x") && !route.takes_path("/apix"));
        for bad in ["", "/x", "http://a.b", "a b", "a..b", "a:80", "a/b?c", "-a.b"] {
            assert!(bad.parse::<Route>().is_err(), "{bad}");
        }
    }
}
