//! Processes of all buildpacks: a later one replaces an earlier one of the same type.

use super::{
    Error, Result,
    types::{GroupElement, LaunchProcess, Process},
};

#[derive(Default)]
pub(super) struct Processes {
    all: Vec<Process>,
    default: Option<String>,
}

impl Processes {
    /// `minor` is the API of the buildpack; `code` the exit code of the phase when something is wrong.
    pub fn add(&mut self, element: &GroupElement, minor: u32, processes: Vec<LaunchProcess>, code: i32) -> Result<()> {
        let wrong = |what: &str| Error::new(code, format!("launch.toml of buildpack {}: {what}", element.id));
        if processes.iter().filter(|process| process.default).count() > 1 {
            return Err(wrong("more than one process is the default"));
        }
        for process in processes {
            let kind = process.r#type;
            let command = match (process.command, minor >= 9) {
                (toml::Value::Array(words), true) => {
                    words.into_iter().map(|word| word.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
                }
                (toml::Value::String(command), false) => Some(vec![command]),
                _ => None,
            };
            let form = if minor >= 9 { "a list of words" } else { "a text" };
            let command = command.filter(|command| !command.is_empty());
            let command = command.ok_or_else(|| wrong(&format!("the command of '{kind}' is not {form}")))?;
            if minor >= 9 && process.direct.is_some() {
                return Err(wrong("'direct' is not in this API"));
            }
            if kind.is_empty() || kind.contains(['/', '>', '<', ':', '|', '&', '\\']) {
                return Err(wrong(&format!("'{kind}' is not a process type")));
            }
            if minor < 8 && process.working_dir.is_some() {
                println!("Warning: the working-dir of '{kind}' is not in the API of buildpack {}", element.id);
            }
            if process.default {
                self.default = Some(kind.clone());
            } else if self.default.as_ref() == Some(&kind) {
                println!("Warning: {} redefines '{kind}', which is not the default any more", element.id);
                self.default = None;
            }
            self.all.retain(|known| known.r#type != kind);
            self.all.push(Process {
                r#type: kind,
                command,
                args: process.args,
                direct: minor >= 9 || process.direct.unwrap_or(false),
                buildpack_id: element.id.clone(),
                working_dir: process.working_dir.filter(|_| minor >= 8),
            });
        }
        Ok(())
    }

    /// All of them by type, and the default.
    pub fn finish(mut self) -> (Vec<Process>, Option<String>) {
        self.all.sort_by(|a, b| a.r#type.cmp(&b.r#type));
        (self.all, self.default)
    }
}
