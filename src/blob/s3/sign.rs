//! Signatures, version 4, as rust-s3 computes them. What sends is the one HTTP client of this program.

use ::s3::{error::S3Error, region::Region, signing, utils::now_utc};
use http::{
    HeaderMap, HeaderValue,
    header::{AUTHORIZATION, HOST, HeaderName},
};
use reqwest::{Method, Url};
use ring::hmac;

use super::keys::Keys;

/// Adds what a request needs to be taken: the date, the hash of its body (hexadecimal), and a signature over everything that the
/// headers have by then.
pub(super) fn sign(
    method: &Method,
    url: &Url,
    headers: &mut HeaderMap,
    body: &str,
    region: &Region,
    keys: &Keys,
) -> Result<(), S3Error> {
    let now = now_utc();
    let stamp = jiff::Timestamp::from_second(now.unix_timestamp()).unwrap_or_default().strftime("%Y%m%dT%H%M%SZ");
    headers.insert(HOST, authority(url).parse()?);
    headers.insert(CONTENT_HASH, body.parse()?);
    headers.insert(DATE, stamp.to_string().parse()?);
    if let Some(session) = &keys.session {
        headers.insert(SESSION, HeaderValue::from_str(session)?);
    }
    let signed = signing::signed_header_string(headers);
    let request = format!(
        "{method}\n{}\n{}\n{}\n{signed}\n{body}",
        signing::canonical_uri_string(url),
        signing::canonical_query_string(url),
        canonical_headers(headers)?
    );
    let text = signing::string_to_sign(&now, region, &request)?;
    let key = signing::signing_key(&now, &keys.secret, region, "s3")?;
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), text.as_bytes());
    let signature: String = signature.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let authorization = signing::authorization_header(&keys.access, &now, region, &signed, &signature)?;
    let mut authorization: HeaderValue = authorization.parse()?;
    authorization.set_sensitive(true);
    headers.insert(AUTHORIZATION, authorization);
    Ok(())
}

/// In the order of their names. rust-s3 orders whole lines, where `x-amz-copy-source-range:` is before `x-amz-copy-source:`.
fn canonical_headers(headers: &HeaderMap) -> Result<String, S3Error> {
    let mut lines = Vec::new();
    for (name, value) in headers {
        lines.push((name.as_str(), value.to_str()?.trim()));
    }
    lines.sort_unstable();
    Ok(lines.into_iter().map(|(name, value)| format!("{name}:{value}\n")).collect())
}

/// As clients send it: the port only where it is not that of the scheme.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

const CONTENT_HASH: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const SESSION: HeaderName = HeaderName::from_static("x-amz-security-token");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;

    #[test]
    fn headers_are_in_the_order_of_their_names() {
        let header =
            |name: &'static str, value: &'static str| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let headers = HeaderMap::from_iter([
            header("x-amz-copy-source-range", "bytes=0-1"),
            header("x-amz-copy-source", " /b/k "),
            header("host", "h"),
        ]);
        let canonical = canonical_headers(&headers).unwrap();
        assert_eq!(canonical, "host:h\nx-amz-copy-source:/b/k\nx-amz-copy-source-range:bytes=0-1\n");
    }

    #[test]
    fn everything_that_matters_is_signed_and_no_secret_is_sent() {
        let url: Url = "https://s3.example.com:443/bucket/blobs/x?uploadId=a%2Fb&partNumber=1".parse().unwrap();
        let region = Region::Custom { region: "eu-1".to_owned(), endpoint: "https://s3.example.com".to_owned() };
        let keys = Keys { access: "AK".to_owned(), secret: "SK".to_owned(), session: Some("token".to_owned()) };
        let mut headers = HeaderMap::from_iter([("x-amz-copy-source".parse().unwrap(), "/b/k".parse().unwrap())]);
        sign(&Method::PUT, &url, &mut headers, &Digest::of("").hex(), &region, &keys).unwrap();
        assert_eq!(headers["host"], "s3.example.com");
        let authorization = headers["authorization"].to_str().unwrap();
        assert!(authorization.contains("/eu-1/s3/aws4_request"), "{authorization}");
        let signed = "SignedHeaders=host;x-amz-content-sha256;x-amz-copy-source;x-amz-date;x-amz-security-token,";
        assert!(authorization.contains(signed), "{authorization}");
        assert!(!format!("{headers:?}").contains("SK"));
    }
}
