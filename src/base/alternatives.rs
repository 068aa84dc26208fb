//! `update-alternatives` without running anything: what post-installation scripts declare in plain words.
//!
//! Lines with variables are passed over; the few that matter are in the definition (`links`).

/// A link and what it points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Declared {
    /// Without the slash in front.
    pub link: String,
    /// Absolute.
    pub target: String,
    pub priority: i64,
}

/// The alternatives that a script installs, slaves included.
pub(super) fn declared(script: &str) -> Vec<Declared> {
    let script = script.replace("\\\n", " ");
    let commands = script.lines().filter_map(|line| {
        let line = line.trim_start();
        let start = line.find("update-alternatives ")?;
        (!line.starts_with('#')).then(|| command(&line[start..]))
    });
    commands.flatten().collect()
}

fn command(text: &str) -> Vec<Declared> {
    let end = text.find([';', '|', '&', '>', '#']).unwrap_or(text.len());
    let words: Vec<&str> = text[..end].split_whitespace().map(|word| word.trim_matches(['"', '\''])).collect();
    if words.iter().any(|word| word.contains(['$', '`'])) {
        return Vec::new();
    }
    let Some(install) = words.iter().position(|word| *word == "--install") else { return Vec::new() };
    let [link, _name, target, priority, rest @ ..] = &words[install + 1..] else { return Vec::new() };
    let Ok(priority) = priority.parse() else { return Vec::new() };
    let mut declared = vec![(*link, *target)];
    let mut rest = rest;
    while let ["--slave", link, _name, target, more @ ..] = rest {
        declared.push((*link, *target));
        rest = more;
    }
    let absolute = declared.into_iter().filter(|(link, target)| link.starts_with('/') && target.starts_with('/'));
    absolute
        .map(|(link, target)| Declared { link: link[1..].to_owned(), target: target.to_owned(), priority })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_declarations_are_read_and_variables_passed_over() {
        let script = "#!/bin/sh\nset -e\nif [ \"$1\" = configure ]; then\n\
            \tupdate-alternatives --quiet --install /usr/bin/awk awk /usr/bin/mawk 5 \\\n\
            \t  --slave /usr/bin/nawk nawk /usr/bin/mawk \\\n\
            \t  --slave /usr/share/man/man1/awk.1.gz awk.1.gz /usr/share/man/man1/mawk.1.gz || true\n\
            \t# update-alternatives --install /usr/bin/no no /usr/bin/x 1\n\
            \tupdate-alternatives --install /usr/bin/$name $name /usr/bin/x 1\n\
            \tupdate-alternatives --remove awk /usr/bin/mawk\nfi\n";
        let read: Vec<_> = declared(script).into_iter().map(|d| (d.link, d.target, d.priority)).collect();
        assert_eq!(read.len(), 3);
        assert_eq!(read[0], ("usr/bin/awk".to_owned(), "/usr/bin/mawk".to_owned(), 5));
        assert_eq!(read[1], ("usr/bin/nawk".to_owned(), "/usr/bin/mawk".to_owned(), 5));
    }
}
