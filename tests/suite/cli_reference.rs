//! The whole reference of the command line, as it was read last. A change of it is a change for users.

use std::{fs, path::Path};

#[test]
fn the_reference_is_the_one_that_was_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/cli_reference.txt");
    let reference = epiniod::cli::reference();
    if std::env::var_os("EPINIOD_ACCEPT_REFERENCE").is_some() {
        fs::write(&path, &reference).expect("the reference can be written");
    }
    let known = fs::read_to_string(&path).unwrap_or_default();
    let difference = reference.lines().zip(known.lines()).find(|(now, before)| now != before);
    assert!(
        reference == known,
        "the reference has changed, first at (now, before) {difference:?}; read it, and accept it with \
         EPINIOD_ACCEPT_REFERENCE=1 cargo test cli_reference"
    );
}
