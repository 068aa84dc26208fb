//! What each route needs, and what the audit log calls it: the one place that decides how far a token reaches.
//!
//! A route that is not declared here is reached by users and by no token, and what it does is in the audit log under its
//! method and path unless it is a GET: who adds a route and forgets this table opens nothing and hides nothing. A test finds
//! such routes.

use axum::http::Method;

use crate::auth::{
    Place, Principal,
    Scope::{self, Admin, Push, Read},
};

/// A route that is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    method: &'static str,
    path: &'static str,
    /// Any of these.
    scopes: &'static [Scope],
    place: Where,
    /// None is a route that changes nothing.
    action: Option<&'static str>,
}

/// Where a route takes the namespace from that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    /// Its parameter `namespace`.
    Path,
    /// It is about all of them, or about the daemon.
    Everywhere,
    /// It is about none, or shows what the caller may see.
    Anywhere,
}

const ANY: &[Scope] = &[Read, Push, Admin];
const READ: &[Scope] = &[Read];
const PUSH: &[Scope] = &[Push];
/// What becomes of a push, without the environment of anything.
const FOLLOW: &[Scope] = &[Read, Push];
const ADMIN: &[Scope] = &[Admin];

const fn read(path: &'static str, scopes: &'static [Scope], place: Where) -> Route {
    Route { method: "GET", path, scopes, place, action: None }
}

const fn change(
    method: &'static str,
    path: &'static str,
    scopes: &'static [Scope],
    place: Where,
    action: &'static str,
) -> Route {
    Route { method, path, scopes, place, action: Some(action) }
}

use Where::{Anywhere, Everywhere, Path};

#[rustfmt::skip]
const ROUTES: &[Route] = &[
    read("/api/v1/info", ANY, Anywhere),
    read("/api/v1/me", ANY, Anywhere),
    read("/api/v1/authtoken", ANY, Anywhere),
    read("/api/v1/namespaces", READ, Anywhere),
    change("POST", "/api/v1/namespaces", ADMIN, Everywhere, "namespace.create"),
    change("DELETE", "/api/v1/namespaces", ADMIN, Everywhere, "namespace.delete"),
    // Clients ask whether a namespace is there before they push.
    read("/api/v1/namespaces/{namespace}", FOLLOW, Path),
    change("DELETE", "/api/v1/namespaces/{namespace}", ADMIN, Everywhere, "namespace.delete"),
    read("/api/v1/namespacematches", READ, Anywhere),
    read("/api/v1/namespacematches/", READ, Anywhere),
    read("/api/v1/namespacematches/{pattern}", READ, Anywhere),
    read("/api/v1/applications", READ, Anywhere),
    read("/api/v1/namespaces/{namespace}/applications", READ, Path),
    change("POST", "/api/v1/namespaces/{namespace}/applications", PUSH, Path, "app.create"),
    change("DELETE", "/api/v1/namespaces/{namespace}/applications", ADMIN, Path, "app.delete"),
    read("/api/v1/namespaces/{namespace}/appsmatches", READ, Path),
    read("/api/v1/namespaces/{namespace}/appsmatches/", READ, Path),
    read("/api/v1/namespaces/{namespace}/appsmatches/{pattern}", READ, Path),
    read("/api/v1/namespaces/{namespace}/staging/{stage}/complete", FOLLOW, Path),
    read("/api/v1/namespaces/{namespace}/staging/{stage}", FOLLOW, Path),
    read("/api/v1/namespaces/{namespace}/applications/{app}", READ, Path),
    change("PATCH", "/api/v1/namespaces/{namespace}/applications/{app}", PUSH, Path, "app.update"),
    change("DELETE", "/api/v1/namespaces/{namespace}/applications/{app}", ADMIN, Path, "app.delete"),
    read("/api/v1/namespaces/{namespace}/applications/{app}/validate-cv", FOLLOW, Path),
    change("POST", "/api/v1/namespaces/{namespace}/applications/{app}/store", PUSH, Path, "app.upload"),
    change("POST", "/api/v1/namespaces/{namespace}/applications/{app}/stage", PUSH, Path, "app.stage"),
    change("POST", "/api/v1/namespaces/{namespace}/applications/{app}/deploy", PUSH, Path, "app.deploy"),
    change("POST", "/api/v1/namespaces/{namespace}/applications/{app}/restart", PUSH, Path, "app.restart"),
    read("/api/v1/namespaces/{namespace}/applications/{app}/environment", READ, Path),
    change("POST", "/api/v1/namespaces/{namespace}/applications/{app}/environment", PUSH, Path, "app.env.set"),
    read("/api/v1/namespaces/{namespace}/applications/{app}/environment/{name}", READ, Path),
    change("DELETE", "/api/v1/namespaces/{namespace}/applications/{app}/environment/{name}", PUSH, Path, "app.env.unset"),
    change("PUT", "/push/{namespace}/{app}", PUSH, Path, "app.push"),
    change("POST", "/push/{namespace}/{app}", PUSH, Path, "app.push"),
    read("/push/{namespace}/{app}/{stage}", FOLLOW, Path),
    // It has routes of all namespaces.
    read("/daemon/routes", READ, Everywhere),
    read("/metrics", READ, Everywhere),
    read("/daemon/namespaces/{namespace}/applications/{app}/releases", READ, Path),
    read("/daemon/namespaces/{namespace}/applications/{app}/stagings", READ, Path),
    read("/wapi/v1/namespaces/{namespace}/applications/{app}/logs", READ, Path),
    change("GET", "/wapi/v1/namespaces/{namespace}/applications/{app}/exec", ADMIN, Path, "app.exec"),
    change("GET", "/wapi/v1/namespaces/{namespace}/applications/{app}/portforward", ADMIN, Path, "app.port-forward"),
    read("/wapi/v1/namespaces/{namespace}/staging/{stage}/logs", FOLLOW, Path),
    read("/wapi/v1/namespaces/{namespace}/staging/{stage}/complete", FOLLOW, Path),
    read("/daemon/tokens", ADMIN, Everywhere),
    change("POST", "/daemon/tokens", ADMIN, Everywhere, "token.create"),
    change("DELETE", "/daemon/tokens/{token}", ADMIN, Everywhere, "token.delete"),
    read("/daemon/audit", ADMIN, Everywhere),
    change("POST", "/daemon/stop", ADMIN, Everywhere, "daemon.stop"),
];

/// The route of a request, by the pattern that its path matched. HEAD is GET without an answer.
pub(super) fn declared(method: &Method, path: &str) -> Option<&'static Route> {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    ROUTES.iter().find(|route| route.path == path && route.method == method.as_str())
}

/// Whether somebody may do this. Deny by default.
pub(super) fn permits(route: Option<&Route>, principal: &Principal, namespace: Option<&str>) -> bool {
    let Some(route) = route else { return principal.token.is_none() };
    let place = match (route.place, namespace) {
        (Where::Path, Some(namespace)) => Place::Namespace(namespace),
        (Where::Path, None) | (Where::Everywhere, _) => Place::Everywhere,
        (Where::Anywhere, _) => Place::Anywhere,
    };
    principal.may(route.scopes, place)
}

/// What the audit log calls it; none when nothing is changed.
pub(super) fn action(route: Option<&Route>, method: &Method, path: &str) -> Option<String> {
    match route {
        Some(route) => route.action.map(str::to_owned),
        None if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) => None,
        None => Some(format!("{method} {path}")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{api, auth::Pass, auth::Role};

    fn with(scope: Scope, namespaces: &[&str]) -> Principal {
        let namespaces = namespaces.iter().map(|name| name.parse().unwrap()).collect();
        let token = Some(Pass { name: "ci".parse().unwrap(), scopes: vec![scope], namespaces });
        Principal { name: "admin".parse().unwrap(), role: Role::Admin, token }
    }

    /// The methods of each path of a router, as its `Debug` has them: there is no other way to ask for them.
    fn routes_of(text: &str) -> BTreeSet<(String, String)> {
        let ids = text.split("route_id_to_path").nth(1).or_else(|| text.split("paths: {").nth(1)).unwrap_or(text);
        let paths: Vec<(String, String)> = ids
            .split("RouteId(")
            .skip(1)
            .filter_map(|part| {
                let (id, rest) = part.split_once(')')?;
                Some((id.to_owned(), rest.strip_prefix(": \"")?.split('"').next()?.to_owned()))
            })
            .collect();
        let mut found = BTreeSet::new();
        for (id, path) in paths {
            let router = text.split(&format!("RouteId({id}): MethodRouter(")).nth(1).unwrap_or_default();
            let router = router.split("RouteId(").next().unwrap_or_default();
            for method in ["get", "post", "put", "patch", "delete"] {
                let field = router.split(&format!(" {method}: ")).nth(1).unwrap_or_default();
                if !field.is_empty() && !field.starts_with("None") {
                    found.insert((method.to_uppercase(), path.clone()));
                }
            }
        }
        found
    }

    #[test]
    fn every_route_is_declared_and_no_other() {
        let served: BTreeSet<_> = api::guarded_routes().iter().flat_map(|router| routes_of(router)).collect();
        let declared: BTreeSet<_> =
            ROUTES.iter().map(|route| (route.method.to_owned(), route.path.to_owned())).collect();
        assert!(served.len() > 40, "the search is broken: {served:#?}");
        // That of the daemon's room is not here.
        let own = ("POST".to_owned(), "/daemon/stop".to_owned());
        let missing: Vec<_> = served.difference(&declared).collect();
        let gone: Vec<_> = declared.difference(&served).filter(|route| **route != own).collect();
        assert!(missing.is_empty(), "declare what these need: {missing:#?}");
        assert!(gone.is_empty(), "nobody serves these: {gone:#?}");
    }

    #[test]
    fn a_token_reaches_nothing_that_is_not_declared_and_nothing_of_another_namespace() {
        let nothing = declared(&Method::GET, "/api/v1/services");
        assert_eq!(nothing, None);
        for scope in ANY {
            assert!(!permits(nothing, &with(*scope, &[]), Some("shop")));
        }
        for route in ROUTES {
            for scope in ANY {
                let own = permits(Some(route), &with(*scope, &["shop"]), Some("shop"));
                let other = permits(Some(route), &with(*scope, &["shop"]), Some("blog"));
                let all = permits(Some(route), &with(*scope, &[]), Some("blog"));
                let expected = *scope == Admin || route.scopes.contains(scope);
                assert_eq!(all, expected, "{scope:?} {route:?}");
                assert_eq!(own, expected && route.place != Where::Everywhere, "{scope:?} {route:?}");
                assert_eq!(other, expected && route.place == Where::Anywhere, "{scope:?} {route:?}");
            }
            let user = Principal { token: None, ..with(Read, &[]) };
            assert!(permits(Some(route), &user, Some("blog")), "{route:?}");
        }
    }

    #[test]
    fn what_changes_something_is_in_the_audit_log() {
        for route in ROUTES {
            assert!(route.action.is_some() || route.method == "GET", "{route:?}");
            // Who only reads changes nothing, and the other way round.
            assert!(route.action.is_none() || !route.scopes.contains(&Read), "{route:?}");
            assert!(route.place != Where::Path || route.path.contains("{namespace}"), "{route:?}");
        }
        let undeclared = action(None, &Method::PUT, "/api/v1/services");
        assert_eq!(undeclared.as_deref(), Some("PUT /api/v1/services"));
        assert_eq!(action(None, &Method::GET, "/api/v1/services"), None);
    }
}
