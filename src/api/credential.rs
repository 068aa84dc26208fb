//! Who is calling, whether they may, and what the audit log says of it: one gate for all routes that want a credential.

use std::net::Ipv4Addr;

use axum::{
    extract::{FromRequestParts, MatchedPath, Query, RawPathParams, Request, State},
    http::{HeaderMap, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse as _, IntoResponseParts, Response, ResponseParts},
};

use super::{
    ApiError, ApiState,
    access::{self, Route},
    namespaces::listed,
};
use crate::{
    auth::{Auth, ClientAddress, Entry, Error, Principal, Scope},
    telemetry::{in_request, new_request_id},
};

/// The user of a request that has passed.
#[derive(Debug, Clone)]
pub(super) struct Caller(pub Principal);

/// What a request was about, where its path does not say so: for the audit log.
#[derive(Debug, Clone)]
pub(super) struct Named(pub String);

/// How long the names of one line of the audit log may be, in characters.
const NAMES: usize = 256;

/// A credential in a header, on everything but what says otherwise.
pub(super) async fn require(state: State<ApiState>, parameters: Parameters, request: Request, next: Next) -> Response {
    if is_of_another_site(&request) {
        return ApiError::new(StatusCode::FORBIDDEN, "requests from the pages of other sites are refused")
            .into_response();
    }
    let asked = Asked::of(&request, parameters);
    in_request(new_request_id(), async move {
        let header = authorization(request.headers());
        let identified = state.auth.identify(header.as_deref(), asked.from).await;
        pass(&state.auth, asked, identified, request, next).await
    })
    .await
}

/// The token of a websocket, as a parameter: browsers cannot send a header with them.
pub(super) async fn require_token(
    state: State<ApiState>,
    parameters: Parameters,
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
    next: Next,
) -> Response {
    let asked = Asked::of(&request, parameters);
    in_request(new_request_id(), async move {
        let token = query.iter().find(|(name, _)| name == "authtoken").map_or("", |(_, token)| token);
        let identified = state.auth.verify_websocket(token, asked.from);
        pass(&state.auth, asked, identified, request, next).await
    })
    .await
}

async fn pass(
    auth: &Auth,
    asked: Asked,
    identified: Result<Principal, Error>,
    mut request: Request,
    next: Next,
) -> Response {
    let principal = match identified {
        Ok(principal) => principal,
        Err(error) => return ApiError::from(error).into_response(),
    };
    let line = asked.line(auth, &principal);
    if !access::permits(asked.route, &principal, asked.namespace.as_deref()) {
        let refused = too_far(&principal).into_response();
        return Line::end(line, refused);
    }
    request.extensions_mut().insert(Caller(principal));
    let response = next.run(request).await;
    Line::end(line, response)
}

fn too_far(principal: &Principal) -> ApiError {
    let title = match &principal.token {
        Some(token) => {
            let scopes = token.scopes.iter().map(|scope| name_of(*scope)).collect::<Vec<_>>().join(", ");
            let namespaces = token.namespaces.iter().map(AsRef::<str>::as_ref).collect::<Vec<_>>().join(", ");
            let within = if namespaces.is_empty() { String::new() } else { format!(" in namespace {namespaces}") };
            format!("token '{}' does not reach this far: it is for {scopes}{within}", token.name)
        }
        None => format!("user '{}' may not do this", principal.name),
    };
    ApiError::new(StatusCode::FORBIDDEN, title)
}

fn name_of(scope: Scope) -> &'static str {
    match scope {
        Scope::Read => "read",
        Scope::Push => "push",
        Scope::Admin => "admin",
    }
}

/// What a request is about.
struct Asked {
    route: Option<&'static Route>,
    action: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    from: ClientAddress,
}

impl Asked {
    fn of(request: &Request, Parameters(parameters): Parameters) -> Self {
        let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        let route = access::declared(request.method(), path);
        let find = |name: &str| parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let query = request.uri().query();
        let many = [listed(query, "applications"), listed(query, "namespaces")].concat().join(",");
        // Who asks without the listeners in front is this process.
        let unknown = ClientAddress::direct(Ipv4Addr::UNSPECIFIED.into());
        let name = find("app").or_else(|| find("token")).or_else(|| find("stage")).or(Some(many));
        Self {
            route,
            action: access::action(route, request.method(), path),
            namespace: find("namespace"),
            name: name.filter(|name| !name.is_empty()).map(shorten),
            from: request.extensions().get::<ClientAddress>().copied().unwrap_or(unknown),
        }
    }

    /// The line of a change.
    fn line<'a>(&self, auth: &'a Auth, principal: &Principal) -> Option<Line<'a>> {
        let action = self.action.clone()?;
        let entry = Entry {
            user: Some(principal.name.to_string()),
            token: principal.token.as_ref().map(|token| token.name.to_string()),
            namespace: self.namespace.clone().map(shorten),
            name: self.name.clone(),
            ..Entry::new(action, self.from)
        };
        Some(Line { auth, entry })
    }
}

fn shorten(name: String) -> String {
    if name.chars().count() > NAMES { name.chars().take(NAMES).collect::<String>() + "…" } else { name }
}

/// A line of the audit log. It is written when the change has ended, also by a client that went away or by a panic.
struct Line<'a> {
    auth: &'a Auth,
    entry: Entry,
}

impl Line<'_> {
    fn end(line: Option<Self>, mut response: Response) -> Response {
        let named = response.extensions_mut().remove::<Named>();
        if let Some(mut line) = line {
            line.entry.status = Some(response.status().as_u16());
            line.entry.name = named.map(|Named(name)| shorten(name)).or_else(|| line.entry.name.take());
        }
        response
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.auth.audit().write(&self.entry);
    }
}

fn authorization(headers: &HeaderMap) -> Option<String> {
    headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap_or_default().to_owned())
}

/// Browsers send the credential of a user also where another page asks; applications here are such pages.
fn is_of_another_site(request: &Request) -> bool {
    let text = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    if text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return true;
    }
    let host = request.uri().authority().map(|authority| authority.as_str()).or_else(|| text("host"));
    text("origin").is_some_and(|origin| origin.split_once("://").map(|(_, origin)| origin) != host)
}

/// The parameters of the path; none where they are not UTF-8, which whoever reads them says.
pub(super) struct Parameters(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let parameters = RawPathParams::from_request_parts(parts, state).await;
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Ok(Self(parameters.map(|parameters| parameters.iter().map(owned).collect()).unwrap_or_default()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| ApiError::new(StatusCode::UNAUTHORIZED, "missing credentials"))
    }
}

impl IntoResponseParts for Named {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut response: ResponseParts) -> Result<ResponseParts, Self::Error> {
        response.extensions_mut().insert(self);
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;
    use crate::{
        auth::{Audit, Role},
        store::{DiskStore, Objects},
    };

    #[tokio::test]
    async fn a_change_whose_client_went_away_has_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::new(DiskStore::open(&dir.path().join("store")).unwrap());
        let auth = Auth::open(objects, Audit::to_files(dir.path()).unwrap()).await.unwrap();
        let principal = Principal { name: "admin".parse().unwrap(), role: Role::Admin, token: None };
        let request = Request::delete("/api/v1/services").body(Body::empty()).unwrap();
        let begun = Asked::of(&request, Parameters(Vec::new())).line(&auth, &principal);
        assert_eq!(auth.audit().last(10).unwrap().unwrap(), [] as [String; 0], "it has not ended");
        drop(begun);
        let line: serde_json::Value = serde_json::from_str(&auth.audit().last(10).unwrap().unwrap().remove(0)).unwrap();
        assert_eq!((&line["user"], &line["status"]), (&"admin".into(), &serde_json::Value::Null), "{line}");
    }

    #[test]
    fn pages_of_other_sites_are_told_apart() {
        for (headers, foreign) in [
            (&[][..], false),
            (&[("sec-fetch-site", "same-origin"), ("origin", "http://epinio.localhost:8080")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("sec-fetch-site", "cross-site")], true),
            (&[("sec-fetch-site", "same-site")], true),
            (&[("origin", "http://shop.localhost:8080")], true),
            (&[("origin", "null")], true),
        ] {
            let mut request = Request::builder().header("host", "epinio.localhost:8080");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            assert_eq!(is_of_another_site(&request.body(Body::empty()).unwrap()), foreign, "{headers:?}");
        }
    }
}
