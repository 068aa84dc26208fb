//! `/layers/config/metadata.toml`, as far as the launcher needs it, and the subset of TOML that it is written in:
//! tables, arrays of tables, strings, booleans and arrays of strings.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::Failure;

#[derive(Default)]
pub struct Metadata {
    /// Id and API, in order.
    pub buildpacks: Vec<(String, String)>,
    pub processes: Vec<Process>,
}

#[derive(Clone, Default)]
pub struct Process {
    pub kind: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub direct: bool,
    pub buildpack: String,
    pub working_dir: Option<String>,
}

enum Value {
    Text(String),
    List(Vec<String>),
    Flag(bool),
}

impl Metadata {
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = fs::read_to_string(path).map_err(|error| Failure::new(format!("read {}: {error}", path.display())))?;
        Self::parse(&text).map_err(|why| Failure::new(format!("read {}: {why}", path.display())))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut metadata = Self::default();
        let mut table = String::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('[') {
                table = name.trim_matches(['[', ']']).to_owned();
                match table.as_str() {
                    "buildpacks" => metadata.buildpacks.push(Default::default()),
                    "processes" => metadata.processes.push(Process::default()),
                    _ => {}
                }
                continue;
            }
            let (key, value) = line.split_once('=').ok_or_else(|| format!("cannot read '{line}'"))?;
            let (key, value) = (key.trim().trim_matches('"'), value.trim());
            match (table.as_str(), metadata.buildpacks.last_mut(), metadata.processes.last_mut()) {
                ("buildpacks", Some(buildpack), _) => match (key, parse(value)?) {
                    ("id", Value::Text(id)) => buildpack.0 = id,
                    ("api", Value::Text(api)) => buildpack.1 = api,
                    _ => {}
                },
                ("processes", _, Some(process)) => process.set(key, parse(value)?),
                _ => {}
            }
        }
        Ok(metadata)
    }

    /// The layers of each buildpack, in order. Links are no layers.
    pub fn layer_folders(&self, layers: &Path) -> Vec<Vec<PathBuf>> {
        let of = |id: &str| {
            let folder = layers.join(id.replace('/', "_"));
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            let mut folders: Vec<PathBuf> =
                entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect();
            folders.sort();
            folders
        };
        self.buildpacks.iter().map(|(id, _)| of(id)).collect()
    }
}

impl Process {
    fn set(&mut self, key: &str, value: Value) {
        match (key, value) {
            ("type", Value::Text(kind)) => self.kind = kind,
            ("command", Value::List(command)) => self.command = command,
            ("args", Value::List(args)) => self.args = args,
            ("direct", Value::Flag(direct)) => self.direct = direct,
            ("buildpack-id", Value::Text(id)) => self.buildpack = id,
            ("working-dir", Value::Text(dir)) if !dir.is_empty() => self.working_dir = Some(dir),
            _ => {}
        }
    }
}

/// A flat table of strings.
pub fn strings(text: &str) -> Result<Vec<(String, String)>, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (key, value) = line.split_once('=').ok_or_else(|| format!("cannot read '{line}'"))?;
            match parse(value.trim())? {
                Value::Text(value) => Ok((key.trim().trim_matches(['"', '\'']).to_owned(), value)),
                _ => Err(format!("'{}' is not a string", key.trim())),
            }
        })
        .collect()
}

fn parse(text: &str) -> Result<Value, String> {
    match text {
        "true" => return Ok(Value::Flag(true)),
        "false" => return Ok(Value::Flag(false)),
        _ => {}
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        let mut list = Vec::new();
        let mut rest = inner.trim();
        while !rest.is_empty() {
            let (value, after) = string(rest)?;
            list.push(value);
            rest = after.trim_start().trim_start_matches(',').trim_start();
        }
        return Ok(Value::List(list));
    }
    string(text).map(|(value, _)| Value::Text(value))
}

/// A string at the beginning of a text, and what comes after it.
fn string(text: &str) -> Result<(String, &str), String> {
    let wrong = || format!("cannot read the value '{text}'");
    if let Some(literal) = text.strip_prefix('\'') {
        let (value, rest) = literal.split_once('\'').ok_or_else(wrong)?;
        return Ok((value.to_owned(), rest));
    }
    let body = text.strip_prefix('"').ok_or_else(wrong)?;
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &body[at + 1..])),
            '\\' => match chars.next().ok_or_else(wrong)?.1 {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'r' => value.push('\r'),
                'b' => value.push('\u{8}'),
                'f' => value.push('\u{c}'),
                'e' => value.push('\u{1b}'),
                kind @ ('u' | 'U') => {
                    let length = if kind == 'u' { 4 } else { 8 };
                    let digits: String = chars.by_ref().take(length).map(|(_, c)| c).collect();
                    let code = u32::from_str_radix(&digits, 16).map_err(|_| wrong())?;
                    value.push(char::from_u32(code).ok_or_else(wrong)?);
                }
                other => value.push(other),
            },
            c => value.push(c),
        }
    }
    Err(wrong())
}
