//! Chance: what nobody guesses, and names that nobody else has.

use ring::rand::{SecureRandom as _, SystemRandom};

/// That many bytes of the kernel's.
pub fn random<const BYTES: usize>() -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    SystemRandom::new().fill(&mut bytes).expect("the kernel has random bytes");
    bytes
}

/// The same, as text of twice the length.
pub fn random_hex<const BYTES: usize>() -> String {
    hex(&random::<BYTES>())
}

/// Hexadecimal, lower case.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
