//! Whether a version satisfies a range of npm: `||`, hyphens, `^ ~ >= > <= < =`, and `x`.

/// `None` when the range cannot be read.
pub(super) fn satisfies(range: &str, version: &str) -> Option<bool> {
    let version = parse(version)?.filled();
    let mut any = false;
    for alternative in range.split("||") {
        any |= all(alternative.trim(), version)?;
    }
    Some(any)
}

type Version = [u64; 3];

/// A version of which the end may be missing.
#[derive(Clone, Copy)]
struct Partial {
    parts: Version,
    given: usize,
}

impl Partial {
    fn filled(self) -> Version {
        self.parts
    }

    /// The first version above all that begin with the first `kept` parts.
    fn after(self, kept: usize) -> Version {
        let mut next = [0; 3];
        if kept == 0 {
            return [u64::MAX; 3];
        }
        next[..kept].copy_from_slice(&self.parts[..kept]);
        next[kept - 1] += 1;
        next
    }
}

fn all(text: &str, version: Version) -> Option<bool> {
    if let Some((low, high)) = text.split_once(" - ") {
        let (low, high) = (parse(low.trim())?, parse(high.trim())?);
        return Some(version >= low.filled() && version < high.after(high.given));
    }
    let mut result = true;
    let mut operator = String::new();
    for word in text.split_whitespace() {
        operator.push_str(word);
        if word.chars().all(|c| "<>=^~".contains(c)) {
            continue;
        }
        result &= one(&operator, version)?;
        operator.clear();
    }
    operator.is_empty().then_some(result)
}

fn one(text: &str, version: Version) -> Option<bool> {
    let start = text.find(|c| !"<>=^~".contains(c)).unwrap_or(text.len());
    let (operator, rest) = text.split_at(start);
    let wanted = parse(rest)?;
    let low = wanted.filled();
    Some(match operator {
        "" | "=" => version >= low && version < wanted.after(wanted.given),
        ">=" => version >= low,
        ">" => version >= if wanted.given == 3 { [low[0], low[1], low[2] + 1] } else { wanted.after(wanted.given) },
        "<" => version < low,
        "<=" => version < wanted.after(wanted.given),
        "~" => version >= low && version < wanted.after(wanted.given.min(2)),
        "^" => {
            let first = low.iter().position(|part| *part != 0).unwrap_or(2) + 1;
            version >= low && version < wanted.after(first.min(wanted.given.max(1)).min(wanted.given))
        }
        _ => return None,
    })
}

fn parse(text: &str) -> Option<Partial> {
    let text = text.trim().trim_start_matches('v');
    let text = text.split(['-', '+']).next()?;
    let mut partial = Partial { parts: [0; 3], given: 0 };
    if text.is_empty() {
        return Some(partial);
    }
    for part in text.split('.') {
        if ["x", "X", "*"].contains(&part) {
            break;
        }
        *partial.parts.get_mut(partial.given)? = part.parse().ok()?;
        partial.given += 1;
    }
    Some(partial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_npm_reads_them() {
        for (range, expected) in [
            (">=18", Some(true)),
            (">= 18.0.0", Some(true)),
            ("20.x", Some(true)),
            ("20", Some(true)),
            ("^20.9.0", Some(true)),
            ("^18 || ^20 || >=22", Some(true)),
            ("18 - 20", Some(true)),
            ("*", Some(true)),
            ("", Some(true)),
            ("~20.19.0", Some(true)),
            (">=18 <21", Some(true)),
            ("<=20", Some(true)),
            ("22.x", Some(false)),
            (">=20.19.3", Some(false)),
            (">20", Some(false)),
            ("^22", Some(false)),
            ("~20.18", Some(false)),
            ("18.x || 19.x", Some(false)),
            ("<20", Some(false)),
            ("lts/*", None),
        ] {
            assert_eq!(satisfies(range, "v20.19.2"), expected, "{range}");
        }
        assert_eq!(satisfies("^0.2.3", "0.2.9"), Some(true));
        assert_eq!(satisfies("^0.2.3", "0.3.0"), Some(false));
    }
}
