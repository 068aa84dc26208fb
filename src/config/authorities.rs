//! The certificate authorities of Mozilla, compiled in: for machines and images that have none.

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// RFC 7468: at most so many characters in a line.
const LINE: usize = 64;

/// All of them, as the text that TLS libraries read (PEM).
pub fn embedded_authorities() -> String {
    let mut text = String::new();
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        let encoded = STANDARD.encode(certificate);
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in encoded.as_bytes().chunks(LINE) {
            text.extend(line.iter().copied().map(char::from));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}
