//! How an authority for certificates is named, and whom it may write to.

/// Let's Encrypt.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Its twin for trials: nobody trusts what it signs, and its limits are high.
const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

/// The URL of the directory of an authority, which may have a name; none for what is neither.
pub fn directory_of_authority(named: &str) -> Option<String> {
    let is_url =
        |text: &str| text.parse::<http::Uri>().is_ok_and(|uri| uri.scheme() == Some(&http::uri::Scheme::HTTPS));
    match named {
        "letsencrypt" => Some(LETS_ENCRYPT.to_owned()),
        "letsencrypt-staging" => Some(LETS_ENCRYPT_STAGING.to_owned()),
        url => Some(url.to_owned()).filter(|url| is_url(url)),
    }
}

/// As far as that can be seen without writing to it.
pub fn is_mail_address(text: &str) -> bool {
    text.contains('@') && !text.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_has_a_name_or_a_url() {
        assert_eq!(directory_of_authority("letsencrypt").as_deref(), Some(LETS_ENCRYPT));
        let url = "https://ca.example.org/acme";
        assert_eq!(directory_of_authority(url).as_deref(), Some(url));
        assert!(
            ["http://ca.example.org", "zerossl", "https://", ""]
                .into_iter()
                .all(|text| directory_of_authority(text).is_none())
        );
    }
}
