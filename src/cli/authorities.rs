//! Certificate authorities for a machine that has none: a bare container, a minimal installation.
//!
//! TLS clients look for those of the machine, and builds get the same. Where there are none, the embedded ones of
//! Mozilla are written to the data directory, and `SSL_CERT_FILE` names them. A variable cannot be set safely in a process that runs,
//! hence the process is replaced by itself.

use std::{
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use super::error::Error;
use crate::config;

const VARIABLE: &str = "SSL_CERT_FILE";

/// Makes sure that there are authorities to trust. It does not return when the process had to be replaced.
pub fn ensure(data_dir: &Path) -> Result<(), Error> {
    // Who set the variable knows better.
    if std::env::var_os(VARIABLE).is_some() || config::host_bundle().is_some() {
        return Ok(());
    }
    if !rustls_native_certs::load_native_certs().certs.is_empty() {
        return Ok(());
    }
    let path = data_dir.join("ca-roots.pem");
    write(&path).map_err(|source| Error::Write { path: path.clone(), source })?;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "epiniod".into());
    let own = std::env::current_exe().map_err(Error::Runtime)?;
    Err(Error::Runtime(Command::new(own).arg0(name).args(arguments).env(VARIABLE, path).exec()))
}

fn write(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    let temporary: PathBuf = path.with_extension("new");
    fs::write(&temporary, config::embedded_authorities())?;
    fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_authorities_can_be_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/ca-roots.pem");
        write(&path).unwrap();
        let read = rustls_native_certs::load_certs_from_paths(Some(&path), None);
        assert!(read.errors.is_empty(), "{:?}", read.errors);
        assert!(!read.certs.is_empty());
        for certificate in &read.certs {
            assert!(webpki_root_certs::TLS_SERVER_ROOT_CERTS.contains(certificate));
        }
    }
}
