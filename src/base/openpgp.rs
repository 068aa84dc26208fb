//! Verification of clear-signed text with pinned OpenPGP keys (RFC 4880 and RFC 9580, the part that Debian uses).
//!
//! Known are version 4 keys and signatures, RSA and legacy Ed25519, SHA-256 and SHA-512. The keys are
//! trusted because they are pinned: no self-signature, expiry or revocation is looked at. White space at the end of
//! lines is outside a clear signature by design, so what comes back is the normalised text that was
//! hashed, never the file that was read.

use base64::Engine as _;
use ring::{digest, signature};

/// The keys that are trusted.
#[derive(Debug, Clone)]
pub struct Keyring {
    keys: Vec<PublicKey>,
}

impl Keyring {
    /// Debian's keys for trixie: stable release, archive and security archive.
    pub fn debian() -> Self {
        const FILES: [&[u8]; 3] = [
            include_bytes!("../../embedded/base/debian-archive-trixie-stable.gpg"),
            include_bytes!("../../embedded/base/debian-archive-trixie-automatic.gpg"),
            include_bytes!("../../embedded/base/debian-archive-trixie-security-automatic.gpg"),
        ];
        let keys = FILES.iter().flat_map(|file| Self::from_packets(file).expect("the embedded keys are whole").keys);
        Self { keys: keys.collect() }
    }

    /// The keys and subkeys of an unarmoured transferable public key, or of several.
    pub fn from_packets(bytes: &[u8]) -> Result<Self, InvalidSignature> {
        let mut keys = Vec::new();
        for packet in Packets(bytes) {
            let (tag, body) = packet?;
            if matches!(tag, TAG_PUBLIC_KEY | TAG_PUBLIC_SUBKEY) {
                keys.extend(PublicKey::parse(body)?);
            }
        }
        Ok(Self { keys })
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The signed text of a clear-signed file, when at least one signature is good: lines end with `\n`, without white
    /// space before it.
    pub fn verify(&self, file: &str) -> Result<String, InvalidSignature> {
        let ClearSigned { lines, signatures } = ClearSigned::parse(file)?;
        let canonical = lines.join("\r\n");
        let mut issuers = Vec::new();
        for packet in Packets(&signatures) {
            let (TAG_SIGNATURE, body) = packet? else { continue };
            let Some(signature) = Signature::parse(body)? else { continue };
            let signed = [canonical.as_bytes(), &signature.trailer].concat();
            if self.keys.iter().any(|key| key.verifies(&signed, &signature)) {
                return Ok(lines.join("\n") + "\n");
            }
            issuers.extend(signature.issuer);
        }
        match issuers.is_empty() {
            true => Err(InvalidSignature("it has no signature that could be checked".to_owned())),
            false => {
                Err(InvalidSignature(format!("no good signature by a known key; it names {}", issuers.join(", "))))
            }
        }
    }
}

/// Why a text does not count as signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSignature(String);

const TAG_SIGNATURE: u8 = 2;
const TAG_PUBLIC_KEY: u8 = 6;
const TAG_PUBLIC_SUBKEY: u8 = 14;
const RSA: u8 = 1;
const EDDSA_LEGACY: u8 = 22;
const SHA256: u8 = 8;
const SHA512: u8 = 10;
/// The curve's object identifier with its length in front.
const ED25519_OID: [u8; 10] = [9, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];
const SIGNATURE_CREATION: u8 = 2;
const ISSUER_KEY_ID: u8 = 16;
const ISSUER_FINGERPRINT: u8 = 33;

#[derive(Debug, Clone)]
enum PublicKey {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Ed25519(Vec<u8>),
}

impl PublicKey {
    /// None for a key of a kind that we do not know.
    fn parse(body: &[u8]) -> Result<Option<Self>, InvalidSignature> {
        let mut body = Bytes(body);
        if body.byte()? != 4 {
            return Ok(None);
        }
        body.take(4)?;
        match body.byte()? {
            RSA => Ok(Some(Self::Rsa { n: body.mpi()?.to_vec(), e: body.mpi()?.to_vec() })),
            EDDSA_LEGACY if body.take(ED25519_OID.len())? == ED25519_OID => match body.mpi()? {
                [0x40, point @ ..] if point.len() == 32 => Ok(Some(Self::Ed25519(point.to_vec()))),
                _ => Err(malformed("a key")),
            },
            _ => Ok(None),
        }
    }

    fn verifies(&self, signed: &[u8], signature: &Signature) -> bool {
        match (self, &signature.value) {
            (Self::Rsa { n, e }, Value::Rsa(value)) => {
                let parameters = match signature.hash {
                    SHA256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                    _ => &signature::RSA_PKCS1_2048_8192_SHA512,
                };
                let key = signature::RsaPublicKeyComponents { n: n.as_slice(), e: e.as_slice() };
                padded(value, n.len()).is_some_and(|value| key.verify(parameters, signed, &value).is_ok())
            }
            (Self::Ed25519(point), Value::Eddsa { r, s }) => {
                let algorithm = if signature.hash == SHA256 { &digest::SHA256 } else { &digest::SHA512 };
                let hash = digest::digest(algorithm, signed);
                let key = signature::UnparsedPublicKey::new(&signature::ED25519, point);
                let (Some(r), Some(s)) = (padded(r, 32), padded(s, 32)) else { return false };
                key.verify(hash.as_ref(), &[r, s].concat()).is_ok()
            }
            _ => false,
        }
    }
}

/// A number with zeros in front, so that it has `length` bytes.
fn padded(number: &[u8], length: usize) -> Option<Vec<u8>> {
    let missing = length.checked_sub(number.len())?;
    Some([vec![0; missing].as_slice(), number].concat())
}

struct Signature {
    hash: u8,
    value: Value,
    /// What is hashed after the text.
    trailer: Vec<u8>,
    issuer: Option<String>,
}

enum Value {
    Rsa(Vec<u8>),
    Eddsa { r: Vec<u8>, s: Vec<u8> },
}

impl Signature {
    /// None for a signature of a kind that we do not know: it does not count.
    fn parse(packet: &[u8]) -> Result<Option<Self>, InvalidSignature> {
        let mut body = Bytes(packet);
        let (version, kind, algorithm, hash) = (body.byte()?, body.byte()?, body.byte()?, body.byte()?);
        const CANONICAL_TEXT: u8 = 1;
        if version != 4 || kind != CANONICAL_TEXT || !matches!(hash, SHA256 | SHA512) {
            return Ok(None);
        }
        let hashed_length = usize::from(body.u16()?);
        let hashed = body.take(hashed_length)?;
        let mut issuer = None;
        if !understood(hashed, &mut issuer)? {
            return Ok(None);
        }
        let unhashed_length = usize::from(body.u16()?);
        understood(body.take(unhashed_length)?, &mut issuer)?;
        body.take(2)?;
        let value = match algorithm {
            RSA => Value::Rsa(body.mpi()?.to_vec()),
            EDDSA_LEGACY => Value::Eddsa { r: body.mpi()?.to_vec(), s: body.mpi()?.to_vec() },
            _ => return Ok(None),
        };
        let head = &packet[..6 + hashed_length];
        let length = u32::try_from(head.len()).map_err(|_| malformed("a signature"))?;
        let trailer = [head, &[4, 0xff], &length.to_be_bytes()].concat();
        Ok(Some(Self { hash, value, trailer, issuer }))
    }
}

/// Whether there is no critical subpacket that we do not know (RFC 9580 §5.2.3.7: such a signature is in error).
fn understood(subpackets: &[u8], issuer: &mut Option<String>) -> Result<bool, InvalidSignature> {
    let mut rest = Bytes(subpackets);
    while !rest.0.is_empty() {
        let length = rest.length()?;
        let mut subpacket = Bytes(rest.take(length)?);
        let kind = subpacket.byte()?;
        match kind & 0x7f {
            ISSUER_FINGERPRINT if subpacket.0.len() > 1 => *issuer = Some(hex(&subpacket.0[1..])),
            ISSUER_KEY_ID if issuer.is_none() => *issuer = Some(hex(subpacket.0)),
            ISSUER_FINGERPRINT | ISSUER_KEY_ID | SIGNATURE_CREATION => {}
            _ if kind & 0x80 != 0 => return Ok(false),
            _ => {}
        }
    }
    Ok(true)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

struct ClearSigned<'a> {
    /// Without dash escapes and white space at the end.
    lines: Vec<&'a str>,
    signatures: Vec<u8>,
}

impl<'a> ClearSigned<'a> {
    /// The cleartext signature framework (RFC 9580 §7). Nothing may stand outside of it, and no armour header but `Hash`.
    fn parse(file: &'a str) -> Result<Self, InvalidSignature> {
        let mut rest = file.lines();
        if rest.next().map(str::trim_end) != Some("-----BEGIN PGP SIGNED MESSAGE-----") {
            return Err(InvalidSignature("it does not start with a signed message".to_owned()));
        }
        for header in rest.by_ref().take_while(|line| !line.trim_end().is_empty()) {
            if !header.starts_with("Hash: ") {
                return Err(malformed("the header of the signed message"));
            }
        }
        let mut lines = Vec::new();
        loop {
            let line = rest.next().ok_or_else(|| malformed("the end of the signed message"))?;
            match line.strip_prefix('-') {
                None => lines.push(line),
                Some(escaped) if escaped.starts_with(' ') => lines.push(&escaped[1..]),
                Some(_) if line.trim_end() == "-----BEGIN PGP SIGNATURE-----" => break,
                Some(_) => return Err(malformed("a line of the signed message")),
            }
        }
        for line in &mut lines {
            *line = line.trim_end_matches([' ', '\t', '\r']);
        }
        Ok(Self { lines, signatures: armoured(rest)? })
    }
}

/// The packets of an armoured block whose first line was read.
fn armoured<'a>(mut lines: impl Iterator<Item = &'a str>) -> Result<Vec<u8>, InvalidSignature> {
    let mut lines = lines.by_ref().map(str::trim_end);
    let _headers = lines.by_ref().take_while(|line| !line.is_empty()).count();
    let mut base64 = String::new();
    loop {
        match lines.next() {
            Some("-----END PGP SIGNATURE-----") => break,
            Some(line) if line.starts_with('=') => {}
            Some(line) => base64.push_str(line),
            None => return Err(malformed("the end of the signature")),
        }
    }
    if lines.any(|line| !line.is_empty()) {
        return Err(InvalidSignature("there is text after the signature".to_owned()));
    }
    base64::engine::general_purpose::STANDARD.decode(base64).map_err(|_| malformed("the armour of the signature"))
}

/// Packets with their tags (RFC 9580 §4.2, both formats, no partial lengths).
struct Packets<'a>(&'a [u8]);

impl<'a> Iterator for Packets<'a> {
    type Item = Result<(u8, &'a [u8]), InvalidSignature>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut rest = Bytes(self.0);
        let packet = rest.packet();
        self.0 = if packet.is_ok() { rest.0 } else { &[] };
        Some(packet)
    }
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], InvalidSignature> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(|| malformed("a packet"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, InvalidSignature> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, InvalidSignature> {
        Ok(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    fn u32(&mut self) -> Result<usize, InvalidSignature> {
        Ok(usize::from(self.u16()?) << 16 | usize::from(self.u16()?))
    }

    /// A multiprecision integer without leading zeros: its length is in bits.
    fn mpi(&mut self) -> Result<&'a [u8], InvalidSignature> {
        let bits = usize::from(self.u16()?);
        self.take(bits.div_ceil(8))
    }

    fn packet(&mut self) -> Result<(u8, &'a [u8]), InvalidSignature> {
        let head = self.byte()?;
        let (tag, length) = match (head & 0xc0, head & 3) {
            (0xc0, _) => (head & 0x3f, self.length()?),
            (0x80, 0) => (head >> 2 & 0xf, usize::from(self.byte()?)),
            (0x80, 1) => (head >> 2 & 0xf, usize::from(self.u16()?)),
            (0x80, 2) => (head >> 2 & 0xf, self.u32()?),
            _ => return Err(malformed("a packet")),
        };
        Ok((tag, self.take(length)?))
    }

    /// A length as new packets and subpackets have it.
    fn length(&mut self) -> Result<usize, InvalidSignature> {
        match self.byte()? {
            short @ 0..192 => Ok(usize::from(short)),
            middle @ 192..224 => Ok(((usize::from(middle) - 192) << 8) + usize::from(self.byte()?) + 192),
            255 => self.u32(),
            _ => Err(malformed("a packet")),
        }
    }
}

fn malformed(what: &str) -> InvalidSignature {
    InvalidSignature(format!("{what} is malformed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STABLE: &str = include_str!("../../tests/fixtures/debian/trixie.InRelease");
    const SECURITY: &str = include_str!("../../tests/fixtures/debian/trixie-security.InRelease");

    #[test]
    fn debians_own_signatures_are_good() {
        let keyring = Keyring::debian();
        assert_eq!(keyring.len(), 5);
        for file in [STABLE, SECURITY] {
            let text = keyring.verify(file).unwrap();
            assert!(
                text.starts_with("Origin: Debian\n") && text.contains("\nCodename: trixie") && text.ends_with('\n')
            );
            assert!(!text.contains("PGP"));
        }
    }

    #[test]
    fn rsa_and_ed25519_count_each_for_itself() {
        for (name, file, good) in [
            ("stable", &include_bytes!("../../embedded/base/debian-archive-trixie-stable.gpg")[..], [true, false]),
            ("automatic", include_bytes!("../../embedded/base/debian-archive-trixie-automatic.gpg"), [true, false]),
            (
                "security",
                include_bytes!("../../embedded/base/debian-archive-trixie-security-automatic.gpg"),
                [false, true],
            ),
        ] {
            let keyring = Keyring::from_packets(file).unwrap();
            assert_eq!([STABLE, SECURITY].map(|file| keyring.verify(file).is_ok()), good, "{name}");
        }
    }

    #[test]
    fn whatever_was_changed_is_refused() {
        let keyring = Keyring::debian();
        let hash = "Hash: SHA256\n";
        for (what, file) in [
            ("a word", SECURITY.replacen("Codename: trixie", "Codename: forky", 1)),
            ("a blank line", SECURITY.replacen("\nSHA256:", "\n\nSHA256:", 1)),
            ("a blank at the start of a line", SECURITY.replacen("\nCodename", "\n Codename", 1)),
            ("an armour header", SECURITY.replacen(hash, "Hash: SHA256\nComment: x\n", 1)),
            ("text in front", format!("Codename: x\n{SECURITY}")),
            ("text at the end", format!("{SECURITY}Codename: x\n")),
            ("the end cut off", SECURITY[..SECURITY.len() - 40].to_owned()),
            ("no signature", SECURITY.split("-----BEGIN PGP SIGNATURE").next().unwrap().to_owned()),
            ("nothing", String::new()),
        ] {
            assert!(keyring.verify(&file).is_err(), "{what}");
        }
    }

    #[test]
    fn white_space_at_line_ends_is_not_signed_and_not_returned() {
        let changed = SECURITY.replacen("Codename: trixie-security", "Codename: trixie-security \t", 1);
        let keyring = Keyring::debian();
        assert_eq!(keyring.verify(&changed).unwrap(), keyring.verify(SECURITY).unwrap());
    }
    /// GnuPG's own verifier, which every Debian has for apt, as the judge: what it does not take is not taken here.
    #[test]
    fn gpgv_says_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("InRelease");
        let gpgv = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let mut command = std::process::Command::new("gpgv");
            command.args(["--status-fd", "1", "--homedir"]).arg(dir.path());
            for name in ["stable", "automatic", "security-automatic"] {
                let keys = format!("embedded/base/debian-archive-trixie-{name}.gpg");
                command.arg("--keyring").arg(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(keys));
            }
            command.arg(&file).output().map(|output| String::from_utf8_lossy(&output.stdout).contains("VALIDSIG"))
        };
        let Ok(good) = gpgv(SECURITY) else { return eprintln!("NOT RUN: this test needs gpgv") };
        assert!(good && gpgv(STABLE).unwrap(), "gpgv takes what Debian signed");
        let keyring = Keyring::debian();
        let mut taken = 0;
        // A letter anywhere in what is signed. (Of several signatures one is enough for us, which gpgv leaves to apt.)
        let signed = SECURITY.find("-----BEGIN PGP SIGNATURE").unwrap();
        for at in (0..signed).step_by(signed / 120) {
            let mut bytes = SECURITY.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
            let changed = String::from_utf8(bytes).unwrap();
            if keyring.verify(&changed).is_ok() {
                taken += 1;
                assert!(gpgv(&changed).unwrap(), "gpgv refuses the change at byte {at}");
            }
        }
        assert_eq!(taken, 0, "changes of 120 that were taken");
    }
}
