//! The direction of arrows between rooms, as `src/lib.rs` describes it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Rooms in layers: a room may use rooms of later layers only.
const LAYERS: [&[&str]; 11] = [
    &["cli"],
    &["daemon"],
    &["api", "dashboard", "edge"],
    &["staging", "apps"],
    &["source"],
    &["builders"],
    &["lifecycle", "base", "acme", "auth", "buildpacks"],
    &["runtime", "launcher"],
    &["oci"],
    &["blob", "store"],
    &["model"],
];
/// Rooms that only some may use, and which.
const ONLY_FROM: [(&str, &[&str]); 1] = [("config", &["cli", "daemon"])];
/// Programs of their own, compiled apart.
const SEPARATE: [&str; 2] = ["launcher/program", "runtime/local/monitor"];
/// Rooms that all may use.
const FROM_ANYWHERE: [&str; 1] = ["telemetry"];

#[test]
fn arrows_between_rooms_go_one_way() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = BTreeSet::new();
    let mut arrows = 0;
    for file in rust_files(&src) {
        let relative = file.strip_prefix(&src).expect("a file below src");
        let Some(room) = room_of(relative) else { continue };
        for used in rooms_used(&fs::read_to_string(&file).expect("a readable source file")) {
            arrows += usize::from(used != room);
            if !may_use(&room, &used) {
                wrong.insert(format!("{} uses crate::{used}", relative.display()));
            }
        }
    }
    assert!(arrows > 50, "only {arrows} arrows were found: the search is broken");
    assert!(wrong.is_empty(), "arrows against the direction of src/lib.rs:\n{wrong:#?}");
}

#[test]
fn every_room_has_its_place() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in rust_files(&src) {
        let relative = file.strip_prefix(&src).expect("a file below src");
        assert!(!relative.ends_with("mod.rs"), "{} is a mod.rs", relative.display());
        let Some(room) = room_of(relative) else { continue };
        let known = layer(&room).is_some()
            || FROM_ANYWHERE.contains(&room.as_str())
            || ONLY_FROM.iter().any(|(name, _)| *name == room);
        assert!(known, "room '{room}' is in no layer of this test");
    }
}

fn may_use(room: &str, used: &str) -> bool {
    if room == used || FROM_ANYWHERE.contains(&used) {
        return true;
    }
    if let Some((_, users)) = ONLY_FROM.iter().find(|(name, _)| *name == used) {
        return users.contains(&room);
    }
    match (layer(room), layer(used)) {
        (Some(from), Some(to)) => from < to,
        // `config` and `telemetry` are plain data: they may name the settings of rooms that they configure.
        (None, Some(_)) => true,
        (_, None) => false,
    }
}

fn layer(room: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&room))
}

/// `None` for main.rs, lib.rs and what is compiled apart.
fn room_of(relative: &Path) -> Option<String> {
    if SEPARATE.iter().any(|program| relative.starts_with(program)) {
        return None;
    }
    let first = relative.components().next()?.as_os_str().to_str()?;
    let room = first.strip_suffix(".rs").unwrap_or(first);
    (!matches!(room, "main" | "lib")).then(|| room.to_owned())
}

/// The rooms that a source text names by `crate::room`, also in `use crate::{a::…, b::…}`.
fn rooms_used(text: &str) -> BTreeSet<String> {
    let code: String =
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut rooms = BTreeSet::new();
    for (start, _) in code.match_indices("crate::") {
        let rest = &code[start + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => rooms.extend(identifier(rest)),
            Some(group) => rooms.extend(first_of_each(group)),
        }
    }
    rooms
}

/// The first identifier of every entry of a `use` group, not of groups inside it.
fn first_of_each(group: &str) -> Vec<String> {
    let (mut depth, mut entry, mut rooms) = (0, true, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return rooms,
            '}' => depth -= 1,
            ',' if depth == 0 => entry = true,
            c if entry && depth == 0 && c.is_alphabetic() => {
                rooms.extend(identifier(&group[at..]));
                entry = false;
            }
            _ => {}
        }
    }
    rooms
}

fn identifier(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let name = &text[..end];
    // An item of the crate's root (a constant, `Result`) is not a room.
    (!name.is_empty() && name.chars().all(|c| c.is_lowercase() || c == '_')).then(|| name.to_owned())
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("a readable folder") {
        let path = entry.expect("a folder entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
