//! `epiniod completion`: scripts that the shells themselves take, and complete with.

use std::process::Command;

use crate::support::{epiniod, not_run};

/// Runs a shell with the script in `$1`; what it says.
fn shell(name: &str, script: &str) -> Option<String> {
    let made = Command::new(epiniod()).args(["completion", name]).output().expect("epiniod");
    assert!(made.status.success() && made.stderr.is_empty(), "{made:?}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("_epiniod");
    std::fs::write(&path, made.stdout).unwrap();
    let Ok(output) = Command::new(name).arg("-c").arg(script).arg("shell").arg(&path).output() else {
        assert!(std::env::var_os("EPINIOD_TEST_TOOLS").is_none(), "{name} is not installed");
        not_run(&format!("completion for {name}: it is not installed"));
        return None;
    };
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && errors.is_empty(), "{name}: {} {said}{errors}", output.status);
    Some(said.into_owned())
}

#[test]
fn bash_completes_commands_flags_and_values() {
    let complete = r#"
        bash -n "$1" && source "$1" && complete -p epiniod >/dev/null || exit 1
        complete_line() {
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
            _epiniod epiniod "${@: -1}" "${@: -2:1}"
            echo "${COMPREPLY[*]}"
        }
        complete_line epiniod comp
        complete_line epiniod apps po
        complete_line epiniod serve --listen-
        complete_line epiniod push --out
        complete_line epiniod apps list --output js
        complete_line epiniod life"#;
    let said = shell("bash", complete).expect("bash is there: the gate is in it");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..3], ["completion", "port-forward", "--listen-tls"], "{said}");
    assert_eq!(lines[4..], ["json", ""], "values, and nothing that is hidden: {said}");
}

#[test]
fn zsh_takes_the_script() {
    let Some(said) = shell(
        "zsh",
        r#"zsh -n "$1" && fpath=("${1:h}" $fpath) && autoload -Uz compinit &&
            compinit -D -u && echo "$_comps[epiniod]""#,
    ) else {
        return;
    };
    assert_eq!(said.trim(), "_epiniod", "it is what completes epiniod");
}

#[test]
fn fish_completes_commands_and_flags() {
    // Its first argument is what others have as the name.
    let complete = r#"fish -n $argv[2]; and source $argv[2]
        complete -C "epiniod comp"; complete -C "epiniod apps port"; complete -C "epiniod serve --listen-t""#;
    let Some(said) = shell("fish", complete) else { return };
    let words: Vec<&str> = said.lines().filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(words, ["completion", "port-forward", "--listen-tls"], "{said}");
}
