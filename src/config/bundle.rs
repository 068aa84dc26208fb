//! A settings file with the files that it names, to be taken to where a daemon will run.

use std::{collections::BTreeMap, path::Path};

use toml::{Table, Value};

use super::{ConfigFile, Error};

/// The settings, and beside them what they name: files of one folder.
#[derive(Debug)]
pub struct Bundle {
    /// By their names; the settings themselves are `config.toml`.
    pub files: BTreeMap<String, Vec<u8>>,
    /// What they say of it, as a flag would.
    pub acme_directory: Option<String>,
}

/// What the settings are called in a bundle.
const SETTINGS: &str = "config.toml";
/// The keys whose values are files end so.
const FILE: &str = "_file";
/// What an object of a cluster takes, less what is around it.
const MOST: usize = 512 * 1024;

impl Bundle {
    /// All that is wrong is reported at once, also what only the daemon would find.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let mut problems = Vec::new();
        ConfigFile::read(path, &mut problems)?;
        let read = |path: &Path| std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source });
        let text = read(path)?;
        let table: Table = String::from_utf8_lossy(&text)
            .parse()
            .map_err(|source| Error::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let mut names = Vec::new();
        named(&Value::Table(table.clone()), &mut names);
        if table.get("acme").and_then(|acme| acme.get("dns")?.get("program")).is_some() {
            problems.push("acme.dns.program: the daemon's pod has no programs; use update or webhook".to_owned());
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut files = BTreeMap::from([(SETTINGS.to_owned(), text)]);
        for name in names {
            if name.contains('/') || name == SETTINGS {
                problems.push(format!("'{name}': put it beside the settings, and name it without a folder"));
            } else if !problems.is_empty() {
                // It may not be there.
            } else {
                files.insert(name.clone(), read(&folder.join(&name))?);
            }
        }
        if files.values().map(Vec::len).sum::<usize>() > MOST {
            problems.push(format!("the settings and the files that they name have more than {MOST} bytes"));
        }
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        let directory = table.get("acme").and_then(|acme| acme.get("directory")?.as_str());
        Ok(Self { files, acme_directory: directory.map(str::to_owned) })
    }
}

/// The files that settings name, in whatever table.
fn named(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                match value.as_str().filter(|_| key.ends_with(FILE)) {
                    Some(name) => names.push(name.to_owned()),
                    None => named(value, names),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| named(value, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(text: &str, more: &[(&str, &str)]) -> Result<Bundle, String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in more.iter().chain(&[("own.toml", text)]) {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Bundle::read(&dir.path().join("own.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn what_settings_name_goes_with_them() {
        let text = "[acme]\ndirectory = 'https://ca.example.com/dir'\neab_key_id = 'k'\neab_key_file = 'eab.key'\n\
                    [acme.dns.update]\nserver = 'ns1.example.com'\nkey_name = 'k'\nkey_file = 'tsig.key'\n";
        let found = bundle(text, &[("eab.key", "YWJj"), ("tsig.key", "YWJj"), ("other", "x")]).unwrap();
        assert_eq!(found.files.keys().collect::<Vec<_>>(), ["config.toml", "eab.key", "tsig.key"]);
        assert_eq!(found.acme_directory.as_deref(), Some("https://ca.example.com/dir"));
    }

    #[test]
    fn what_would_not_be_there_is_refused() {
        let missing = bundle("[acme]\neab_key_id = 'k'\neab_key_file = 'eab.key'\n", &[]).unwrap_err();
        assert!(missing.contains("eab.key cannot be read"), "{missing}");
        let elsewhere = bundle("s3_ca_file = '/etc/ssl/s3.pem'\n", &[]).unwrap_err();
        assert!(elsewhere.contains("put it beside the settings"), "{elsewhere}");
        let program = bundle("[acme.dns]\nprogram = 'hook'\n", &[]).unwrap_err();
        assert!(program.contains("no programs"), "{program}");
        assert!(bundle("lisen = 'x'\n", &[]).unwrap_err().contains("lisen"));
    }
}
