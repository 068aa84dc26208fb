//! An image in a registry of somebody else: https, but for registries on this machine.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use futures::StreamExt as _;
use oci_distribution::{
    Client, Reference, RegistryOperation,
    client::{ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};

use super::{Error, credentials::credential, upstream::MAX_DOCUMENT};
use crate::{
    blob::ByteStream,
    model::Digest,
    oci::{DOCKER_INDEX, DOCKER_MANIFEST, MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST},
};

const CONNECT: Duration = Duration::from_secs(10);
/// How long a registry may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// Loopback, as lists of exceptions from proxies have it.
const HERE: &str = "127.0.0.0/8,::1,localhost";
const ACCEPTED: [&str; 4] = [MEDIA_TYPE_MANIFEST, MEDIA_TYPE_INDEX, DOCKER_MANIFEST, DOCKER_INDEX];

pub(super) struct Remote {
    name: String,
    reference: Reference,
    auth: RegistryAuth,
    credentials: PathBuf,
    client: Client,
}

impl Remote {
    pub fn new(reference: &Reference, name: &str, credentials: &Path) -> Result<Self, Error> {
        let registry = reference.resolve_registry();
        let by_where_it_is = match is_here(registry) {
            // What this says besides is not used: the one way to keep the proxies of the environment out.
            true => ClientConfig {
                protocol: ClientProtocol::Http,
                http_proxy: Some("http://127.0.0.1".to_owned()),
                no_proxy: Some(HERE.to_owned()),
                ..ClientConfig::default()
            },
            false => ClientConfig { protocol: ClientProtocol::Https, ..ClientConfig::default() },
        };
        let config = ClientConfig {
            connect_timeout: Some(CONNECT),
            read_timeout: Some(SILENCE),
            user_agent: concat!("epiniod/", env!("CARGO_PKG_VERSION")),
            ..by_where_it_is
        };
        let failed = |source| Error::Upstream { image: name.to_owned(), registry: registry.to_owned(), source };
        Ok(Self {
            name: name.to_owned(),
            auth: credential(credentials, registry)?,
            reference: reference.clone(),
            credentials: credentials.to_owned(),
            client: Client::try_from(config).map_err(failed)?,
        })
    }

    /// Manifest or index that the name means now.
    pub async fn first(&self) -> Result<Vec<u8>, Error> {
        // By itself the client goes on without a credential when it gets no token, and the cause is lost.
        let signed_in = self.client.auth(&self.reference, &self.auth, RegistryOperation::Pull).await;
        signed_in.map_err(|error| self.failed(error))?;
        self.pull(&self.reference).await
    }

    pub async fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        self.pull(&self.reference.clone_with_digest(digest.to_string())).await
    }

    pub async fn blob(&self, digest: &Digest) -> Result<ByteStream, Error> {
        let digest = digest.to_string();
        let stream = self.client.pull_blob_stream(&self.reference, digest.as_str()).await;
        Ok(stream.map_err(|error| self.failed(error))?.stream.boxed())
    }

    async fn pull(&self, reference: &Reference) -> Result<Vec<u8>, Error> {
        let pulled = self.client.pull_manifest_raw(reference, &self.auth, &ACCEPTED).await;
        let (bytes, _) = pulled.map_err(|error| self.failed(error))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(Error::malformed(&self.name, "its manifest is larger than 4 MiB"));
        }
        Ok(bytes.into())
    }

    fn failed(&self, source: OciDistributionError) -> Error {
        let (image, registry) = (self.name.clone(), self.reference.resolve_registry().to_owned());
        match reason(&source) {
            Reason::Unknown => Error::Unknown { image },
            Reason::Unauthorized => Error::Unauthorized { image, registry, credentials: self.credentials.clone() },
            Reason::Unreachable => Error::Unreachable { image, registry, source },
            Reason::Other => Error::Upstream { image, registry, source },
        }
    }
}

enum Reason {
    Unknown,
    Unauthorized,
    Unreachable,
    Other,
}

fn reason(error: &OciDistributionError) -> Reason {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => Reason::Unknown,
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            Reason::Unauthorized
        }
        OciDistributionError::ServerError { code, .. } => match code {
            404 => Reason::Unknown,
            401 | 403 => Reason::Unauthorized,
            _ => Reason::Other,
        },
        OciDistributionError::RegistryError { envelope, .. } => {
            let is = |codes: &[OciErrorCode]| envelope.errors.iter().any(|error| codes.contains(&error.code));
            if is(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
                Reason::Unauthorized
            } else if is(&[OciErrorCode::ManifestUnknown, OciErrorCode::NameUnknown, OciErrorCode::NotFound]) {
                Reason::Unknown
            } else {
                Reason::Other
            }
        }
        OciDistributionError::RequestError(_) => Reason::Unreachable,
        _ => Reason::Other,
    }
}

/// Loopback: nobody in between can read or change anything.
fn is_here(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_reached_without_tls() {
        for here in ["localhost", "localhost:5000", "127.0.0.1:30500", "[::1]:5000"] {
            assert!(is_here(here), "{here}");
        }
        for there in ["docker.io", "localhost.example:5000", "10.0.0.1:5000", "127.0.0.1.example"] {
            assert!(!is_here(there), "{there}");
        }
    }
}
