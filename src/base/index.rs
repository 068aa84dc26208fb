//! The package index in a compact file, made for looking up a few hundred names.
//!
//! Debian's three indexes are 59 MB of text. What resolving needs of them is written once to a file of
//! lines sorted by name, with a sparse table of names at its end; a look-up reads one block of it. The
//! daemon keeps nothing of it in memory.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
};

use super::{
    Archive, Package,
    package::{Relations, provided},
    version,
};
use crate::model::Digest;

/// An index on disk.
pub(super) struct PackageIndex {
    file: File,
    /// The first name of each block and where the block starts; the last entry is the end.
    blocks: Vec<(String, u64)>,
}

/// A package that the index has under its own name or as what it provides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Real { package: Package, relations: Relations },
    Provider { name: String, version: Option<String> },
}

const MAGIC: &[u8; 8] = b"epidx\0\0\x01";
const BLOCK_BYTES: u64 = 16 * 1024;

impl PackageIndex {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the package index is damaged");
        let length = file.metadata()?.len();
        let mut tail = [0; 16];
        file.read_exact_at(&mut tail, length.checked_sub(16).ok_or_else(damaged)?)?;
        let (magic, position) = tail.split_at(8);
        let table = u64::from_be_bytes(position.try_into().map_err(|_| damaged())?);
        if magic != MAGIC || table > length - 16 {
            return Err(damaged());
        }
        let mut reader = BufReader::new(&file);
        reader.seek(io::SeekFrom::Start(table))?;
        let mut blocks = Vec::new();
        for line in reader.take(length - 16 - table).lines() {
            let line = line?;
            let (start, name) = line.split_once('\t').ok_or_else(damaged)?;
            blocks.push((name.to_owned(), start.parse().map_err(|_| damaged())?));
        }
        blocks.push((String::new(), table));
        Ok(Self { file, blocks })
    }

    /// The package of this name first, then those that provide the name, in order of their names.
    pub(super) fn look_up(&self, name: &str) -> io::Result<Vec<Found>> {
        let after = self.blocks[..self.blocks.len() - 1].partition_point(|(first, _)| first.as_str() <= name);
        let Some(block) = after.checked_sub(1) else { return Ok(Vec::new()) };
        let (start, end) = (self.blocks[block].1, self.blocks[block + 1].1);
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(start)).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, start)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().filter(|line| line.split('\t').next() == Some(name));
        Ok(lines.filter_map(parse_line).collect())
    }

    /// Up to five names of packages that somebody may have meant by this one.
    pub(super) fn near(&self, name: &str) -> io::Result<Vec<String>> {
        let mut reader = BufReader::new(&self.file);
        reader.rewind()?;
        let mut near: Vec<(usize, String)> = Vec::new();
        for line in reader.take(self.blocks.last().map_or(0, |(_, end)| *end)).lines() {
            let line = line?;
            let Some(Found::Real { package, .. }) = parse_line(&line) else { continue };
            if let Some(distance) = distance(name, &package.name) {
                near.push((distance, package.name));
            }
        }
        near.sort();
        near.truncate(5);
        Ok(near.into_iter().map(|(_, name)| name).collect())
    }
}

/// Collects stanzas; the newest version of a name wins.
///
/// All lines are in one buffer, so that what the making takes is a few large allocations, which go back to the system.
#[derive(Default)]
pub(super) struct IndexBuilder {
    text: String,
    /// Where in the text each line is.
    lines: Vec<Range<usize>>,
}

impl IndexBuilder {
    /// Takes the stanzas of an uncompressed `Packages` file.
    pub(super) fn add(&mut self, archive: Archive, packages: impl Read) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(256 * 1024, packages);
        let (mut stanza, mut line) = (Stanza::default(), String::new());
        loop {
            line.clear();
            let more = reader.read_line(&mut line)? != 0;
            let text = line.trim_end_matches('\n');
            if text.is_empty() {
                self.add_stanza(&stanza, archive);
                stanza.clear();
            } else if let Some((name, value)) = text.split_once(": ") {
                stanza.set(name, value);
            }
            if !more {
                return Ok(());
            }
        }
    }

    fn add_stanza(&mut self, stanza: &Stanza, archive: Archive) {
        let Stanza { name, version, architecture, filename, size, sha256, depends, provides } = stanza;
        if name.is_empty() || sha256.is_empty() || size.is_empty() {
            return;
        }
        let archive = if archive == Archive::Security { "s" } else { "d" };
        self.add_line(&[name, version, architecture, archive, filename, size, sha256, depends, provides]);
    }

    fn add_line(&mut self, fields: &[&str]) {
        let start = self.text.len();
        for (number, field) in fields.iter().enumerate() {
            if number > 0 {
                self.text.push('\t');
            }
            self.text.push_str(field);
        }
        self.lines.push(start..self.text.len());
    }

    /// Leaves only the newest version of each name, then adds what these provide.
    fn finish(&mut self) -> usize {
        let text = &self.text;
        let fields = |line: &Range<usize>| {
            let mut fields = text[line.clone()].split('\t');
            (fields.next().unwrap_or(""), fields.next().unwrap_or(""))
        };
        self.lines.sort_by(|a, b| {
            let ((a, a_version), (b, b_version)) = (fields(a), fields(b));
            a.cmp(b).then_with(|| version::compare(b_version, a_version))
        });
        self.lines.dedup_by(|later, first| fields(later).0 == fields(first).0);
        let packages = self.lines.len();
        for number in 0..packages {
            let line = self.text[self.lines[number].clone()].to_owned();
            let (name, provides) = (line.split('\t').next().unwrap_or(""), line.rsplit('\t').next().unwrap_or(""));
            for (virtual_name, version) in provided(provides) {
                self.add_line(&[virtual_name, PROVIDER, name, version.unwrap_or("")]);
            }
        }
        let text = &self.text;
        let key = |line: &Range<usize>| text[line.clone()].split_once('\t').unwrap_or_default();
        self.lines.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
        packages
    }

    /// Writes the index and returns how many packages it has. The file is durable when this returns.
    pub(super) fn write(mut self, path: &Path) -> io::Result<usize> {
        let packages = self.finish();
        let mut file = BufWriter::new(File::create(path)?);
        let (mut position, mut table, mut block) = (0, Vec::new(), None::<u64>);
        let mut previous = "";
        for line in self.lines.iter().map(|line| &self.text[line.clone()]) {
            let name = line.split('\t').next().unwrap_or("");
            let full = block.is_none_or(|start| position - start >= BLOCK_BYTES);
            if full && previous != name {
                block = Some(position);
                writeln!(table, "{position}\t{name}")?;
            }
            previous = name;
            writeln!(file, "{line}")?;
            position += line.len() as u64 + 1;
        }
        file.write_all(&table)?;
        file.write_all(MAGIC)?;
        file.write_all(&position.to_be_bytes())?;
        file.into_inner()?.sync_all()?;
        Ok(packages)
    }
}

/// Stands where a package has its version, and sorts after all versions.
const PROVIDER: &str = "\u{7f}";

/// The fields of a stanza that resolving needs.
#[derive(Default)]
struct Stanza {
    name: String,
    version: String,
    architecture: String,
    filename: String,
    size: String,
    sha256: String,
    depends: String,
    provides: String,
}

impl Stanza {
    fn set(&mut self, field: &str, value: &str) {
        let place = match field {
            "Package" => &mut self.name,
            "Version" => &mut self.version,
            "Architecture" => &mut self.architecture,
            "Filename" => &mut self.filename,
            "Size" => &mut self.size,
            "SHA256" => &mut self.sha256,
            "Provides" => &mut self.provides,
            "Depends" | "Pre-Depends" => &mut self.depends,
            _ => return,
        };
        if !place.is_empty() {
            place.push_str(", ");
        }
        // A tab would end the field in our file.
        place.extend(value.chars().map(|c| if c == '\t' { ' ' } else { c }));
    }

    fn clear(&mut self) {
        let Self { name, version, architecture, filename, size, sha256, depends, provides } = self;
        for field in [name, version, architecture, filename, size, sha256, depends, provides] {
            field.clear();
        }
    }
}

fn parse_line(line: &str) -> Option<Found> {
    let mut fields = line.split('\t');
    let mut next = || fields.next();
    let (name, version) = (next()?, next()?);
    if version == PROVIDER {
        let (name, version) = (next()?.to_owned(), next().filter(|version| !version.is_empty()));
        return Some(Found::Provider { name, version: version.map(str::to_owned) });
    }
    let architecture = next()?.to_owned();
    let archive = if next()? == "s" { Archive::Security } else { Archive::Debian };
    let (filename, size) = (next()?.to_owned(), next()?.parse().ok()?);
    let sha256 = Digest::from_hex(next()?).ok()?;
    let relations = Relations { depends: next()?.to_owned(), provides: next()?.to_owned() };
    let (name, version) = (name.to_owned(), version.to_owned());
    Some(Found::Real { package: Package { name, version, architecture, archive, filename, size, sha256 }, relations })
}

/// How far apart two names are (edits, at most two for short names); a name that starts with the other is near too.
fn distance(asked: &str, name: &str) -> Option<usize> {
    let allowed = if asked.len() < 5 { 1 } else { 2 };
    if asked.len().abs_diff(name.len()) > allowed {
        let starts = asked.len() >= 4 && name.starts_with(asked) && name.len() <= asked.len() + 8;
        return starts.then_some(3);
    }
    let (asked, name) = (asked.as_bytes(), name.as_bytes());
    let mut row: Vec<usize> = (0..=name.len()).collect();
    for (i, a) in asked.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in name.iter().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().filter(|edits| *edits <= allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stanza(name: &str, version: &str, more: &str) -> String {
        let hash = Digest::of(name).hex();
        format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\n{more}Filename: pool/{name}.deb\nSize: 7\nSHA256: {hash}\n\n"
        )
    }

    fn index(suites: &[(Archive, String)]) -> (tempfile::TempDir, PackageIndex) {
        let folder = tempfile::tempdir().unwrap();
        let mut builder = IndexBuilder::default();
        for (archive, text) in suites {
            builder.add(*archive, text.as_bytes()).unwrap();
        }
        let path = folder.path().join("index");
        builder.write(&path).unwrap();
        (folder, PackageIndex::open(&path).unwrap())
    }

    #[test]
    fn the_newest_version_of_all_suites_is_found() {
        let (_folder, index) = index(&[
            (Archive::Debian, stanza("a", "1.0-1", "") + &stanza("b", "2", "")),
            (Archive::Security, stanza("a", "1.0-1+deb13u1", "Depends: b\nPre-Depends: c\n") + &stanza("b", "1", "")),
        ]);
        let [Found::Real { package, relations }] = &index.look_up("a").unwrap()[..] else { panic!("not found") };
        assert_eq!((package.version.as_str(), package.archive), ("1.0-1+deb13u1", Archive::Security));
        assert_eq!(relations.depends, "b, c");
        let [Found::Real { package, .. }] = &index.look_up("b").unwrap()[..] else { panic!("not found") };
        assert_eq!((package.version.as_str(), package.archive), ("2", Archive::Debian));
        assert!(index.look_up("0").unwrap().is_empty() && index.look_up("zz").unwrap().is_empty());
    }

    #[test]
    fn every_name_is_found_in_an_index_of_many_blocks() {
        let names: Vec<String> = (0..3000).map(|i| format!("package-{i}")).collect();
        let text: String = names.iter().map(|name| stanza(name, "1", "Provides: every (= 2)\n")).collect();
        let (_folder, index) = index(&[(Archive::Debian, text)]);
        assert!(index.blocks.len() > 10);
        for name in &names {
            assert_eq!(index.look_up(name).unwrap().len(), 1, "{name}");
        }
        assert_eq!(index.look_up("every").unwrap().len(), 3000);
    }

    #[test]
    fn near_names_are_offered() {
        let names = ["nodejs", "nodejs-doc", "python3", "python3-venv", "ruby"];
        let text: String = names.iter().map(|name| stanza(name, "1", "")).collect();
        let (_folder, index) = index(&[(Archive::Debian, text)]);
        assert_eq!(index.near("nodjs").unwrap(), ["nodejs"]);
        assert_eq!(index.near("pyton3").unwrap(), ["python3"]);
        assert_eq!(index.near("node").unwrap(), ["nodejs", "nodejs-doc"]);
        assert!(index.near("fortran-compiler").unwrap().is_empty());
    }
}
