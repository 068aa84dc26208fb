//! From a request to what it asks for. Repository names have slashes, so paths are taken apart by hand.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, DefaultBodyLimit, Query, Request, State},
    http::{Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{Action, Authenticator, Change, Credential, Error, Registry, Verdict};
use crate::model::Digest;

pub(super) type Parameters = HashMap<String, String>;

#[derive(Clone)]
struct Server {
    registry: Registry,
    authenticator: Arc<dyn Authenticator>,
}

/// What a path below `/v2/` names.
enum Resource<'a> {
    Root,
    Catalog,
    Blob(&'a str),
    Uploads,
    Upload(&'a str),
    Manifest(&'a str),
    Tags,
    Referrers(&'a str),
}

pub(super) fn router(registry: Registry, authenticator: Arc<dyn Authenticator>) -> Router {
    Router::new().fallback(serve).layer(DefaultBodyLimit::disable()).with_state(Server { registry, authenticator })
}

async fn serve(State(server): State<Server>, Query(parameters): Query<Parameters>, request: Request) -> Response {
    let method = request.method().clone();
    match answer(&server, &parameters, request).await {
        Ok(response) => response,
        Err(error) if method == Method::HEAD => {
            let mut response = error.into_response();
            *response.body_mut() = Body::empty();
            response
        }
        Err(error) => error.into_response(),
    }
}

async fn answer(server: &Server, parameters: &Parameters, request: Request) -> Result<Response, Error> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let (repository, resource) = parse(&path)?;
    let action = match head.method {
        _ if matches!(resource, Resource::Catalog) => Action::Catalog,
        Method::GET | Method::HEAD => Action::Pull,
        Method::DELETE if !matches!(resource, Resource::Upload(_)) => Action::Delete,
        _ => Action::Push,
    };
    // The state of an upload is only for who may push.
    let action = if matches!(resource, Resource::Upload(_)) { Action::Push } else { action };
    let result = match permit(server, &head, repository, action).await {
        Ok(()) => carry_out(server, parameters, &head, body, repository, &resource).await,
        Err(error @ (Error::Unauthorized | Error::Wait(_))) => return Err(error),
        Err(error) => Err(error),
    };
    if let (Action::Push | Action::Delete, Resource::Manifest(reference)) = (action, &resource) {
        let status = result.as_ref().map_or_else(|error| error.code().0, Response::status).as_u16();
        let change = Change { action, repository: repository.unwrap_or_default(), reference, status };
        server.authenticator.changed(credential(&head), change).await;
    }
    result
}

async fn carry_out(
    server: &Server,
    parameters: &Parameters,
    head: &Parts,
    body: Body,
    repository: Option<&str>,
    resource: &Resource<'_>,
) -> Result<Response, Error> {
    let registry = &server.registry;
    let repository = repository.unwrap_or_default();
    match (&head.method, resource) {
        (&Method::GET | &Method::HEAD, Resource::Root) => Ok(Json(json!({})).into_response()),
        (&Method::GET, Resource::Catalog) => registry.catalog(parameters).await,
        (&Method::GET, Resource::Tags) => registry.list_tags(repository, parameters).await,
        (&Method::GET, Resource::Referrers(digest)) => {
            registry.referrers(repository, parse_digest(digest)?, parameters).await
        }
        (&Method::GET, Resource::Manifest(reference)) => registry.manifest(repository, reference).await,
        (&Method::HEAD, Resource::Manifest(reference)) => {
            Ok(without_body(registry.manifest(repository, reference).await?))
        }
        (&Method::PUT, Resource::Manifest(reference)) => {
            registry.put_manifest(repository, reference, &head.headers, body).await
        }
        (&Method::DELETE, Resource::Manifest(reference)) => registry.delete_manifest(repository, reference).await,
        (&Method::GET, Resource::Blob(digest)) => registry.blob(repository, parse_digest(digest)?, &head.headers).await,
        (&Method::HEAD, Resource::Blob(digest)) => registry.blob_head(repository, parse_digest(digest)?).await,
        (&Method::DELETE, Resource::Blob(digest)) => registry.delete_blob(repository, parse_digest(digest)?).await,
        (&Method::POST, Resource::Uploads) => {
            if let (Some(digest), Some(from)) = (parameters.get("mount"), parameters.get("from")) {
                let readable = permit(server, head, Some(from), Action::Pull).await.is_ok();
                if readable && let Some(response) = registry.mount(repository, from, parse_digest(digest)?).await? {
                    return Ok(response);
                }
            }
            registry.start_upload(repository, parameters, body).await
        }
        (&Method::PATCH, Resource::Upload(id)) => registry.append(repository, id, &head.headers, body).await,
        (&Method::PUT, Resource::Upload(id)) => registry.finish(repository, id, parameters, &head.headers, body).await,
        (&Method::GET, Resource::Upload(id)) => registry.upload_status(repository, id).await,
        (&Method::DELETE, Resource::Upload(id)) => registry.cancel(repository, id).await,
        _ => Err(Error::Unsupported),
    }
}

async fn permit(server: &Server, head: &Parts, repository: Option<&str>, action: Action) -> Result<(), Error> {
    match server.authenticator.permits(credential(head), repository, action).await {
        Verdict::Allowed => Ok(()),
        Verdict::Unknown => Err(Error::Unauthorized),
        Verdict::Denied => Err(Error::Denied),
        Verdict::Wait { seconds } => Err(Error::Wait(seconds)),
        Verdict::Unavailable => Err(Error::Unchecked),
    }
}

fn credential(head: &Parts) -> Credential<'_> {
    let header = head.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let peer = head.extensions.get::<ConnectInfo<SocketAddr>>();
    let from = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |ConnectInfo(peer)| peer.ip());
    Credential { header, from }
}

fn parse(path: &str) -> Result<(Option<&str>, Resource<'_>), Error> {
    let unknown = || Error::NameInvalid(path.chars().take(200).collect());
    let rest = path.strip_prefix("/v2").ok_or_else(unknown)?;
    let rest = match rest {
        "" | "/" => return Ok((None, Resource::Root)),
        "/_catalog" => return Ok((None, Resource::Catalog)),
        rest => rest.strip_prefix('/').ok_or_else(unknown)?,
    };
    let (repository, resource) = if let Some(name) = rest.strip_suffix("/tags/list") {
        (name, Resource::Tags)
    } else if let Some(name) = rest.strip_suffix("/blobs/uploads/").or_else(|| rest.strip_suffix("/blobs/uploads")) {
        (name, Resource::Uploads)
    } else {
        let (front, last) = rest.rsplit_once('/').ok_or_else(unknown)?;
        let (name, kind) = front.rsplit_once('/').ok_or_else(unknown)?;
        match kind {
            "manifests" => (name, Resource::Manifest(last)),
            "blobs" => (name, Resource::Blob(last)),
            "referrers" => (name, Resource::Referrers(last)),
            "uploads" => (name.strip_suffix("/blobs").ok_or_else(unknown)?, Resource::Upload(last)),
            _ => return Err(unknown()),
        }
    };
    if is_name(repository) { Ok((Some(repository), resource)) } else { Err(Error::NameInvalid(repository.to_owned())) }
}

/// distribution-spec, "Pulling manifests": `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/…)*`.
fn is_name(name: &str) -> bool {
    let alphanumeric = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let component = |component: &str| {
        let bytes = component.as_bytes();
        let separators = component.split(|c: char| c.is_ascii_alphanumeric()).filter(|separator| !separator.is_empty());
        !bytes.is_empty()
            && bytes.iter().all(|c| alphanumeric(*c) || matches!(c, b'.' | b'_' | b'-'))
            && alphanumeric(bytes[0])
            && alphanumeric(bytes[bytes.len() - 1])
            && separators
                .into_iter()
                .all(|separator| matches!(separator, "." | "_" | "__") || separator.bytes().all(|c| c == b'-'))
    };
    name.len() <= 255 && name.split('/').all(component)
}

pub(super) fn parse_digest(text: &str) -> Result<Digest, Error> {
    text.parse().map_err(|_| Error::DigestInvalid(text.chars().take(100).collect()))
}

fn without_body(mut response: Response) -> Response {
    *response.body_mut() = Body::empty();
    response
}

/// 201 with where something is.
pub(super) fn created(location: String, digest: Digest) -> Response {
    let headers = [(header::LOCATION.as_str(), location), ("Docker-Content-Digest", digest.to_string())];
    (StatusCode::CREATED, headers).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_specification() {
        for good in ["a", "workspace/app", "epiniod/cache/a/b", "a.b", "a_b", "a__b", "a--b"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "A", "a/", "/a", "a//b", "-a", "a-", "a..b", "a___b", "a/../b"] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn paths_are_taken_apart_from_the_end() {
        let (name, resource) = parse("/v2/a/blobs/b/manifests/latest").ok().unwrap();
        assert_eq!(name, Some("a/blobs/b"));
        assert!(matches!(resource, Resource::Manifest("latest")));
        assert!(parse("/v1/x").is_err() && parse("/v2/x").is_err());
    }
}
