//! Credentials for registries of others, as `docker login` writes them.

use std::{collections::BTreeMap, io, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use oci_distribution::secrets::RegistryAuth;
use serde::Deserialize;

use super::Error;

/// Docker's own name for its registry in this file, and the one that clients know it by.
const DOCKER: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

#[derive(Debug, Default, Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Debug, Default, Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// The credential for a registry (`host` or `host:port`); anonymous where the file, or an entry in it, is missing.
pub(super) fn credential(path: &Path, registry: &str) -> Result<RegistryAuth, Error> {
    let failed = |cause: String| Error::Credentials { path: path.to_owned(), cause };
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(RegistryAuth::Anonymous),
        text => text.map_err(|error| failed(error.to_string()))?,
    };
    let file: File = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
    let Some((name, entry)) = file.auths.into_iter().find(|(name, _)| is_for(name, registry)) else {
        return Ok(RegistryAuth::Anonymous);
    };
    match entry {
        Entry { username: Some(name), password: Some(password), .. } => Ok(RegistryAuth::Basic(name, password)),
        Entry { auth: Some(auth), .. } => {
            decode(&auth).ok_or_else(|| failed(format!("'auth' of {name} is not the base64 of NAME:PASSWORD")))
        }
        _ => Err(failed(format!("{name} has neither 'auth' nor 'username' and 'password'"))),
    }
}

fn decode(auth: &str) -> Option<RegistryAuth> {
    let text = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    Some(RegistryAuth::Basic(name.to_owned(), password.to_owned()))
}

/// Entries may be URLs: `https://index.docker.io/v1/`.
fn is_for(entry: &str, registry: &str) -> bool {
    let host = entry.split_once("://").map_or(entry, |(_, rest)| rest).split('/').next().unwrap_or_default();
    host == registry || DOCKER.contains(&host) && DOCKER.contains(&registry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_by_host() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.json");
        assert_eq!(credential(&path, "a.example").unwrap(), RegistryAuth::Anonymous);
        let text = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "bWU6cGE6c3M="},
            "a.example:5000": {"username": "you", "password": "x"}, "b.example": {}}, "credsStore": "other"}"#;
        std::fs::write(&path, text).unwrap();
        let basic = |name: &str, password: &str| RegistryAuth::Basic(name.to_owned(), password.to_owned());
        assert_eq!(credential(&path, "index.docker.io").unwrap(), basic("me", "pa:ss"));
        assert_eq!(credential(&path, "a.example:5000").unwrap(), basic("you", "x"));
        assert_eq!(credential(&path, "a.example").unwrap(), RegistryAuth::Anonymous);
        assert!(credential(&path, "b.example").unwrap_err().to_string().contains("b.example has neither"));
        std::fs::write(&path, "{").unwrap();
        assert!(credential(&path, "a").unwrap_err().to_string().contains("registries.json"));
    }
}
