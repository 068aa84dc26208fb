//! Which domains somebody owns: certificates of the public are for those.

/// Services that have an address for each name with one in it.
const MAGIC: [&str; 4] = ["sslip.io", "nip.io", "xip.io", "traefik.me"];
const LOCALHOST: &str = "localhost";

/// Neither of this machine alone, nor everybody's.
pub fn is_public_domain(domain: &str) -> bool {
    domain != LOCALHOST && !MAGIC.iter().any(|magic| domain.strip_suffix(magic).is_some_and(|rest| rest.ends_with('.')))
}

/// The name that stands for all that are where a host is (RFC 9525, section 6.3).
pub fn wildcard_of(host: &str) -> Option<String> {
    Some(format!("*.{}", host.split_once('.')?.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_everybody_has_is_nobodys() {
        assert!(is_public_domain("apps.example.com") && is_public_domain("notsslip.io"));
        assert!(["localhost", "192.0.2.7.sslip.io", "x.nip.io"].into_iter().all(|domain| !is_public_domain(domain)));
    }
}
