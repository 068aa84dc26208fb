//! Slices: the application in several layers, by patterns, so that what seldom changes is not sent again.
//!
//! Patterns are those of Go's `filepath.Match`: `*` and `?` stay within a name, `[a-z]` and `[^a-z]` are classes, `\`
//! takes the next character as it is.

use std::{collections::BTreeSet, fs, io, os::unix::ffi::OsStringExt as _, path::Path};

use super::{tar, types::Slice};

/// So many patterns may an application have.
const MAX_PATTERNS: usize = 1024;

/// A path relative to the application; the application itself is empty.
pub(super) type Name = Vec<u8>;

/// The entries of each slice, and last those that are in none, each in the order of its layer: that of whole paths.
pub(super) fn split(app: &Path, slices: &[Slice]) -> io::Result<Vec<Vec<Name>>> {
    if slices.iter().map(|slice| slice.paths.len()).sum::<usize>() > MAX_PATTERNS {
        return Err(invalid(format!("the slices have more than {MAX_PATTERNS} patterns")));
    }
    let mut all = vec![Entry { name: Vec::new(), taken: false }];
    walk(app, &mut all, 0)?;
    let mut layers = Vec::new();
    for slice in slices {
        let mut names = BTreeSet::new();
        for pattern in &slice.paths {
            if let Some(pattern) = Pattern::parse(pattern)? {
                take(&mut all, &pattern, &mut names);
            }
        }
        layers.push(names.into_iter().collect());
    }
    take_parents_of_taken(&mut all);
    let mut rest: Vec<Name> = all.into_iter().filter(|entry| !entry.taken).map(|entry| entry.name).collect();
    rest.sort();
    layers.push(rest);
    Ok(layers)
}

/// In order of a walk: a folder, then all that is below it.
struct Entry {
    name: Name,
    taken: bool,
}

impl Entry {
    fn is_below(&self, folder: &[u8]) -> bool {
        folder.is_empty() || self.name.strip_prefix(folder).is_some_and(|rest| rest.first() == Some(&b'/'))
    }
}

fn walk(app: &Path, all: &mut Vec<Entry>, at: usize) -> io::Result<()> {
    let parent = all[at].name.clone();
    let folder = tar::place(app, &parent);
    let children = fs::read_dir(&folder).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    for child in children.map_err(|error| tar::at(&folder, error))? {
        let is_folder = child.file_type().map_err(|error| tar::at(&child.path(), error))?.is_dir();
        let mut name = parent.clone();
        if !name.is_empty() {
            name.push(b'/');
        }
        name.extend(child.file_name().into_vec());
        all.push(Entry { name, taken: false });
        if is_folder {
            walk(app, all, all.len() - 1)?;
        }
    }
    Ok(())
}

/// Takes what matches, with all below it and the folders above it, unless an earlier slice has it.
fn take(all: &mut [Entry], pattern: &Pattern, names: &mut BTreeSet<Name>) {
    let mut at = 0;
    while at < all.len() {
        if all[at].taken || !pattern.matches(&all[at].name) {
            at += 1;
            continue;
        }
        let top = all[at].name.clone();
        names.insert(Vec::new());
        names.extend(top.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| top[..end].to_vec()));
        all[at].taken = true;
        names.insert(top.clone());
        at += 1;
        while at < all.len() && all[at].is_below(&top) {
            if !std::mem::replace(&mut all[at].taken, true) {
                names.insert(all[at].name.clone());
            }
            at += 1;
        }
    }
}

/// A folder of which everything is taken is taken.
fn take_parents_of_taken(all: &mut [Entry]) {
    for at in (0..all.len()).rev() {
        let below = all[at + 1..].iter().take_while(|entry| entry.is_below(&all[at].name));
        let mut left = below.map(|entry| entry.taken).peekable();
        if left.peek().is_some() && left.all(|taken| taken) {
            all[at].taken = true;
        }
    }
}

/// A pattern, name by name.
struct Pattern(Vec<Vec<Token>>);

enum Token {
    Any,
    AnyOne,
    One(char),
    Class { excluded: bool, ranges: Vec<(char, char)> },
}

impl Pattern {
    /// None for one that leaves the application, which matches nothing.
    fn parse(text: &str) -> io::Result<Option<Self>> {
        let mut names = Vec::new();
        for name in text.split('/') {
            match name {
                "" | "." => {}
                ".." if names.pop().is_none() => return Ok(None),
                ".." => {}
                name => {
                    let wrong = || invalid(format!("'{text}' is not a pattern of a slice"));
                    names.push(tokens(name).ok_or_else(wrong)?);
                }
            }
        }
        Ok(Some(Self(names)))
    }

    fn matches(&self, name: &[u8]) -> bool {
        if name.is_empty() {
            return self.0.is_empty();
        }
        let names: Vec<_> = name.split(|byte| *byte == b'/').collect();
        names.len() == self.0.len() && names.iter().zip(&self.0).all(|(name, tokens)| matches_name(tokens, name))
    }
}

/// None when the pattern is malformed.
fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(char) = rest.next() {
        tokens.push(match char {
            '*' => Token::Any,
            '?' => Token::AnyOne,
            '\\' => Token::One(rest.next()?),
            '[' => {
                let excluded = rest.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                while ranges.is_empty() || rest.next_if_eq(&']').is_none() {
                    let low = bound(&mut rest)?;
                    let high = if rest.next_if_eq(&'-').is_some() { bound(&mut rest)? } else { low };
                    ranges.push((low, high));
                }
                Token::Class { excluded, ranges }
            }
            other => Token::One(other),
        });
    }
    Some(tokens)
}

/// One end of a range in a class.
fn bound(rest: &mut impl Iterator<Item = char>) -> Option<char> {
    match rest.next()? {
        '-' | ']' => None,
        '\\' => rest.next(),
        other => Some(other),
    }
}

fn matches_name(tokens: &[Token], name: &[u8]) -> bool {
    let name: Vec<char> = String::from_utf8_lossy(name).chars().collect();
    let (mut token, mut char) = (0, 0);
    // Where to go on when what follows the last `*` does not fit: it takes one character more.
    let mut retry = None;
    while char < name.len() {
        let fits = match tokens.get(token) {
            Some(Token::Any) => {
                retry = Some((token + 1, char));
                token += 1;
                continue;
            }
            Some(Token::AnyOne) => true,
            Some(Token::One(wanted)) => *wanted == name[char],
            Some(Token::Class { excluded, ranges }) => {
                ranges.iter().any(|(low, high)| (low..=high).contains(&&name[char])) != *excluded
            }
            None => false,
        };
        if fits {
            (token, char) = (token + 1, char + 1);
        } else if let Some((after, from)) = &mut retry {
            *from += 1;
            (token, char) = (*after, *from);
        } else {
            return false;
        }
    }
    tokens[token..].iter().all(|token| matches!(token, Token::Any))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_go() {
        let cases = [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "abc/b", false),
            ("a*/b", "abc/b", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[^e-g]", "abc", true),
            ("ab[^b-d]", "abc", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "aäb", true),
            ("./a/", "a", true),
            ("x/../a", "a", true),
            ("*.js", "b/a.js", false),
        ];
        for (pattern, name, expected) in cases {
            let parsed = Pattern::parse(pattern).unwrap().unwrap();
            assert_eq!(parsed.matches(name.as_bytes()), expected, "{pattern} {name}");
        }
        for bad in ["[", "a[", "[]a]", "[-x]", "[x-]", "a\\", "[a-", "[^]"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
        assert!(Pattern::parse("../a").unwrap().is_none());
    }

    #[test]
    fn an_application_is_split_as_by_the_real_exporter() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/b", "a-b", "lib/x.js", "lib/y.js", "lib/deep/z.js", "static/logo"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let names = |layer: &Vec<Name>| {
            let names = layer.iter().map(|name| String::from_utf8(name.clone()).unwrap());
            names.collect::<Vec<_>>().join(" ")
        };
        let slice = |paths: &[&str]| Slice { paths: paths.iter().map(ToString::to_string).collect() };
        let slices = [slice(&["lib/*.js"]), slice(&["static", "lib"]), slice(&["nothing", "../x"])];
        let layers = split(dir.path(), &slices).unwrap();
        let shown: Vec<_> = layers.iter().map(names).collect();
        assert_eq!(
            shown,
            [" lib lib/x.js lib/y.js", " lib lib/deep lib/deep/z.js static static/logo", "", " a a-b a/b"]
        );
        let everything = split(dir.path(), &[slice(&["*"])]).unwrap();
        assert_eq!(names(&everything[1]), "");
        assert_eq!(split(dir.path(), &[]).unwrap().len(), 1);
    }
}
